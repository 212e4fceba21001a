//! A coordinator's process: the machine with its disk, its clock and its streams; see
//! `coordinator/src/{driver,records,workers}.rs`. What it says to other members is in `peers`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_cluster::command::Command;
use muster_coordinator_core::consensus::{Change, Mark, ReplicaId};
use muster_coordinator_core::coordinator::{Options, TICK_MS, Thresholds};
use muster_coordinator_core::{Coordinator, Input, Now, Output, Reply, ReplyTo, Session, Taken};
use muster_proto::v1;
use v1::from_worker::Message as From;

use super::env::{Env, Plant, Point};
use super::net::{Event, MS, Message, Node, StreamId, Time, Timer};
use super::oracle::replicas::Written;

mod disk;
mod peers;
mod plants;

pub(crate) use disk::{Disk, Item, Line};
use peers::Peers;

/// Why a process ends by itself.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum End {
    /// The group has no member of its number any more.
    Removed,
    /// Another member says that it must not go on.
    Refused(String),
}

/// What a run wants of all of its coordinators.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) thresholds: Thresholds,
    /// How far a clock may be from the true time.
    pub(crate) max_skew_ms: u64,
}

/// A snapshot on its way to the disk.
#[derive(Debug)]
struct Writing {
    mark: Mark,
    file: Vec<u8>,
    num_lines: usize,
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) id: u64,
    pub(crate) life: u64,
    pub(crate) seat: u32,
    pub(crate) machine: Coordinator,
    began: Time,
    skew_ms: u64,
    pub(crate) disk: Disk,
    /// Writes on their way to the disk, and how many of them the sync under way covers.
    items: VecDeque<Item>,
    num_syncing: usize,
    /// Until when its disk is slow.
    pub(crate) slow_until: Time,
    snapshots: VecDeque<Writing>,
    /// The sizes of the snapshots that the log is to rest on.
    sizes: BTreeMap<u64, u64>,
    sessions: BTreeMap<Session, StreamId>,
    num_sessions: u64,
    subscribers: BTreeSet<StreamId>,
    peers: Peers,
    /// The log as it was written, durable or not, and how far it was applied.
    written: Written,
    applied: u64,
    /// What clients were answered.
    pub(crate) replies: Vec<(ReplyTo, Reply)>,
    /// Reads that may be answered now.
    pub(crate) readable: Vec<ReplyTo>,
    pub(crate) end: Option<End>,
}

/// The address of a seat.
pub(crate) fn address(seat: u32) -> String {
    format!("10.0.0.{seat}:4600")
}

/// The seat of an address.
pub(crate) fn seat_of(address: &str) -> Option<u32> {
    let seat = address.strip_prefix("10.0.0.")?.strip_suffix(":4600")?;
    seat.parse().ok()
}

impl Host {
    pub(crate) fn start(
        [id, life]: [u64; 2],
        seat: u32,
        disk: Disk,
        moved: &BTreeMap<u64, u32>,
        manner: Manner,
        env: &mut Env,
    ) -> Self {
        let founders = disk.founders.iter();
        let founders =
            founders.map(|id| (ReplicaId(*id), address(u32::try_from(*id).unwrap_or(0))));
        let moved = moved.iter().filter(|(other, _)| **other != id);
        let moved = moved.map(|(other, seat)| (ReplicaId(*other), address(*seat)));
        let options = Options {
            id: ReplicaId(id),
            address: address(seat),
            store_id: disk.store_id,
            cluster_id: [7; 16],
            founders: founders.collect(),
            moved: moved.collect(),
            checkpoints: "/checkpoints".to_owned(),
        };
        let mut disk = disk;
        let recovered = disk.recover();
        let snapshot = disk.snapshot().unwrap_or_else(|reason| {
            env.oracle
                .blame(format!("member {id} cannot start: {reason}"));
            None
        });
        let num_bytes = snapshot.as_ref().map_or(0, peers::num_event_bytes);
        if let Err(reason) = disk.install(recovered.start.index, num_bytes) {
            env.oracle
                .blame(format!("member {id} cannot start: {reason}"));
        }
        let (written, applied) = (Written::of(&recovered.entries), recovered.start.index);
        let mut outputs = Vec::new();
        let machine = Coordinator::new(options, recovered, snapshot, &mut outputs);
        let machine = machine.map(|machine| machine.with_thresholds(manner.thresholds));
        let skew_ms = match manner.max_skew_ms {
            0 => 0,
            most => super::rng::mix(id ^ env.net.now) % most,
        };
        let mut host = Self {
            id,
            life,
            seat,
            machine: machine.unwrap_or_else(|reason| panic!("member {id} cannot start: {reason}")),
            began: env.net.now,
            skew_ms,
            disk,
            items: VecDeque::new(),
            num_syncing: 0,
            slow_until: 0,
            snapshots: VecDeque::new(),
            sizes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            num_sessions: 0,
            subscribers: BTreeSet::new(),
            peers: Peers::default(),
            written,
            applied,
            replies: Vec::new(),
            readable: Vec::new(),
            end: None,
        };
        env.log(format_args!(
            "coordinator {id}.{life} starts behind {applied}"
        ));
        env.net.timer(host.node(), 0, Timer::Tick);
        host.carry_out(outputs, env);
        host
    }

    pub(crate) fn node(&self) -> Node {
        let (id, life) = (self.id, self.life);
        Node::Coordinator { id, life }
    }

    /// The process is no more: some of what was on its way to the disk is durable.
    pub(crate) fn die(mut self, env: &mut Env) -> Disk {
        let num_items = env.net.rng.below(self.items.len() as u64 + 1);
        let num_new = (self.disk.events.len() - self.disk.num_durable) as u64;
        // A group of one draws what it always drew.
        let num_kept = if num_new > 0 && self.disk.founders.len() != 1 {
            env.net.rng.below(num_new + 1)
        } else {
            0
        };
        let size = |num: u64| usize::try_from(num).unwrap_or_default();
        let num_lines = self.disk.num_durable + size(num_kept);
        self.disk.crash(self.items, size(num_items), num_lines);
        self.disk
    }

    fn now(&self, env: &Env) -> Now {
        Now {
            monotonic_ms: (env.net.now - self.began) / MS,
            wall_ms: 1_700_000_000_000 + env.net.now / MS + self.skew_ms,
        }
    }

    /// What its streams tell.
    pub(crate) fn events(&self) -> &[Line] {
        &self.disk.events
    }

    /// The last entry that was applied.
    pub(crate) fn applied(&self) -> u64 {
        self.applied
    }

    pub(crate) fn handle(&mut self, event: Event, env: &mut Env) {
        match event {
            Event::Timer(Timer::Tick) => {
                env.net.timer(self.node(), TICK_MS * MS, Timer::Tick);
                self.input(Input::Tick, env);
            }
            Event::Timer(Timer::StoreSynced) => self.synced(env),
            Event::Timer(Timer::SnapshotWritten) => {
                if let Some(writing) = self.snapshots.pop_front() {
                    self.disk.num_durable = self.disk.num_durable.max(writing.num_lines);
                    let index = writing.mark.index;
                    self.sizes.insert(index, writing.file.len() as u64);
                    self.disk.keep_taken(index, writing.file);
                    self.items.push_back(Item::Rest(writing.mark));
                    self.sync(env);
                }
            }
            Event::Timer(timer) => self.peer_timer(&timer, env),
            Event::Letter(letter) => self.letter(*letter, env),
            Event::Message { stream, message } => self.message(stream, message, env),
            Event::End { stream } => {
                env.net.close(self.node(), stream);
                self.subscribers.remove(&stream);
                if let Some(session) = self.session_of(stream) {
                    self.sessions.remove(&session);
                    self.input(Input::WorkerGone { session }, env);
                }
            }
        }
    }

    fn session_of(&self, stream: StreamId) -> Option<Session> {
        let mut sessions = self.sessions.iter();
        sessions.find(|(_, one)| **one == stream).map(|one| *one.0)
    }

    /// The writes of a sync are durable.
    fn synced(&mut self, env: &mut Env) {
        let num_synced = std::mem::take(&mut self.num_syncing);
        for item in self.items.drain(..num_synced).collect::<Vec<_>>() {
            self.disk.write(item.clone());
            match item {
                Item::Batch { .. } if env.plant == Plant::AnswerBeforeSync => {}
                Item::Batch { batch, .. } => self.input(Input::Persisted { batch }, env),
                Item::Rest(mark) => {
                    let num_bytes = self.sizes.remove(&mark.index).unwrap_or_default();
                    self.input(Input::Snapshotted { mark, num_bytes }, env);
                }
                Item::Discard(_) => {}
            }
        }
        self.sync(env);
    }

    fn message(&mut self, stream: StreamId, message: Message, env: &mut Env) {
        match message {
            // The shell refuses a stream while its machine does not lead.
            Message::FromWorker(From::Hello(_)) | Message::Subscribe
                if !self.machine.is_leader() =>
            {
                self.refuse(stream, env);
            }
            Message::FromWorker(From::Hello(hello)) => {
                self.num_sessions += 1;
                let session = Session(self.num_sessions);
                self.sessions.insert(session, stream);
                self.input(Input::Hello { session, hello }, env);
            }
            Message::FromWorker(message) => {
                if let Some(session) = self.session_of(stream) {
                    for message in plants::delay(message, stream, env) {
                        self.input(Input::FromWorker { session, message }, env);
                    }
                }
            }
            Message::Subscribe => {
                self.subscribers.insert(stream);
            }
            Message::Record(record) if self.subscribers.contains(&stream) => {
                self.input(Input::Record(record), env);
            }
            _ => {}
        }
    }

    /// The last word to a worker of one that does not lead.
    fn refuse(&mut self, stream: StreamId, env: &mut Env) {
        let leader = self.machine.leader().and_then(|id| self.peers.seat_of(id));
        let leader = leader.filter(|seat| *seat != self.seat);
        let message = Message::NotLeading(leader);
        env.net.send(self.node(), stream, message);
        env.net.close(self.node(), stream);
    }

    /// A client asks for something.
    pub(crate) fn ask(&mut self, number: u64, command: Command, env: &mut Env) {
        let input = Input::Request {
            reply_to: ReplyTo(number),
            request: Some(u128::from(number).to_le_bytes()),
            command,
        };
        self.input(input, env);
    }

    /// Somebody wants to see what is true now.
    pub(crate) fn look(&mut self, number: u64, env: &mut Env) {
        let reply_to = ReplyTo(number);
        self.input(Input::Read { reply_to }, env);
    }

    /// An operator wants another group.
    pub(crate) fn change(&mut self, change: Change, seat: Option<u32>, env: &mut Env) {
        let change = Input::Change {
            reply_to: ReplyTo(0),
            change,
            address: seat.map(address).unwrap_or_default(),
        };
        self.input(change, env);
    }

    pub(crate) fn transfer(&mut self, env: &mut Env) {
        self.input(Input::Transfer(None), env);
    }

    fn input(&mut self, input: Input, env: &mut Env) {
        if self.end.is_some() {
            return;
        }
        let mut outputs = Vec::new();
        let now = self.now(env);
        self.machine.handle(input, now, &mut outputs);
        self.carry_out(outputs, env);
    }

    fn carry_out(&mut self, outputs: Vec<Output>, env: &mut Env) {
        for output in outputs {
            match output {
                Output::Persist {
                    batch,
                    entries,
                    hard_state,
                    restore,
                } => {
                    if !entries.is_empty() {
                        env.point(Point::Decided, self.node());
                    }
                    if restore.is_some() {
                        self.written.clear();
                    }
                    self.written.append(&entries);
                    self.items.push_back(Item::Batch {
                        batch,
                        entries,
                        hard_state,
                        restore,
                    });
                    if env.plant == Plant::AnswerBeforeSync {
                        self.input(Input::Persisted { batch }, env);
                    }
                }
                Output::Reply { reply_to, reply } => self.replies.push((reply_to, reply)),
                Output::Readable { reply_to } => self.readable.push(reply_to),
                Output::ToWorker { session, message } => self.order(session, message, env),
                Output::Event { event, line } => {
                    env.log(format_args!("{} tells {:?}", self.id, event.what));
                    env.oracle
                        .replicas
                        .told(self.id, self.disk.events.len(), &line);
                    self.disk.events.push((event, line));
                }
                Output::Ack(ack) => {
                    for stream in &self.subscribers {
                        env.net
                            .send(self.node(), *stream, Message::Ack(ack.clone()));
                    }
                }
                Output::Send { to, bytes } => self.say(to, bytes, env),
                Output::SendSnapshot { to, index, bytes } => {
                    env.point(Point::Sending, self.node());
                    self.send_snapshot(to, index, bytes, env);
                }
                Output::Snapshot(taken) => self.write_snapshot(*taken, env),
                Output::Discard { through } => self.items.push_back(Item::Discard(through)),
                Output::Restored { mark } => self.restored(&mark, env),
                Output::Leads(leads) => self.leads(leads, env),
                Output::Members(members) => {
                    env.point(Point::Changed, self.node());
                    self.peers.are(members);
                }
                Output::Removed => {
                    self.end = Some(End::Removed);
                    return;
                }
                Output::Broken { reason } => {
                    let id = self.id;
                    env.oracle
                        .blame(format!("coordinator {id} is broken: {reason}"));
                }
            }
        }
        self.sync(env);
        self.observe(env);
    }

    fn order(&mut self, session: Session, message: v1::to_worker::Message, env: &mut Env) {
        let Some(stream) = self.sessions.get(&session).copied() else {
            return;
        };
        env.log(format_args!("to {stream:?}: {}", brief(&message)));
        let is_last = matches!(message, v1::to_worker::Message::Refused(_));
        env.net
            .send(self.node(), stream, Message::ToWorker(message));
        if is_last {
            env.net.close(self.node(), stream);
            self.sessions.remove(&session);
        }
    }

    /// One that does not lead any more ends its workers' streams.
    fn leads(&mut self, leads: bool, env: &mut Env) {
        env.log(format_args!("{:?} leads: {leads}", self.node()));
        if leads {
            env.point(Point::Elected, self.node());
            return;
        }
        let sessions = std::mem::take(&mut self.sessions).into_values();
        let subscribers = std::mem::take(&mut self.subscribers);
        for stream in sessions.chain(subscribers) {
            self.refuse(stream, env);
        }
    }

    fn write_snapshot(&mut self, Taken { mark, snapshot }: Taken, env: &mut Env) {
        env.log(format_args!(
            "{} takes a snapshot of {}",
            self.id, mark.index
        ));
        env.oracle.counts.snapshots += 1;
        env.point(Point::Snapshotting, self.node());
        self.snapshots.push_back(Writing {
            mark,
            file: snapshot.encode(),
            num_lines: self.disk.events.len(),
        });
        env.net
            .timer_between(self.node(), (MS, 60 * MS), Timer::SnapshotWritten);
    }

    fn restored(&mut self, mark: &Mark, env: &mut Env) {
        env.log(format_args!(
            "{} is at the snapshot of {}",
            self.id, mark.index
        ));
        env.oracle.counts.restores += 1;
        env.point(Point::Restored, self.node());
        let num_bytes = peers::num_event_bytes(&self.machine.snapshot());
        if let Err(reason) = self.disk.install(mark.index, num_bytes) {
            let id = self.id;
            env.oracle.blame(format!(
                "member {id} cannot go on from {}: {reason}",
                mark.index
            ));
        }
        let lines = self.disk.events.iter().map(|(_, line)| line.as_str());
        env.oracle.replicas.has_told(self.id, lines);
        self.applied = mark.index;
        env.oracle.replicas.restored(&self.machine, mark.index);
    }

    /// What the oracle is to know of what was applied.
    fn observe(&mut self, env: &mut Env) {
        let status = self.machine.status();
        let oracle = &mut env.oracle.replicas;
        oracle.led(self.id, &status);
        if status.applied > self.applied {
            for index in self.applied + 1..=status.applied {
                oracle.applied(self.id, index, self.written.at(index));
            }
            self.applied = status.applied;
            oracle.is_at(&self.machine, status.applied);
        }
    }

    /// One sync takes all that waits; what comes meanwhile waits for the next.
    fn sync(&mut self, env: &mut Env) {
        let is_slow = env.net.rng.chance(2) || env.net.now < self.slow_until;
        let (low, high) = if is_slow {
            (5 * MS, 150 * MS)
        } else {
            (300, 5 * MS)
        };
        if self.num_syncing == 0 && !self.items.is_empty() {
            self.num_syncing = self.items.len();
            env.net
                .timer_between(self.node(), (low, high), Timer::StoreSynced);
        }
    }
}

/// A message without what is the same in all of them.
fn brief(message: &v1::to_worker::Message) -> String {
    use v1::to_worker::Message as To;
    match message {
        To::Assignment(one) => format!(
            "assignment of process {} rank {} of h{} g{} from {}, finish {:?}",
            one.process, one.rank, one.history, one.generation, one.first_step, one.finish
        ),
        other => format!("{other:?}"),
    }
}
