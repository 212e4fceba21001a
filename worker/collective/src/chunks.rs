//! How an arena is cut: into one chunk per owner, and each chunk into pieces that travel alone.
//!
//! The cut decides nothing about the numbers: an element is summed in tree order wherever it lies.

use std::ops::Range;

use muster_cluster::RankId;

/// Chunks start at a multiple of this many elements (4 KiB), so that no two owners share a page.
const BLOCK_ELEMENTS: usize = 1024;

/// A piece is 256 KiB: small enough to stay in a core's cache while it is summed and to overlap
/// with the next one's journey, large enough that its header and its checksum are free.
pub(crate) const PIECE_ELEMENTS: usize = 64 * 1024;

/// The cut of an arena of `num_elements` over `num_owners` ranks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunks {
    pub(crate) num_elements: usize,
    pub(crate) num_owners: u32,
}

impl Chunks {
    /// The elements that `owner` sums; empty for some owners of a small arena.
    pub(crate) fn chunk(&self, owner: RankId) -> Range<usize> {
        self.chunk_of_blocks(owner, BLOCK_ELEMENTS)
    }

    /// The elements that `owner` gets where chunks start at a multiple of `block_elements`.
    pub(crate) fn chunk_of_blocks(&self, owner: RankId, block_elements: usize) -> Range<usize> {
        let num_blocks = self.num_elements.div_ceil(block_elements) as u128;
        let bound = |owner: u32| {
            let block = num_blocks * u128::from(owner) / u128::from(self.num_owners.max(1));
            let block = usize::try_from(block).expect("a part of a usize is a usize");
            block.saturating_mul(block_elements).min(self.num_elements)
        };
        bound(owner.0)..bound(owner.0 + 1)
    }

    /// How many pieces the chunk of `owner` has.
    pub(crate) fn num_pieces(&self, owner: RankId) -> usize {
        self.chunk(owner).len().div_ceil(PIECE_ELEMENTS)
    }

    /// The elements of a piece, or `None` where there is no such piece.
    pub(crate) fn piece(&self, owner: RankId, piece: usize) -> Option<Range<usize>> {
        let chunk = self.chunk(owner);
        if piece >= self.num_pieces(owner) {
            return None;
        }
        let start = chunk.start + piece * PIECE_ELEMENTS;
        Some(start..(start + PIECE_ELEMENTS).min(chunk.end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_tile_the_arena_in_order(num_elements in 0usize..3_000_000, num_owners in 1u32..20) {
            let chunks = Chunks { num_elements, num_owners };
            let mut next = 0;
            for owner in (0..num_owners).map(RankId) {
                for piece in 0..chunks.num_pieces(owner) {
                    let range = chunks.piece(owner, piece).expect("the piece exists");
                    prop_assert_eq!(range.start, next);
                    prop_assert!(!range.is_empty() && range.len() <= PIECE_ELEMENTS);
                    next = range.end;
                }
                prop_assert_eq!(chunks.piece(owner, chunks.num_pieces(owner)), None);
                prop_assert!(next == num_elements || next % BLOCK_ELEMENTS == 0);
            }
            prop_assert_eq!(next, num_elements);
        }
    }
}
