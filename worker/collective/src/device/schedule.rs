//! Who owns which chunk of a bucket, who sends which sum when, and in which order it is summed.
//!
//! Everything here follows from numbers that all ranks know, so that all derive the same; nothing
//! is sent, waited for or allocated. The arena is cut into buckets, and each bucket into one chunk
//! per rank, its owner:
//!
//! ```text
//! arena   |-------- bucket 0 --------|-------- bucket 1 --------|-- bucket 2 --|
//! owners  | rank 0 | rank 1 | rank 2 | rank 0 | rank 1 | rank 2 | 0  |  1 |  2 |
//! ```
//!
//! 1. *Scatter:* every rank sends its subtree sums of a chunk to the chunk's owner.
//! 2. *Sum:* the owner adds them up along the canonical tree, as a list of additions ([`Add`]).
//! 3. *Gather:* the owner sends the total to everyone.
//!
//! A chunk holds whole blocks, whose sums of squares are the parts of a global norm. The cut
//! decides nothing about the bits: an element is summed in tree order wherever it lies.

use std::ops::Range;

use muster_cluster::RankId;
use muster_cluster::tree::{self, Run};

use crate::chunks::{Chunks, PIECE_ELEMENTS};
use crate::reduction::holders;

/// Buckets and chunks begin at a multiple of this many elements.
pub const BLOCK_ELEMENTS: usize = PIECE_ELEMENTS;

/// How many buckets are under way at a time: one is summed while the next one's parts travel. It
/// decides how much scratch memory there is, and is part of what all ranks must agree on.
pub const NUM_UNDER_WAY: usize = 2;

/// How an all-reduce over device memory sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Along the canonical tree: the same bits for any number of ranks, and as on the host.
    #[default]
    Canonical,
    /// Each rank sums what it holds, and the library's all-reduce sums the ranks: fewer bytes, and
    /// bits that depend on the number of ranks.
    Fast,
}

/// One addition of a sum along a tree: `values[into] += values[from]`.
///
/// A list of them begins with one value per part, in order, and ends with the sum in
/// `values[0]`. Each `from` is used up, and each `into` lies before its `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Add {
    /// The left operand, and where the sum is kept.
    pub into: usize,
    /// The right operand.
    pub from: usize,
}

/// What travels in a [`Move`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cargo {
    /// A subtree sum: its place among the leaves.
    Leaf(usize),
    /// The sum over all shards.
    Total,
}

/// A range of the arena that goes from one rank to another. Two ranks that exchange several list
/// them in one order, by which they are matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The sender.
    pub from: RankId,
    /// The receiver, never the sender.
    pub to: RankId,
    /// What is sent of it.
    pub cargo: Cargo,
    /// Which elements of the arena; never none.
    pub range: Range<usize>,
}

/// The schedule of one all-reduce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    size: u32,
    num_elements: usize,
    bucket_elements: usize,
    /// All held subtrees with their holders, in tree order.
    leaves: Vec<(Run, RankId)>,
    adds: Vec<Add>,
}

impl Schedule {
    /// The schedule of an arena of `num_elements` over `size` ranks, of which each holds the
    /// subtrees that `holdings` says, in buckets of about `bucket_elements`.
    ///
    /// # Errors
    /// A sentence that says what of it is impossible: holdings that are no partition of the tree,
    /// or empty buckets.
    pub fn new(
        size: u32,
        num_shards: u32,
        num_elements: usize,
        bucket_elements: usize,
        holdings: &[Vec<Run>],
    ) -> Result<Self, String> {
        let leaves = holders(size, num_shards, holdings)?;
        if bucket_elements == 0 {
            return Err("buckets of no elements: expected at least one".to_owned());
        }
        if num_elements > isize::MAX as usize / size_of::<f32>() {
            return Err(format!(
                "{num_elements} elements are more than memory can have"
            ));
        }
        let bucket_elements = bucket_elements
            .checked_next_multiple_of(BLOCK_ELEMENTS)
            .unwrap_or(usize::MAX - usize::MAX % BLOCK_ELEMENTS);
        Ok(Self {
            adds: adds(num_shards, &leaves),
            size,
            num_elements,
            bucket_elements,
            leaves,
        })
    }

    /// How many buckets the arena has; none where it is empty.
    #[must_use]
    pub fn num_buckets(&self) -> usize {
        self.num_elements.div_ceil(self.bucket_elements)
    }

    /// The elements of a bucket; empty behind the last one.
    #[must_use]
    pub fn bucket(&self, bucket: usize) -> Range<usize> {
        let bound = |bucket: usize| {
            let start = bucket.saturating_mul(self.bucket_elements);
            start.min(self.num_elements)
        };
        bound(bucket)..bound(bucket.saturating_add(1))
    }

    /// The elements of a bucket that `owner` sums; empty for some owners of a small bucket.
    #[must_use]
    pub fn chunk(&self, bucket: usize, owner: RankId) -> Range<usize> {
        let bucket = self.bucket(bucket);
        let chunks = Chunks {
            num_elements: bucket.len(),
            num_owners: self.size,
        };
        let chunk = chunks.chunk_of_blocks(owner, BLOCK_ELEMENTS);
        bucket.start + chunk.start..bucket.start + chunk.end
    }

    /// The subtrees that are summed, with their holders, in tree order.
    #[must_use]
    pub fn leaves(&self) -> &[(Run, RankId)] {
        &self.leaves
    }

    /// How an owner sums: the leaves are the parts.
    #[must_use]
    pub fn adds(&self) -> &[Add] {
        &self.adds
    }

    /// The places of a rank's leaves among all of them.
    pub fn leaves_of(&self, rank: RankId) -> impl Iterator<Item = usize> + '_ {
        let places = self.leaves.iter().enumerate();
        places.filter_map(move |(leaf, (_, holder))| (*holder == rank).then_some(leaf))
    }

    /// How a rank sums what it holds itself, from the left: the parts are its leaves. The order is
    /// not the tree's, so this is for [`Mode::Fast`].
    #[must_use]
    pub fn adds_of(&self, rank: RankId) -> Vec<Add> {
        let num_leaves = self.leaves_of(rank).count();
        (1..num_leaves).map(|from| Add { into: 0, from }).collect()
    }

    /// What `rank` sends and receives before the chunks of a bucket are summed.
    #[must_use]
    pub fn scatter(&self, bucket: usize, rank: RankId) -> Vec<Move> {
        let mut moves = Vec::new();
        for to in self.peers(rank) {
            let range = self.chunk(bucket, to);
            moves.extend(self.leaves_of(rank).map(|leaf| Move {
                from: rank,
                to,
                cargo: Cargo::Leaf(leaf),
                range: range.clone(),
            }));
        }
        let range = self.chunk(bucket, rank);
        let received = self.leaves.iter().enumerate();
        let received = received.filter(|(_, (_, holder))| *holder != rank);
        moves.extend(received.map(|(leaf, (_, holder))| Move {
            from: *holder,
            to: rank,
            cargo: Cargo::Leaf(leaf),
            range: range.clone(),
        }));
        moves.retain(|one| !one.range.is_empty());
        moves
    }

    /// What `rank` sends and receives after they are.
    #[must_use]
    pub fn gather(&self, bucket: usize, rank: RankId) -> Vec<Move> {
        let total = |from: RankId, to: RankId| Move {
            from,
            to,
            cargo: Cargo::Total,
            range: self.chunk(bucket, from),
        };
        let sent = self.peers(rank).map(|to| total(rank, to));
        let received = self.peers(rank).map(|from| total(from, rank));
        let moves = sent.chain(received);
        moves.filter(|one| !one.range.is_empty()).collect()
    }

    /// How much scratch memory `rank` needs, in elements.
    #[must_use]
    pub fn scratch_elements(&self, rank: RankId, mode: Mode) -> usize {
        NUM_UNDER_WAY * self.slot_elements(rank, mode)
    }

    /// The part of it that one bucket uses.
    pub(crate) fn slot_elements(&self, rank: RankId, mode: Mode) -> usize {
        let num_mine = self.leaves_of(rank).count();
        match mode {
            _ if self.size == 1 => 0,
            Mode::Canonical => (self.leaves.len() - num_mine) * self.part_elements(rank),
            // One sum goes as it is.
            Mode::Fast if num_mine == 1 => 0,
            Mode::Fast => self.bucket_elements.min(self.num_elements),
        }
    }

    /// The room that one received part has: the longest chunk of `rank`.
    pub(crate) fn part_elements(&self, rank: RankId) -> usize {
        // All buckets but the last are cut alike. The last one is shorter, and yet it may give
        // this rank a block more: what does not divide evenly falls to others.
        let last = self.num_buckets().saturating_sub(1);
        self.chunk(0, rank).len().max(self.chunk(last, rank).len())
    }

    /// Every other rank, starting after `rank`, so that not all send to rank 0 first.
    fn peers(&self, rank: RankId) -> impl Iterator<Item = RankId> + use<> {
        let (start, size) = (rank.0, self.size);
        (start + 1..size).chain(0..start.min(size)).map(RankId)
    }
}

/// The additions of the canonical tree over these leaves: the sum of a node is kept where its
/// leftmost leaf is.
fn adds(num_shards: u32, leaves: &[(Run, RankId)]) -> Vec<Add> {
    let mut adds = Vec::new();
    let mut leaf = |node: Run| leaves.binary_search_by_key(&node, |(run, _)| *run).ok();
    let mut add = |into: usize, from: usize| {
        adds.push(Add { into, from });
        into
    };
    let root = tree::fold(Run::new(0, num_shards), &mut leaf, &mut add);
    debug_assert_eq!(root, Some(0), "the holdings were checked to cover the tree");
    adds
}

#[cfg(test)]
mod tests;
