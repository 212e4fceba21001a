//! Random numbers that depend on nothing but their key and their place: Philox4x32-10 (Salmon et
//! al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a counter-based generator.
//!
//! A stream is named by what it is for (a job's seed, step, shard and site, or a seed and a
//! parameter); its element `i` can be computed without the ones before it. No state is shared, so
//! that a draw in one place never changes another. Not here: the order of samples
//! ([`crate::permutation`]), which uses the same function with keys of its own.

pub(crate) const ROUNDS: usize = 10;
pub(crate) const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
pub(crate) const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Four random words from a counter and a key.
#[must_use]
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

/// An endless sequence of words: the first half of the counter counts, key and second half are
/// 128 bits of a hash of the stream's name, so that two streams never meet.
#[derive(Clone, Copy, Debug)]
struct Stream {
    key: [u32; 2],
    name: [u32; 2],
}

impl Stream {
    /// The stream of that purpose; `parts` have fixed lengths, but for the last one.
    fn new(purpose: &str, parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        for part in parts {
            hasher.update(part);
        }
        let hash = hasher.finalize();
        let (words, _) = hash.as_bytes().as_chunks::<4>();
        let word = |i: usize| u32::from_le_bytes(words[i]);
        Self {
            key: [word(0), word(1)],
            name: [word(2), word(3)],
        }
    }

    /// Words `4*block` to `4*block + 3`.
    fn block(self, block: u64) -> [u32; 4] {
        let counter = [
            block as u32,
            (block >> 32) as u32,
            self.name[0],
            self.name[1],
        ];
        philox(counter, self.key)
    }

    /// Sets element `i` of `out` to what `draw` makes of the block `i / 4`, at `i % 4`.
    fn fill(self, out: &mut [f32], draw: impl Fn([u32; 4]) -> [f32; 4]) {
        for (block, out) in (0..).zip(out.chunks_mut(4)) {
            let values = draw(self.block(block));
            out.copy_from_slice(&values[..out.len()]);
        }
    }

    fn uniform(self, out: &mut [f32]) {
        self.fill(out, |words| words.map(unit));
    }

    /// Box and Muller's transform of pairs, in f64 with `libm`: the same bits on every machine.
    fn normal(self, out: &mut [f32]) {
        let pair = |a: u32, b: u32| {
            // In (0, 1], so that the logarithm is finite.
            let radius = (-2.0 * libm::log((f64::from(a) + 1.0) / 4_294_967_296.0)).sqrt();
            let angle = std::f64::consts::TAU * (f64::from(b) / 4_294_967_296.0);
            [
                (radius * libm::cos(angle)) as f32,
                (radius * libm::sin(angle)) as f32,
            ]
        };
        self.fill(out, |[a, b, c, d]| {
            let ([first, second], [third, fourth]) = (pair(a, b), pair(c, d));
            [first, second, third, fourth]
        });
    }
}

/// The upper 24 bits as a number in `[0, 1)`, exactly.
fn unit(word: u32) -> f32 {
    (word >> 8) as f32 / 16_777_216.0
}

/// The random numbers of one logical shard in one step of a job.
#[derive(Clone, Debug)]
pub struct ShardRng {
    seed: u64,
    step: u64,
    shard: u32,
}

impl ShardRng {
    /// Those of `shard` in the step that turns state `step` into the next.
    #[must_use]
    pub fn new(seed: u64, step: u64, shard: u32) -> Self {
        Self { seed, step, shard }
    }

    /// The numbers of one place in a model. Two places of one name draw the same numbers.
    #[must_use]
    pub fn site(&self, name: &str) -> Site {
        let parts = [
            &self.seed.to_le_bytes()[..],
            &self.step.to_le_bytes(),
            &self.shard.to_le_bytes(),
            name.as_bytes(),
        ];
        Site(Stream::new("muster 1: shard of a step", &parts))
    }
}

/// The random numbers of one place in a model, for one shard in one step.
#[derive(Clone, Debug)]
pub struct Site(Stream);

impl Site {
    /// A mask of inverted dropout: each element is `1 / keep` with probability `keep`, else 0.
    ///
    /// # Panics
    /// When `keep` is not in `(0, 1]`.
    pub fn mask(&self, keep: f32, out: &mut [f32]) {
        let (threshold, kept) = self.threshold(keep);
        self.0.fill(out, |words| {
            words.map(|word| if word >> 8 < threshold { kept } else { 0.0 })
        });
    }

    /// What a word's upper 24 bits are below with probability `keep`, and `1 / keep`.
    pub(crate) fn threshold(&self, keep: f32) -> (u32, f32) {
        assert!(
            keep > 0.0 && keep <= 1.0,
            "a mask keeps more than nothing and at most everything"
        );
        // As a comparison of numbers in [0, 1): the product is exact.
        let threshold = (f64::from(keep) * 16_777_216.0).ceil() as u32;
        (threshold, 1.0 / keep)
    }

    /// The key and the name of its stream.
    #[cfg(feature = "cube")]
    pub(crate) fn words(&self) -> [u32; 4] {
        let Stream { key, name } = self.0;
        [key[0], key[1], name[0], name[1]]
    }

    /// Uniform numbers in `[0, 1)`.
    pub fn uniform(&self, out: &mut [f32]) {
        self.0.uniform(out);
    }

    /// Numbers of the standard normal distribution.
    pub fn normal(&self, out: &mut [f32]) {
        self.0.normal(out);
    }
}

/// The random numbers that a parameter's first values are made of.
#[derive(Clone, Debug)]
pub struct ParamRng(Stream);

impl ParamRng {
    /// Those of the parameter of that name in a job of that seed.
    #[must_use]
    pub fn new(seed: u64, name: &str) -> Self {
        Self(Stream::new(
            "muster 1: first values of a parameter",
            &[&seed.to_le_bytes(), name.as_bytes()],
        ))
    }

    /// Uniform numbers in `[0, 1)`.
    pub fn uniform(&self, out: &mut [f32]) {
        self.0.uniform(out);
    }

    /// Numbers of the standard normal distribution.
    pub fn normal(&self, out: &mut [f32]) {
        self.0.normal(out);
    }
}

#[cfg(test)]
mod tests;
