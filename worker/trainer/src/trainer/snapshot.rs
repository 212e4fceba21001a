//! A copy of the state at one step boundary, to be written while the steps go on.

use std::ops::Range;

use muster_cluster::Step;

use crate::arena::Layout;
use crate::optimizer::State;

const _: () = assert!(
    cfg!(target_endian = "little"),
    "hashes and checkpoint files hold little-endian values as they lie in memory"
);

/// Parameters, buffers and optimizer state after `step()` updates, or some of them.
#[derive(Debug, PartialEq)]
pub struct Snapshot {
    pub(crate) step: Step,
    pub(crate) trace: [u8; 32],
    pub(crate) layout: Layout,
    /// `None` where only the optimizer's state was copied.
    pub(crate) arena: Option<Vec<f32>>,
    pub(crate) optimizer: State,
}

impl Snapshot {
    /// The number of updates that led to it.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// The running hash of the samples that were read, in hex.
    #[must_use]
    pub fn trace(&self) -> String {
        hex(self.trace)
    }

    /// BLAKE3 of the arena, in hex; `None` where it was not copied.
    #[must_use]
    pub fn arena_hash(&self) -> Option<String> {
        self.arena.as_deref().map(arena_hash)
    }

    /// The optimizer's state, as far as it was copied.
    #[must_use]
    pub fn optimizer(&self) -> &State {
        &self.optimizer
    }
}

/// What a state is beside its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The number of updates that led to it.
    pub step: Step,
    /// The running hash of the samples that were read.
    pub trace: [u8; 32],
}

/// The elements `range` of some vectors, one behind the other.
pub(super) fn slice<'a>(parts: impl Iterator<Item = &'a [f32]>, range: Range<usize>) -> Vec<f32> {
    let mut values = Vec::with_capacity(range.len());
    let mut start = 0;
    for part in parts {
        let end = start + part.len();
        let (from, to) = (range.start.clamp(start, end), range.end.clamp(start, end));
        values.extend_from_slice(&part[from - start..to - start]);
        start = end;
    }
    values
}

/// 32 bytes in hex.
pub(crate) fn hex(bytes: [u8; 32]) -> String {
    blake3::Hash::from(bytes).to_hex().to_string()
}

/// BLAKE3 over the little-endian values of an arena, in hex.
pub(crate) fn arena_hash(values: &[f32]) -> String {
    blake3::hash(bytemuck::cast_slice(values))
        .to_hex()
        .to_string()
}
