//! The process of a rank, as `muster-rank` makes it of the same machine: what its threads share, what
//! it is told, and what comes over its connections. Its main thread is in `work` and `steps`, the meeting of
//! a new world in `meet`.

mod follow;
mod gift;
mod lack;
mod meet;
mod prepare;
mod steps;
mod work;

use std::collections::{BTreeMap, BTreeSet};

use muster_cluster::ids::{ProcessId, RankId};
use muster_collective::LossReason;
use muster_proto::v1;
use muster_worker_core::feed::Feed;
use muster_worker_core::rank::{Cause, RankMachine};
use v1::rank_order::Order;
use v1::rank_report::Report;
use v1::to_rank::Message as ToRank;

use super::env::{Env, Plant, Point};
use super::group::{Arrived, Group};
use super::net::{DETECT, Event, MS, Message, Node, ON_A_HOST, StreamId, Timer};
use follow::{Following, Share};
use meet::Meeting;
use work::{Last, Main, Work};

/// How a rank's work ends before its end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Trouble {
    Closed,
    /// The checkpoint to start from is not whole.
    Damaged {
        history: u64,
        step: u64,
    },
    /// The process cannot go on, and another one may.
    Fault(String),
    Failed(String),
}

/// What the threads of the process share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) key: v1::RankKey,
    pub(crate) machine: RankMachine,
    assignment: Option<v1::Assignment>,
    peers: Option<(u64, v1::Peers)>,
    follow: Option<v1::Follow>,
    pause: Option<String>,
    stop: bool,
    is_dismissed: bool,
}

/// A group with the connections that it goes over.
#[derive(Debug)]
pub(crate) struct Joined {
    group: Group,
    streams: BTreeMap<StreamId, RankId>,
}

/// A connection that nobody has accepted yet.
#[derive(Clone, Copy, Debug)]
struct Stranger {
    stream: StreamId,
    history: u64,
    generation: u64,
    from: u32,
}

#[derive(Debug)]
pub(crate) struct Rank {
    pub(crate) pid: u32,
    pub(crate) host: u32,
    pub(crate) life: u64,
    /// What it was started as.
    pub(crate) key: v1::RankKey,
    control: Option<StreamId>,
    bulk: Option<StreamId>,
    pub(crate) shared: Option<Shared>,
    pub(crate) main: Main,
    /// Names what the main thread is busy with.
    token: u64,
    pub(crate) work: Option<Work>,
    meeting: Option<Meeting>,
    joined: Option<Joined>,
    /// The connections of a group that is left in good order.
    leaving: BTreeSet<StreamId>,
    strangers: Vec<Stranger>,
    /// What it gives to those that follow it, and over which connections.
    feed: Feed<Share, Last>,
    followers: BTreeSet<StreamId>,
    /// While it waits to enter a world.
    following: Option<Following>,
    /// The process at the other end of every connection there ever was.
    peers: BTreeMap<StreamId, u32>,
    is_over: bool,
}

/// Where a process listens, as a text.
pub(crate) fn address(pid: u32, host: u32) -> String {
    format!("{pid}:{host}")
}

fn parse(address: &str) -> Option<(u32, u32)> {
    let (pid, host) = address.split_once(':')?;
    Some((pid.parse().ok()?, host.parse().ok()?))
}

impl Rank {
    pub(crate) fn new(pid: u32, host: u32, life: u64, key: v1::RankKey, env: &mut Env) -> Self {
        let node = Node::Rank { pid };
        env.net.timer_between(node, (5 * MS, 100 * MS), Timer::Boot);
        Self {
            pid,
            host,
            life,
            key,
            control: None,
            bulk: None,
            shared: None,
            main: Main::Booting,
            token: 0,
            work: None,
            meeting: None,
            joined: None,
            leaving: BTreeSet::new(),
            strangers: Vec::new(),
            feed: Feed::new(follow::MAX_WAITING),
            followers: BTreeSet::new(),
            following: None,
            peers: BTreeMap::new(),
            is_over: false,
        }
    }

    fn node(&self) -> Node {
        Node::Rank { pid: self.pid }
    }

    /// How many steps its state has seen, if it has one.
    pub(crate) fn step(&self) -> Option<u64> {
        let work = self.work.as_ref().filter(|work| work.has_state)?;
        Some(work.state.step)
    }

    pub(crate) fn handle(&mut self, event: Event, env: &mut Env) {
        if self.is_over {
            return;
        }
        match event {
            Event::Timer(timer) => self.timer(&timer, env),
            Event::Message { stream, message } => self.message(stream, message, env),
            Event::End { stream } => self.ended(stream, env),
            Event::Letter(_) => {}
        }
        if !self.is_over {
            self.go_on(env);
        }
    }

    /// Lets both threads do what they can without waiting.
    fn go_on(&mut self, env: &mut Env) {
        self.poll_meeting(env);
        while self.progress(env) {
            self.poll_meeting(env);
        }
        self.feed(env);
    }

    fn timer(&mut self, timer: &Timer, env: &mut Env) {
        match timer {
            Timer::Boot => {
                let worker = Node::Worker {
                    host: self.host,
                    life: self.life,
                };
                for is_bulk in [false, true] {
                    let stream = env.net.open([self.node(), worker], None, ON_A_HOST);
                    let key = self.key.clone();
                    let side = if is_bulk {
                        &mut self.bulk
                    } else {
                        &mut self.control
                    };
                    *side = Some(stream);
                    env.net
                        .send(self.node(), stream, Message::Knock { key, is_bulk });
                }
            }
            Timer::Work(token) if *token == self.token => self.worked(env),
            Timer::Written => self.written(env),
            Timer::Deadline(token) if *token == self.token => self.timed_out(env),
            Timer::Dial { generation, rank } => self.dial(*generation, RankId(*rank), env),
            Timer::Call(process) => self.call(ProcessId(*process), env),
            Timer::Arrived => self.step_arrived(env),
            Timer::Silence(stream) => self.listened(*stream, env),
            _ => {}
        }
    }

    fn message(&mut self, stream: StreamId, message: Message, env: &mut Env) {
        match message {
            Message::ToRank(message) => self.take(message, env),
            Message::Dial {
                history,
                generation,
                from,
            } => {
                self.strangers.push(Stranger {
                    stream,
                    history,
                    generation,
                    from,
                });
                self.answer_the_door(env);
            }
            Message::Welcome => self.welcomed(stream, env),
            Message::Refused => self.refused(stream, env),
            Message::Frame(frame) => {
                let arrived = |from| Arrived::Frame { from, frame };
                self.arrived(stream, arrived, env.plant);
            }
            message => self.fed(stream, message, env),
        }
    }

    /// Something came over a connection between ranks.
    fn arrived(&mut self, stream: StreamId, arrived: impl FnOnce(RankId) -> Arrived, plant: Plant) {
        let stream = self.taken_for(stream, plant).unwrap_or(stream);
        if let Some(meeting) = &mut self.meeting
            && let Some(from) = meeting.rank_of(stream)
        {
            meeting.arrived(arrived(from));
        } else if let Some(joined) = &mut self.joined
            && let Some(from) = joined.streams.get(&stream).copied()
        {
            joined.group.arrived(arrived(from));
        }
    }

    /// The planted bug takes what comes over an older connection of a process for news.
    fn taken_for(&mut self, stream: StreamId, plant: Plant) -> Option<StreamId> {
        let peer = self
            .peers
            .get(&stream)
            .filter(|_| plant == Plant::AnyGeneration)?;
        let meeting = self.meeting.as_mut().and_then(Meeting::joined_mut);
        let streams = meeting.map(|joined| &joined.streams);
        let streams = streams.or(self.joined.as_ref().map(|joined| &joined.streams))?;
        let mut streams = streams.keys();
        let now = streams.find(|stream| self.peers.get(stream) == Some(peer));
        now.copied()
    }

    fn ended(&mut self, stream: StreamId, env: &mut Env) {
        if Some(stream) == self.control || Some(stream) == self.bulk {
            // The worker is gone, and no rank outlives it.
            return self.exit("its worker is gone", env);
        }
        env.net.close(self.node(), stream);
        self.leaving.remove(&stream);
        self.strangers.retain(|stranger| stranger.stream != stream);
        if self.dial_ended(stream, env) || self.feed_ended(stream, env) {
            return;
        }
        let reason = LossReason::Closed(std::io::ErrorKind::UnexpectedEof);
        let lost = |rank| Arrived::Lost { rank, reason };
        self.arrived(stream, lost, Plant::Nothing);
    }

    /// A connection may be silent for too long.
    fn listened(&mut self, stream: StreamId, env: &mut Env) {
        let node = self.node();
        if env.net.silence(stream, node) < DETECT {
            return;
        }
        let meeting = self.meeting.as_mut().and_then(Meeting::joined_mut);
        let joined = [self.joined.as_mut(), meeting].into_iter().flatten();
        for joined in joined {
            if let Some(rank) = joined.streams.remove(&stream) {
                let reason = LossReason::Silent;
                joined.group.arrived(Arrived::Lost { rank, reason });
                let goodbye = joined.group.goodbye_to(rank);
                env.net.send(node, stream, Message::Frame(goodbye));
                env.net.close(node, stream);
            }
        }
        if self.leaving.remove(&stream) {
            env.net.close(node, stream);
        }
        if self.is_call(stream) {
            env.net.close(node, stream);
            self.feed_ended(stream, env);
        }
    }

    /// Ends the process.
    fn exit(&mut self, reason: &str, env: &mut Env) {
        if !std::mem::replace(&mut self.is_over, true) {
            env.exits.push((self.pid, reason.to_owned()));
        }
    }

    /// Takes what the worker says.
    fn take(&mut self, message: ToRank, env: &mut Env) {
        match message {
            ToRank::Assignment(assignment) => {
                if self.shared.is_none() {
                    let generation = assignment.generation;
                    let enters = (generation > 0).then(|| assignment.clone());
                    self.shared = Some(Shared {
                        key: assignment.key(),
                        machine: RankMachine::new(generation),
                        assignment: enters,
                        peers: None,
                        follow: None,
                        pause: None,
                        stop: false,
                        is_dismissed: false,
                    });
                    env.point(Point::Preparing, self.node());
                    self.busy((5 * MS, 150 * MS), Main::Preparing(assignment), env);
                } else {
                    self.tell(env, |shared| {
                        shared.key = assignment.key();
                        shared.machine.assigned(assignment.generation);
                        shared.assignment = Some(assignment);
                    });
                }
            }
            ToRank::Order(order) => self.take_order(order, env),
            ToRank::Ack(ack) => self.tell(env, |shared| {
                if ack.job == shared.key.job && ack.history == shared.key.history {
                    shared.machine.acked((ack.step, ack.evaluated));
                }
            }),
        }
    }

    fn take_order(&mut self, order: v1::RankOrder, env: &mut Env) {
        let (Some(key), Some(order)) = (order.key, order.order) else {
            return;
        };
        let generation = key.generation;
        if let Order::Committed(committed) = &order
            && self
                .shared
                .as_ref()
                .is_some_and(|shared| shared.key.rank == 0)
        {
            remove_retired(&committed.keep, env);
        }
        self.tell(env, |shared| match order {
            Order::Peers(peers) => shared.peers = Some((generation, peers)),
            Order::Follow(follow) => shared.follow = Some(follow),
            Order::Stop(_) => shared.stop = true,
            Order::Committed(committed) => shared.machine.committed(committed.step),
            Order::Dismiss(_) => shared.is_dismissed = true,
            Order::Close(close) => {
                let reason = close.reason;
                let cause = Cause {
                    reason,
                    ..Cause::default()
                };
                shared.machine.close(generation, cause);
            }
            Order::Pause(pause) => {
                if shared.machine.generation() == generation {
                    shared.pause = Some(pause.reason);
                }
            }
        });
    }

    /// Tells the machine something, and sends what follows from it.
    fn tell<T: Default>(&mut self, env: &mut Env, tell: impl FnOnce(&mut Shared) -> T) -> T {
        let Some(shared) = &mut self.shared else {
            return T::default();
        };
        let told = tell(shared);
        let reports = shared.machine.take_reports();
        let records = shared.machine.take_records();
        let is_closed = !shared.machine.is_open();
        let key = shared.key.clone();
        if is_closed {
            if let Some(meeting) = &mut self.meeting {
                meeting.revoke();
            }
            if let Some(joined) = &mut self.joined {
                joined.group.is_revoked = true;
            }
        }
        for record in records {
            if let Some(bulk) = self.bulk {
                env.net.send(self.node(), bulk, Message::Record(record));
            }
        }
        for report in reports {
            self.report(key.clone(), report, env);
        }
        told
    }

    fn report(&mut self, key: v1::RankKey, report: Report, env: &mut Env) {
        match &report {
            Report::Closed(_) => env.point(Point::Closed, self.node()),
            Report::Done(_) => env.point(Point::Done, self.node()),
            _ => {}
        }
        env.log(format_args!(
            "p{} reports {report:?} as {}",
            self.pid,
            short(&key)
        ));
        let report = v1::RankReport {
            key: Some(key),
            report: Some(report),
        };
        if let Some(control) = self.control {
            env.net
                .send(self.node(), control, Message::FromRank(report));
        }
    }

    /// What it is at, for people.
    pub(crate) fn view(&self) -> String {
        let waiting = self
            .joined
            .as_ref()
            .map(|joined| joined.group.waiting_for());
        let shared = self.shared.as_ref();
        format!(
            "p{} on w{}.{} as {}: main {:?}, meeting {:?}, waits for {waiting:?}, {:?}",
            self.pid,
            self.host,
            self.life,
            short(shared.map_or(&self.key, |shared| &shared.key)),
            self.main,
            self.meeting.as_ref().map(Meeting::view),
            (
                shared.map(|shared| &shared.machine),
                self.following.as_ref().map(Following::view)
            ),
        )
    }
}

/// A key in a few letters.
pub(crate) fn short(key: &v1::RankKey) -> String {
    format!(
        "process {} rank {} of h{} g{}",
        key.process, key.rank, key.history, key.generation
    )
}

/// What `muster_trainer::checkpoint::remove_retired` removes.
fn remove_retired(keep: &[String], env: &mut Env) {
    let kept = keep.iter().filter_map(|name| env.files.get(name));
    if let Some(newest) = kept.map(|state| state.step).max() {
        env.files
            .retain(|name, state| state.step > newest || keep.contains(name));
    }
}
