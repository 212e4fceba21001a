//! Reductions over device memory: the same sums, to the same bits, without a way through the host.
//!
//! A device's memory is an address and a length here; who allocated it keeps it, and what computes
//! on it comes from outside ([`Kernels`]). Nothing in this module knows a tensor library or a
//! device's driver. Read in this order:
//!
//! 1. [`schedule`]: who owns which chunk, who sends which sum when, in which order it is summed.
//!    Pure, and the same on every rank.
//! 2. [`bulk`]: what moves bytes between devices, and what computes on them, as traits.
//! 3. [`group`]: the handle of a rank: notes and losses over TCP, vectors over a [`Bulk`].
//! 4. [`memory`]: the double of a [`Bulk`] for tests, whose devices are host buffers.
//! 5. [`check`]: the phases of a self-check, over any devices.
//!
//! The real [`Bulk`] is NCCL's, in the module `nccl` behind the feature of that name. What stands in for
//! it where devices are processors is in `host.rs`, behind the feature `host-devices`; the thread that
//! owns either's communicator is in `owner.rs`.

pub mod bulk;
pub mod check;
pub mod group;
#[cfg(any(test, feature = "host-devices"))]
pub mod host;
pub mod memory;
#[cfg(any(test, feature = "nccl", feature = "host-devices"))]
pub(crate) mod owner;
pub mod schedule;

use std::ops::Range;

use muster_cluster::Step;
use muster_cluster::tree::Run;

pub use bulk::{Bulk, BulkError, Kernels, Leg, Ticket, Transfer};
pub use group::{DeviceGroup, Running};
pub use schedule::{Add, Mode, Schedule};

/// A vector of `f32` in the memory of this rank's device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Region {
    /// Where it begins: a `CUdeviceptr`, aligned for `f32`.
    pub address: u64,
    /// How many `f32` it has.
    pub num_elements: usize,
}

impl Region {
    /// The elements `range` of this region, which holds them.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        debug_assert!(
            range.start <= range.end && range.end <= self.num_elements,
            "a slice lies inside its region"
        );
        Self {
            address: self.address + (range.start * size_of::<f32>()) as u64,
            num_elements: range.len(),
        }
    }

    /// Whether the two have an element in common.
    #[must_use]
    pub fn overlaps(self, other: Region) -> bool {
        let end = |region: Region| region.address + (region.num_elements * size_of::<f32>()) as u64;
        self.address < end(other) && other.address < end(self)
    }
}

/// The sum of one aligned subtree of shards, in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceSubtree {
    /// The shards that are summed; a node of the canonical tree.
    pub run: Run,
    /// The sum: one value per element of the arena. It is only read.
    pub values: Region,
}

/// What a rank brings into one all-reduce over device memory.
///
/// The regions belong to the caller, and stay untouched by it from [`DeviceGroup::begin`] until
/// the operation has ended, with a result or an error. None of them overlaps another.
#[derive(Clone, Debug)]
pub struct DeviceOperation {
    /// The step that is reduced; all ranks say the same.
    pub step: Step,
    /// How it is summed; all ranks say the same.
    pub mode: Mode,
    /// How many logical shards the step has.
    pub num_shards: u32,
    /// The length of the arena in elements.
    pub num_elements: usize,
    /// How many elements are reduced at a time, so that one bucket's journey overlaps with the next
    /// one's; rounded up to whole blocks of [`schedule::BLOCK_ELEMENTS`]. All ranks say the same.
    pub bucket_elements: usize,
    /// Per rank: the subtrees that it holds. Disjoint nodes of the canonical tree that together
    /// hold `0..num_shards`; all ranks say the same.
    pub holdings: Vec<Vec<Run>>,
    /// This rank's subtree sums: one per run of its holdings, in any order.
    pub mine: Vec<DeviceSubtree>,
    /// Where the sum over all shards goes: `num_elements` long.
    pub output: Region,
    /// Room for what is under way: at least [`Schedule::scratch_elements`] long.
    pub scratch: Region,
}
