//! How the ranks of a new world come together; see `worker/rank/src/heal.rs` and
//! `worker/collective/src/tcp/mesh.rs`.

use std::collections::BTreeMap;

use muster_cluster::ids::{Generation, History, RankId};
use muster_cluster::state::{Finish, Heal};
use muster_collective::{Error, Pool, World};
use muster_proto::{convert, v1};
use muster_worker_core::rank::Cause;

use super::super::env::{Env, Plant, Point};
use super::super::group::{Arrived, Group};
use super::super::model::State;
use super::super::net::{
    BETWEEN_RANKS, BETWEEN_RANKS_SLOWLY, MS, Message, Node, SECOND, StreamId, Time, Timer,
};
use super::lack::{NOTHING, REDUCED, STATE, Taken};
use super::work::Last;
use super::{Joined, Rank, Trouble, parse};

/// How long a rank waits for its peers.
const TIMEOUT: Time = 60 * SECOND;

/// The pause before a peer is dialled again.
const TICK: Time = 10 * MS;

#[derive(Clone, Debug)]
pub(super) enum Received {
    Reduced(Last, Vec<v1::StepRecord>),
    State(State, Vec<v1::StepRecord>),
    Records(Vec<v1::StepRecord>),
}

#[derive(Debug)]
enum Phase {
    /// It does not know where the others are.
    Waiting,
    Connecting {
        peers: Vec<(u32, u32)>,
        streams: BTreeMap<RankId, StreamId>,
        dials: BTreeMap<RankId, Option<StreamId>>,
        early: Vec<Arrived>,
        until: Time,
    },
    Exchanging {
        joined: Joined,
        /// The messages that came, from each giver in turn.
        heard: Vec<Vec<u8>>,
    },
    Done(Result<(Joined, Option<Received>), Trouble>),
}

#[derive(Debug)]
pub(crate) struct Meeting {
    world: World,
    gifts: Vec<(RankId, [Vec<u8>; 2])>,
    /// Those who are to say what they lack, and whether this rank is the first to give it.
    pub(super) lacking: Vec<(RankId, bool)>,
    pub(super) records: Vec<v1::StepRecord>,
    pub(super) first_step: u64,
    pub(super) need: Option<Heal>,
    /// What this rank lacks.
    pub(super) lack: u8,
    is_revoked: bool,
    phase: Phase,
}

impl Meeting {
    pub(super) fn needs(&self) -> bool {
        match self.need {
            None => false,
            Some(Heal::Reduced { .. }) => true,
            Some(Heal::State { .. }) => self.lack != NOTHING,
        }
    }

    pub(super) fn revoke(&mut self) {
        self.is_revoked = true;
        if let Phase::Exchanging { joined, .. } | Phase::Done(Ok((joined, _))) = &mut self.phase {
            joined.group.is_revoked = true;
        }
    }

    pub(super) fn joined_mut(&mut self) -> Option<&mut Joined> {
        match &mut self.phase {
            Phase::Exchanging { joined, .. } | Phase::Done(Ok((joined, _))) => Some(joined),
            _ => None,
        }
    }

    /// The peer whose connection this is.
    pub(super) fn rank_of(&self, stream: StreamId) -> Option<RankId> {
        match &self.phase {
            Phase::Connecting { streams, .. } => {
                let mut streams = streams.iter();
                streams
                    .find(|(_, one)| **one == stream)
                    .map(|(rank, _)| *rank)
            }
            Phase::Exchanging { joined, .. } | Phase::Done(Ok((joined, _))) => {
                joined.streams.get(&stream).copied()
            }
            _ => None,
        }
    }

    pub(super) fn arrived(&mut self, arrived: Arrived) {
        match &mut self.phase {
            Phase::Connecting { early, .. } => early.push(arrived),
            Phase::Exchanging { joined, .. } | Phase::Done(Ok((joined, _))) => {
                joined.group.arrived(arrived);
            }
            _ => {}
        }
    }

    pub(super) fn view(&self) -> String {
        let phase = match &self.phase {
            Phase::Waiting => "waits for addresses".to_owned(),
            Phase::Connecting { streams, dials, .. } => {
                format!("connected with {:?}, dials {dials:?}", streams.keys())
            }
            Phase::Exchanging { heard, .. } => format!("has {} of {:?}", heard.len(), self.need),
            Phase::Done(done) => format!("done: {:?}", done.as_ref().map(|_| ())),
        };
        format!("{} {phase}", self.world.generation)
    }
}

impl Rank {
    /// Begins to meet the others of a world.
    pub(super) fn meet(&mut self, assignment: &v1::Assignment) -> Result<(), Trouble> {
        let world = World {
            history: History(assignment.history),
            generation: Generation(assignment.generation),
            rank: RankId(assignment.rank),
            size: assignment.num_ranks(),
        };
        let finish = assignment.finish.clone().map(Finish::try_from);
        let finish = finish
            .transpose()
            .map_err(|error| Trouble::Failed(error.to_string()))?;
        let work = self.work.as_ref().expect("it is prepared");
        let records = self.shared.as_ref().map(|shared| {
            let records = shared.machine.unacked();
            records.cloned().collect::<Vec<_>>()
        });
        let records = records.unwrap_or_default();
        let mut need = None;
        let mut gifts = Vec::new();
        let mut lacking = Vec::new();
        let parts = finish.map(|finish| finish.parts).unwrap_or_default();
        for (rank, part) in (0u32..).map(RankId).zip(parts) {
            match part.heal {
                heal if rank == world.rank => need = heal,
                Some(Heal::Reduced { from }) if from == world.rank => {
                    let last = work.last.clone();
                    let step = assignment.first_step;
                    let last = last.filter(|last| last.step + 1 == step).ok_or_else(|| {
                        let what = "which is not here";
                        Trouble::Failed(format!("rank {rank} wants what led to {step}, {what}"))
                    })?;
                    gifts.push((rank, last.encode()));
                }
                Some(Heal::State { from }) if from.contains(&world.rank) => {
                    lacking.push((rank, from.first() == Some(&world.rank)));
                }
                _ => {}
            }
        }
        let at = self.shared.as_ref().and_then(|one| one.machine.state());
        let first_step = assignment.first_step;
        let lack = match at.and_then(|at| first_step.checked_sub(at)) {
            Some(0) => NOTHING,
            Some(1) => REDUCED,
            _ => STATE,
        };
        self.meeting = Some(Meeting {
            world,
            gifts,
            lacking,
            records,
            first_step,
            need,
            lack,
            is_revoked: false,
            phase: Phase::Waiting,
        });
        Ok(())
    }

    /// Lets the meeting go on as far as it can.
    pub(super) fn poll_meeting(&mut self, env: &mut Env) {
        while let Some(mut meeting) = self.meeting.take() {
            let phase = std::mem::replace(&mut meeting.phase, Phase::Waiting);
            let (phase, goes_on) = self.next_phase(&mut meeting, phase, env);
            let is_connecting = matches!(phase, Phase::Connecting { .. });
            meeting.phase = phase;
            self.meeting = Some(meeting);
            if !goes_on {
                return;
            }
            if is_connecting {
                self.answer_the_door(env);
            }
        }
    }

    fn next_phase(&mut self, meeting: &mut Meeting, phase: Phase, env: &mut Env) -> (Phase, bool) {
        let generation = meeting.world.generation.0;
        match phase {
            Phase::Waiting => {
                let Some(shared) = self.shared.as_ref().filter(|one| one.machine.is_open()) else {
                    return (Phase::Done(Err(Trouble::Closed)), false);
                };
                let peers = shared.peers.as_ref();
                let Some((_, peers)) = peers.filter(|(of, _)| *of == generation) else {
                    return (Phase::Waiting, false);
                };
                let peers = convert::addresses(peers).unwrap_or_default();
                let peers: Vec<(u32, u32)> = peers.iter().filter_map(|one| parse(one)).collect();
                if peers.len() != meeting.world.size as usize {
                    let failed = Trouble::Failed("bad addresses".to_owned());
                    return (Phase::Done(Err(failed)), false);
                }
                env.point(Point::Meeting, self.node());
                let higher = meeting.world.rank.0 + 1..meeting.world.size;
                for rank in higher.clone() {
                    let timer = Timer::Dial { generation, rank };
                    env.net.timer(self.node(), 0, timer);
                }
                let token = 0;
                env.net.timer(self.node(), TIMEOUT, Timer::Deadline(token));
                let connecting = Phase::Connecting {
                    peers,
                    streams: BTreeMap::new(),
                    dials: higher.map(|rank| (RankId(rank), None)).collect(),
                    early: Vec::new(),
                    until: env.net.now + TIMEOUT,
                };
                (connecting, true)
            }
            Phase::Connecting {
                peers,
                streams,
                dials,
                early,
                until,
            } => {
                if meeting.is_revoked || env.net.now >= until {
                    for stream in streams.values().chain(dials.values().flatten()) {
                        env.net.close(self.node(), *stream);
                    }
                    let error = if meeting.is_revoked {
                        Error::Revoked
                    } else {
                        let all = (0..meeting.world.size).map(RankId);
                        let missing = all.filter(|rank| {
                            *rank != meeting.world.rank && !streams.contains_key(rank)
                        });
                        let waiting_for = missing.collect();
                        Error::TimedOut { waiting_for }
                    };
                    let trouble = self.closed_by(generation, &error, env);
                    return (Phase::Done(Err(trouble)), false);
                }
                if streams.len() + 1 < meeting.world.size as usize {
                    let connecting = Phase::Connecting {
                        peers,
                        streams,
                        dials,
                        early,
                        until,
                    };
                    return (connecting, false);
                }
                let admits_all = env.plant == Plant::AnyGeneration;
                let mut group = Group::new(meeting.world, Pool::default(), admits_all);
                for arrived in early {
                    group.arrived(arrived);
                }
                for (to, messages) in std::mem::take(&mut meeting.gifts) {
                    env.point(Point::Giving, self.node());
                    for message in messages {
                        group.say(to, message);
                    }
                }
                if let Some(Heal::State { from }) = &meeting.need {
                    env.oracle.enters(meeting.lack);
                    let asked = if meeting.lack == REDUCED {
                        1
                    } else {
                        from.len()
                    };
                    for giver in &from[..asked] {
                        group.say(*giver, vec![meeting.lack]);
                    }
                }
                for stream in streams.values() {
                    env.net.listen_to(*stream);
                }
                let streams = streams.into_iter().map(|(rank, stream)| (stream, rank));
                let mut joined = Joined {
                    group,
                    streams: streams.collect(),
                };
                self.flush(&mut joined, env);
                if meeting.need.is_some() {
                    env.point(Point::Taking, self.node());
                }
                let heard = Vec::new();
                (Phase::Exchanging { joined, heard }, true)
            }
            Phase::Exchanging {
                mut joined,
                mut heard,
            } => {
                let given = self.give_what_they_lack(meeting, &mut joined, env);
                let received = given.and_then(|()| meeting.take(&mut joined, &mut heard));
                self.flush(&mut joined, env);
                let received = match received {
                    Ok(Taken::NotYet) => return (Phase::Exchanging { joined, heard }, false),
                    Ok(Taken::All(_)) if !meeting.lacking.is_empty() => {
                        return (Phase::Exchanging { joined, heard }, false);
                    }
                    Ok(Taken::All(received)) => Ok(received),
                    Ok(Taken::Spoiled) => Err("the state that was sent is not whole"),
                    Err(error) => {
                        let trouble = self.closed_by(generation, &error, env);
                        self.retire(&joined, env);
                        return (Phase::Done(Err(trouble)), false);
                    }
                };
                match received {
                    Ok(received) => (Phase::Done(Ok((joined, received))), false),
                    Err(reason) => {
                        let cause = Cause {
                            reason: reason.to_owned(),
                            ..Cause::default()
                        };
                        self.tell(env, |shared| shared.machine.close(generation, cause));
                        self.retire(&joined, env);
                        (Phase::Done(Err(Trouble::Closed)), false)
                    }
                }
            }
            done @ Phase::Done(_) => (done, false),
        }
    }

    /// What the meeting came to, once it has ended.
    pub(super) fn met(&mut self) -> Option<Result<(Joined, Option<Received>), Trouble>> {
        let is_done = |meeting: &&mut Meeting| matches!(meeting.phase, Phase::Done(_));
        self.meeting.as_mut().filter(is_done)?;
        match self.meeting.take()?.phase {
            Phase::Done(done) => Some(done),
            _ => None,
        }
    }

    /// Nobody waits for the meeting any more.
    pub(super) fn abandon(&mut self, env: &mut Env) {
        match self.meeting.take().map(|meeting| meeting.phase) {
            Some(Phase::Connecting { streams, dials, .. }) => {
                for stream in streams.values().chain(dials.values().flatten()) {
                    env.net.close(self.node(), *stream);
                }
            }
            Some(Phase::Exchanging { joined, .. } | Phase::Done(Ok((joined, _)))) => {
                self.retire(&joined, env);
            }
            _ => {}
        }
    }

    pub(super) fn dial(&mut self, generation: u64, rank: RankId, env: &mut Env) {
        let (node, host) = (self.node(), self.host);
        let Some(meeting) = &mut self.meeting else {
            return;
        };
        let world = meeting.world;
        let Phase::Connecting { peers, dials, .. } = &mut meeting.phase else {
            return;
        };
        let (Some(dial), true) = (dials.get_mut(&rank), world.generation.0 == generation) else {
            return;
        };
        let (pid, at) = peers[rank.0 as usize];
        let ends = [node, Node::Rank { pid }];
        let is_slow = env.net.rng.chance(8);
        let latency = if is_slow {
            BETWEEN_RANKS_SLOWLY
        } else {
            BETWEEN_RANKS
        };
        let stream = env.net.open(ends, Some([host, at]), latency);
        *dial = Some(stream);
        self.peers.insert(stream, pid);
        let message = Message::Dial {
            history: world.history.0,
            generation,
            from: world.rank.0,
        };
        env.net.send(node, stream, message);
    }

    /// A dial came to nothing, if the stream was one.
    pub(super) fn dial_ended(&mut self, stream: StreamId, env: &mut Env) -> bool {
        let node = self.node();
        let Some(meeting) = &mut self.meeting else {
            return false;
        };
        let Phase::Connecting { dials, .. } = &mut meeting.phase else {
            return false;
        };
        let mut all = dials.iter_mut();
        let Some((rank, dial)) = all.find(|(_, dial)| **dial == Some(stream)) else {
            return false;
        };
        *dial = None;
        let (generation, rank) = (meeting.world.generation.0, rank.0);
        env.net.timer(node, TICK, Timer::Dial { generation, rank });
        true
    }

    pub(super) fn refused(&mut self, stream: StreamId, env: &mut Env) {
        env.net.close(self.node(), stream);
        self.dial_ended(stream, env);
    }

    pub(super) fn welcomed(&mut self, stream: StreamId, env: &mut Env) {
        let known = self
            .meeting
            .as_mut()
            .and_then(|meeting| match &mut meeting.phase {
                Phase::Connecting { dials, streams, .. } => {
                    let mut all = dials.iter();
                    let rank = all
                        .find(|(_, dial)| **dial == Some(stream))
                        .map(|one| *one.0)?;
                    dials.remove(&rank);
                    streams.insert(rank, stream);
                    Some(())
                }
                _ => None,
            });
        if known.is_none() {
            env.net.close(self.node(), stream);
        }
    }

    /// Lets those in who are of this world, and refuses the others. While no world is met, they wait.
    pub(super) fn answer_the_door(&mut self, env: &mut Env) {
        let node = self.node();
        let Some(meeting) = &mut self.meeting else {
            return;
        };
        let world = meeting.world;
        let Phase::Connecting { peers, streams, .. } = &mut meeting.phase else {
            return;
        };
        for stranger in std::mem::take(&mut self.strangers) {
            let is_ours = stranger.history == world.history.0
                && stranger.generation == world.generation.0
                && stranger.from < world.rank.0;
            if !is_ours {
                env.net.send(node, stranger.stream, Message::Refused);
                env.net.close(node, stranger.stream);
                continue;
            }
            let (pid, _) = peers[stranger.from as usize];
            self.peers.insert(stranger.stream, pid);
            env.net.send(node, stranger.stream, Message::Welcome);
            if let Some(older) = streams.insert(RankId(stranger.from), stranger.stream) {
                env.net.close(node, older);
            }
        }
    }

    /// Sends what the group has to say.
    pub(super) fn flush(&self, joined: &mut Joined, env: &mut Env) {
        for (to, frame) in joined.group.out.drain(..) {
            let mut streams = joined.streams.iter();
            if let Some((stream, _)) = streams.find(|(_, rank)| **rank == to) {
                env.net.send(self.node(), *stream, Message::Frame(frame));
            }
        }
    }

    /// Says goodbye, and closes the connections.
    pub(super) fn retire(&mut self, joined: &Joined, env: &mut Env) {
        let goodbye = joined.group.goodbye();
        for stream in joined.streams.keys() {
            let goodbye = Message::Frame(goodbye.clone());
            env.net.send(self.node(), *stream, goodbye);
            env.net.close(self.node(), *stream);
        }
    }
}
