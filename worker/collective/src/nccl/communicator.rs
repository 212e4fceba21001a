//! One communicator of NCCL: its calls, with results that say what failed.
//!
//! No call here waits for a peer. A call that needs one goes on in the library's own threads;
//! [`Communicator::is_settled`] says when it has ended.

#![allow(unsafe_code, reason = "the functions of a C library are called")]

use std::ffi::{c_int, c_void};

use muster_cluster::RankId;

use super::library::{Config, Library, RawCommunicator, RawStream, UniqueId};
use crate::device::{BulkError, Leg, Region, Transfer};

/// `ncclFloat32`.
const FLOAT32: c_int = 7;
/// `ncclSum`.
const SUM: c_int = 0;
const SUCCESS: c_int = 0;
/// `ncclInProgress`: the call was taken, and goes on.
const IN_PROGRESS: c_int = 7;

/// A communicator. It stays on the thread that made it.
///
/// It is ended by [`Self::abort`] or [`Self::destroy`]; one that is dropped otherwise is aborted.
#[derive(Debug)]
pub(super) struct Communicator {
    library: Library,
    /// Null when it was ended.
    raw: RawCommunicator,
}

impl Communicator {
    /// Begins to connect to the other ranks of a world; the device is the one whose context is
    /// current on this thread.
    pub(super) fn begin(
        library: &Library,
        id: UniqueId,
        rank: RankId,
        size: u32,
    ) -> Result<Self, BulkError> {
        let number = |number: u32| {
            c_int::try_from(number).map_err(|_| BulkError::new("more ranks than NCCL can number"))
        };
        let (size, own) = (number(size)?, number(rank.0)?);
        let mut this = Self {
            library: library.clone(),
            raw: std::ptr::null_mut(),
        };
        let mut config = Config::non_blocking();
        // SAFETY: there is room for the communicator, and the configuration lives through the
        // call, which copies it.
        let code = unsafe {
            (library.functions.init_rank_config)(&raw mut this.raw, size, id, own, &raw mut config)
        };
        this.check("ncclCommInitRankConfig", code)?;
        if this.raw.is_null() {
            let what = "ncclCommInitRankConfig of NCCL gave no communicator";
            return Err(BulkError::new(what));
        }
        Ok(this)
    }

    /// Whether every call so far has ended.
    pub(super) fn is_settled(&self) -> Result<bool, BulkError> {
        let mut state = SUCCESS;
        // SAFETY: the communicator lives, and there is room for the number.
        let code = unsafe { (self.library.functions.get_async_error)(self.raw, &raw mut state) };
        self.check("ncclCommGetAsyncError", code)?;
        match state {
            IN_PROGRESS => Ok(false),
            state => self.check("a call", state).map(|()| true),
        }
    }

    /// Has a transfer done on `stream`, behind what is queued there.
    pub(super) fn enqueue(
        &self,
        transfer: &Transfer,
        stream: RawStream,
        size: usize,
    ) -> Result<(), BulkError> {
        let functions = &self.library.functions;
        match transfer {
            Transfer::Exchange(legs) => {
                // SAFETY: the function takes nothing; it marks this thread.
                let code = unsafe { (functions.group_start)() };
                self.check("ncclGroupStart", code)?;
                let legs = legs.iter().try_for_each(|leg| self.leg(leg, stream));
                // Ended also where a leg was refused: a group that stays open would take in the
                // calls of the next one.
                // SAFETY: as above.
                let code = unsafe { (functions.group_end)() };
                legs?;
                self.check("ncclGroupEnd", code)
            }
            Transfer::AllReduce { input, output } => {
                same_length(*input, *output, 1, "an all-reduce")?;
                let (from, into) = (source(*input), target(*output));
                let count = input.num_elements;
                // SAFETY: both regions are the caller's device memory of this length, which stays
                // until the transfer has ended: `Bulk` says so. The communicator and the stream
                // live.
                let code = unsafe {
                    (functions.all_reduce)(from, into, count, FLOAT32, SUM, self.raw, stream)
                };
                self.check("ncclAllReduce", code)
            }
            Transfer::ReduceScatter { input, output } => {
                same_length(*output, *input, size, "a reduce-scatter")?;
                let (from, into) = (source(*input), target(*output));
                let count = output.num_elements;
                // SAFETY: as above; the input has one part of the output's length per rank.
                let code = unsafe {
                    (functions.reduce_scatter)(from, into, count, FLOAT32, SUM, self.raw, stream)
                };
                self.check("ncclReduceScatter", code)
            }
            Transfer::AllGather { input, output } => {
                same_length(*input, *output, size, "an all-gather")?;
                let (from, into) = (source(*input), target(*output));
                let count = input.num_elements;
                // SAFETY: as above; the output has one part of the input's length per rank.
                let code =
                    unsafe { (functions.all_gather)(from, into, count, FLOAT32, self.raw, stream) };
                self.check("ncclAllGather", code)
            }
        }
    }

    fn leg(&self, leg: &Leg, stream: RawStream) -> Result<(), BulkError> {
        let peer = |rank: &RankId| {
            c_int::try_from(rank.0).map_err(|_| BulkError::new(format!("there is no rank {rank}")))
        };
        match leg {
            Leg::Send { to, values } => {
                let (peer, count) = (peer(to)?, values.num_elements);
                let from = source(*values);
                // SAFETY: the region is the caller's device memory of this length, which stays
                // until the transfer has ended; the communicator and the stream live.
                let code = unsafe {
                    (self.library.functions.send)(from, count, FLOAT32, peer, self.raw, stream)
                };
                self.check("ncclSend", code)
            }
            Leg::Receive { from, into } => {
                let (peer, count) = (peer(from)?, into.num_elements);
                let into = target(*into);
                // SAFETY: as above.
                let code = unsafe {
                    (self.library.functions.receive)(into, count, FLOAT32, peer, self.raw, stream)
                };
                self.check("ncclRecv", code)
            }
        }
    }

    /// Begins a clean end: settled when every rank has begun it and all transfers are complete.
    pub(super) fn finalize(&self) -> Result<(), BulkError> {
        // SAFETY: the communicator lives.
        let code = unsafe { (self.library.functions.finalize)(self.raw) };
        self.check("ncclCommFinalize", code)
    }

    /// Frees a communicator whose clean end is settled.
    pub(super) fn destroy(mut self) -> Result<(), BulkError> {
        let raw = std::mem::replace(&mut self.raw, std::ptr::null_mut());
        // SAFETY: the communicator lives, and is forgotten with this call.
        let code = unsafe { (self.library.functions.destroy)(raw) };
        self.check("ncclCommDestroy", code)
    }

    /// Ends it whatever it waits for, and frees it.
    pub(super) fn abort(mut self) -> Result<(), BulkError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), BulkError> {
        let raw = std::mem::replace(&mut self.raw, std::ptr::null_mut());
        if raw.is_null() {
            return Ok(());
        }
        // SAFETY: the communicator lives, and is forgotten with this call.
        let code = unsafe { (self.library.functions.abort)(raw) };
        self.check("ncclCommAbort", code)
    }

    fn check(&self, call: &str, code: c_int) -> Result<(), BulkError> {
        match code {
            SUCCESS | IN_PROGRESS => Ok(()),
            code => Err(self.library.failure(call, code, self.raw)),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // Only after a failure, which is told already.
        let _ = self.end();
    }
}

fn source(region: Region) -> *const c_void {
    std::ptr::with_exposed_provenance(address(region))
}

fn target(region: Region) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address(region))
}

fn address(region: Region) -> usize {
    usize::try_from(region.address).expect("an address of a device has as many bits as ours")
}

/// That `whole` is `size` times as long as `part`.
fn same_length(part: Region, whole: Region, size: usize, what: &str) -> Result<(), BulkError> {
    let (part, whole) = (part.num_elements, whole.num_elements);
    if part.checked_mul(size) == Some(whole) {
        return Ok(());
    }
    let what = format!("{what} of {whole} elements among {size} ranks, of which each has {part}");
    Err(BulkError::new(what))
}
