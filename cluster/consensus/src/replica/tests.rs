//! What one replica does with one input. What it refuses is in `refusals`, groups are in `simulation`,
//! chance messages in `fuzz`.

use protobuf::Message as _;
use raft::eraftpb::{self, Message, MessageType};

use super::{Options, Replica, election_timeout};
use crate::{Entry, EntryKind, HardState, Input, Membership, Output, Recovered, ReplicaId};

pub(super) const ME: ReplicaId = ReplicaId(1);
pub(super) const PEER: ReplicaId = ReplicaId(2);

pub(super) fn options() -> Options {
    Options {
        id: ME,
        seed: 5,
        election_ticks: 10,
        heartbeat_ticks: 2,
    }
}

pub(super) fn entry(index: u64, term: u64, data: &[u8]) -> Entry {
    Entry {
        index,
        term,
        kind: EntryKind::Normal,
        data: data.to_vec(),
    }
}

pub(super) fn recovered(term: u64, commit: u64, entries: Vec<Entry>) -> Recovered {
    Recovered {
        hard_state: HardState {
            term,
            vote: 0,
            commit,
        },
        entries,
        ..Recovered::default()
    }
}

/// A replica with what came out of its start; its group began with so many voters.
pub(super) fn start(num_voters: u64, mut recovered: Recovered) -> (Replica, Vec<Output>) {
    recovered.start.membership = Membership::of((1..=num_voters).map(ReplicaId));
    let mut outputs = Vec::new();
    let replica = Replica::new(options(), recovered, &mut outputs).unwrap();
    (replica, outputs)
}

pub(super) fn handle(replica: &mut Replica, input: Input) -> Vec<Output> {
    let mut outputs = Vec::new();
    replica.handle(input, &mut outputs);
    outputs
}

pub(super) fn propose(replica: &mut Replica, request: u64, data: &[u8]) -> Vec<Output> {
    handle(
        replica,
        Input::Propose {
            request,
            data: data.to_vec(),
        },
    )
}

pub(super) fn batch_of(outputs: &[Output]) -> u64 {
    let batch = |output: &Output| {
        if let Output::Persist { batch, .. } = output {
            Some(*batch)
        } else {
            None
        }
    };
    outputs
        .iter()
        .rev()
        .find_map(batch)
        .expect("something to persist")
}

pub(super) fn message(kind: MessageType, term: u64) -> Message {
    Message {
        msg_type: kind,
        to: ME.0,
        from: PEER.0,
        term,
        ..Message::default()
    }
}

pub(super) fn from_peer(message: &Message) -> Input {
    Input::Message {
        from: PEER,
        bytes: message.write_to_bytes().unwrap(),
    }
}

/// Entries 1.. of a leader of term 1, the peer; the follower has them in memory.
pub(super) fn append(data: &[&[u8]], commit: u64) -> Message {
    let entries = (1..).zip(data).map(|(index, data)| eraftpb::Entry {
        index,
        term: 1,
        data: data.to_vec().into(),
        ..Default::default()
    });
    Message {
        entries: entries.collect::<Vec<_>>().into(),
        commit,
        ..message(MessageType::MsgAppend, 1)
    }
}

fn applied(index: u64, term: u64, data: &[u8], request: Option<u64>) -> Output {
    Output::Apply {
        index,
        term,
        data: data.to_vec(),
        request,
    }
}

#[test]
fn a_single_voter_leads_once_its_first_entry_is_durable() {
    let (mut replica, outputs) = start(1, Recovered::default());
    assert_eq!(
        outputs,
        [
            Output::Persist {
                batch: 1,
                entries: vec![entry(1, 1, b"")],
                hard_state: Some(HardState {
                    term: 1,
                    vote: 1,
                    commit: 0
                }),
                restore: None,
            },
            Output::Leader {
                term: 1,
                leader: Some(ME),
                is_me: false
            },
        ]
    );
    assert!(!replica.is_leader());
    let outputs = handle(&mut replica, Input::Persisted { batch: 1 });
    assert_eq!(
        outputs,
        [Output::Leader {
            term: 1,
            leader: Some(ME),
            is_me: true
        }]
    );
    assert!(replica.is_leader());
    assert_eq!(replica.term(), 1);
}

#[test]
fn nothing_is_applied_before_it_is_durable() {
    let (mut replica, _) = start(1, Recovered::default());
    handle(&mut replica, Input::Persisted { batch: 1 });
    let first = propose(&mut replica, 70, b"a");
    let second = propose(&mut replica, 71, b"b");
    // The commit index of the first entry rides with the next batch.
    let hard_state = Some(HardState {
        term: 1,
        vote: 1,
        commit: 1,
    });
    let batch = batch_of(&first);
    assert_eq!(
        first,
        [Output::Persist {
            batch,
            entries: vec![entry(2, 1, b"a")],
            hard_state,
            restore: None,
        }]
    );
    assert_eq!(second.len(), 1);
    // One sync for both batches: the later number stands for both.
    let outputs = handle(
        &mut replica,
        Input::Persisted {
            batch: batch_of(&second),
        },
    );
    assert_eq!(
        outputs,
        [applied(2, 1, b"a", Some(70)), applied(3, 1, b"b", Some(71))]
    );
}

#[test]
fn proposals_that_come_together_are_one_batch() {
    let (mut replica, _) = start(1, Recovered::default());
    handle(&mut replica, Input::Persisted { batch: 1 });
    let mut outputs = Vec::new();
    for (request, data) in [(70, "a"), (71, "b"), (72, "")] {
        replica.propose(request, data.into(), &mut outputs);
    }
    let empty = "a proposal has 1 to 4194304 bytes, this one has 0".to_owned();
    let dropped = |request, reason| Output::Dropped { request, reason };
    assert_eq!(outputs, [dropped(72, empty)]);
    outputs.clear();
    replica.flush(&mut outputs);
    let batch = batch_of(&outputs);
    let [Output::Persist { entries, .. }] = &outputs[..] else {
        panic!("{outputs:?}");
    };
    assert_eq!(entries[..], [entry(2, 1, b"a"), entry(3, 1, b"b")]);
    // What comes otherwise takes along what waits, and goes behind it.
    outputs.clear();
    replica.propose(73, b"c".to_vec(), &mut outputs);
    replica.handle(Input::Persisted { batch }, &mut outputs);
    let is_next = |output: &Output| matches!(output, Output::Persist { entries, .. } if entries[..] == [entry(4, 1, b"c")]);
    assert!(outputs.iter().any(is_next), "{outputs:?}");
    assert!(outputs.contains(&applied(3, 1, b"b", Some(71))));
    // So much that it cannot wait for more.
    outputs.clear();
    replica.propose(74, vec![7; 1 << 20], &mut outputs);
    assert_eq!(outputs.len(), 1, "{outputs:?}");
}

#[test]
fn a_restart_applies_the_whole_log_again_and_leads_after_it() {
    let log = vec![entry(1, 1, b""), entry(2, 1, b"a"), entry(3, 2, b"b")];
    let (mut replica, outputs) = start(1, recovered(2, 2, log));
    assert!(outputs.contains(&applied(2, 1, b"a", None)));
    assert!(
        !outputs.contains(&applied(3, 2, b"b", None)),
        "entry 3 was not known to be committed"
    );
    let outputs = handle(
        &mut replica,
        Input::Persisted {
            batch: batch_of(&outputs),
        },
    );
    let leads = Output::Leader {
        term: 3,
        leader: Some(ME),
        is_me: true,
    };
    assert_eq!(outputs, [applied(3, 2, b"b", None), leads]);
}

#[test]
fn a_follower_acknowledges_entries_only_when_they_are_durable() {
    let (mut replica, _) = start(3, Recovered::default());
    let outputs = handle(&mut replica, from_peer(&append(&[b"a"], 1)));
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, Output::Send { .. } | Output::Apply { .. }))
    );
    let outputs = handle(
        &mut replica,
        Input::Persisted {
            batch: batch_of(&outputs),
        },
    );
    let [Output::Send { to, bytes }, apply] = outputs.as_slice() else {
        panic!("{outputs:?}")
    };
    let mut answer = Message::default();
    answer.merge_from_bytes(bytes).unwrap();
    assert_eq!(
        (*to, answer.msg_type, answer.index),
        (PEER, MessageType::MsgAppendResponse, 1)
    );
    assert_eq!(*apply, applied(1, 1, b"a", None));
}

#[test]
fn a_vote_leaves_only_when_it_is_durable() {
    let (mut replica, _) = start(3, Recovered::default());
    let outputs = handle(
        &mut replica,
        from_peer(&message(MessageType::MsgRequestVote, 1)),
    );
    let vote = Some(HardState {
        term: 1,
        vote: PEER.0,
        commit: 0,
    });
    assert!(outputs.contains(&Output::Persist {
        batch: batch_of(&outputs),
        entries: vec![],
        hard_state: vote,
        restore: None,
    }));
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, Output::Send { .. }))
    );
    let outputs = handle(
        &mut replica,
        Input::Persisted {
            batch: batch_of(&outputs),
        },
    );
    assert!(matches!(
        outputs.as_slice(),
        [Output::Send { to: PEER, .. }]
    ));
}

#[test]
fn proposals_that_cannot_be_made_are_dropped_with_a_reason() {
    let reason = |outputs: &[Output]| match outputs {
        [Output::Dropped { request: 9, reason }] => reason.clone(),
        other => panic!("{other:?}"),
    };
    let (mut follower, _) = start(3, Recovered::default());
    assert_eq!(
        reason(&propose(&mut follower, 9, b"a")),
        "no leader is known; try again"
    );
    handle(&mut follower, from_peer(&append(&[], 0)));
    assert_eq!(
        reason(&propose(&mut follower, 9, b"a")),
        "replica 2 leads; ask it"
    );
    let (mut leader, _) = start(1, Recovered::default());
    assert!(reason(&propose(&mut leader, 9, b"")).contains("this one has 0"));
    assert!(
        reason(&propose(&mut leader, 9, &vec![0; (4 << 20) + 1])).contains("this one has 4194305")
    );
}

/// A leader of term 1 in a group of three, with proposal 8 in its log at index 2, not committed.
pub(super) fn leader_with_a_proposal() -> Replica {
    let (mut replica, _) = start(3, Recovered::default());
    let (mut outputs, mut num_ticks) = (Vec::new(), 0);
    while !outputs
        .iter()
        .any(|output| matches!(output, Output::Send { .. }))
    {
        outputs = handle(&mut replica, Input::Tick);
        num_ticks += 1;
    }
    assert_eq!(num_ticks, election_timeout(&options(), 0));
    let outputs = handle(
        &mut replica,
        from_peer(&message(MessageType::MsgRequestPreVoteResponse, 1)),
    );
    handle(
        &mut replica,
        Input::Persisted {
            batch: batch_of(&outputs),
        },
    );
    let outputs = handle(
        &mut replica,
        from_peer(&message(MessageType::MsgRequestVoteResponse, 1)),
    );
    assert!(
        outputs.contains(&Output::Leader {
            term: 1,
            leader: Some(ME),
            is_me: false
        }),
        "{outputs:?}"
    );
    let outputs = propose(&mut replica, 8, b"a");
    handle(
        &mut replica,
        Input::Persisted {
            batch: batch_of(&outputs),
        },
    );
    replica
}

#[test]
fn an_overtaken_proposal_is_dropped_when_another_entry_takes_its_place() {
    let mut replica = leader_with_a_proposal();
    let mut other = append(&[b"", b"b"], 1);
    other.term = 2;
    other.entries[1].term = 2;
    let outputs = handle(&mut replica, from_peer(&other));
    // It is overwritten here, but another replica might still hold it and lead.
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, Output::Dropped { .. })),
        "{outputs:?}"
    );
    handle(
        &mut replica,
        Input::Persisted {
            batch: batch_of(&outputs),
        },
    );
    let committed = Message {
        commit: 2,
        ..message(MessageType::MsgHeartbeat, 2)
    };
    let outputs = handle(&mut replica, from_peer(&committed));
    assert!(
        matches!(outputs[0], Output::Dropped { request: 8, .. }),
        "{outputs:?}"
    );
    assert_eq!(outputs[1], applied(2, 2, b"b", None));
}

#[test]
fn election_timeouts_differ_by_seed_replica_and_term() {
    let all: Vec<usize> = (0..200)
        .map(|term| election_timeout(&options(), term))
        .collect();
    assert!(all.iter().all(|ticks| (10..20).contains(ticks)));
    assert!((10..20).all(|ticks| all.contains(&ticks)));
    let of = |options: &Options| {
        (0..20)
            .map(|term| election_timeout(options, term))
            .collect::<Vec<_>>()
    };
    assert_ne!(
        of(&options()),
        of(&Options {
            id: PEER,
            ..options()
        })
    );
    assert_ne!(
        of(&options()),
        of(&Options {
            seed: 6,
            ..options()
        })
    );
}
