//! Messages between two ranks of a group, beside its operations.

use std::time::{Duration, Instant};

use muster_cluster::RankId;

use super::{Group, MAX_MESSAGES, Next, REVOCATION_TICK};
use crate::error::{Error, LossReason};
use crate::frame::{self, Body, Frame, Part};
use crate::queue::{Patience, PushError};
use crate::world::World;

impl Group {
    /// Sends a message to one other rank; returns when it is queued, which waits while the
    /// receiver is far behind. What is sent to a rank that is gone is forgotten: the loss is told
    /// by the next operation that needs that rank.
    ///
    /// # Errors
    /// As [`Self::all_reduce`]; a send that timed out leaves the group failed, because a part of
    /// the message may be on its way.
    pub fn send(&mut self, to: RankId, bytes: Vec<u8>, deadline: Duration) -> Result<(), Error> {
        self.send_until(to, bytes, Instant::now().checked_add(deadline))
    }

    pub(super) fn send_until(
        &mut self,
        to: RankId,
        bytes: Vec<u8>,
        until: Option<Instant>,
    ) -> Result<(), Error> {
        self.check_usable()?;
        self.check_peer(to)?;
        if bytes.len() > crate::reduction::MAX_NOTE_BYTES {
            let (len, most) = (bytes.len(), crate::reduction::MAX_NOTE_BYTES);
            return Err(Error::Invalid {
                what: format!("a message of {len} bytes, more than {most}"),
            });
        }
        for part in frame::parts(&bytes.into()) {
            let frame = self.frame(Body::Message(part));
            self.transmit_part(to, &frame, until)?;
        }
        Ok(())
    }

    /// Queues a part of a message as soon as its receiver has room for it.
    fn transmit_part(
        &mut self,
        to: RankId,
        frame: &Frame,
        until: Option<Instant>,
    ) -> Result<(), Error> {
        loop {
            let now = Instant::now();
            let tick = now + REVOCATION_TICK;
            let tick = until.map_or(tick, |until| until.min(tick));
            let sent = self.transmit(to, frame.clone(), Patience::Until(Some(tick)));
            if sent != Err(PushError::Full) {
                return Ok(());
            }
            if self.revoker.is_revoked() {
                return Err(self.fail(Error::Revoked));
            }
            if until.is_some_and(|until| until <= now) {
                let waiting_for = vec![to];
                return Err(self.fail(Error::TimedOut { waiting_for }));
            }
        }
    }

    /// The next message from another rank, in the order it sent them.
    ///
    /// # Errors
    /// As [`Self::all_reduce`]; after [`Error::TimedOut`] the group can still be used.
    pub fn recv(&mut self, from: RankId, deadline: Duration) -> Result<Vec<u8>, Error> {
        self.recv_until(from, Instant::now().checked_add(deadline))
    }

    pub(super) fn recv_until(
        &mut self,
        from: RankId,
        until: Option<Instant>,
    ) -> Result<Vec<u8>, Error> {
        self.check_usable()?;
        self.check_peer(from)?;
        loop {
            if let Some(message) = self.messages[World::index(from)].whole.pop_front() {
                return Ok(message);
            }
            let is_cause = |(rank, reason): &&(RankId, LossReason)| {
                *rank == from || *reason == LossReason::Reported { by: from }
            };
            if let Some((rank, reason)) = self.lost.iter().find(is_cause) {
                let error = match reason {
                    LossReason::Revoked => Error::Revoked,
                    reason => Error::PeerLost {
                        rank: *rank,
                        reason: *reason,
                    },
                };
                return Err(self.fail(error));
            }
            match self.next_event(until) {
                Next::Event(event) => match self.route(event) {
                    // Losses are kept in `lost`, frames of operations in `early`.
                    Ok(_) => {}
                    Err(error) => return Err(self.fail(error)),
                },
                Next::Revoked => return Err(self.fail(Error::Revoked)),
                Next::TimedOut => {
                    return Err(Error::TimedOut {
                        waiting_for: vec![from],
                    });
                }
            }
        }
    }

    pub(super) fn keep_message(&mut self, from: RankId, part: &Part) -> Result<(), Error> {
        let broken = |what: &str| Error::Protocol {
            rank: from,
            what: what.to_owned(),
        };
        let mailbox = &mut self.messages[World::index(from)];
        let message = mailbox.assembly.add(part);
        let message = message.map_err(|()| broken("a part of a message out of order"))?;
        mailbox.whole.extend(message);
        if mailbox.whole.len() > MAX_MESSAGES {
            return Err(broken("more messages than anybody receives"));
        }
        Ok(())
    }
}
