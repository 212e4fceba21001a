//! What the driver does where the machine wants something done.

use muster_coordinator_core::{Input, Output, Reply, ReplyTo, Session};
use muster_proto::event::{Event, What};
use muster_proto::{leader, v1};
use tonic::Status;

use super::{Driver, DriverError, lengths_of};
use crate::store::thread::Batch;

impl Driver {
    pub(super) fn carry_out(&mut self, outputs: Vec<Output>) -> Result<(), DriverError> {
        // The machine has taken all that led to these already: what it shows is told first.
        let mut seen = Vec::new();
        for output in outputs {
            match output {
                Output::Persist {
                    batch,
                    entries,
                    hard_state,
                    restore,
                } => {
                    let restored = restore.as_ref().map_or(0, |mark| mark.index);
                    self.restored = self.restored.max(restored);
                    // When the thread has ended, its last note says why.
                    let _ = self.parts.store.write(Batch {
                        batch,
                        entries,
                        hard_state,
                        restore,
                    });
                }
                Output::Reply { reply_to, reply } => self.reply(reply_to, reply),
                Output::Readable { reply_to } => {
                    if let Some((_, looks)) = self.reading.take_if(|(known, _)| *known == reply_to)
                    {
                        seen.extend(looks);
                    }
                }
                Output::ToWorker { session, message } => self.order(session, message),
                Output::Event { event, line } => {
                    self.log(&event);
                    self.parts.records.append(event.job, line);
                }
                Output::Ack(ack) => {
                    // Nobody listens while no worker is connected.
                    let _ = self.acks.send(ack);
                }
                Output::Send { to, bytes } => {
                    if !self.parts.peers.send(to, bytes) {
                        self.inputs.push(Input::Unreachable(to));
                    }
                }
                Output::SendSnapshot { to, index, bytes } => {
                    let hello = self.parts.coordinator.hello_to(to);
                    self.parts.peers.send_snapshot(to, hello, index, bytes);
                }
                Output::Snapshot(taken) => self.parts.snapshotter.write(taken),
                Output::Discard { through } => {
                    let _ = self.parts.store.discard(through);
                }
                Output::Restored { mark } => {
                    let lengths = lengths_of(&self.parts.coordinator.snapshot());
                    self.parts.records.install(mark.index, lengths);
                    self.parts.snapshotter.remove_below(mark.index);
                }
                Output::Leads(leads) => {
                    self.epoch += 1;
                    tracing::info!(leads, "whether this coordinator leads has changed");
                    if !leads {
                        // Each gets a refusal as its last word; see `calls`.
                        self.sessions.clear();
                    }
                }
                Output::Members(members) => {
                    let me = self.parts.coordinator.options().id;
                    self.parts.peers.are(me, &members);
                }
                Output::Removed => {
                    let id = self.parts.coordinator.options().id.0;
                    return Err(DriverError::Removed(id));
                }
                Output::Broken { reason } => return Err(DriverError::Broken(reason)),
            }
        }
        let now = self.now();
        for look in seen {
            look(Ok((&self.parts.coordinator, now)));
        }
        Ok(())
    }

    fn reply(&mut self, reply_to: ReplyTo, reply: Reply) {
        let answer = match reply {
            Reply::NotLeading(leader) => {
                let address = leader.and_then(|leader| self.parts.peers.address_of(leader));
                Err(leader::not_leading(address.as_deref()))
            }
            Reply::Unavailable(reason) => Err(Status::unavailable(reason)),
            Reply::Refused(reason) => Err(Status::failed_precondition(reason)),
            reply => Ok(reply),
        };
        if let Some((_, looks)) = self.reading.take_if(|(known, _)| *known == reply_to) {
            for look in looks {
                look(Err(answer
                    .clone()
                    .err()
                    .unwrap_or_else(|| Status::internal("no read"))));
            }
        } else if let Some(to) = self.answers.remove(&reply_to) {
            // The client may have gone meanwhile.
            let _ = to.send(answer);
        }
    }

    fn log(&self, event: &Event) {
        if !self.parts.coordinator.is_leader() {
            return;
        }
        let (job, history) = (&event.job, event.history);
        match &event.what {
            What::Step { step, .. } => tracing::debug!(job, history, step, "a step was applied"),
            what => tracing::info!(job, history, ?what, "news of a job"),
        }
    }

    /// Gives an order to a stream. A stream that is behind by a thousand orders is ended: the
    /// worker comes back and is told what holds then.
    fn order(&mut self, session: Session, message: v1::to_worker::Message) {
        let is_last = matches!(message, v1::to_worker::Message::Refused(_));
        let Some(orders) = self.sessions.get(&session) else {
            return;
        };
        let is_full = orders.try_send(message).is_err();
        if is_last || is_full {
            self.sessions.remove(&session);
        }
    }
}
