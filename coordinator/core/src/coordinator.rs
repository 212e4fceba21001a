//! One coordinator as a machine: a replica of the log, the state it builds, and, while it leads,
//! the duties of a leader. Duties are driven by what is, not by what just happened: after every
//! input the leader compares state and observation and sends what is missing, so that a new leader
//! or a reconnected worker needs no special case.

use std::collections::{BTreeMap, BTreeSet};

use muster_cluster::apply::Answer;
use muster_cluster::command::{Command, RequestId, Stamped};
use muster_cluster::ids::{Generation, JobName, ProcessId, WorkerName};
use muster_cluster::plan::{Closing, Observed, Patience, Wait};
use muster_cluster::state::{ClusterState, Job, World};
use muster_consensus::{Entry, HardState, Mark, Membership, Recovered, Replica, ReplicaId};
use muster_proto::event::{Event, RankTime};
use muster_proto::{convert, v1};

use crate::goodput::Standing;
use crate::links::{Link, Session};
use crate::ranks::WorldWatch;

mod account;
mod duties;
mod orders;
mod reports;
mod stories;

pub(crate) use account::{Account, Progress};
use duties::Duty;

/// The time, as the shell's clocks say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds that never go back; for timeouts.
    pub monotonic_ms: u64,
    /// Milliseconds since the epoch; for stamps.
    pub wall_ms: u64,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplyTo(pub u64);

/// What can happen to a coordinator.
#[derive(Debug)]
pub enum Input {
    /// Time went on; every [`TICK_MS`].
    Tick,
    /// A client wants a command to be applied.
    Request {
        /// Where the answer goes.
        reply_to: ReplyTo,
        /// The client's id of it.
        request: Option<RequestId>,
        /// What it wants.
        command: Command,
    },
    /// A worker opened a stream and said who it is.
    Hello {
        /// The stream.
        session: Session,
        /// What it said.
        hello: v1::WorkerHello,
    },
    /// A worker said something else.
    FromWorker {
        /// The stream.
        session: Session,
        /// What it said.
        message: v1::from_worker::Message,
    },
    /// A worker's stream ended.
    WorkerGone {
        /// The stream.
        session: Session,
    },
    /// Rank 0 of some world recorded a step.
    Record(v1::StepRecord),
    /// These writes are durable.
    Persisted {
        /// The batch that [`Output::Persist`] named.
        batch: u64,
    },
}

/// What a coordinator wants done, in order.
#[derive(Debug)]
pub enum Output {
    /// Make this durable, then say [`Input::Persisted`].
    Persist {
        /// Names the write.
        batch: u64,
        /// Entries; the first may overwrite a tail.
        entries: Vec<Entry>,
        /// The promises, where they changed.
        hard_state: Option<HardState>,
        /// The snapshot that takes the place of all that was there before; `None` mostly.
        restore: Option<Mark>,
    },
    /// Answer a client.
    Reply {
        /// Whom.
        reply_to: ReplyTo,
        /// What.
        reply: Reply,
    },
    /// Tell a worker.
    ToWorker {
        /// On which stream.
        session: Session,
        /// What.
        message: v1::to_worker::Message,
    },
    /// Append an event to its job's stream. One that carries the index of an entry of the log is
    /// written once, however often the log is replayed.
    Event {
        /// The entry that it tells of.
        index: Option<u64>,
        /// The event.
        event: Event,
    },
    /// Once every event before this is durable, acknowledge a record.
    Ack(v1::RecordAck),
    /// The replica cannot go on; the process must stop, and say why.
    Broken {
        /// Why.
        reason: String,
    },
}

/// The answer to a client.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The command was applied, or refused.
    Applied(Answer),
    /// It could not be applied here; the text says why.
    Unavailable(String),
}

/// The time between two ticks, in milliseconds.
pub const TICK_MS: u64 = 50;

/// One coordinator.
#[derive(Debug)]
pub struct Coordinator {
    replica: Replica,
    state: ClusterState,
    cluster_id: [u8; 16],
    checkpoints: String,
    patience: Patience,
    is_leader: bool,
    /// What came in before the state was fit to decide from.
    early: Vec<Input>,
    last_tick_ms: Option<u64>,
    /// When the last input came.
    now: Now,
    observed: Observed,
    links: BTreeMap<Session, Link>,
    worlds: BTreeMap<JobName, WorldWatch>,
    accounts: BTreeMap<JobName, Account>,
    waits: BTreeMap<JobName, Wait>,
    /// The worlds that are to be closed, and how soon.
    closing: BTreeMap<JobName, (Generation, Closing)>,
    /// The processes that do not answer, and are to be ended.
    stuck: BTreeMap<JobName, BTreeSet<ProcessId>>,
    /// Who waits for which proposal.
    replies: BTreeMap<u64, ReplyTo>,
    next_proposal: u64,
    /// The leader's own proposals that are on their way through the log.
    in_flight: BTreeMap<Duty, u64>,
    num_stale_reports: u64,
}

impl Coordinator {
    /// A coordinator of a group of one, from what its store gave back. `checkpoints` is the folder
    /// of jobs that name none; `past` are the events that are durable already, in order, with the
    /// indexes that their [`Output::Event`] had.
    ///
    /// # Errors
    /// When the recovered log is not one; the text says where.
    pub fn new(
        mut recovered: Recovered,
        cluster_id: [u8; 16],
        checkpoints: String,
        past: Vec<(Option<u64>, Event)>,
        outputs: &mut Vec<Output>,
    ) -> Result<Self, String> {
        let id = ReplicaId(1);
        let options = muster_consensus::Options {
            id,
            seed: u64::from_le_bytes(cluster_id[..8].try_into().expect("half of 16 bytes")),
            election_ticks: 10,
            heartbeat_ticks: 2,
        };
        recovered.start.membership = Membership::of([id]);
        let mut from_replica = Vec::new();
        let replica = Replica::new(options, recovered, &mut from_replica)
            .map_err(|error| error.to_string())?;
        let mut coordinator = Self {
            replica,
            state: ClusterState::default(),
            cluster_id,
            checkpoints,
            patience: Patience::default(),
            is_leader: false,
            early: Vec::new(),
            last_tick_ms: None,
            now: Now::default(),
            observed: Observed::default(),
            links: BTreeMap::new(),
            worlds: BTreeMap::new(),
            accounts: BTreeMap::new(),
            waits: BTreeMap::new(),
            closing: BTreeMap::new(),
            stuck: BTreeMap::new(),
            replies: BTreeMap::new(),
            next_proposal: 1,
            in_flight: BTreeMap::new(),
            num_stale_reports: 0,
        };
        for (index, event) in past {
            coordinator.account_for(index, &event);
        }
        coordinator.take_replica_outputs(from_replica, outputs);
        Ok(coordinator)
    }

    /// How long it waits for what; the default's answers are those of [`Patience::default`].
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// The state as applied so far.
    #[must_use]
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// Whether it leads, and has applied all that was ever acknowledged: before, what it would show
    /// is an older state.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.is_leader
    }

    /// The position in a job's stream of the first event of its last submission.
    #[must_use]
    pub fn first_event(&self, job: &str) -> u64 {
        JobName::new(job)
            .ok()
            .and_then(|job| self.accounts.get(&job))
            .map_or(0, |account| account.first_event)
    }

    pub(crate) fn link_of(&self, worker: &WorkerName) -> Option<&Link> {
        self.links.values().find(|link| link.worker == *worker)
    }

    pub(crate) fn silent_since_ms(&self, worker: &WorkerName) -> Option<u64> {
        self.observed.silent_since_ms.get(worker).copied()
    }

    pub(crate) fn world_watch(&self, job: &JobName) -> Option<&WorldWatch> {
        self.worlds.get(job)
    }

    pub(crate) fn wait_of(&self, job: &JobName) -> Option<String> {
        self.waits.get(job).map(|wait| wait.why.clone())
    }

    pub(crate) fn progress(&self, job: &JobName) -> Progress {
        self.account(job).map(Account::progress).unwrap_or_default()
    }

    pub(crate) fn account(&self, job: &JobName) -> Option<&Account> {
        self.accounts.get(job)
    }

    /// Where the time of a job's ranks went so far.
    pub(crate) fn rank_time(&self, name: &JobName, job: &Job) -> RankTime {
        let Some(account) = self.accounts.get(name) else {
            return RankTime::default();
        };
        let now_s = seconds(self.now);
        let watch = self.worlds.get(name).map(|world| &world.watch);
        let closed_ms = watch
            .filter(|watch| watch.generation == job.generation)
            .and_then(|watch| watch.closing_since_ms);
        let ago_ms = closed_ms.map(|since| self.now.monotonic_ms.saturating_sub(since));
        account.goodput.rank_time(Standing {
            now_s,
            wanted: job.spec.workers.min,
            closed_s: ago_ms.map(|ms| now_s - seconds_of(ms)),
        })
    }

    /// How many reports came from ranks of worlds that are no longer.
    #[must_use]
    pub fn num_stale_reports(&self) -> u64 {
        self.num_stale_reports
    }

    /// Takes one input.
    pub fn handle(&mut self, input: Input, now: Now, outputs: &mut Vec<Output>) {
        // What a step did changes no decision; a busy job must not make the leader think at every step.
        self.now = now;
        let is_record = matches!(input, Input::Record(_)) && self.early.is_empty();
        match input {
            Input::Tick => {
                self.forgive_a_late_tick(now);
                self.step_replica(muster_consensus::Input::Tick, outputs);
            }
            Input::Persisted { batch } => {
                self.step_replica(muster_consensus::Input::Persisted { batch }, outputs);
            }
            input if self.is_leader => self.take(input, now, outputs),
            // A group of one leads as soon as its log is replayed; until then nobody is answered.
            input => self.early.push(input),
        }
        if self.is_leader && !is_record {
            for input in std::mem::take(&mut self.early) {
                self.take(input, now, outputs);
            }
            self.decide(now, outputs);
            self.drive(outputs);
        }
    }

    fn take(&mut self, input: Input, now: Now, outputs: &mut Vec<Output>) {
        match input {
            Input::Request {
                reply_to,
                request,
                command,
            } => {
                if let Some(answer) = request.and_then(|request| self.state.answer_to(request)) {
                    outputs.push(Output::Reply {
                        reply_to,
                        reply: Reply::Applied(answer.clone()),
                    });
                } else if let Some(refusal) = self.refusal_of(&command, now) {
                    outputs.push(Output::Reply {
                        reply_to,
                        reply: Reply::Applied(Err(refusal)),
                    });
                } else {
                    let proposal = self.next_proposal();
                    self.replies.insert(proposal, reply_to);
                    self.propose(proposal, request, command, now, outputs);
                }
            }
            Input::Hello { session, hello } => self.welcome(session, hello, now, outputs),
            Input::FromWorker { session, message } => self.heard(session, message, now, outputs),
            Input::WorkerGone { session } => {
                self.links.remove(&session);
            }
            Input::Record(record) => self.record(record, outputs),
            Input::Tick | Input::Persisted { .. } => {}
        }
    }

    fn next_proposal(&mut self) -> u64 {
        self.next_proposal += 1;
        self.next_proposal
    }

    fn propose(
        &mut self,
        proposal: u64,
        request: Option<RequestId>,
        command: Command,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        let data = convert::encode(&Stamped {
            stamp_ms: now.wall_ms,
            request,
            command,
        });
        self.step_replica(
            muster_consensus::Input::Propose {
                request: proposal,
                data,
            },
            outputs,
        );
    }

    /// A job's new world is watched; what stays true of the last one is kept.
    fn follow(&mut self, job: &JobName, last: Option<&World>, world: &World) {
        let now_ms = self.last_tick_ms.unwrap_or_default();
        let watch = self.worlds.remove(job).unwrap_or_default();
        self.worlds
            .insert(job.clone(), watch.follow(last, world, now_ms));
    }

    fn step_replica(&mut self, input: muster_consensus::Input, outputs: &mut Vec<Output>) {
        let mut from_replica = Vec::new();
        self.replica.handle(input, &mut from_replica);
        self.take_replica_outputs(from_replica, outputs);
    }

    fn take_replica_outputs(
        &mut self,
        from_replica: Vec<muster_consensus::Output>,
        outputs: &mut Vec<Output>,
    ) {
        use muster_consensus::Output as From;
        for output in from_replica {
            match output {
                From::Persist {
                    batch,
                    entries,
                    hard_state,
                    restore,
                } => {
                    outputs.push(Output::Persist {
                        batch,
                        entries,
                        hard_state,
                        restore,
                    });
                }
                // A group of one has nobody to send to, and stays as it is.
                From::Send { .. }
                | From::SendSnapshot { .. }
                | From::Discard { .. }
                | From::Restore { .. }
                | From::Changed { .. }
                | From::Readable { .. } => {}
                From::Apply {
                    index,
                    data,
                    request,
                    ..
                } => self.apply(index, &data, request, outputs),
                From::Dropped { request, reason } => {
                    self.in_flight.retain(|_, proposal| *proposal != request);
                    if let Some(reply_to) = self.replies.remove(&request) {
                        outputs.push(Output::Reply {
                            reply_to,
                            reply: Reply::Unavailable(reason),
                        });
                    }
                }
                From::Leader { is_me, .. } => self.is_leader = is_me,
                From::Broken { reason } => outputs.push(Output::Broken { reason }),
            }
        }
    }

    fn apply(&mut self, index: u64, data: &[u8], request: Option<u64>, outputs: &mut Vec<Output>) {
        let stamped = match convert::decode(data) {
            Ok(stamped) => stamped,
            Err(error) => {
                let reason =
                    format!("entry {index} of the log was written by another version: {error}");
                outputs.push(Output::Broken { reason });
                return;
            }
        };
        let command = stamped.command.clone();
        let last_world = match &command {
            Command::StartWorld { job, .. } => {
                self.state.jobs.get(job).and_then(|job| job.world.clone())
            }
            _ => None,
        };
        let answer = self.state.apply(stamped);
        match (&answer, &command) {
            (Ok(_), Command::StartWorld { job, world, .. }) => {
                // Of an entry that another process proposed, this one has not seen why.
                if let Some(last) = last_world.as_ref().filter(|_| request.is_some()) {
                    self.tell_missed(job, last, world, outputs);
                }
                self.follow(job, last_world.as_ref(), world);
            }
            (Ok(_), Command::EndStandby { job, process, .. }) => {
                if let Some(world) = self.worlds.get_mut(job) {
                    world.forget(*process);
                }
            }
            _ => {}
        }
        self.tell(index, &command, &answer, outputs);
        if let (Ok(_), Command::StartWorld { job, world, .. }) = (&answer, &command) {
            self.tell_ranks(job, world, outputs);
        }
        if let Some(proposal) = request {
            self.settle(proposal, &answer, outputs);
        }
        if let Some(reply_to) = request.and_then(|request| self.replies.remove(&request)) {
            outputs.push(Output::Reply {
                reply_to,
                reply: Reply::Applied(answer),
            });
        }
    }
}

/// The wall clock in seconds since the epoch.
fn seconds(now: Now) -> f64 {
    seconds_of(now.wall_ms)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "milliseconds since the epoch fit into 53 bits"
)]
fn seconds_of(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests;
