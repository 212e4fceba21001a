//! What moves vectors between devices, and what computes on them: two traits, and nothing that
//! knows how.

use std::fmt;
use std::time::Duration;

use muster_cluster::RankId;

use super::Region;
use super::schedule::Add;

/// A part of an exchange. Two ranks that exchange several match them in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// Sends a region.
    Send {
        /// The receiver, another rank.
        to: RankId,
        /// What is sent; only read.
        values: Region,
    },
    /// Receives into a region of the length that is sent.
    Receive {
        /// The sender, another rank.
        from: RankId,
        /// Where it goes.
        into: Region,
    },
}

/// One thing that all ranks of a world do together, each with its own regions. Inputs are only
/// read, and no output overlaps an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Everything that this rank sends and receives at a time; complete when all of it is.
    Exchange(Vec<Leg>),
    /// The sum of all ranks' inputs, in an order of the library's, at every rank.
    AllReduce {
        /// What this rank adds.
        input: Region,
        /// The sum, of the same length.
        output: Region,
    },
    /// The sum of all ranks' inputs, of which each rank gets one part.
    ReduceScatter {
        /// What this rank adds: one part per rank.
        input: Region,
        /// This rank's part of the sum.
        output: Region,
    },
    /// Every rank's input, in the order of ranks, at every rank.
    AllGather {
        /// What this rank gives.
        input: Region,
        /// One part per rank.
        output: Region,
    },
}

/// The number of a transfer of one [`Bulk`]; they complete in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// Why a transfer did not complete, as the library tells it.
///
/// What a lost rank leads to looks like any other failure here; who is lost is known by the
/// connections between the hosts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct BulkError {
    /// What failed, and what to do about it.
    pub what: String,
}

impl BulkError {
    /// A failure in words.
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into() }
    }
}

/// Moves vectors among the devices of one world.
///
/// Every rank begins the same transfers in the same order. Nothing here waits longer than it is
/// told to.
pub trait Bulk: fmt::Debug + Send {
    /// Begins a transfer and returns at once. It reads and writes behind all work on the device
    /// that was handed to the driver before this call, and behind the transfers before it.
    ///
    /// # Errors
    /// [`BulkError`] where the library refuses it, or has failed before.
    fn begin(&mut self, transfer: Transfer) -> Result<Ticket, BulkError>;

    /// Waits for a transfer, at most so long; whether it is complete. What it wrote is then seen
    /// by all work that is handed to the driver afterwards.
    ///
    /// # Errors
    /// [`BulkError`] where it will never complete.
    fn wait(&mut self, ticket: Ticket, at_most: Duration) -> Result<bool, BulkError>;

    /// Ends all transfers and the communicator, complete or not, without harm to the process, and
    /// waits, at most so long, until nothing reads or writes their regions any more. Whether that
    /// is so: where it is not, the memory must not be used for anything else.
    fn abort(&mut self, at_most: Duration) -> bool;

    /// Ends the communicator in good order, when all transfers are complete; other ranks may still
    /// be in theirs. What takes longer than `at_most` is aborted.
    fn close(&mut self, at_most: Duration);
}

/// Computes on the memory of this rank's device.
///
/// The caller of an all-reduce implements it with the kernels of its tensor library. Work may be
/// queued; it is done in the order of the calls, and behind what produced the contributions.
pub trait Kernels {
    /// `output` = the sum of `parts`, which are as long as `output` and only read, by these
    /// additions; of one part a copy, of none zeros. The bits of each element are those of the
    /// additions in `f32`, in this order, rounded to the nearest.
    ///
    /// The work is handed to the driver when this returns, complete or not.
    ///
    /// # Errors
    /// A sentence that says what failed.
    fn sum(&mut self, parts: &[Region], adds: &[Add], output: Region) -> Result<(), String>;

    /// Hands all work to the driver that produces contributions and is queued before it.
    ///
    /// A tensor library that queues on a thread of its own waits here until that thread has
    /// launched everything; it does not wait for the device.
    ///
    /// # Errors
    /// A sentence that says what failed.
    fn flush(&mut self) -> Result<(), String>;
}
