//! The chance of `muster chaos`: the same seed draws the same numbers.

use std::time::Duration;

use super::What;
use super::victims::Victim;

/// SplitMix64 (Steele, Lea and Flood 2014): every seed is a good one.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// At least 0, below 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A waiting time of a process without memory, with this mean.
    pub(super) fn wait(&mut self, mean: Duration) -> Duration {
        // The fraction is below 1, so the logarithm is finite: at most 37 means.
        mean.mul_f64(-(1.0 - self.fraction()).ln())
    }

    /// A time up to this one.
    pub(super) fn up_to(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.fraction())
    }

    fn below(&mut self, len: usize) -> usize {
        // The remainder's bias is below 2^-50 for the few there are.
        usize::try_from(self.next() % len.max(1) as u64).unwrap_or_default()
    }

    /// One of these: first which kind of process, each as often, then which of them. A job has many
    /// ranks and one coordinator, which would else be spared.
    pub(super) fn victim(&mut self, mut victims: Vec<Victim>) -> Option<Victim> {
        let mut kinds: Vec<What> = victims.iter().map(|victim| victim.what).collect();
        kinds.sort_unstable();
        kinds.dedup();
        let kind = *kinds.get(self.below(kinds.len()))?;
        victims.retain(|victim| victim.what == kind);
        self.one_of(victims)
    }

    /// One of these, each as often.
    pub(super) fn one_of<T>(&mut self, mut all: Vec<T>) -> Option<T> {
        let index = self.below(all.len());
        (index < all.len()).then(|| all.swap_remove(index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_again_and_another_one_others() {
        let draw = |seed| {
            let mut dice = Dice::new(seed);
            [(); 4].map(|()| dice.wait(Duration::from_secs(2)))
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn waiting_times_have_the_mean_that_was_asked_for() {
        const NUM: u32 = 20_000;
        let (mut dice, mean) = (Dice::new(1), Duration::from_secs(2));
        let waits: Vec<Duration> = (0..NUM).map(|_| dice.wait(mean)).collect();
        let average = waits.iter().sum::<Duration>().as_secs_f64() / f64::from(NUM);
        // The deviation of the average is 2 s / sqrt(20000) = 0.014 s; five of them.
        assert!((average - 2.0).abs() < 0.071, "{average}");
        // 1/e of an exponential distribution is above its mean.
        let num_above = waits.iter().filter(|wait| **wait > mean).count();
        assert!((7_000..7_716).contains(&num_above), "{num_above}");
    }
}
