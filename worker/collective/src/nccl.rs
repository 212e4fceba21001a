//! Transfers among NVIDIA's devices, by NCCL.
//!
//! Nothing here knows a job or a tensor library. The libraries are opened when they are used, so
//! that a build with this module runs on machines without them, and says what it looked for. Read
//! in this order:
//!
//! 1. [`connect`]: a communicator for the ranks of a connected [`Group`].
//! 2. `library.rs`: where NCCL is found; `communicator.rs`: its calls; `driver.rs`: CUDA's.
//! 3. `ordering.rs`: how transfers come behind the work of the tensor library.
//! 4. `wire.rs`: what the thread drives that owns a communicator.
//! 5. [`mod@check`]: does all of it work on this machine, and how fast is it.
//!
//! # Several ranks on one device
//!
//! NCCL refuses two ranks of one host on one device. For tests each rank can be made a host of its
//! own, by the environment of its process: a different `NCCL_HOSTID` each, `NCCL_NET=Socket` and
//! `NCCL_SOCKET_IFNAME=lo`, so that they talk over the loopback interface. Whoever starts the ranks
//! sets them: the library reads its environment once.

pub mod check;
mod communicator;
mod driver;
mod library;
mod memory;
mod ordering;
mod wire;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use muster_cluster::RankId;

use crate::device::group::connected;
use crate::device::owner::Owner;
use crate::device::{Bulk, BulkError, Ticket, Transfer};
use crate::error::Error;
use crate::group::Group;
use crate::world::World;

pub use check::{check, check_rank};
pub use library::{LIBRARY_VARIABLE, Library};
pub use memory::{Adder, Memory};

use library::UniqueId;
use wire::Wire;

/// What a rank says about itself.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The number of its device, among those that CUDA sees.
    pub ordinal: u32,
    /// NCCL's file, or its folder; without it, `MUSTER_NCCL_LIB` or the search decides.
    pub library: Option<PathBuf>,
    /// Why this rank takes no part, so that nobody does, if it does not.
    pub refusal: Option<String>,
}

/// One rank's communicator of NCCL.
#[derive(Debug)]
pub struct Nccl {
    owner: Owner,
}

/// Connects the devices of all ranks of `group`, which all call this; a world of one needs nothing.
///
/// Each rank first tells the others whether it can at all, so that a rank without the library or
/// without a device is named by everyone and nobody waits for it; in the end, whether it did.
///
/// # Errors
/// [`Error::Device`] where this or another rank has no library or device, or NCCL fails: the group can
/// still be used then, over the host. And the group's own: a rank that is lost, a revocation or the
/// deadline ends it in milliseconds.
pub fn connect(
    group: &mut Group,
    options: &Options,
    deadline: Duration,
) -> Result<Option<Nccl>, Error> {
    let world = group.world();
    if world.size == 1 {
        return Ok(None);
    }
    let until = Instant::now().checked_add(deadline);
    let ready = Ready::of(&world, options);
    let own = ready
        .as_ref()
        .map(|(_, ready)| *ready)
        .map_err(Clone::clone);
    let told = group.all_gather(Ready::to_bytes(&own), deadline)?;
    let id = agree(&world, &told)?;
    // An error of this rank's own was told to all, and so was found among theirs.
    let (library, _) = ready.map_err(|error| Error::Device { what: error.what })?;

    let (rank, size, ordinal) = (world.rank, world.size, options.ordinal);
    let made = Owner::start(move |_| Wire::begin(&library, id, rank, size, ordinal));
    let owner = made.map_err(|error| group.fail(Error::Device { what: error.what }))?;
    let owner = connected(group, owner, || (), until)?;
    Ok(Some(Nccl { owner }))
}

/// What a rank that can take part tells the others.
#[derive(Clone, Copy)]
struct Ready {
    version: u32,
    /// Of rank 0, how the ranks find each other.
    id: Option<UniqueId>,
}

impl Ready {
    fn of(world: &World, options: &Options) -> Result<(Library, Self), BulkError> {
        if let Some(why) = &options.refusal {
            return Err(BulkError::new(why));
        }
        let library = Library::find(options.library.as_deref())?;
        driver::Context::of(options.ordinal)?;
        let id = match world.rank {
            RankId(0) => Some(library.unique_id()?),
            _ => None,
        };
        let version = library.version();
        Ok((library, Self { version, id }))
    }

    /// 1, the version and maybe the id; or 0 and what is missing.
    fn to_bytes(this: &Result<Self, BulkError>) -> Vec<u8> {
        match this {
            Ok(ready) => {
                let id = ready.id.iter().flat_map(|id| id.0);
                let version = ready.version.to_le_bytes();
                [1].into_iter().chain(version).chain(id).collect()
            }
            Err(error) => [&[0], error.what.as_bytes()].concat(),
        }
    }

    /// `Err` with what is missing there, or why the bytes say nothing.
    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let garbled = || format!("{} bytes that say nothing about NCCL", bytes.len());
        let (is_ready, rest) = bytes.split_first().ok_or_else(garbled)?;
        if *is_ready == 0 {
            return Err(String::from_utf8_lossy(rest).into_owned());
        }
        let (version, id) = rest.split_first_chunk().ok_or_else(garbled)?;
        let id = match id {
            [] => None,
            id => Some(UniqueId(id.try_into().map_err(|_| garbled())?)),
        };
        let version = u32::from_le_bytes(*version);
        Ok(Self { version, id })
    }
}

/// What all ranks said, by rank: how they find each other, or why they cannot.
fn agree(world: &World, told: &[Vec<u8>]) -> Result<UniqueId, Error> {
    let device = |what| Error::Device { what };
    let mut first: Option<Ready> = None;
    for (rank, bytes) in world.ranks().zip(told) {
        let ready = Ready::from_bytes(bytes).map_err(|what| {
            if rank == world.rank {
                device(what)
            } else {
                device(format!("rank {rank} cannot use NCCL: {what}"))
            }
        })?;
        let version = first.map_or(ready.version, |first| first.version);
        if ready.version != version {
            let theirs = ready.version;
            return Err(device(format!(
                "rank 0 has NCCL {version} and rank {rank} has NCCL {theirs}: expected one version"
            )));
        }
        first.get_or_insert(ready);
    }
    let id = first.and_then(|first| first.id);
    id.ok_or_else(|| device("rank 0 did not say how the ranks find each other".to_owned()))
}

impl Bulk for Nccl {
    fn begin(&mut self, transfer: Transfer) -> Result<Ticket, BulkError> {
        self.owner.begin(transfer).map(Ticket)
    }

    fn wait(&mut self, ticket: Ticket, at_most: Duration) -> Result<bool, BulkError> {
        self.owner.wait(ticket.0, at_most)
    }

    fn abort(&mut self, at_most: Duration) -> bool {
        self.owner.abort(at_most)
    }

    fn close(&mut self, at_most: Duration) {
        self.owner.close(at_most);
    }
}

#[cfg(test)]
mod tests;
