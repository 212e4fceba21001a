//! A copy of the whole state at one step boundary, to be written while the steps go on.

use std::ops::Range;

use muster_cluster::Step;

use crate::arena::Entry;
use crate::optimizer::StateVector;

const _: () = assert!(
    cfg!(target_endian = "little"),
    "hashes and checkpoint files hold little-endian values as they lie in memory"
);

/// Parameters, buffers and optimizer state after `step()` updates.
#[derive(Debug, PartialEq)]
pub struct Snapshot {
    pub(crate) step: Step,
    pub(crate) trace: [u8; 32],
    pub(crate) entries: Vec<Entry>,
    pub(crate) arena: Vec<f32>,
    pub(crate) optimizer: Vec<StateVector>,
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

    /// BLAKE3 of the arena, in hex.
    #[must_use]
    pub fn arena_hash(&self) -> String {
        arena_hash(&self.arena)
    }

    /// BLAKE3 of the optimizer's state, in hex.
    #[must_use]
    pub fn optimizer_hash(&self) -> String {
        optimizer_hash(&self.optimizer)
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

impl Snapshot {
    /// What it is beside its values.
    #[must_use]
    pub fn head(&self) -> Head {
        Head {
            step: self.step,
            trace: self.trace,
        }
    }

    /// The elements `range` of its values: the arena, and behind it each vector of the optimizer.
    #[must_use]
    pub fn values(&self, range: Range<usize>) -> Vec<f32> {
        let optimizer = self.optimizer.iter().map(|vector| &vector.values);
        let mut values = Vec::with_capacity(range.len());
        let mut start = 0;
        for part in std::iter::once(&self.arena).chain(optimizer) {
            let end = start + part.len();
            let (from, to) = (range.start.clamp(start, end), range.end.clamp(start, end));
            values.extend_from_slice(&part[from - start..to - start]);
            start = end;
        }
        values
    }
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

/// BLAKE3 over the state vectors in order, each behind its name and both behind their lengths.
pub(crate) fn optimizer_hash(state: &[StateVector]) -> String {
    let mut hasher = blake3::Hasher::new();
    for vector in state {
        hasher.update(&(vector.name.len() as u64).to_le_bytes());
        hasher.update(vector.name.as_bytes());
        hasher.update(&(vector.values.len() as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(&vector.values));
    }
    hasher.finalize().to_hex().to_string()
}
