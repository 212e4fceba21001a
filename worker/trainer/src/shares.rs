//! How the elements of an arena, and the optimizer's state with them, are divided into shares. Which
//! rank keeps which share is decided elsewhere; the division knows nothing of ranks.

use std::ops::Range;

use muster_cluster::shares::NUM_SHARES;

/// Shares start at a multiple of this many elements (4 KiB).
const BLOCK: usize = 1024;

/// The division of an arena of so many elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    num_elements: usize,
}

impl Cut {
    /// The division of `num_elements`.
    #[must_use]
    pub fn new(num_elements: usize) -> Self {
        Self { num_elements }
    }

    /// The elements of a share; empty for some shares of a small arena, and beyond the last.
    #[must_use]
    pub fn range(self, share: u32) -> Range<usize> {
        let num_blocks = self.num_elements.div_ceil(BLOCK) as u128;
        let bound = |share: u32| {
            let share = u128::from(share.min(NUM_SHARES));
            let block = num_blocks * share / u128::from(NUM_SHARES);
            let block = usize::try_from(block).expect("a part of a usize is a usize");
            block.saturating_mul(BLOCK).min(self.num_elements)
        };
        bound(share)..bound(share.saturating_add(1))
    }
}

/// The numbers of all shares.
pub fn all() -> impl Iterator<Item = u32> {
    0..NUM_SHARES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn shares_tile_the_arena_in_order(num_elements in 0usize..300_000) {
            let cut = Cut::new(num_elements);
            let mut next = 0;
            for share in all() {
                let range = cut.range(share);
                prop_assert_eq!(range.start, next);
                prop_assert!(range.end >= next);
                prop_assert!(range.end == num_elements || range.end.is_multiple_of(BLOCK));
                next = range.end;
            }
            prop_assert_eq!(next, num_elements);
            prop_assert!(cut.range(NUM_SHARES).is_empty() && cut.range(u32::MAX).is_empty());
        }
    }
}
