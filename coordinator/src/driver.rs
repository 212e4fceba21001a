//! The one task that owns the coordinator's machine: it feeds it, keeps its clock, and carries out
//! what it says. Decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use muster_coordinator_core::consensus::{Mark, ReplicaId};
use muster_coordinator_core::coordinator::TICK_MS;
use muster_coordinator_core::{Coordinator, Input, Now, Output, ReplyTo, Session, Snapshot};
use muster_proto::v1;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::calls::{Answer, Call, Handle, Lead, Look, PeerCall};
use crate::peers::{Peers, Refused};
use crate::records::{Lengths, Records, RecordsError};
use crate::snapshots::{SnapshotError, Snapshotter};
use crate::store::StoreError;
use crate::store::thread::{Report, StoreThread};

mod acts;
mod elected;

pub(crate) use elected::Elected;

/// Calls that are taken together: the machine thinks once about them.
const MAX_TAKEN: usize = 512;

/// How long a leader that is told to end waits for another one to lead.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);

/// Acknowledgements that a slow worker's stream may be behind. One that is further behind is ended,
/// and the worker sends again what it has.
const MAX_ACKS_BEHIND: usize = 4096;

/// What other threads report.
#[derive(Debug)]
pub(crate) enum Note {
    Store(Report),
    RecordsFailed(RecordsError),
    Snapshot(Result<(Mark, u64), SnapshotError>),
    Unreachable(ReplicaId),
    SnapshotSent {
        to: ReplicaId,
        is_there: bool,
    },
    /// A member wants nothing of this one.
    Refused(ReplicaId, Refused),
}

/// Why a driver ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The log cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The events cannot be written.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// A snapshot cannot be written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The machine refuses to go on.
    #[error("the replicated log contradicts itself: {0}")]
    Broken(String),
    /// The group does not want it.
    #[error("{0}")]
    Refused(String),
    /// It was removed.
    #[error("member {0} was removed from the group; its data folder can go")]
    Removed(u64),
}

/// Where an answer goes.
type AnswerTo = tokio::sync::oneshot::Sender<Answer>;

/// What a driver works with.
pub(crate) struct Parts {
    pub(crate) coordinator: Coordinator,
    pub(crate) store: StoreThread,
    pub(crate) records: Records,
    pub(crate) snapshotter: Snapshotter,
    pub(crate) peers: Peers,
    pub(crate) notes: mpsc::UnboundedReceiver<Note>,
}

/// The task.
pub(crate) struct Driver {
    parts: Parts,
    calls: mpsc::Receiver<Call>,
    peer_calls: mpsc::Receiver<PeerCall>,
    lead: watch::Sender<Lead>,
    acks: broadcast::Sender<v1::RecordAck>,
    start: Instant,
    sessions: BTreeMap<Session, crate::calls::Orders>,
    answers: BTreeMap<ReplyTo, AnswerTo>,
    next_answer: u64,
    /// Who waits to see what is true now; and those of them that the read under way is for.
    looks: Vec<Look>,
    reading: Option<(ReplyTo, Vec<Look>)>,
    /// Where a snapshot ended that was asked for, and the size of its file.
    snapshots: BTreeMap<u64, u64>,
    /// Where the newest snapshot ends that was received.
    restored: u64,
    /// How often whether it leads has changed.
    epoch: u64,
    elected: Elected,
    /// The members that do not listen to this one, while nobody leads.
    refused_by: BTreeSet<ReplicaId>,
    /// What came in, and is to be given to the machine.
    inputs: Vec<Input>,
}

impl Driver {
    /// A driver, and the services' handle to it.
    pub(crate) fn new(parts: Parts) -> (Self, Handle) {
        let (handle, calls, peer_calls, lead) = Handle::new(MAX_ACKS_BEHIND);
        let driver = Self {
            parts,
            calls,
            peer_calls,
            lead,
            acks: handle.acks.clone(),
            start: Instant::now(),
            sessions: BTreeMap::new(),
            answers: BTreeMap::new(),
            next_answer: 1,
            looks: Vec::new(),
            reading: None,
            snapshots: BTreeMap::new(),
            restored: 0,
            epoch: 0,
            elected: Elected::default(),
            refused_by: BTreeSet::new(),
            inputs: Vec::new(),
        };
        (driver, handle)
    }

    /// Runs until it is told to end, or cannot go on. `first` is what the machine said at its start.
    pub(crate) async fn run(
        mut self,
        first: Vec<Output>,
        handle: Handle,
        shutdown: CancellationToken,
    ) -> Result<(), DriverError> {
        self.parts.peers.start(handle);
        self.carry_out(first)?;
        self.after();
        let mut ticks = tokio::time::interval(Duration::from_millis(TICK_MS));
        // A machine that was held up must see the gap, not a burst that hides it.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ends_at = None::<Instant>;
        let (mut notes, mut peers, mut calls) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            if let Some(at) = ends_at
                && (!self.has_to_hand_over() || Instant::now() >= at)
            {
                break;
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled(), if ends_at.is_none() => {
                    ends_at = Some(Instant::now() + TRANSFER_TIMEOUT);
                    if self.has_to_hand_over() {
                        self.inputs.push(Input::Transfer(None));
                    }
                }
                1.. = self.parts.notes.recv_many(&mut notes, MAX_TAKEN) => {
                    for note in notes.drain(..) {
                        self.note(note)?;
                    }
                }
                1.. = self.peer_calls.recv_many(&mut peers, MAX_TAKEN) => {
                    for call in peers.drain(..) {
                        self.peer_call(call);
                    }
                }
                _ = ticks.tick() => self.inputs.push(Input::Tick),
                1.. = self.calls.recv_many(&mut calls, MAX_TAKEN) => {
                    for call in calls.drain(..) {
                        self.call(call);
                    }
                }
            }
            self.step()?;
        }
        self.parts.store.shutdown();
        Ok(())
    }

    /// Whether others would be without a leader if it ended now.
    fn has_to_hand_over(&self) -> bool {
        self.parts.coordinator.is_leader()
            && self.parts.coordinator.status().membership.voters.len() > 1
    }

    fn note(&mut self, note: Note) -> Result<(), DriverError> {
        let input = match note {
            Note::Store(Report::Durable { batch }) => Input::Persisted { batch },
            Note::Store(Report::Rests { mark }) => {
                self.parts.snapshotter.remove_below(mark.index);
                let num_bytes = self.snapshots.remove(&mark.index).unwrap_or_default();
                Input::Snapshotted { mark, num_bytes }
            }
            Note::Store(Report::Failed(error)) => return Err(error.into()),
            Note::RecordsFailed(error) => return Err(error.into()),
            Note::Snapshot(written) => {
                let (mark, num_bytes) = written?;
                if mark.index <= self.restored {
                    // The log rests on a newer one by now, which was received.
                    self.inputs.push(Input::Snapshotted { mark, num_bytes });
                    return Ok(());
                }
                self.snapshots.insert(mark.index, num_bytes);
                // When the thread has ended, its last note says why.
                let _ = self.parts.store.rest_on(mark);
                return Ok(());
            }
            Note::Unreachable(peer) => Input::Unreachable(peer),
            Note::SnapshotSent { to, is_there } => Input::SnapshotSent { to, is_there },
            Note::Refused(peer, refused) => return self.refused(peer, &refused),
        };
        self.inputs.push(input);
        Ok(())
    }

    /// Another member does not listen to this one. One that is wrong itself ends; one that is not,
    /// waits until the other one is mended.
    fn refused(&mut self, peer: ReplicaId, refused: &Refused) -> Result<(), DriverError> {
        let Refused { reason, is_final } = refused;
        let coordinator = &self.parts.coordinator;
        if coordinator.leader().is_some() {
            self.refused_by.clear();
        }
        self.refused_by.insert(peer);
        let num_members = coordinator.members().iter().count();
        let num_left = num_members.saturating_sub(self.refused_by.len());
        // Without those that refuse it, it would never belong to a majority. One that is to join knows
        // of nobody yet.
        if *is_final || num_members > 0 && num_left <= num_members / 2 {
            let peer = peer.0;
            let reason = format!("member {peer} refuses this one: {reason}");
            return Err(DriverError::Refused(reason));
        }
        tracing::warn!(peer = peer.0, reason, "a member refuses this one");
        Ok(())
    }

    fn peer_call(&mut self, call: PeerCall) {
        match call {
            PeerCall::Hello { hello, answer } => {
                let admitted = self.parts.coordinator.admit(hello);
                if let Ok(member) = &admitted {
                    self.inputs.push(Input::PeerHello(member.clone()));
                }
                // The connection may have ended meanwhile.
                let _ = answer.send(admitted);
            }
            PeerCall::Messages { from, messages } => {
                let inputs = messages.into_iter().map(|bytes| Input::Peer {
                    from,
                    bytes,
                    snapshot: None,
                });
                self.inputs.extend(inputs);
            }
            PeerCall::Snapshot {
                from,
                bytes,
                snapshot,
            } => self.inputs.push(Input::Peer {
                from,
                bytes,
                snapshot: Some(snapshot),
            }),
        }
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Input(input) => {
                if let Input::WorkerGone { session } = input {
                    self.sessions.remove(&session);
                }
                self.inputs.push(input);
            }
            Call::Record { epoch, record } => {
                // What came while another one led is sent again, over a new stream.
                if epoch == self.lead.borrow().epoch {
                    self.inputs.push(Input::Record(record));
                }
            }
            Call::Hello {
                session,
                hello,
                orders,
                answer,
            } => {
                let lead = self.lead.borrow().clone();
                // The stream may have ended meanwhile.
                if answer.send(lead.check()).is_ok() && lead.is_me {
                    self.sessions.insert(session, orders);
                    self.inputs.push(Input::Hello { session, hello });
                }
            }
            Call::Request {
                request,
                command,
                answer,
            } => {
                let reply_to = self.reply_to(answer);
                self.inputs.push(Input::Request {
                    reply_to,
                    request,
                    command,
                });
            }
            Call::Change {
                change,
                address,
                answer,
            } => {
                let reply_to = self.reply_to(answer);
                self.inputs.push(Input::Change {
                    reply_to,
                    change,
                    address,
                });
            }
            Call::Transfer(to) => self.inputs.push(Input::Transfer(to)),
            Call::Look { look, is_stale } => {
                if is_stale {
                    look(Ok((&self.parts.coordinator, self.now())));
                } else {
                    self.looks.push(look);
                }
            }
            Call::Elected(answer) => {
                let _ = answer.send(self.elected.clone());
            }
        }
    }

    fn reply_to(&mut self, answer: AnswerTo) -> ReplyTo {
        let reply_to = ReplyTo(self.next_answer);
        self.next_answer += 1;
        self.answers.insert(reply_to, answer);
        reply_to
    }

    fn now(&self) -> Now {
        Now {
            monotonic_ms: millis(self.start.elapsed()),
            wall_ms: wall_ms(),
        }
    }

    /// Gives the machine what came in, and does what it wants.
    fn step(&mut self) -> Result<(), DriverError> {
        loop {
            self.ask_to_read();
            if self.inputs.is_empty() {
                return Ok(());
            }
            let inputs = std::mem::take(&mut self.inputs);
            let mut outputs = Vec::new();
            let now = self.now();
            self.parts.coordinator.handle_all(inputs, now, &mut outputs);
            self.carry_out(outputs)?;
            self.after();
        }
    }

    /// Asks once for all that want to see what is true now; those that come meanwhile wait for the
    /// next time.
    fn ask_to_read(&mut self) {
        if self.reading.is_none() && !self.looks.is_empty() {
            let reply_to = ReplyTo(self.next_answer);
            self.next_answer += 1;
            self.reading = Some((reply_to, std::mem::take(&mut self.looks)));
            self.inputs.push(Input::Read { reply_to });
        }
    }

    /// Tells the services who leads, where that has changed.
    fn after(&mut self) {
        let coordinator = &self.parts.coordinator;
        let is_me = coordinator.is_leader();
        let other = coordinator.leader();
        let other = other.filter(|leader| *leader != coordinator.options().id);
        let address = other.and_then(|leader| self.parts.peers.address_of(leader));
        let epoch = self.epoch;
        self.lead.send_if_modified(|lead| {
            let now = Lead {
                is_me,
                epoch,
                address,
            };
            let is_news = *lead != now;
            *lead = now;
            is_news
        });
        let leader = self.parts.coordinator.leader();
        let term = self.parts.coordinator.term();
        if self.elected.note(leader, term, wall_ms()) {
            let leader = leader.map(|leader| leader.0);
            tracing::info!(leader, term, why = self.elected.why, "another one leads");
        }
    }
}

/// How many bytes of events a snapshot counts.
pub(crate) fn lengths_of(snapshot: &Snapshot) -> Lengths {
    let lengths = snapshot.event_bytes();
    lengths
        .map(|(job, bytes)| (job.to_string(), bytes))
        .collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn wall_ms() -> u64 {
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    wall.map(millis).unwrap_or_default()
}
