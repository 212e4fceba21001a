//! A second coordinator joins the first: what it needs before the log tells it anything.

use std::collections::VecDeque;

use muster_consensus::{Change, Recovered, ReplicaId};

use super::super::*;
use crate::Taken;

const LEADER: ReplicaId = ReplicaId(1);
const JOINER: ReplicaId = ReplicaId(2);

fn address(id: ReplicaId) -> String {
    format!("10.0.0.{}:4600", id.0)
}

fn options(id: ReplicaId, founders: impl IntoIterator<Item = ReplicaId>) -> Options {
    let founders = founders.into_iter();
    Options {
        id,
        address: address(id),
        store_id: [u8::try_from(id.0).unwrap(); 16],
        cluster_id: [7; 16],
        founders: founders.map(|id| (id, address(id))).collect(),
        moved: BTreeMap::new(),
        checkpoints: "/checkpoints".to_owned(),
    }
}

/// Two coordinators whose disks are fast and whose network loses nothing.
struct Pair {
    all: BTreeMap<ReplicaId, Coordinator>,
    /// Whom each of them can answer.
    known: BTreeMap<ReplicaId, Members>,
    snapshots: BTreeMap<u64, Snapshot>,
    replies: Vec<Reply>,
    now: Now,
}

impl Pair {
    fn new() -> Self {
        let mut pair = Self {
            all: BTreeMap::new(),
            known: BTreeMap::new(),
            snapshots: BTreeMap::new(),
            replies: Vec::new(),
            now: Now::default(),
        };
        pair.start(options(LEADER, [LEADER]), Recovered::genesis([LEADER]));
        pair.start(options(JOINER, []), Recovered::default());
        pair
    }

    fn start(&mut self, options: Options, recovered: Recovered) {
        let (id, mut outputs) = (options.id, Vec::new());
        let coordinator = Coordinator::new(options, recovered, None, &mut outputs).unwrap();
        self.all.insert(id, coordinator);
        self.settle(id, outputs);
    }

    fn input(&mut self, id: ReplicaId, input: Input) {
        let mut outputs = Vec::new();
        let coordinator = self.all.get_mut(&id).unwrap();
        coordinator.handle(input, self.now, &mut outputs);
        self.settle(id, outputs);
    }

    fn settle(&mut self, id: ReplicaId, outputs: Vec<Output>) {
        let mut inputs = VecDeque::new();
        for output in outputs {
            match output {
                Output::Persist { batch, .. } => {
                    inputs.push_back((id, Input::Persisted { batch }));
                }
                Output::Members(members) => {
                    self.known.insert(id, members);
                }
                Output::Send { to, bytes } => inputs.extend(self.peer(id, to, bytes, None)),
                Output::SendSnapshot { to, index, bytes } => {
                    let snapshot = Some(Box::new(self.snapshots[&index].clone()));
                    inputs.extend(self.peer(id, to, bytes, snapshot));
                    let is_there = true;
                    inputs.push_back((id, Input::SnapshotSent { to, is_there }));
                }
                Output::Snapshot(taken) => {
                    let Taken { mark, snapshot } = *taken;
                    self.snapshots.insert(mark.index, snapshot);
                    let num_bytes = 1;
                    inputs.push_back((id, Input::Snapshotted { mark, num_bytes }));
                }
                Output::Reply { reply, .. } => self.replies.push(reply),
                Output::Broken { reason } => panic!("{reason}"),
                _ => {}
            }
        }
        for (id, input) in inputs {
            self.input(id, input);
        }
    }

    /// What comes of a message, if it is known where it is to go.
    fn peer(
        &self,
        from: ReplicaId,
        to: ReplicaId,
        bytes: Vec<u8>,
        snapshot: Option<Box<Snapshot>>,
    ) -> Vec<(ReplicaId, Input)> {
        if self.known[&from].get(to).is_none() || !self.all.contains_key(&to) {
            return Vec::new();
        }
        let hello = self.all[&from].hello_to(to);
        let member = self.all[&to].admit(hello).unwrap();
        let peer = Input::Peer {
            from,
            bytes,
            snapshot,
        };
        vec![(to, Input::PeerHello(member)), (to, peer)]
    }

    fn pass(&mut self) {
        self.now.monotonic_ms += TICK_MS;
        self.now.wall_ms += TICK_MS;
        for id in [LEADER, JOINER] {
            self.input(id, Input::Tick);
        }
    }
}

#[test]
fn a_member_that_knows_nobody_gets_the_state_from_the_leader_of_a_young_group() {
    let mut pair = Pair::new();
    let change = Input::Change {
        reply_to: ReplyTo(1),
        change: Change::AddLearner(JOINER),
        address: address(JOINER),
    };
    pair.input(LEADER, change);
    for _ in 0..20 {
        pair.pass();
    }
    let status = pair.all[&LEADER].status();
    assert!(status.membership.voters.contains(&JOINER), "{status:?}");
    assert_eq!(status.applied, pair.all[&JOINER].status().applied);
    let [one, other] = [LEADER, JOINER].map(|id| pair.all[&id].snapshot().encode());
    assert!(one == other, "both have the same state");
}

#[test]
fn a_member_is_added_once_and_where_others_reach_it() {
    let mut pair = Pair::new();
    let mut add = |id, address: &str| {
        let change = Input::Change {
            reply_to: ReplyTo(1),
            change: Change::AddLearner(ReplicaId(id)),
            address: address.to_owned(),
        };
        pair.replies.clear();
        pair.input(LEADER, change);
        pair.replies.pop().expect("an answer")
    };
    for (id, address, words) in [
        (1, "10.0.0.9:4600", "not used twice; the next one is 2"),
        (u64::MAX, "10.0.0.9:4600", "far beyond"),
        (2, "0.0.0.0:4600", "not where others reach it"),
        (2, "[::]:4600", "not where others reach it"),
    ] {
        match add(id, address) {
            Reply::Refused(reason) => assert!(reason.contains(words), "{reason}"),
            other => panic!("{address}: {other:?}"),
        }
    }
    // Asked again, as where an answer was lost.
    let [first, again] = [(); 2].map(|()| add(0, &address(JOINER)));
    let Reply::Changed(membership) = &first else {
        panic!("{first:?}");
    };
    assert!(membership.learners.contains(&JOINER), "{membership:?}");
    assert_eq!(again, first, "the next number was taken for this address");
    assert_eq!(add(2, &address(JOINER)), first);
}
