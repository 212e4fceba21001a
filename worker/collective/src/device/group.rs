//! The handle that a rank with a device holds on its world.
//!
//! Notes, agreement and losses go over the TCP [`Group`]; vectors go over a [`Bulk`], which sees
//! neither. While vectors travel the group is watched: a loss or a revocation ends the bulk's
//! communicator, so that an operation ends in milliseconds whatever a device waits for.
//!
//! ```text
//! begin ---- everyone says what it reduces: all are here, and mean the same
//!   start_next, for each bucket:   scatter, beside it the sum and the gather of the one before
//! finish --- everyone tells its note: all have the whole sum
//! ```
//!
//! A bucket's sums are queued on the device when the host has seen that their parts are here, and
//! never behind a transfer that may not end: the producer's streams wait for nothing that depends
//! on a peer.

mod opening;
mod running;

use std::time::{Duration, Instant};

use super::{Bulk, BulkError, DeviceOperation, Kernels, Ticket};
use crate::error::Error;
use crate::group::Group;
use crate::world::World;

pub use running::Running;

/// How long a loss may go unseen while a transfer is waited for; its completion is seen at once.
pub(crate) const TICK: Duration = Duration::from_millis(1);

/// How long a transfer that failed waits for the group to say why: the library sees the end of its
/// own connections, maybe before the group sees that of the same process.
const BLAME_PATIENCE: Duration = Duration::from_secs(5);

/// How long an aborted communicator may take until it touches no memory any more.
const ABORT_PATIENCE: Duration = Duration::from_secs(5);

/// How long a clean end may wait for peers that are still busy.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// One rank's part in one world of ranks with devices.
///
/// All ranks call the same operations in the same order, as with a [`Group`]; after a failure
/// every later one fails alike, and only a new generation, with a new communicator, goes on. A
/// world of one needs no [`Bulk`].
#[derive(Debug)]
pub struct DeviceGroup {
    group: Group,
    bulk: Option<Box<dyn Bulk>>,
    /// Whether the bulk's communicator is still to be ended.
    is_open: bool,
}

impl DeviceGroup {
    /// Joins a connected group and the communicator of the same ranks.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no communicator for a world of several ranks.
    pub fn new(group: Group, bulk: Option<Box<dyn Bulk>>) -> Result<Self, Error> {
        let size = group.world().size;
        if size > 1 && bulk.is_none() {
            let what = format!("nothing moves the vectors of a world of {size} ranks");
            return Err(Error::Invalid { what });
        }
        Ok(Self {
            group,
            is_open: bulk.is_some(),
            bulk,
        })
    }

    /// As [`Self::new`], of a world that has a communicator.
    #[must_use]
    pub fn with(group: Group, bulk: Box<dyn Bulk>) -> Self {
        Self {
            group,
            is_open: true,
            bulk: Some(bulk),
        }
    }

    /// The world that this group belongs to.
    #[must_use]
    pub fn world(&self) -> World {
        self.group.world()
    }

    /// For notes, messages and barriers between reductions.
    pub fn group(&mut self) -> &mut Group {
        &mut self.group
    }

    /// Sums vectors over all logical shards into the operation's output, and tells everyone's note
    /// to everyone. The output is seen by work that is handed to the driver afterwards.
    ///
    /// The contributions stay as they are, whatever happens.
    ///
    /// # Errors
    /// As [`Group::all_reduce`], and [`Error::Device`]. When an error is back nothing touches the
    /// operation's regions any more; where the library does not let go of them the error is
    /// [`Error::Stuck`], and the process must end.
    pub fn all_reduce(
        &mut self,
        operation: DeviceOperation,
        note: Vec<u8>,
        kernels: &mut dyn Kernels,
        deadline: Duration,
    ) -> Result<Vec<Vec<u8>>, Error> {
        self.begin(operation, deadline)?.finish(note, kernels)
    }

    /// Begins a reduction whose buckets are started one by one, as soon as their contributions are
    /// queued on the device. Returns when all ranks have begun the same one.
    ///
    /// # Errors
    /// As [`Self::all_reduce`]; after [`Error::Invalid`] nothing was sent, and the group can still
    /// be used.
    pub fn begin(
        &mut self,
        operation: DeviceOperation,
        deadline: Duration,
    ) -> Result<Running<'_>, Error> {
        self.group.check_usable()?;
        let until = Instant::now().checked_add(deadline);
        let plan = running::Plan::new(self.world(), operation)?;
        let opening = opening::Opening::of(&plan).to_bytes();
        let openings = self.group.all_gather(opening, deadline);
        let agreed = openings.and_then(|openings| opening::agree(&plan, &openings));
        match agreed {
            Ok(()) => Ok(Running::new(self, plan, until)),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// As [`Group::retire`]: the communicator is ended, and the goodbye said, by a thread of its own.
    pub fn retire(self) {
        // A thread that cannot be started drops its work, and so the group, here.
        let _ = std::thread::Builder::new()
            .name("retire".to_owned())
            .spawn(move || drop(self));
    }

    /// Waits until a transfer is complete, and watches the group meanwhile.
    fn complete(&mut self, ticket: Ticket, until: Option<Instant>) -> Result<(), Error> {
        loop {
            let now = Instant::now();
            let tick = until.map_or(TICK, |until| until.saturating_duration_since(now).min(TICK));
            let Some(bulk) = &mut self.bulk else {
                return Ok(());
            };
            match bulk.wait(ticket, tick) {
                Ok(true) => return Ok(()),
                Ok(false) => self.group.watch(Duration::ZERO)?,
                Err(failure) => return Err(self.explain(&failure, until)),
            }
            if until.is_some_and(|until| until <= now) {
                // The library does not say for whom it waits.
                let waiting_for = Vec::new();
                return Err(Error::TimedOut { waiting_for });
            }
        }
    }

    fn explain(&mut self, failure: &BulkError, until: Option<Instant>) -> Error {
        explain(&mut self.group, failure, until)
    }

    /// Ends the communicator because of an error, which every later operation gives.
    fn fail(&mut self, error: Error) -> Error {
        let error = self.group.fail(error);
        if self.abort() {
            return error;
        }
        Error::Stuck {
            what: format!(
                "after \"{error}\" the transfers between devices did not end within {} s",
                ABORT_PATIENCE.as_secs()
            ),
        }
    }

    /// Ends the communicator; whether its regions are free.
    fn abort(&mut self) -> bool {
        match &mut self.bulk {
            Some(bulk) if std::mem::take(&mut self.is_open) => bulk.abort(ABORT_PATIENCE),
            _ => true,
        }
    }

    /// Ends everything without a goodbye, as a death would.
    #[cfg(test)]
    pub(crate) fn sever(mut self) {
        self.abort();
        self.group.cut();
    }
}

impl Drop for DeviceGroup {
    fn drop(&mut self) {
        // A group that has failed has aborted already.
        if let Some(bulk) = &mut self.bulk
            && std::mem::take(&mut self.is_open)
        {
            if self.group.check_usable().is_ok() {
                bulk.close(CLOSE_PATIENCE);
            } else {
                bulk.abort(ABORT_PATIENCE);
            }
        }
    }
}

/// Why a transfer failed: a loss or a revocation that the group hears of, or the device.
pub(crate) fn explain(group: &mut Group, failure: &BulkError, until: Option<Instant>) -> Error {
    let patience = until.map_or(BLAME_PATIENCE, |until| {
        let left = until.saturating_duration_since(Instant::now());
        left.min(BLAME_PATIENCE)
    });
    match group.watch(patience) {
        Err(error) => error,
        Ok(()) => Error::Device {
            what: failure.what.clone(),
        },
    }
}

/// How long a communicator may still take when another rank does not wait for its own any more: whether
/// that is connected or has failed there, this one is soon connected or will never be.
#[cfg(any(test, feature = "nccl", feature = "host-devices"))]
const LAGGARD_PATIENCE: Duration = Duration::from_secs(10);

/// Waits until the communicator is connected at every rank, and watches the group meanwhile. Where one
/// rank's is not within half of the time that is left, all give theirs up, and the group can still be
/// used. `interrupt` ends what the owner's thread waits for.
///
/// # Errors
/// [`Error::Device`] in that case, and the group's own.
#[cfg(any(test, feature = "nccl", feature = "host-devices"))]
pub(crate) fn connected(
    group: &mut Group,
    mut owner: super::owner::Owner,
    interrupt: impl FnOnce(),
    until: Option<Instant>,
) -> Result<super::owner::Owner, Error> {
    let now = Instant::now();
    let halfway = until.map(|until| now + until.saturating_duration_since(now) / 2);
    let settled = await_ready(group, &owner, halfway).map_err(|error| group.fail(error));
    let agreed = settled.and_then(|settled| agree(group, settled, until));
    agreed.inspect_err(|_| {
        interrupt();
        owner.abort(GIVE_UP_PATIENCE);
    })?;
    Ok(owner)
}

/// Tells all ranks whether this one's communicator is connected; an error where one is not.
#[cfg(any(test, feature = "nccl", feature = "host-devices"))]
fn agree(
    group: &mut Group,
    settled: Result<(), String>,
    until: Option<Instant>,
) -> Result<(), Error> {
    // Nothing, or 1 and what is wrong.
    let own = settled.map_or_else(|what| [b"1", what.as_bytes()].concat(), |()| Vec::new());
    let left = until.map_or(Duration::MAX, |until| {
        until.saturating_duration_since(Instant::now())
    });
    let all = group.all_gather(own, left)?;
    for (rank, told) in group.world().ranks().zip(&all) {
        if let Some((_, what)) = told.split_first() {
            let what = String::from_utf8_lossy(what);
            return Err(Error::Device {
                what: format!("rank {rank} is not connected to the others' devices: {what}"),
            });
        }
    }
    Ok(())
}

/// How long a communicator that is given up before it was connected may take to end. Nothing waits
/// for its memory.
#[cfg(any(test, feature = "nccl", feature = "host-devices"))]
const GIVE_UP_PATIENCE: Duration = Duration::from_millis(500);

/// Whether this rank's communicator is connected, or why not; the group's errors beside.
#[cfg(any(test, feature = "nccl", feature = "host-devices"))]
fn await_ready(
    group: &mut Group,
    owner: &super::owner::Owner,
    until: Option<Instant>,
) -> Result<Result<(), String>, Error> {
    let mut awaited_since: Option<Instant> = None;
    loop {
        match owner.wait_ready(TICK) {
            Ok(true) => return Ok(Ok(())),
            Ok(false) => group.watch(Duration::ZERO)?,
            Err(failure) => {
                return match explain(group, &failure, until) {
                    Error::Device { what } => Ok(Err(what)),
                    error => Err(error),
                };
            }
        }
        let now = Instant::now();
        if group.is_awaited() {
            let since = *awaited_since.get_or_insert(now);
            if now.duration_since(since) >= LAGGARD_PATIENCE {
                let what = format!(
                    "it did not connect within {} s of another rank",
                    LAGGARD_PATIENCE.as_secs()
                );
                return Ok(Err(what));
            }
        }
        if until.is_some_and(|until| until <= now) {
            return Ok(Err("it does not connect in time".to_owned()));
        }
    }
}
