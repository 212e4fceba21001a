//! What a coordinator says to the other members, and hears of them; see `coordinator/src/peers`.

use std::collections::{BTreeMap, BTreeSet};

use muster_coordinator_core::consensus::ReplicaId;
use muster_coordinator_core::coordinator::Stranger;
use muster_coordinator_core::{Input, Members, Snapshot};

use muster_proto::v1::PeerHello;

use super::disk::{Line, num_lines};
use super::{End, Host, seat_of};
use crate::env::{Env, Plant};
use crate::net::{Content, Letter, MS, Node, SECOND, Time, Timer};

/// How long one that sends a snapshot waits to hear what became of it.
const PATIENCE: Time = 3 * SECOND;

/// How many bytes of events a snapshot counts.
pub(super) fn num_event_bytes(snapshot: &Snapshot) -> u64 {
    snapshot.event_bytes().map(|(_, bytes)| bytes).sum()
}

/// A snapshot that has arrived and is on its way to the disk.
#[derive(Debug)]
struct Arriving {
    from: Node,
    hello: PeerHello,
    index: u64,
    file: Vec<u8>,
    events: Vec<Line>,
    /// How many lines there were when it began to arrive.
    num_lines: usize,
    bytes: Vec<u8>,
}

/// The other members.
#[derive(Debug, Default)]
pub(super) struct Peers {
    members: Members,
    /// The processes that were let in.
    admitted: BTreeSet<Node>,
    /// To whom snapshots are on their way, and which.
    sending: BTreeMap<ReplicaId, u64>,
    arriving: Option<Arriving>,
}

impl Peers {
    pub(super) fn are(&mut self, members: Members) {
        self.members = members;
    }

    /// Where a member is.
    pub(super) fn seat_of(&self, id: ReplicaId) -> Option<u32> {
        seat_of(&self.members.get(id)?.address)
    }
}

impl Host {
    /// Connections have ended, and open again: each has to be let in once more.
    pub(crate) fn disconnect(&mut self) {
        self.peers.admitted.clear();
    }

    pub(super) fn say(&mut self, to: ReplicaId, bytes: Vec<u8>, env: &mut Env) {
        self.post(to, Content::Message(bytes), env);
    }

    pub(super) fn send_snapshot(
        &mut self,
        to: ReplicaId,
        index: u64,
        bytes: Vec<u8>,
        env: &mut Env,
    ) {
        env.log(format_args!(
            "{} sends the snapshot of {index} to {to:?}",
            self.id
        ));
        let file = self.disk.file(index).cloned();
        let snapshot = file.as_deref().map(Snapshot::decode);
        let (Some(file), Some(Ok(snapshot))) = (file, snapshot) else {
            // It is gone already: consensus tries a newer one.
            let is_there = false;
            self.input(Input::SnapshotSent { to, is_there }, env);
            return;
        };
        env.oracle.counts.snapshots_sent += 1;
        let num = num_lines(&self.disk.events, num_event_bytes(&snapshot));
        let num = num.unwrap_or_else(|reason| {
            env.oracle
                .blame(format!("the snapshot of {index} is not sent: {reason}"));
            0
        });
        let content = Content::Snapshot {
            index,
            file,
            events: self.disk.events[..num].to_vec(),
            bytes,
        };
        self.peers.sending.insert(to, index);
        env.net
            .timer(self.node(), PATIENCE, Timer::SnapshotLate(to.0));
        self.post(to, content, env);
    }

    /// Sends a letter to where a member is, if it is known.
    fn post(&mut self, to: ReplicaId, content: Content, env: &mut Env) {
        let seat = self.peers.seat_of(to);
        let Some(seat) = seat.filter(|seat| *seat != self.seat) else {
            return;
        };
        let letter = Letter {
            from: self.node(),
            hello: self.machine.hello_to(to),
            content,
        };
        match env.at(seat) {
            Some(node) => env.net.post([self.seat, seat], node, &letter),
            None if env.is_dark(seat) => {}
            None => {
                let refused = Letter {
                    content: Content::Unreachable,
                    ..letter
                };
                env.net.post([seat, self.seat], self.node(), &refused);
            }
        }
    }

    /// Answers a process.
    fn answer(&self, to: Node, hello: &PeerHello, content: Content, env: &mut Env) {
        let from = hello.from.as_ref().and_then(|from| seat_of(&from.address));
        let Some(seat) = from else { return };
        let letter = Letter {
            from: self.node(),
            hello: hello.clone(),
            content,
        };
        env.net.post([self.seat, seat], to, &letter);
    }

    pub(super) fn letter(&mut self, letter: Letter, env: &mut Env) {
        let Letter {
            from,
            hello,
            content,
        } = letter;
        let to = ReplicaId(hello.to);
        match content {
            Content::Unreachable => {
                self.input(Input::Unreachable(to), env);
                self.sent(to, None, false, env);
            }
            Content::Refused { reason, is_final } => {
                env.log(format_args!("{} is refused by {from:?}: {reason}", self.id));
                self.sent(to, None, false, env);
                if is_final {
                    self.end = Some(End::Refused(reason));
                }
            }
            Content::Kept { index, is_there } => self.sent(to, Some(index), is_there, env),
            Content::Message(bytes) => {
                if let Some(from) = self.admit(from, &hello, env) {
                    let snapshot = None;
                    let input = Input::Peer {
                        from,
                        bytes,
                        snapshot,
                    };
                    self.input(input, env);
                }
            }
            Content::Snapshot {
                index,
                file,
                events,
                bytes,
            } => {
                if self.admit(from, &hello, env).is_none() {
                    return;
                }
                if self.peers.arriving.is_some() {
                    let is_there = false;
                    self.answer(from, &hello, Content::Kept { index, is_there }, env);
                    return;
                }
                self.peers.arriving = Some(Arriving {
                    from,
                    hello,
                    index,
                    file,
                    events,
                    num_lines: self.disk.events.len(),
                    bytes,
                });
                let most = if env.net.rng.chance(20) {
                    SECOND
                } else {
                    80 * MS
                };
                env.net
                    .timer_between(self.node(), (MS, most), Timer::SnapshotKept);
            }
        }
    }

    pub(super) fn peer_timer(&mut self, timer: &Timer, env: &mut Env) {
        match timer {
            Timer::SnapshotKept => self.snapshot_kept(env),
            Timer::SnapshotLate(to) => self.sent(ReplicaId(*to), None, false, env),
            _ => {}
        }
    }

    /// A snapshot that arrived is durable.
    fn snapshot_kept(&mut self, env: &mut Env) {
        let Some(arriving) = self.peers.arriving.take() else {
            return;
        };
        let Arriving {
            from,
            hello,
            index,
            file,
            mut events,
            num_lines,
            bytes,
        } = arriving;
        let snapshot = Snapshot::decode(&file);
        let snapshot = snapshot.unwrap_or_else(|reason| panic!("a snapshot is damaged: {reason}"));
        let lines = events.split_off(num_lines.min(events.len()));
        if !lines.is_empty() {
            self.disk.stage(index, (num_lines, lines));
        }
        // All of the file system is synced.
        self.disk.num_durable = self.disk.events.len();
        self.disk.keep_received(index, file);
        let Node::Coordinator { id, .. } = from else {
            return;
        };
        let input = Input::Peer {
            from: ReplicaId(id),
            bytes,
            snapshot: Some(Box::new(snapshot)),
        };
        self.input(input, env);
        let is_there = true;
        self.answer(from, &hello, Content::Kept { index, is_there }, env);
    }

    /// What became of a snapshot for a member.
    fn sent(&mut self, to: ReplicaId, index: Option<u64>, is_there: bool, env: &mut Env) {
        let known = self.peers.sending.get(&to).copied();
        if known.is_some() && index.is_none_or(|index| known == Some(index)) {
            self.peers.sending.remove(&to);
            self.input(Input::SnapshotSent { to, is_there }, env);
        }
    }

    /// Whether another process may speak here. It is asked once for a connection.
    fn admit(&mut self, from: Node, hello: &PeerHello, env: &mut Env) -> Option<ReplicaId> {
        let id = hello.from.as_ref().map_or(0, |from| from.id);
        if self.peers.admitted.contains(&from) || env.plant == Plant::ComeBackEmpty {
            return Some(ReplicaId(id));
        }
        match self.machine.admit(hello.clone()) {
            Ok(member) => {
                self.peers.admitted.insert(from);
                self.input(Input::PeerHello(member), env);
                Some(ReplicaId(id))
            }
            Err(stranger) => {
                let is_final = match &stranger {
                    Stranger::OtherDisk { id: who } | Stranger::NoMember(who) => *who == id,
                    Stranger::OtherCluster { .. } | Stranger::NotMe { .. } => false,
                };
                let reason = stranger.to_string();
                self.answer(from, hello, Content::Refused { reason, is_final }, env);
                None
            }
        }
    }
}
