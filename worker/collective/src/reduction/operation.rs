//! What a rank brings into an all-reduce, and whether it can be one.

use muster_cluster::tree::{self, Run};
use muster_cluster::{RankId, Step};

use crate::chunks::PIECE_ELEMENTS;
use crate::values::Subtree;
use crate::world::World;

/// The longest note, in bytes.
pub const MAX_NOTE_BYTES: usize = 1 << 30;

/// What a rank brings into one all-reduce.
#[derive(Clone, Debug, Default)]
pub struct Operation {
    /// The step that is reduced; all ranks say the same.
    pub step: Step,
    /// How many logical shards the step has.
    pub num_shards: u32,
    /// The length of the arena in elements.
    pub num_elements: usize,
    /// Per rank: the subtrees that it holds. Disjoint nodes of the canonical tree that together
    /// hold `0..num_shards`; all ranks say the same.
    pub holdings: Vec<Vec<Run>>,
    /// This rank's subtree sums: one per run of its holdings, in any order.
    pub mine: Vec<Subtree>,
    /// Bytes for every rank, at most [`MAX_NOTE_BYTES`].
    pub note: Vec<u8>,
}

impl Operation {
    /// An operation that moves notes and no vectors.
    #[must_use]
    pub fn exchange(note: Vec<u8>) -> Self {
        Self {
            note,
            ..Self::default()
        }
    }
}

/// Checks an operation; the held subtrees with their holders, in tree order.
pub(super) fn leaves(world: &World, operation: &Operation) -> Result<Vec<(Run, RankId)>, String> {
    let Operation {
        num_shards,
        num_elements,
        holdings,
        mine,
        note,
        ..
    } = operation;
    if note.len() > MAX_NOTE_BYTES {
        return Err(format!(
            "a note of {} bytes: expected at most {MAX_NOTE_BYTES}",
            note.len()
        ));
    }
    if num_elements.div_ceil(PIECE_ELEMENTS) > u32::MAX as usize {
        return Err(format!(
            "{num_elements} elements are more than pieces can be numbered for"
        ));
    }
    if *num_shards == 0 && *num_elements == 0 && holdings.is_empty() && mine.is_empty() {
        return Ok(Vec::new());
    }
    let leaves = holders(world.size, *num_shards, holdings)?;
    let mut held = holdings[World::index(world.rank)].clone();
    let mut brought: Vec<Run> = mine.iter().map(|subtree| subtree.run).collect();
    held.sort_unstable();
    brought.sort_unstable();
    if held != brought {
        return Err(format!(
            "this rank brings the sums of {brought:?}: expected {held:?}, its holdings"
        ));
    }
    if let Some(subtree) = mine
        .iter()
        .find(|subtree| subtree.values.len() != *num_elements)
    {
        let len = subtree.values.len();
        return Err(format!(
            "the sum of {} has {len} elements: expected {num_elements}",
            subtree.run
        ));
    }
    Ok(leaves)
}

/// Checks what `size` ranks hold; the held subtrees with their holders, in tree order.
pub(crate) fn holders(
    size: u32,
    num_shards: u32,
    holdings: &[Vec<Run>],
) -> Result<Vec<(Run, RankId)>, String> {
    if num_shards == 0 || holdings.len() != size as usize {
        let num_holders = holdings.len();
        return Err(format!(
            "{num_shards} shards held by {num_holders} ranks: expected at least one shard, and \
             holdings for each of the {size} ranks"
        ));
    }
    let mut leaves: Vec<(Run, RankId)> = (0..size)
        .map(RankId)
        .zip(holdings)
        .flat_map(|(rank, runs)| runs.iter().map(move |run| (*run, rank)))
        .collect();
    leaves.sort_unstable();
    let mut next = 0;
    for (run, rank) in &leaves {
        if run.start >= run.end
            || run.end > num_shards
            || tree::subtrees(num_shards, *run) != [*run]
        {
            return Err(format!(
                "rank {rank} holds {run}, which is no node of the tree over {num_shards} shards"
            ));
        }
        if run.start != next {
            return Err(format!(
                "the holdings go on with {run} (rank {rank}) after shard {next}: expected each shard once"
            ));
        }
        next = run.end;
    }
    if next != num_shards {
        return Err(format!("nobody holds the shards {next}..{num_shards}"));
    }
    Ok(leaves)
}
