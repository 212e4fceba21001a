//! How a process that waits follows the ranks, and how ranks feed it; see `worker/rank/src/{feed,follow}.rs`.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_cluster::ids::ProcessId;
use muster_proto::v1;
use muster_worker_core::feed::{Ask, Item, Ticket};
use muster_worker_core::follower::{Follower, Input, Output};
use v1::rank_report::Report;

use super::super::env::{Env, Point};
use super::super::model::State;
use super::super::net::{BETWEEN_RANKS, MS, Message, Node, StreamId, Time, Timer};
use super::steps::{applied_record, record};
use super::work::{Last, Main};
use super::{Rank, parse};

/// The pause before a process is called again.
const PAUSE: Time = 100 * MS;

/// Steps that may wait for a follower.
pub(super) const MAX_WAITING: usize = 4;

/// The attempt, the whole state where the product gives a share, and the records that go with it.
pub(super) type Share = (u64, State, Vec<v1::StepRecord>);

/// What comes from the processes that are followed, in its order.
#[derive(Debug)]
enum Heard {
    Input(Input),
    Share { from: ProcessId, share: Share },
    Step { from: ProcessId, last: Last },
}

/// What a process knows that follows.
#[derive(Debug)]
pub(crate) struct Following {
    machine: Follower,
    addresses: BTreeMap<ProcessId, (u32, u32)>,
    calls: BTreeMap<ProcessId, Option<StreamId>>,
    shares: BTreeMap<ProcessId, Share>,
    /// What came in, whose first is a step that is arriving.
    inbox: VecDeque<Heard>,
    mail: VecDeque<Heard>,
}

impl Following {
    pub(super) fn new(me: u64) -> Self {
        Self {
            machine: Follower::new(ProcessId(me)),
            addresses: BTreeMap::new(),
            calls: BTreeMap::new(),
            shares: BTreeMap::new(),
            inbox: VecDeque::new(),
            mail: VecDeque::new(),
        }
    }

    fn caller(&self, stream: StreamId) -> Option<ProcessId> {
        let mut calls = self.calls.iter();
        let found = calls.find(|(_, call)| **call == Some(stream));
        found.map(|(process, _)| *process)
    }

    /// Whether a step below `first_step` is here, or arrives: less would be lacking of a world that
    /// begins there.
    pub(super) fn brings(&self, first_step: u64) -> bool {
        let mut mail = self.mail.iter();
        let arriving = match self.inbox.front() {
            Some(Heard::Step { last, .. }) => last.step < first_step,
            _ => false,
        };
        arriving || mail.any(|heard| matches!(heard, Heard::Step { .. }))
    }

    /// Something comes in; a step is here when the vector is, which takes a while.
    fn comes(&mut self, heard: Heard, node: Node, env: &mut Env) {
        self.inbox.push_back(heard);
        if self.inbox.len() == 1 {
            self.pass_on(node, env);
        }
    }

    fn pass_on(&mut self, node: Node, env: &mut Env) {
        while let Some(heard) = self.inbox.pop_front() {
            if matches!(heard, Heard::Step { .. }) {
                self.inbox.push_front(heard);
                env.net.timer_between(node, (0, 10 * MS), Timer::Arrived);
                return;
            }
            self.mail.push_back(heard);
        }
    }

    pub(super) fn view(&self) -> String {
        format!("{:?}, {} in the mail", self.machine, self.mail.len())
    }
}

impl Rank {
    /// Something came over a connection between a rank and a follower.
    pub(super) fn fed(&mut self, stream: StreamId, message: Message, env: &mut Env) {
        let node = self.node();
        match message {
            Message::FeedHello => {
                // Whoever is not prepared listens nowhere.
                if self.work.is_none() {
                    return env.net.close(node, stream);
                }
                self.feed.connected(stream.0);
                self.followers.insert(stream);
                env.net.send(node, stream, Message::FeedWelcome);
            }
            Message::FeedAsk(ask) => self.feed.asked(stream.0, ask),
            message => {
                let Some(following) = &mut self.following else {
                    return;
                };
                let Some(from) = following.caller(stream) else {
                    return;
                };
                let heard = match message {
                    Message::FeedWelcome => Heard::Input(Input::Reached(from)),
                    Message::FeedShare {
                        attempt,
                        state,
                        records,
                    } => Heard::Share {
                        from,
                        share: (attempt, state, records),
                    },
                    Message::FeedStep(bytes) => {
                        let last = Last::decode(&bytes);
                        Heard::Step { from, last }
                    }
                    Message::FeedLevel { step } => Heard::Input(Input::Level { from, step }),
                    Message::FeedRefused(ask) => Heard::Input(Input::Refused { from, ask }),
                    _ => return,
                };
                following.comes(heard, node, env);
            }
        }
    }

    /// A step is here.
    pub(super) fn step_arrived(&mut self, env: &mut Env) {
        let node = self.node();
        if let Some(following) = &mut self.following {
            let step = following.inbox.pop_front();
            following.mail.extend(step);
            following.pass_on(node, env);
        }
    }

    /// A connection between a rank and a follower ended, or is silent; whether it was one.
    pub(super) fn feed_ended(&mut self, stream: StreamId, env: &mut Env) -> bool {
        if self.followers.remove(&stream) {
            self.feed.gone(stream.0);
            return true;
        }
        let node = self.node();
        let Some(following) = &mut self.following else {
            return false;
        };
        let Some(process) = following.caller(stream) else {
            return false;
        };
        following.calls.insert(process, None);
        env.net.timer(node, PAUSE, Timer::Call(process.0));
        let reason = "it does not answer".to_owned();
        following.comes(Heard::Input(Input::Lost { process, reason }), node, env);
        true
    }

    /// Whether this is a connection to a process that is followed.
    pub(super) fn is_call(&self, stream: StreamId) -> bool {
        let following = self.following.as_ref();
        following.is_some_and(|following| following.caller(stream).is_some())
    }

    pub(super) fn call(&mut self, process: ProcessId, env: &mut Env) {
        let (node, host) = (self.node(), self.host);
        let Some(following) = &mut self.following else {
            return;
        };
        let (Some(call), Some((pid, at))) = (
            following.calls.get_mut(&process),
            following.addresses.get(&process),
        ) else {
            return;
        };
        if call.is_some() {
            return;
        }
        let ends = [node, Node::Rank { pid: *pid }];
        let stream = env.net.open(ends, Some([host, *at]), BETWEEN_RANKS);
        *call = Some(stream);
        env.net.send(node, stream, Message::FeedHello);
        env.net.listen_to(stream);
    }

    /// Sends what there is to those that follow.
    pub(super) fn feed(&mut self, env: &mut Env) {
        let node = self.node();
        for stream in self.followers.clone() {
            while let Some(item) = self.feed.next(stream.0) {
                let message = match item {
                    Item::Share((attempt, state, records)) => Message::FeedShare {
                        attempt,
                        state,
                        records,
                    },
                    Item::Step(last) => Message::FeedStep(last.encode()),
                    Item::Level { step } => Message::FeedLevel { step },
                    Item::Refused(ask) => Message::FeedRefused(ask),
                };
                env.net.send(node, stream, message);
            }
            if !self.feed.has(stream.0) {
                self.followers.remove(&stream);
                env.net.close(node, stream);
            }
        }
    }

    /// Copies the shares that all agreed on behind this step.
    pub(super) fn copy_shares(&mut self, tickets: &[Ticket], env: &mut Env) {
        for (connection, ticket) in self.feed.agreed(tickets) {
            env.point(Point::Copying, self.node());
            let state = self.work().state.clone();
            let records = self.tell(env, |shared| {
                let records: Vec<_> = shared.machine.unacked().cloned().collect();
                records
            });
            let share = (ticket.attempt, state, records);
            self.feed.give(connection, ticket, share);
        }
    }

    /// Follows on, while the main thread waits for a world; whether it did anything.
    pub(super) fn follow_on(&mut self, env: &mut Env) -> bool {
        let follow = self.shared.as_mut().and_then(|one| one.follow.take());
        let Some(following) = &mut self.following else {
            return false;
        };
        if let Some(follow) = follow {
            let mut set = |feeds: &[v1::Feed]| -> BTreeSet<ProcessId> {
                let feeds = feeds.iter().filter_map(|feed| {
                    let process = ProcessId(feed.process);
                    let address = parse(&feed.address)?;
                    following.addresses.insert(process, address);
                    Some(process)
                });
                feeds.collect()
            };
            let (ranks, others) = (set(&follow.ranks), set(&follow.others));
            self.follower_handles(Input::Told { ranks, others }, None, env);
            return true;
        }
        let Some(heard) = following.mail.pop_front() else {
            return false;
        };
        match heard {
            Heard::Input(input) => self.follower_handles(input, None, env),
            Heard::Share { from, share } => {
                let (attempt, step) = (share.0, share.1.step);
                following.shares.insert(from, share);
                let share = Input::Share {
                    from,
                    attempt,
                    step,
                    bytes: 1,
                };
                self.follower_handles(share, None, env);
                let arrived = Input::Arrived {
                    from,
                    attempt,
                    bytes: 1,
                };
                self.follower_handles(arrived, None, env);
            }
            Heard::Step { from, last } => {
                let step = last.step;
                self.follower_handles(Input::Step { from, step }, Some(last), env);
            }
        }
        true
    }

    fn follower_handles(&mut self, input: Input, mut step: Option<Last>, env: &mut Env) {
        let node = self.node();
        let Some(following) = &mut self.following else {
            return;
        };
        let mut outputs = Vec::new();
        following.machine.handle(input, &mut outputs);
        for output in outputs {
            let Some(following) = &mut self.following else {
                return;
            };
            match output {
                Output::Call(process) => {
                    following.calls.insert(process, None);
                    self.call(process, env);
                }
                Output::HangUp(process) => {
                    if let Some(stream) = following.calls.remove(&process).flatten() {
                        env.net.close(node, stream);
                    }
                }
                Output::Ask(process, ask) => {
                    if let Some(Some(stream)) = following.calls.get(&process) {
                        env.net.send(node, *stream, Message::FeedAsk(ask));
                        if matches!(ask, Ask::State(_)) {
                            env.point(Point::Asking, node);
                        }
                    }
                }
                Output::TakeOver(givers, attempt) => {
                    let shares = givers
                        .iter()
                        .filter_map(|giver| following.shares.get(giver));
                    let shares: Vec<&Share> = shares.collect();
                    let first = shares.first().map(|(_, state, _)| state.clone());
                    let records = shares.iter().map(|(.., records)| records);
                    let records = records.max_by_key(|records| records.len()).cloned();
                    let records = records.unwrap_or_default();
                    // Everybody is honest here, and so the shares of one attempt are alike.
                    let is_whole = shares.len() == givers.len()
                        && shares
                            .iter()
                            .all(|(of, state, _)| *of == attempt && Some(state) == first.as_ref());
                    match first.filter(|_| is_whole) {
                        Some(state) => {
                            if !self.begin_follow(env) {
                                return;
                            }
                            let main = Main::FollowingFrom(state, records);
                            self.busy((MS, 20 * MS), main, env);
                        }
                        None => env
                            .oracle
                            .blame(format!("p{} was given different states", self.pid)),
                    }
                }
                Output::Apply => {
                    if let Some(last) = step.take() {
                        if !self.begin_follow(env) {
                            return;
                        }
                        self.busy((MS, 8 * MS), Main::Following(last), env);
                    }
                }
                Output::Report(following) => {
                    let key = self.shared.as_ref().map(|shared| shared.key.clone());
                    self.report(key.unwrap_or_default(), Report::Following(following), env);
                }
            }
        }
    }

    /// Whether what this process holds may still change; else it follows no more.
    fn begin_follow(&mut self, env: &mut Env) -> bool {
        let may = self.tell(env, |shared| shared.machine.begin_follow());
        if !may {
            self.stop_following(env);
        }
        may
    }

    pub(super) fn follows_from(
        &mut self,
        state: State,
        records: Vec<v1::StepRecord>,
        env: &mut Env,
    ) {
        let history = self.shared.as_ref().map_or(0, |shared| shared.key.history);
        env.oracle.rewound(self.pid, history);
        env.oracle.received(self.pid, history, &state);
        let step = state.step;
        let work = self.work();
        work.state = state;
        work.has_state = true;
        work.last = None;
        self.feed.restarted(step);
        self.tell(env, |shared| {
            shared.machine.inherited(records);
            shared.machine.received(step);
        });
    }

    pub(super) fn followed(&mut self, last: Last, env: &mut Env) {
        let history = self.shared.as_ref().map_or(0, |shared| shared.key.history);
        let work = self.work();
        work.state.apply(&last.vector, &last.notes);
        let state = work.state.clone();
        work.last = Some(last.clone());
        env.oracle.applied(self.pid, history, &state);
        env.log(format_args!("p{} follows at step {}", self.pid, state.step));
        self.feed.applied(last.step, &last);
        let step = applied_record(state.step);
        self.tell(env, |shared| {
            let key = v1::RankKey {
                generation: last.story.generation,
                ..shared.key.clone()
            };
            let records = last.story.evaluation.into_iter();
            let records = records.chain([record(key, step)]).collect();
            shared.machine.inherited(records);
            shared.machine.acked(last.story.acked);
            shared.machine.followed();
        });
        env.point(Point::Following, self.node());
    }

    /// It is to enter a world, and follows no more.
    pub(super) fn stop_following(&mut self, env: &mut Env) {
        let node = self.node();
        if let Some(following) = self.following.take() {
            for stream in following.calls.into_values().flatten() {
                env.net.close(node, stream);
            }
        }
    }
}
