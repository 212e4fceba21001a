//! Looking at a group between its operations, while vectors travel beside it.

use std::time::{Duration, Instant};

use super::Group;
use crate::error::{Error, LossReason};
use crate::queue::Taken;

impl Group {
    /// Whether every rank is still there and the generation is open; waits at most so long for
    /// that to change.
    ///
    /// For ranks that do something together which the group does not see, and from which nobody
    /// leaves in good order: every goodbye counts as a loss.
    ///
    /// # Errors
    /// As [`Self::all_reduce`], but never for a deadline.
    pub(crate) fn watch(&mut self, at_most: Duration) -> Result<(), Error> {
        self.check_usable()?;
        let until = Instant::now().checked_add(at_most);
        loop {
            // The first account of a loss is the one nearest to its cause.
            if let Some((rank, reason)) = self.lost.first() {
                let error = match reason {
                    LossReason::Revoked => Error::Revoked,
                    reason => Error::PeerLost {
                        rank: *rank,
                        reason: *reason,
                    },
                };
                return Err(self.fail(error));
            }
            let Some(event) = self.arrived.pop_front() else {
                match self.inbox.take(&mut self.arrived, until) {
                    Taken::Items => continue,
                    Taken::Interrupted => return Err(self.fail(Error::Revoked)),
                    Taken::Closed | Taken::TimedOut => return Ok(()),
                }
            };
            // Losses are kept in `lost`, frames of the next operation in `early`.
            self.route(event).map_err(|error| self.fail(error))?;
        }
    }

    /// Whether another rank has begun the next operation.
    #[cfg(any(test, feature = "nccl", feature = "host-devices"))]
    pub(crate) fn is_awaited(&self) -> bool {
        !self.early.is_empty()
    }
}
