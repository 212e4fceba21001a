//! Transfers among devices whose memory is the host's: what NCCL does among GPUs, by a group of its own.
//!
//! A tensor library that computes on processors as if they were a device has addresses, queues and
//! streams as on a GPU. With this [`Bulk`] ranks on such devices do all that ranks on GPUs do, on any
//! machine; it is for tests, and as slow as sockets are. Vectors cross in pieces, every rank sends one to
//! each receiver before it waits for those of the others, so that nobody waits for room in a queue that
//! the other one would have to empty.
//!
//! The sums of the library's own order are made here by rank, each element from rank 0 on: bits that
//! depend on the number of ranks, as NCCL's do.

#![allow(
    unsafe_code,
    reason = "a region is an address of this process's memory"
)]

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use muster_cluster::RankId;

use super::group::connected;
use super::owner::{Line, Owner, Stop};
use super::{Bulk, BulkError, Leg, Region, Ticket, Transfer};
use crate::error::Error;
use crate::group::{Group, Revoker};
use crate::tcp::{self, Listener, Token};
use crate::values::le_bytes;
use crate::world::World;

/// Elements of a message: two ranks that send to each other hold no more of it than a queue does.
const PIECE_ELEMENTS: usize = 1 << 16;

/// Where and as whom a rank connects beside its group.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The address that the others reach this rank at.
    pub host: IpAddr,
    /// What the ranks know and strangers do not.
    pub token: Token,
    /// A peer of which nothing comes for so long is lost.
    pub detect: Duration,
    /// Whether this rank takes no part, so that nobody does.
    pub refuses: bool,
}

/// One rank's part in the transfers of its world.
#[derive(Debug)]
pub struct HostBulk {
    owner: Owner,
    revoker: Revoker,
}

/// Connects the ranks of `group` once more, for their vectors; all call this. A world of one needs nothing.
///
/// # Safety
/// Every region of a transfer is memory of this process, and as [`DeviceOperation`] says: valid, and
/// touched by nobody else, from the transfer's beginning to its end or to the end of an abort.
///
/// [`DeviceOperation`]: super::DeviceOperation
///
/// # Errors
/// [`Error::System`] without a port; [`Error::Device`] where a rank is not reached, after which the
/// group can still be used; and the group's own: a rank that is lost, a revocation or the deadline ends
/// it in milliseconds.
pub unsafe fn connect(
    group: &mut Group,
    options: &Options,
    deadline: Duration,
) -> Result<Option<HostBulk>, Error> {
    let world = group.world();
    if world.size == 1 {
        return Ok(None);
    }
    let until = Instant::now().checked_add(deadline);
    let listener = Listener::bind(options.host).map_err(Error::system("bind a port"));
    let listener = listener.map_err(|error| group.fail(error))?;
    let own = match options.refuses {
        true => Vec::new(),
        false => listener.addr().to_string().into_bytes(),
    };
    let told = group.all_gather(own, deadline)?;
    let mut peers: Vec<SocketAddr> = Vec::new();
    for (rank, bytes) in world.ranks().zip(&told) {
        let address = std::str::from_utf8(bytes).ok();
        let address = address.and_then(|address| address.parse().ok());
        peers.push(address.ok_or_else(|| Error::Device {
            what: format!("rank {rank} takes no part"),
        })?);
    }
    let revoker = Revoker::default();
    let (theirs, Options { token, detect, .. }) = (revoker.clone(), *options);
    let made = Owner::start(move |_| {
        let group = tcp::connect(&listener, world, &peers, token, detect, &theirs, deadline);
        let group = group.map_err(|error| BulkError::new(error.to_string()))?;
        Ok(Carrier {
            group,
            num_completed: 0,
        })
    });
    let owner = made.map_err(|error| group.fail(Error::Device { what: error.what }))?;
    let owner = connected(group, owner, || revoker.revoke(), until)?;
    Ok(Some(HostBulk { owner, revoker }))
}

impl Bulk for HostBulk {
    fn begin(&mut self, transfer: Transfer) -> Result<Ticket, BulkError> {
        self.owner.begin(transfer).map(Ticket)
    }

    fn wait(&mut self, ticket: Ticket, at_most: Duration) -> Result<bool, BulkError> {
        self.owner.wait(ticket.0, at_most)
    }

    fn abort(&mut self, at_most: Duration) -> bool {
        self.revoker.revoke();
        self.owner.abort(at_most)
    }

    fn close(&mut self, at_most: Duration) {
        self.owner.close(at_most);
    }
}

/// What the thread drives: a group, over which each transfer is carried out at once.
struct Carrier {
    group: Group,
    num_completed: u64,
}

impl Line for Carrier {
    fn is_connected(&mut self) -> Result<bool, BulkError> {
        Ok(true)
    }

    fn begin(&mut self, transfer: &Transfer, _: &Stop) -> Result<(), BulkError> {
        // A stop comes with a revocation, which ends whatever is waited for.
        let carried = self.carry(transfer);
        carried.map_err(|error| BulkError::new(error.to_string()))?;
        self.num_completed += 1;
        Ok(())
    }

    fn num_completed(&mut self) -> Result<u64, BulkError> {
        Ok(self.num_completed)
    }

    fn abort(self) -> bool {
        self.group.revoker().revoke();
        self.group.retire();
        true
    }

    fn close(self, _: &Stop, _: Instant) -> bool {
        self.group.retire();
        true
    }
}

impl Carrier {
    fn carry(&mut self, transfer: &Transfer) -> Result<(), Error> {
        let World { rank, size, .. } = self.group.world();
        let others = || (0..size).map(RankId).filter(move |other| *other != rank);
        match transfer {
            Transfer::Exchange(legs) => {
                let mut sent: Vec<(RankId, &[f32])> = Vec::new();
                let mut received: Vec<(RankId, &mut [f32])> = Vec::new();
                for leg in legs {
                    match *leg {
                        Leg::Send { to, values } => sent.push((to, read(values))),
                        Leg::Receive { from, into } => received.push((from, written(into))),
                    }
                }
                self.swap(&sent, &mut received)
            }
            Transfer::AllReduce { input, output } => {
                let sent: Vec<_> = others().map(|to| (to, read(*input))).collect();
                self.sum_over_ranks(&sent, read(*input), written(*output))
            }
            Transfer::ReduceScatter { input, output } => {
                let len = output.num_elements;
                let part = |of: RankId| {
                    let start = World::index(of) * len;
                    read(input.slice(start..start + len))
                };
                let sent: Vec<_> = others().map(|to| (to, part(to))).collect();
                self.sum_over_ranks(&sent, part(rank), written(*output))
            }
            Transfer::AllGather { input, output } => {
                let own = read(*input);
                let sent: Vec<_> = others().map(|to| (to, own)).collect();
                let mut received = Vec::new();
                for (other, part) in (0..size).map(RankId).zip(0..) {
                    let start = part * own.len();
                    let into = written(output.slice(start..start + own.len()));
                    if other == rank {
                        into.copy_from_slice(own);
                    } else {
                        received.push((other, into));
                    }
                }
                self.swap(&sent, &mut received)
            }
        }
    }

    /// Receives as much of every other rank as `own` is long, and sums by rank.
    fn sum_over_ranks(
        &mut self,
        sent: &[(RankId, &[f32])],
        own: &[f32],
        output: &mut [f32],
    ) -> Result<(), Error> {
        let World { rank, size, .. } = self.group.world();
        let mut of_ranks = vec![vec![0.0; own.len()]; size as usize];
        of_ranks[World::index(rank)].copy_from_slice(own);
        let mut received: Vec<(RankId, &mut [f32])> = (0..size)
            .map(RankId)
            .zip(of_ranks.iter_mut().map(Vec::as_mut_slice))
            .filter(|(other, _)| *other != rank)
            .collect();
        self.swap(sent, &mut received)?;
        output.fill(0.0);
        for values in &of_ranks {
            for (sum, value) in output.iter_mut().zip(values) {
                *sum += value;
            }
        }
        Ok(())
    }

    /// Sends and receives, a piece of each at a time.
    fn swap(
        &mut self,
        sent: &[(RankId, &[f32])],
        received: &mut [(RankId, &mut [f32])],
    ) -> Result<(), Error> {
        let longest = sent.iter().map(|(_, values)| values.len());
        let longest = longest.chain(received.iter().map(|(_, values)| values.len()));
        let piece = |start: usize, len: usize| start.min(len)..(start + PIECE_ELEMENTS).min(len);
        for start in (0..longest.max().unwrap_or(0)).step_by(PIECE_ELEMENTS) {
            for (to, values) in sent {
                let values = &values[piece(start, values.len())];
                if !values.is_empty() {
                    let bytes = le_bytes(values).into_owned();
                    self.group.send(*to, bytes, Duration::MAX)?;
                }
            }
            for (from, values) in received.iter_mut() {
                let range = piece(start, values.len());
                let into = &mut values[range];
                if into.is_empty() {
                    continue;
                }
                let message = self.group.recv(*from, Duration::MAX)?;
                let (bytes, _) = message.as_chunks();
                if message.len() != size_of_val(into) {
                    let (len, expected) = (message.len(), size_of_val(into));
                    let what = format!("{len} bytes of a vector: expected {expected}");
                    return Err(Error::Protocol { rank: *from, what });
                }
                for (value, bytes) in into.iter_mut().zip(bytes) {
                    *value = f32::from_le_bytes(*bytes);
                }
            }
        }
        Ok(())
    }
}

/// What a transfer reads.
fn read<'a>(region: Region) -> &'a [f32] {
    if region.num_elements == 0 {
        return &[];
    }
    // SAFETY: whoever connected vouches for the regions of transfers, and no output of this one
    // overlaps it.
    unsafe { std::slice::from_raw_parts(region.address as *const f32, region.num_elements) }
}

/// What a transfer writes.
fn written<'a>(region: Region) -> &'a mut [f32] {
    if region.num_elements == 0 {
        return &mut [];
    }
    // SAFETY: as above; the outputs of a transfer do not overlap each other.
    unsafe { std::slice::from_raw_parts_mut(region.address as *mut f32, region.num_elements) }
}

#[cfg(test)]
mod tests;
