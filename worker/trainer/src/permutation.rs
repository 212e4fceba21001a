//! Which samples a logical shard of a step reads: an endless row of epochs, each a permutation of
//! the training samples, cut into batches and the batches into shards.
//!
//! ```text
//! epoch 0                epoch 1                epoch 2
//! | p0(0) p0(1) ...      | p1(0) p1(1) ...      | ...
//! | step 0 | step 1 | step 2 | step 3 | ...           steps run over the ends of epochs
//! ```
//! A sample is a pure function of the seed and its place in the row, so that an epoch needs no
//! memory. Not here: the samples themselves ([`crate::data`]).

use muster_cluster::ShardId;
use muster_cluster::job::spec::StopSpec;

use crate::rng::philox;

/// Rounds of the Feistel network. Four are enough for a large domain (Luby and Rackoff 1988);
/// the halves of a small one are few bits, and rounds are cheap.
const ROUNDS: u32 = 12;

/// A permutation of `0..len` that is decided by a key and needs no memory: a Feistel network over
/// the next even number of bits, walked until it falls below `len` (Black and Rogaway 2002).
#[derive(Clone, Copy, Debug)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    key: [u32; 2],
}

impl Permutation {
    /// One of `0..len` for each key.
    ///
    /// # Panics
    /// When `len` is 0 or more than 2^62.
    #[must_use]
    pub fn new(key: u64, len: u64) -> Self {
        assert!(
            (1..=1 << 62).contains(&len),
            "a permutation has 1 to 2^62 places"
        );
        let bits = (len - 1).checked_ilog2().map_or(0, |log| log + 1);
        Self {
            len,
            half_bits: bits.div_ceil(2).max(1),
            key: [key as u32, (key >> 32) as u32],
        }
    }

    /// What stands at a place.
    ///
    /// # Panics
    /// When `place` is not below the length.
    #[must_use]
    pub fn at(&self, place: u64) -> u64 {
        assert!(place < self.len, "place {place} of {}", self.len);
        // The domain is at most four times the length, and the walk follows a cycle of the
        // network that comes back to `place`: it ends.
        let mut value = self.network(place);
        while value >= self.len {
            value = self.network(value);
        }
        value
    }

    fn network(&self, value: u64) -> u64 {
        let mask = (1_u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            // Halves have 31 bits at most, so that one word holds them.
            let words = philox([right as u32, round, 0, 0], self.key);
            (left, right) = (right, left ^ (u64::from(words[0]) & mask));
        }
        left << self.half_bits | right
    }
}

/// The order in which a job reads its training samples.
#[derive(Clone, Debug)]
pub struct SampleOrder {
    seed: u64,
    num_samples: u64,
    batch: u32,
    num_shards: u32,
}

impl SampleOrder {
    /// The order over `num_samples` samples in steps of `batch`, each cut into `logical_shards`.
    ///
    /// # Panics
    /// When there is no sample or no shard, or the shards do not divide the batch: a job's
    /// specification rules that out.
    #[must_use]
    pub fn new(seed: u64, num_samples: u64, batch: u32, logical_shards: u32) -> Self {
        assert!(num_samples > 0, "there is at least one sample");
        assert!(
            batch > 0 && logical_shards > 0 && batch.is_multiple_of(logical_shards),
            "shards divide the batch"
        );
        Self {
            seed,
            num_samples,
            batch,
            num_shards: logical_shards,
        }
    }

    /// The samples that a logical shard of a step reads, each below the number of samples.
    ///
    /// # Panics
    /// When there is no such shard.
    #[must_use]
    pub fn ids(&self, step: u64, shard: ShardId) -> Vec<u64> {
        assert!(
            shard.0 < self.num_shards,
            "shard {shard} of {}",
            self.num_shards
        );
        let per_shard = self.batch / self.num_shards;
        let start =
            u128::from(step) * u128::from(self.batch) + u128::from(shard.0) * u128::from(per_shard);
        let num_samples = u128::from(self.num_samples);
        let (mut epoch, mut place) = (start / num_samples, (start % num_samples) as u64);
        let mut permutation = self.epoch(epoch);
        let ids = (0..per_shard).map(|_| {
            if place == self.num_samples {
                (epoch, place) = (epoch + 1, 0);
                permutation = self.epoch(epoch);
            }
            place += 1;
            permutation.at(place - 1)
        });
        ids.collect()
    }

    fn epoch(&self, epoch: u128) -> Permutation {
        let mut hasher = blake3::Hasher::new_derive_key("muster 1: order of an epoch");
        hasher.update(&self.seed.to_le_bytes());
        hasher.update(&epoch.to_le_bytes());
        let hash = hasher.finalize();
        let (keys, _) = hash.as_bytes().as_chunks();
        Permutation::new(u64::from_le_bytes(keys[0]), self.num_samples)
    }
}

/// How many steps a job makes: epochs are rounded up to whole steps. `None` where that is more
/// than a `u64` holds, or a batch has no sample.
#[must_use]
pub fn total_steps(stop: StopSpec, num_samples: u64, batch: u32) -> Option<u64> {
    if batch == 0 {
        return None;
    }
    match stop {
        StopSpec::Steps(steps) => Some(steps),
        StopSpec::Epochs(epochs) => {
            let samples = u128::from(epochs) * u128::from(num_samples);
            u64::try_from(samples.div_ceil(u128::from(batch))).ok()
        }
    }
}

#[cfg(test)]
mod tests;
