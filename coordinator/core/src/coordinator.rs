//! One coordinator as a machine: a replica of the log, the state it builds, and, while it leads,
//! the duties of a leader. Duties are driven by what is, not by what just happened: after every
//! input the leader compares state and observation and sends what is missing, so that a new leader
//! or a reconnected worker needs no special case.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_cluster::command::{Command, RequestId, Stamped};
use muster_cluster::ids::{Generation, JobName, ProcessId, WorkerName};
use muster_cluster::plan::{Closing, Observed, Patience, Wait};
use muster_cluster::state::{ClusterState, Job, World};
use muster_consensus::{Recovered, Replica, ReplicaId};
use muster_proto::convert::LogEntry;
use muster_proto::event::RankTime;
use muster_proto::v1;

use crate::archive::{Archive, Known};
use crate::goodput::Standing;
use crate::links::{Link, Links, Session};
use crate::members::Members;
use crate::ranks::WorldWatch;
use crate::snapshot::Snapshot;

mod account;
mod admission;
mod allowance;
mod duties;
mod entries;
mod group;
mod io;
mod orders;
mod records;
mod reports;
mod snapshots;
mod stories;

pub(crate) use account::Account;
pub use admission::Stranger;
use allowance::Allowance;
use duties::Duty;
use group::Asked;
pub use group::{GENESIS_INDEX, Options};
pub use io::{Input, Now, Output, Reply, ReplyTo};
use records::Unrecorded;
use snapshots::Snapshots;
pub use snapshots::Thresholds;

/// The time between two ticks, in milliseconds.
pub const TICK_MS: u64 = 25;

/// So many open jobs are looked at with each tick.
const JOBS_PER_TICK: u64 = 1_000;

/// But all of them after so many ticks.
const MAX_TICKS_UNTHOUGHT: u64 = 8;

/// One coordinator.
#[derive(Debug)]
pub struct Coordinator {
    // What follows from the log. The jobs that are over are in the archive, and nowhere else.
    state: ClusterState,
    archive: Archive,
    accounts: BTreeMap<JobName, Arc<Account>>,
    members: Members,
    /// What those said last of themselves that spoke to it.
    shown: BTreeMap<ReplicaId, v1::Member>,
    // The replica.
    options: Options,
    replica: Replica,
    snapshots: Snapshots,
    leader: Option<ReplicaId>,
    is_leader: bool,
    /// Whether entries were applied that a leader must act on.
    is_changed: bool,
    /// How many ticks have gone by since it thought last.
    num_ticks: u64,
    // What a leader knows, and forgets when it leads no more.
    patience: Patience,
    last_tick_ms: Option<u64>,
    /// When the last input came.
    now: Now,
    observed: Observed,
    links: Links,
    /// How much may be told at once.
    allowance: Allowance,
    worlds: BTreeMap<JobName, WorldWatch>,
    waits: BTreeMap<JobName, Wait>,
    /// The worlds that are to be closed, and how soon.
    closing: BTreeMap<JobName, (Generation, Closing)>,
    /// The processes that do not answer, and are to be ended.
    stuck: BTreeMap<JobName, BTreeSet<ProcessId>>,
    unrecorded: Unrecorded,
    /// Whether something is decided as soon as all of it is told.
    is_held: bool,
    /// Who waits for which proposal or read.
    asked: BTreeMap<u64, Asked>,
    next_proposal: u64,
    /// The leader's own proposals that are on their way through the log.
    in_flight: BTreeMap<Duty, u64>,
    num_stale_reports: u64,
}

impl Coordinator {
    /// A coordinator, from what its store gave back, and from the snapshot that its log rests on.
    ///
    /// # Errors
    /// When the recovered log is not one, or the snapshot is missing or of another cluster; the text
    /// says where.
    pub fn new(
        options: Options,
        recovered: Recovered,
        snapshot: Option<Snapshot>,
        outputs: &mut Vec<Output>,
    ) -> Result<Self, String> {
        let start = recovered.start.clone();
        let snapshot = match snapshot {
            Some(snapshot) => snapshot,
            None if start.index <= GENESIS_INDEX => options.genesis(),
            None => {
                return Err(format!(
                    "its log begins behind entry {}, and there is no snapshot of it",
                    start.index
                ));
            }
        };
        if snapshot.cluster_id != options.cluster_id {
            return Err("its snapshot is of another cluster".to_owned());
        }
        let mut from_replica = Vec::new();
        let replica = Replica::new(options.consensus(), recovered, &mut from_replica)
            .map_err(|error| error.to_string())?;
        let mut coordinator = Self {
            state: snapshot.state,
            archive: snapshot.archive,
            accounts: snapshot.accounts,
            members: snapshot.members,
            shown: options.shown(),
            replica,
            snapshots: Snapshots::behind(start.clone(), snapshot.num_bytes),
            leader: None,
            is_leader: false,
            is_changed: false,
            num_ticks: 0,
            patience: Patience::default(),
            last_tick_ms: None,
            now: Now::default(),
            observed: Observed::default(),
            links: Links::default(),
            allowance: Allowance::default(),
            worlds: BTreeMap::new(),
            waits: BTreeMap::new(),
            closing: BTreeMap::new(),
            stuck: BTreeMap::new(),
            unrecorded: Unrecorded::default(),
            is_held: false,
            asked: BTreeMap::new(),
            next_proposal: 1,
            in_flight: BTreeMap::new(),
            num_stale_reports: 0,
            options,
        };
        coordinator.say_members(outputs);
        coordinator.take_replica_outputs(from_replica, outputs);
        Ok(coordinator)
    }

    /// How long it waits for what; the default's answers are those of [`Patience::default`].
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = patience;
        self
    }

    /// The state as applied so far, without the jobs that are over.
    #[must_use]
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// A job, also one that is over; `None` where no job has this name.
    #[must_use]
    pub fn job(&self, name: &JobName) -> Option<Arc<Job>> {
        self.known(name).map(|(job, _)| job)
    }

    pub(crate) fn known(&self, name: &JobName) -> Option<Known> {
        match self.state.jobs.get(name) {
            Some(job) => {
                let account = self.accounts.get(name).cloned();
                Some((Arc::clone(job), account.unwrap_or_default()))
            }
            // One that cannot be decoded stops the coordinator when an entry names it.
            None => self.archive.get(name).ok().flatten(),
        }
    }

    /// The names of all jobs, in order.
    #[must_use]
    pub fn job_names(&self) -> BTreeSet<&JobName> {
        self.state.jobs.keys().chain(self.archive.names()).collect()
    }

    /// Whether it leads, and has applied all that was ever acknowledged: before, what it would show
    /// is an older state.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.is_leader
    }

    pub(crate) fn link_of(&self, worker: &WorkerName) -> Option<&Link> {
        self.links.of(worker).map(|(_, link)| link)
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

    /// What the events of a job amount to that goes on.
    pub(crate) fn account(&self, job: &JobName) -> Option<&Account> {
        self.accounts.get(job).map(Arc::as_ref)
    }

    /// Where the time of a job's ranks went so far.
    pub(crate) fn rank_time(&self, name: &JobName, job: &Job, account: &Account) -> RankTime {
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
        self.handle_all([input], now, outputs);
    }

    /// Takes what came in, then decides once.
    pub fn handle_all(
        &mut self,
        inputs: impl IntoIterator<Item = Input>,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        self.now = now;
        let mut is_news = false;
        let mut is_tick = false;
        for input in inputs {
            is_tick |= matches!(input, Input::Tick);
            // What a step did, or that a worker is still there, changes no decision; a busy cluster
            // must not make the leader think at every one of them.
            is_news |= self.take(input, outputs);
        }
        self.flush_proposals(outputs);
        is_news |= std::mem::take(&mut self.is_changed);
        if self.is_leader {
            let is_time = self.is_time_to_think();
            // What there was too much of at once goes on with the clock.
            let mut is_told = is_tick && self.allowance.is_short;
            if is_news || is_time {
                let (closing, stuck) = (self.closing.clone(), self.stuck.clone());
                self.decide(now, outputs);
                // What time alone brings is told only where something was decided.
                is_told |= is_news || closing != self.closing || stuck != self.stuck;
            }
            if is_told {
                self.drive(outputs);
            }
            self.record_more(outputs);
            self.flush_proposals(outputs);
        }
        self.take_snapshot(outputs);
    }

    /// Whether enough ticks have gone by since the leader thought last: a long queue of jobs is looked
    /// at less often.
    fn is_time_to_think(&mut self) -> bool {
        let num_open = self.state.num_open_jobs() as u64;
        let is_time = self.num_ticks > (num_open / JOBS_PER_TICK).min(MAX_TICKS_UNTHOUGHT);
        if is_time {
            self.num_ticks = 0;
        }
        is_time
    }

    /// Takes one input; whether the leader is to think about it.
    fn take(&mut self, input: Input, outputs: &mut Vec<Output>) -> bool {
        let now = self.now;
        match input {
            Input::Tick => {
                self.forgive_a_late_tick(now);
                self.num_ticks += 1;
                self.allowance.refill();
                self.step_replica(muster_consensus::Input::Tick, outputs);
            }
            Input::Persisted { batch } => {
                self.step_replica(muster_consensus::Input::Persisted { batch }, outputs);
            }
            Input::Request { reply_to, .. }
            | Input::Read { reply_to }
            | Input::Change { reply_to, .. }
                if !self.is_leader =>
            {
                let reply =
                    Reply::NotLeading(self.leader.filter(|leader| *leader != self.options.id));
                outputs.push(Output::Reply { reply_to, reply });
            }
            Input::Request {
                reply_to,
                request,
                command,
            } => self.request(reply_to, request, command, outputs),
            Input::Read { reply_to } => self.read(reply_to, outputs),
            Input::Change {
                reply_to,
                change,
                address,
            } => self.change(reply_to, change, address, outputs),
            Input::Hello { session, hello } if self.is_leader => {
                self.welcome(session, hello, now, outputs);
                return true;
            }
            Input::FromWorker { session, message } if self.is_leader => {
                return self.heard(session, message, now, outputs);
            }
            Input::WorkerGone { session } => return self.links.remove(session).is_some(),
            Input::Record(record) if self.is_leader => self.record(record, outputs),
            Input::Hello { .. } | Input::FromWorker { .. } | Input::Record(_) => {}
            Input::Peer {
                from,
                bytes,
                snapshot,
            } => self.hear_peer(from, bytes, snapshot, outputs),
            Input::PeerHello(member) => self.peer_shows_itself(member, outputs),
            Input::Unreachable(peer) => {
                self.step_replica(muster_consensus::Input::Unreachable { peer }, outputs);
            }
            Input::SnapshotSent { to, is_there } => {
                let sent = muster_consensus::Input::SnapshotSent { to, is_there };
                self.step_replica(sent, outputs);
            }
            Input::Snapshotted { mark, num_bytes } => self.snapshotted(mark, num_bytes, outputs),
            Input::Transfer(to) => self.transfer(to, outputs),
        }
        false
    }

    fn request(
        &mut self,
        reply_to: ReplyTo,
        request: Option<RequestId>,
        mut command: Command,
        outputs: &mut Vec<Output>,
    ) {
        let known = request.and_then(|request| self.state.answer_to(request));
        let answer = known.or_else(|| self.refusal_of(&mut command, self.now).map(Err));
        if let Some(answer) = answer {
            self.answer(reply_to, answer, outputs);
            return;
        }
        let proposal = self.next_proposal();
        self.asked.insert(proposal, Asked::Command(reply_to));
        self.propose(proposal, request, command, outputs);
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
        outputs: &mut Vec<Output>,
    ) {
        let stamped = Stamped {
            stamp_ms: self.now.wall_ms,
            request,
            command,
        };
        self.propose_entry(proposal, LogEntry::Command(stamped), outputs);
    }

    fn propose_entry(&mut self, proposal: u64, entry: LogEntry, outputs: &mut Vec<Output>) {
        let mut from_replica = Vec::new();
        self.replica
            .propose(proposal, entry.encode(), &mut from_replica);
        self.take_replica_outputs(from_replica, outputs);
    }

    /// Has the proposals go that came together.
    fn flush_proposals(&mut self, outputs: &mut Vec<Output>) {
        let mut from_replica = Vec::new();
        self.replica.flush(&mut from_replica);
        self.take_replica_outputs(from_replica, outputs);
    }

    /// A job's new world is watched; what stays true of the last one is kept.
    fn follow(&mut self, job: &JobName, last: Option<&World>, world: &World) {
        let now_ms = self.last_tick_ms.unwrap_or_default();
        let watch = self.worlds.remove(job).unwrap_or_default();
        self.worlds
            .insert(job.clone(), watch.follow(last, world, now_ms));
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
