//! Decides when a child that ended is started again, and when it no longer is. Starts nothing.

use std::time::Duration;

/// A child that ends sooner than this after its start failed fast.
const FAST: Duration = Duration::from_secs(2);

/// After so many fast failures in a row, a child is not started again.
const MAX_FAST_FAILURES: u32 = 5;

/// The first wait; each further fast failure doubles it.
const MIN_WAIT: Duration = Duration::from_millis(100);

/// Why a child is not started again, for whoever reads how it ended last.
pub(super) fn gave_up() -> String {
    format!(
        "it ended {MAX_FAST_FAILURES} times in a row within {} s of its start, and is not started again",
        FAST.as_secs()
    )
}

/// What is left of the patience with one child.
#[derive(Debug, Default)]
pub(super) struct Patience {
    num_fast: u32,
}

impl Patience {
    /// How long to wait before the next start of a child that ran for so long; `None` when it
    /// failed fast too often.
    pub(super) fn after(&mut self, ran: Duration) -> Option<Duration> {
        self.num_fast = if ran < FAST { self.num_fast + 1 } else { 0 };
        (self.num_fast < MAX_FAST_FAILURES)
            .then(|| MIN_WAIT * 2u32.pow(self.num_fast.saturating_sub(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fifth_fast_failure_in_a_row_is_the_last() {
        let mut patience = Patience::default();
        let waits: Vec<_> = (0..5).map(|_| patience.after(Duration::ZERO)).collect();
        let ms = |ms| Some(Duration::from_millis(ms));
        assert_eq!(waits, [ms(100), ms(200), ms(400), ms(800), None]);
    }

    #[test]
    fn a_child_that_ran_for_a_while_is_started_again_however_often_it_ends() {
        let mut patience = Patience::default();
        for _ in 0..100 {
            assert_eq!(patience.after(FAST), Some(MIN_WAIT));
        }
    }

    #[test]
    fn a_slow_end_makes_up_for_the_fast_ones_before_it() {
        let mut patience = Patience::default();
        for _ in 0..4 {
            assert!(patience.after(Duration::ZERO).is_some());
        }
        assert_eq!(patience.after(FAST), Some(MIN_WAIT));
        assert_eq!(patience.after(Duration::ZERO), Some(MIN_WAIT));
    }
}
