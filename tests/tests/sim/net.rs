//! The one clock, and everything that takes time: messages, timers, processes that are stopped for a
//! while, links that are cut. What the messages mean is decided elsewhere.

use std::collections::BTreeMap;

use muster_collective::frame::Frame;
use muster_proto::v1;
use muster_worker_core::feed::Ask;

use super::model::State;
use super::rng::Rng;

mod letters;

pub(crate) use letters::{Content, Letter, Weather, seat_place};

/// Microseconds since the beginning.
pub(crate) type Time = u64;

pub(crate) const MS: Time = 1_000;
pub(crate) const SECOND: Time = 1_000 * MS;

/// What a rank takes for a peer's silence.
pub(crate) const DETECT: Time = SECOND;

/// A process, in one of its lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    /// A member of the control plane's group, by its number.
    Coordinator {
        id: u64,
        life: u64,
    },
    Worker {
        host: u32,
        life: u64,
    },
    Rank {
        pid: u32,
    },
    /// Whoever disturbs, and asks for things.
    Outside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct StreamId(pub(crate) u64);

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Message {
        stream: StreamId,
        message: Message,
    },
    /// The other end of a stream is closed, or gone.
    End {
        stream: StreamId,
    },
    /// From another coordinator.
    Letter(Box<Letter>),
    Timer(Timer),
}

#[derive(Clone, Debug)]
pub(crate) enum Message {
    FromWorker(v1::from_worker::Message),
    ToWorker(v1::to_worker::Message),
    /// The bulk stream is open.
    Subscribe,
    /// The last word of a coordinator that does not lead: where the leader is, if it knows.
    NotLeading(Option<u32>),
    Record(v1::StepRecord),
    Ack(v1::RecordAck),
    /// A process of a rank shows its token.
    Knock {
        key: v1::RankKey,
        is_bulk: bool,
    },
    FromRank(v1::RankReport),
    ToRank(v1::to_rank::Message),
    /// A rank wants to connect.
    Dial {
        history: u64,
        generation: u64,
        from: u32,
    },
    Welcome,
    Refused,
    Frame(Frame),
    /// A process that waits wants to follow.
    FeedHello,
    FeedWelcome,
    FeedAsk(Ask),
    FeedShare {
        attempt: u64,
        state: State,
        records: Vec<v1::StepRecord>,
    },
    FeedStep([Vec<u8>; 2]),
    FeedLevel {
        step: u64,
    },
    FeedRefused(Ask),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Timer {
    // The coordinator's.
    Tick,
    StoreSynced,
    SnapshotWritten,
    SnapshotKept,
    SnapshotLate(u64),
    // A worker's.
    Heartbeat,
    Connect,
    Spawned(v1::RankKey),
    Ended { key: v1::RankKey, reason: String },
    // A rank's.
    Boot,
    Work(u64),
    Written,
    Deadline(u64),
    Dial { generation: u64, rank: u32 },
    Call(u64),
    Arrived,
    Silence(StreamId),
    // From outside.
    Disturb,
    Calm,
    Resume(Node),
    Restart(Node),
    Ask(u64),
    Kill(Node),
    Later(Later),
    // Of the control plane.
    DisturbGroup,
    Operate,
    Look,
}

/// What an operator does after a while.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Later {
    Submit,
    Undrain(u32),
    Rescale,
}

/// How long the messages of a stream take, in microseconds: mostly, and now and then.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    pub(crate) usual: (Time, Time),
    pub(crate) rare: (Time, Time),
}

pub(crate) const BETWEEN_RANKS: Latency = Latency {
    usual: (50, MS),
    rare: (MS, 60 * MS),
};
/// Now and then a link between two ranks is slow.
pub(crate) const BETWEEN_RANKS_SLOWLY: Latency = Latency {
    usual: (MS, 25 * MS),
    rare: (20 * MS, 150 * MS),
};
pub(crate) const TO_COORDINATOR: Latency = Latency {
    usual: (100, 5 * MS),
    rare: (5 * MS, 200 * MS),
};
pub(crate) const ON_A_HOST: Latency = Latency {
    usual: (20, 2 * MS),
    rare: (2 * MS, 50 * MS),
};

#[derive(Debug)]
struct Stream {
    ends: [Node; 2],
    /// The hosts that it connects, where a cut between them matters.
    hosts: Option<[u32; 2]>,
    latency: Latency,
    /// Whether it is between ranks, who notice silence.
    is_watched: bool,
    /// When the last message of each end arrives.
    last: [Time; 2],
    /// Whether an end says nothing more.
    has_ended: [bool; 2],
    /// Since when one end is no more and nobody told the other.
    vanished: Option<Time>,
}

#[derive(Debug)]
struct Pause {
    since: Time,
    backlog: Vec<Event>,
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    since: Time,
    until: Time,
}

#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) now: Time,
    pub(crate) rng: Rng,
    queue: BTreeMap<(Time, u64), (Node, Event)>,
    num_scheduled: u64,
    streams: BTreeMap<StreamId, Stream>,
    num_streams: u64,
    paused: BTreeMap<Node, Pause>,
    /// From one host to another.
    cuts: BTreeMap<[u32; 2], Cut>,
    pub(crate) weather: Weather,
}

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: 0,
            rng: Rng::new(seed),
            queue: BTreeMap::new(),
            num_scheduled: 0,
            streams: BTreeMap::new(),
            num_streams: 0,
            paused: BTreeMap::new(),
            cuts: BTreeMap::new(),
            weather: Weather::default(),
        }
    }

    fn put(&mut self, at: Time, node: Node, event: Event) {
        self.num_scheduled += 1;
        self.queue.insert((at, self.num_scheduled), (node, event));
    }

    pub(crate) fn timer(&mut self, node: Node, after: Time, timer: Timer) {
        self.put(self.now + after, node, Event::Timer(timer));
    }

    /// A timer after some time between these.
    pub(crate) fn timer_between(&mut self, node: Node, range: (Time, Time), timer: Timer) {
        let after = self.rng.between(range.0, range.1);
        self.timer(node, after, timer);
    }

    /// The next thing that happens to a process that is not stopped.
    pub(crate) fn next(&mut self) -> Option<(Node, Event)> {
        loop {
            let ((at, _), (node, event)) = self.queue.pop_first()?;
            self.now = at;
            match self.paused.get_mut(&node) {
                Some(pause) => pause.backlog.push(event),
                None => return Some((node, event)),
            }
        }
    }

    /// Opens a stream between two processes.
    pub(crate) fn open(
        &mut self,
        ends: [Node; 2],
        hosts: Option<[u32; 2]>,
        latency: Latency,
    ) -> StreamId {
        self.num_streams += 1;
        let id = StreamId(self.num_streams);
        let stream = Stream {
            ends,
            hosts: hosts.filter(|[one, other]| one != other).map(sorted),
            is_watched: matches!(ends, [Node::Rank { .. }, Node::Rank { .. }]),
            latency,
            last: [self.now; 2],
            has_ended: [false; 2],
            vanished: None,
        };
        self.streams.insert(id, stream);
        id
    }

    fn delay(&mut self, latency: Latency) -> Time {
        let is_rare = self.rng.chance(3);
        let (low, high) = if is_rare { latency.rare } else { latency.usual };
        self.rng.between(low, high)
    }

    fn transmit(&mut self, from: Node, id: StreamId, event: Event) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        let side = usize::from(stream.ends[1] == from);
        if stream.has_ended[side] {
            return;
        }
        let (to, latency, last) = (stream.ends[1 - side], stream.latency, stream.last[side]);
        let cut = stream.hosts.and_then(|hosts| self.cut(hosts));
        let base = cut.map_or(self.now, |cut| cut.until);
        let at = (base + self.delay(latency)).max(last + 1);
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.last[side] = at;
            stream.has_ended[side] = matches!(event, Event::End { .. });
            if stream.has_ended == [true; 2] {
                self.streams.remove(&id);
            }
        }
        self.put(at, to, event);
    }

    pub(crate) fn send(&mut self, from: Node, stream: StreamId, message: Message) {
        self.transmit(from, stream, Event::Message { stream, message });
    }

    /// An end says nothing more.
    pub(crate) fn close(&mut self, from: Node, stream: StreamId) {
        self.transmit(from, stream, Event::End { stream });
    }

    /// A process is no more. What it sent last may not arrive; then its streams end.
    pub(crate) fn die(&mut self, node: Node) {
        self.paused.remove(&node);
        for id in self.streams_of(node) {
            self.lose_the_last(id, node);
            self.close(node, id);
            self.streams.remove(&id);
        }
    }

    /// A process is no more, with its whole machine: nobody is told.
    pub(crate) fn vanish(&mut self, node: Node) {
        self.paused.remove(&node);
        let now = self.now;
        for id in self.streams_of(node) {
            self.lose_the_last(id, node);
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.vanished.get_or_insert(now);
            }
            self.listen_to(id);
        }
    }

    /// A stream breaks: what is under way may not arrive, and both ends notice.
    pub(crate) fn tear(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        for end in stream.ends {
            self.lose_the_last(id, end);
            self.close(end, id);
        }
        self.streams.remove(&id);
    }

    fn streams_of(&self, node: Node) -> Vec<StreamId> {
        let all = self.streams.iter();
        let mine = all.filter(|(_, stream)| stream.ends.contains(&node));
        mine.map(|(id, _)| *id).collect()
    }

    /// Of what `from` has under way, only some of the first arrives.
    fn lose_the_last(&mut self, id: StreamId, from: Node) {
        let under_way = self.queue.iter().filter(|(_, (to, event))| {
            let is_of_it = matches!(event, Event::Message { stream, .. } if *stream == id);
            is_of_it && *to != from
        });
        let under_way: Vec<(Time, u64)> = under_way.map(|(at, _)| *at).collect();
        let num_kept = self.rng.below(under_way.len() as u64 + 1);
        for at in under_way
            .iter()
            .skip(usize::try_from(num_kept).unwrap_or_default())
        {
            self.queue.remove(at);
        }
    }

    /// A process is stopped; [`Timer::Resume`] is for the caller to handle.
    pub(crate) fn pause(&mut self, node: Node, length: Time) {
        if self.paused.contains_key(&node) {
            return;
        }
        let since = self.now;
        let backlog = Vec::new();
        self.paused.insert(node, Pause { since, backlog });
        self.timer(Node::Outside, length, Timer::Resume(node));
        for id in self.streams_of(node) {
            self.listen_to(id);
        }
    }

    /// A process goes on; what happened to it meanwhile happens now.
    pub(crate) fn resume(&mut self, node: Node) {
        let Some(pause) = self.paused.remove(&node) else {
            return;
        };
        // Who was held up itself takes nobody for silent, and a coordinator looks at its disk and
        // its clock first.
        let rank = |event: &Event| match event {
            Event::Timer(Timer::StoreSynced | Timer::SnapshotWritten) => 0,
            Event::Letter(_) => 1,
            Event::Timer(Timer::Tick) => 2,
            _ => 3,
        };
        let mut backlog = pause.backlog;
        backlog.retain(|event| !matches!(event, Event::Timer(Timer::Silence(_))));
        backlog.sort_by_key(rank);
        // Before all that comes at this very time: it came earlier.
        let later = self.queue.split_off(&(self.now + 1, 0));
        let same = std::mem::replace(&mut self.queue, later);
        for event in backlog {
            self.put(self.now, node, event);
        }
        for (to, event) in same.into_values() {
            self.put(self.now, to, event);
        }
        for id in self.streams_of(node) {
            self.listen_to(id);
        }
    }

    pub(crate) fn is_paused(&self, node: Node) -> bool {
        self.paused.contains_key(&node)
    }

    /// Nothing passes between two hosts for a while.
    pub(crate) fn cut_link(&mut self, hosts: [u32; 2], length: Time) {
        let hosts = sorted(hosts);
        let [one, other] = hosts;
        self.cut_way([one, other], length);
        self.cut_way([other, one], length);
        let all = self.streams.iter();
        let across = all.filter(|(_, stream)| stream.hosts == Some(hosts));
        for id in across.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.listen_to(id);
        }
    }

    /// What is sent from one host does not come to the other for a while.
    pub(crate) fn cut_way(&mut self, way: [u32; 2], length: Time) {
        let cut = Cut {
            since: self.now,
            until: self.now + length,
        };
        self.cuts.insert(way, cut);
    }

    /// Whether a stream between two hosts is cut: it needs both ways.
    fn cut(&self, [one, other]: [u32; 2]) -> Option<Cut> {
        let ways = [[one, other], [other, one]];
        let cuts = ways.into_iter().filter_map(|way| self.cuts.get(&way));
        cuts.filter(|cut| cut.until > self.now)
            .max_by_key(|cut| cut.until)
            .copied()
    }

    /// Whether a connection between two hosts can be opened.
    pub(crate) fn is_cut(&self, hosts: [u32; 2]) -> bool {
        self.cut(hosts).is_some()
    }

    /// For how long one end of a stream hears nothing at all of the other.
    pub(crate) fn silence(&self, id: StreamId, listener: Node) -> Time {
        let Some(stream) = self.streams.get(&id) else {
            return 0;
        };
        let peer = stream.ends[usize::from(stream.ends[0] == listener)];
        let paused = self.paused.get(&peer).map(|pause| pause.since);
        let cut = stream.hosts.and_then(|hosts| self.cut(hosts));
        let since = [paused, cut.map(|cut| cut.since), stream.vanished];
        let first = since.into_iter().flatten().min();
        first.map_or(0, |first| self.now - first)
    }

    /// Where the ends of a stream between ranks may not hear each other, both will look again.
    pub(crate) fn listen_to(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get(&id).filter(|stream| stream.is_watched) else {
            return;
        };
        let is_cut = stream.hosts.and_then(|hosts| self.cut(hosts)).is_some();
        let is_paused = stream.ends.iter().any(|end| self.paused.contains_key(end));
        if is_cut || is_paused || stream.vanished.is_some() {
            for end in stream.ends {
                self.timer_between(end, (DETECT, DETECT + DETECT / 4), Timer::Silence(id));
            }
        }
    }
}

fn sorted([one, other]: [u32; 2]) -> [u32; 2] {
    [one.min(other), one.max(other)]
}
