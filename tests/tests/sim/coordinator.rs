//! The coordinator's process: the machine with its disk, its clock and its streams; see
//! `coordinator/src/{driver,records,workers}.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_cluster::command::Command;
use muster_coordinator_core::consensus::{Entry, HardState, Recovered};
use muster_coordinator_core::coordinator::TICK_MS;
use muster_coordinator_core::{Coordinator, Input, Now, Output, Reply, ReplyTo, Session};
use muster_proto::event::Event as Told;
use muster_proto::v1;
use v1::from_worker::Message as From;

use super::env::{Env, Point};
use super::net::{Event, MS, Message, Node, StreamId, Time, Timer};

/// A write that may not be durable yet.
#[derive(Debug)]
struct Batch {
    batch: u64,
    entries: Vec<Entry>,
    hard_state: Option<HardState>,
}

#[derive(Debug)]
enum Item {
    Event(Option<u64>, Told),
    Ack(v1::RecordAck),
}

/// What outlives the process.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    log: Vec<Entry>,
    hard_state: HardState,
    pub(crate) events: Vec<(Option<u64>, Told)>,
}

impl Disk {
    fn write(&mut self, batch: Batch) {
        if let Some(first) = batch.entries.first() {
            let len = usize::try_from(first.index.saturating_sub(1)).unwrap_or(usize::MAX);
            self.log.truncate(len);
        }
        self.log.extend(batch.entries);
        self.hard_state = batch.hard_state.unwrap_or(self.hard_state);
    }
}

#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) life: u64,
    pub(crate) machine: Coordinator,
    began: Time,
    pub(crate) disk: Disk,
    /// Writes and events on their way to the disk, and how many of them the sync under way covers.
    batches: VecDeque<Batch>,
    syncing_batches: usize,
    items: VecDeque<Item>,
    syncing_items: usize,
    sessions: BTreeMap<Session, StreamId>,
    num_sessions: u64,
    subscribers: BTreeSet<StreamId>,
    /// What clients were answered.
    pub(crate) replies: Vec<(ReplyTo, Reply)>,
}

impl Host {
    pub(crate) fn start(life: u64, disk: Disk, env: &mut Env) -> Self {
        let recovered = Recovered {
            hard_state: disk.hard_state,
            entries: disk.log.clone(),
            ..Recovered::default()
        };
        let mut outputs = Vec::new();
        let machine = Coordinator::new(
            recovered,
            [7; 16],
            "/checkpoints".to_owned(),
            disk.events.clone(),
            &mut outputs,
        );
        let mut host = Self {
            life,
            machine: machine.expect("the log is whole"),
            began: env.net.now,
            disk,
            batches: VecDeque::new(),
            syncing_batches: 0,
            items: VecDeque::new(),
            syncing_items: 0,
            sessions: BTreeMap::new(),
            num_sessions: 0,
            subscribers: BTreeSet::new(),
            replies: Vec::new(),
        };
        env.log(format_args!("coordinator {life} starts"));
        env.net.timer(host.node(), 0, Timer::Tick);
        host.carry_out(outputs, env);
        host
    }

    pub(crate) fn node(&self) -> Node {
        Node::Coordinator { life: self.life }
    }

    /// The process is no more: some of what was on its way to the disk is durable.
    pub(crate) fn die(mut self, env: &mut Env) -> Disk {
        let num_batches = env.net.rng.below(self.batches.len() as u64 + 1);
        for _ in 0..num_batches {
            if let Some(batch) = self.batches.pop_front() {
                self.disk.write(batch);
            }
        }
        let num_items = env.net.rng.below(self.items.len() as u64 + 1);
        for _ in 0..num_items {
            if let Some(Item::Event(index, event)) = self.items.pop_front() {
                self.disk.events.push((index, event));
            }
        }
        self.disk
    }

    fn now(&self, env: &Env) -> Now {
        Now {
            monotonic_ms: (env.net.now - self.began) / MS,
            wall_ms: 1_700_000_000_000 + env.net.now / MS,
        }
    }

    pub(crate) fn handle(&mut self, event: Event, env: &mut Env) {
        match event {
            Event::Timer(Timer::Tick) => {
                env.net.timer(self.node(), TICK_MS * MS, Timer::Tick);
                self.input(Input::Tick, env);
            }
            Event::Timer(Timer::StoreSynced) => {
                let num_synced = std::mem::take(&mut self.syncing_batches);
                for batch in self.batches.drain(..num_synced).collect::<Vec<_>>() {
                    let number = batch.batch;
                    self.disk.write(batch);
                    self.input(Input::Persisted { batch: number }, env);
                }
                self.sync(env);
            }
            Event::Timer(Timer::RecordsSynced) => {
                for _ in 0..std::mem::take(&mut self.syncing_items) {
                    match self.items.pop_front() {
                        Some(Item::Event(index, event)) => self.disk.events.push((index, event)),
                        Some(Item::Ack(ack)) => {
                            for stream in &self.subscribers {
                                env.net
                                    .send(self.node(), *stream, Message::Ack(ack.clone()));
                            }
                        }
                        None => {}
                    }
                }
                self.sync(env);
            }
            Event::Timer(_) => {}
            Event::Message { stream, message } => self.message(stream, message, env),
            Event::End { stream } => {
                env.net.close(self.node(), stream);
                self.subscribers.remove(&stream);
                let mut sessions = self.sessions.iter();
                let session = sessions.find(|(_, one)| **one == stream).map(|one| *one.0);
                if let Some(session) = session {
                    self.sessions.remove(&session);
                    self.input(Input::WorkerGone { session }, env);
                }
            }
        }
    }

    fn message(&mut self, stream: StreamId, message: Message, env: &mut Env) {
        match message {
            Message::FromWorker(From::Hello(hello)) => {
                self.num_sessions += 1;
                let session = Session(self.num_sessions);
                self.sessions.insert(session, stream);
                self.input(Input::Hello { session, hello }, env);
            }
            Message::FromWorker(message) => {
                let mut sessions = self.sessions.iter();
                let session = sessions.find(|(_, one)| **one == stream).map(|one| *one.0);
                if let Some(session) = session {
                    self.input(Input::FromWorker { session, message }, env);
                }
            }
            Message::Subscribe => {
                self.subscribers.insert(stream);
            }
            Message::Record(record) => self.input(Input::Record(record), env),
            _ => {}
        }
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

    fn input(&mut self, input: Input, env: &mut Env) {
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
                    ..
                } => {
                    if !entries.is_empty() {
                        env.point(Point::Decided, self.node());
                    }
                    self.batches.push_back(Batch {
                        batch,
                        entries,
                        hard_state,
                    });
                }
                Output::Reply { reply_to, reply } => self.replies.push((reply_to, reply)),
                Output::ToWorker { session, message } => {
                    let Some(stream) = self.sessions.get(&session).copied() else {
                        continue;
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
                Output::Event { index, event } => {
                    env.log(format_args!("event {:?}", event.what));
                    self.items.push_back(Item::Event(index, event));
                }
                Output::Ack(ack) => self.items.push_back(Item::Ack(ack)),
                Output::Broken { reason } => {
                    env.oracle
                        .blame(format!("the coordinator is broken: {reason}"));
                }
            }
        }
        self.sync(env);
    }

    /// One sync takes all that waits; what comes meanwhile waits for the next.
    fn sync(&mut self, env: &mut Env) {
        let is_slow = env.net.rng.chance(2);
        let (low, high) = if is_slow {
            (5 * MS, 150 * MS)
        } else {
            (300, 5 * MS)
        };
        if self.syncing_batches == 0 && !self.batches.is_empty() {
            self.syncing_batches = self.batches.len();
            env.net
                .timer_between(self.node(), (low, high), Timer::StoreSynced);
        }
        if self.syncing_items == 0 && !self.items.is_empty() {
            self.syncing_items = self.items.len();
            env.net
                .timer_between(self.node(), (low, high), Timer::RecordsSynced);
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
