//! Changes of the membership, snapshots and reads, one input at a time.

use super::super::tests::{
    ME, PEER, batch_of, entry, from_peer, handle, leader_with_a_proposal, message, options,
    propose, recovered, start,
};
use super::*;
use crate::types::{Membership, Recovered, ReplicaId};
use crate::{Input, Role};
use raft::eraftpb::{Message, MessageType};

/// The only voter of a group, which leads.
fn alone() -> Replica {
    let (mut replica, outputs) = start(1, Recovered::default());
    let batch = batch_of(&outputs);
    handle(&mut replica, Input::Persisted { batch });
    replica
}

fn change(replica: &mut Replica, change: Change) -> Vec<Output> {
    let input = Input::Change {
        request: 5,
        change,
        data: b"address".to_vec(),
    };
    let outputs = handle(replica, input);
    match outputs
        .iter()
        .find(|one| matches!(one, Output::Persist { .. }))
    {
        Some(Output::Persist { batch, .. }) => {
            let batch = *batch;
            handle(replica, Input::Persisted { batch })
        }
        _ => outputs,
    }
}

fn reason(outputs: &[Output]) -> &str {
    match outputs {
        [Output::Dropped { request: 5, reason }] => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_group_grows_by_a_learner_that_votes_once_it_has_caught_up() {
    let mut replica = alone();
    let outputs = change(&mut replica, Change::AddLearner(PEER));
    let mut membership = Membership::of([ME]);
    membership.learners.insert(PEER);
    let changed = Output::Changed {
        index: 2,
        term: 1,
        change: Change::AddLearner(PEER),
        membership: membership.clone(),
        data: b"address".to_vec(),
        request: Some(5),
    };
    assert!(outputs.contains(&changed), "{outputs:?}");
    assert_eq!(replica.mark().membership, membership);
    for (made, expected) in [
        (Change::AddLearner(PEER), "belongs to the group already"),
        (Change::AddLearner(ReplicaId(0)), "means nobody"),
        (
            Change::Promote(ReplicaId(7)),
            "does not belong to the group",
        ),
        (Change::Remove(ReplicaId(7)), "does not belong to the group"),
        (Change::Promote(ME), "votes already"),
        (Change::Remove(ME), "have another one lead first"),
        (Change::Promote(PEER), "has not caught up"),
    ] {
        let outputs = change(&mut replica, made);
        assert!(reason(&outputs).contains(expected), "{made:?}: {outputs:?}");
    }
    let answer = Message {
        index: 2,
        ..message(MessageType::MsgAppendResponse, 1)
    };
    handle(&mut replica, from_peer(&answer));
    change(&mut replica, Change::Promote(PEER));
    assert_eq!(replica.mark().membership, Membership::of([ME, PEER]));
    assert_eq!(replica.status().peers.len(), 1);
    // From now on nothing counts without the other one.
    let outputs = propose(&mut replica, 9, b"a");
    let batch = batch_of(&outputs);
    let outputs = handle(&mut replica, Input::Persisted { batch });
    assert!(
        !outputs
            .iter()
            .any(|one| matches!(one, Output::Apply { .. }))
    );
}

#[test]
fn a_group_is_durably_another_one_where_its_change_is_applied() {
    let mut replica = alone();
    let add = Input::Change {
        request: 5,
        change: Change::AddLearner(PEER),
        data: b"address".to_vec(),
    };
    let outputs = handle(&mut replica, add);
    let batch = batch_of(&outputs);
    let outputs = handle(&mut replica, Input::Persisted { batch });
    let commit = outputs.iter().find_map(|one| match one {
        Output::Persist { hard_state, .. } => hard_state.map(|hard_state| hard_state.commit),
        _ => None,
    });
    assert_eq!(commit, Some(2), "{outputs:?}");
}

#[test]
fn only_one_change_is_under_way() {
    let mut replica = leader_with_a_proposal();
    // Nothing of its own term is applied yet.
    let outputs = change(&mut replica, Change::AddLearner(ReplicaId(4)));
    assert!(reason(&outputs).contains("changing already"), "{outputs:?}");
}

#[test]
fn a_read_of_a_leader_waits_for_a_quorum() {
    let mut replica = alone();
    let outputs = handle(&mut replica, Input::Read { request: 3 });
    assert_eq!(outputs, [Output::Readable { request: 3 }]);

    let mut leader = leader_with_a_proposal();
    let acknowledged = Message {
        index: 2,
        ..message(MessageType::MsgAppendResponse, 1)
    };
    handle(&mut leader, from_peer(&acknowledged));
    let asked = handle(&mut leader, Input::Read { request: 4 });
    let sent = |outputs: &[Output]| {
        let mut sent = outputs.iter().filter_map(|one| match one {
            Output::Send { to: PEER, bytes } => {
                let mut message = Message::default();
                protobuf::Message::merge_from_bytes(&mut message, bytes).unwrap();
                Some(message)
            }
            _ => None,
        });
        sent.next().unwrap()
    };
    assert!(!asked.contains(&Output::Readable { request: 4 }));
    let heartbeat = sent(&asked);
    let answer = Message {
        context: heartbeat.context,
        ..message(MessageType::MsgHeartbeatResponse, 1)
    };
    let outputs = handle(&mut leader, from_peer(&answer));
    assert!(
        outputs.contains(&Output::Readable { request: 4 }),
        "{outputs:?}"
    );

    // Who does not lead any more cannot know.
    handle(&mut leader, Input::Read { request: 6 });
    let outputs = handle(
        &mut leader,
        from_peer(&message(MessageType::MsgHeartbeat, 2)),
    );
    let gone = |one: &Output| matches!(one, Output::Dropped { request: 6, .. });
    assert!(outputs.iter().any(gone), "{outputs:?}");
    let outputs = handle(&mut leader, Input::Read { request: 7 });
    assert!(matches!(outputs[..], [Output::Dropped { request: 7, .. }]));
}

#[test]
fn a_log_is_cut_behind_a_snapshot_and_goes_on_from_it() {
    let mut replica = alone();
    for request in 0..10 {
        let outputs = propose(&mut replica, request, b"a");
        let batch = batch_of(&outputs);
        handle(&mut replica, Input::Persisted { batch });
    }
    let mark = replica.mark().clone();
    assert_eq!((mark.index, mark.term), (11, 1));
    let early = Mark {
        index: 99,
        ..mark.clone()
    };
    let beyond = Input::Snapshotted {
        mark: early,
        num_kept: 0,
    };
    assert_eq!(handle(&mut replica, beyond), []);
    assert_eq!(replica.num_refused(), 1);
    let num_kept = 4;
    let taken = Input::Snapshotted {
        mark: mark.clone(),
        num_kept,
    };
    assert_eq!(
        handle(&mut replica, taken),
        [Output::Discard { through: 7 }]
    );
    let status = replica.status();
    assert_eq!((status.log, status.snapshot), ((8, 11), 11));
    assert_eq!(status.role, Role::Leader);

    // What is left is enough for another start: only what is behind the snapshot is applied.
    let log = (8..=12).map(|index| entry(index, 1, b"a")).collect();
    let recovered = Recovered {
        start: mark,
        ..recovered(1, 12, log)
    };
    let mut outputs = Vec::new();
    Replica::new(options(), recovered, &mut outputs).unwrap();
    let applied = outputs.iter().filter_map(|one| match one {
        Output::Apply { index, .. } => Some(*index),
        _ => None,
    });
    assert_eq!(applied.collect::<Vec<_>>(), [12]);
}

#[test]
fn a_replica_that_joins_takes_a_snapshot_first() {
    let mut outputs = Vec::new();
    let mut replica = Replica::new(options(), Recovered::default(), &mut outputs).unwrap();
    assert_eq!(outputs, []);
    let mut snapshot = message(MessageType::MsgSnapshot, 3);
    let metadata = snapshot.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = (40, 2);
    metadata.set_conf_state(eraftpb::ConfState::from((vec![PEER.0], vec![ME.0])));
    let outputs = handle(&mut replica, from_peer(&snapshot));
    let mut membership = Membership::of([PEER]);
    membership.learners.insert(ME);
    let mark = Mark {
        index: 40,
        term: 2,
        membership,
    };
    let persist = outputs.iter().find_map(|one| match one {
        Output::Persist { batch, restore, .. } => Some((*batch, restore.clone())),
        _ => None,
    });
    let (batch, restore) = persist.unwrap();
    assert_eq!(restore, Some(mark.clone()));
    let outputs = handle(&mut replica, Input::Persisted { batch });
    assert!(
        outputs.contains(&Output::Restore { mark: mark.clone() }),
        "{outputs:?}"
    );
    assert!(
        outputs
            .iter()
            .any(|one| matches!(one, Output::Send { to: PEER, .. }))
    );
    assert_eq!(replica.mark(), &mark);
    assert_eq!(replica.status().role, Role::Learner);
    // It never asks for votes.
    for _ in 0..100 {
        assert!(
            !handle(&mut replica, Input::Tick)
                .iter()
                .any(|one| matches!(one, Output::Send { .. }))
        );
    }
}
