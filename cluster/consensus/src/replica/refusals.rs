//! What a replica refuses: damaged starts, impossible messages, and what no peer sends.

use protobuf::Message as _;
use raft::eraftpb::{Message, MessageType};

use super::tests::{
    ME, PEER, append, entry, from_peer, handle, leader_with_a_proposal, message, options, propose,
    recovered, start,
};
use super::{Options, Replica};
use crate::{Entry, EntryKind, Error, Input, Mark, Membership, Output, Recovered, ReplicaId};

#[test]
fn a_damaged_recovery_is_refused() {
    let refuse = |mut recovered: Recovered| {
        recovered.start.membership = Membership::of([ME]);
        Replica::new(options(), recovered, &mut Vec::new()).unwrap_err()
    };
    let config = Entry {
        kind: EntryKind::Config,
        ..entry(1, 1, b"")
    };
    assert_eq!(
        refuse(recovered(1, 0, vec![entry(2, 1, b"")])),
        Error::Gap {
            expected: 1,
            found: 2
        }
    );
    assert_eq!(
        refuse(recovered(2, 0, vec![entry(1, 2, b""), entry(2, 1, b"")])),
        Error::TermGoesBack {
            index: 2,
            term: 1,
            before: 2
        }
    );
    assert_eq!(
        refuse(recovered(1, 0, vec![entry(1, 2, b"")])),
        Error::TermUnseen { last: 2, seen: 1 }
    );
    assert_eq!(
        refuse(recovered(1, 2, vec![entry(1, 1, b"")])),
        Error::LostTail { commit: 2, last: 1 }
    );
    assert_eq!(
        refuse(recovered(u64::MAX, 0, vec![])),
        Error::TooLarge {
            what: "term",
            value: u64::MAX
        }
    );
    assert_eq!(
        refuse(recovered(1, 0, vec![config])),
        Error::Membership { index: 1 }
    );
    let snapshot = |index, term, entries| Recovered {
        start: Mark {
            index,
            term,
            membership: Membership::default(),
        },
        ..recovered(9, 0, entries)
    };
    // Behind a snapshot the log goes on, or begins before its end.
    assert_eq!(
        refuse(snapshot(5, 2, vec![entry(7, 2, b"")])),
        Error::Gap {
            expected: 6,
            found: 7
        }
    );
    assert_eq!(
        refuse(snapshot(5, 2, vec![entry(4, 1, b""), entry(5, 1, b"")])),
        Error::TermGoesBack {
            index: 5,
            term: 1,
            before: 2
        }
    );
    let other_log = recovered(1, 0, vec![entry(1, 1, b"")]);
    let no_genesis = Replica::new(options(), other_log, &mut Vec::new()).unwrap_err();
    assert_eq!(no_genesis, Error::NoGenesis);
    let mut both = Recovered::genesis([ME]);
    both.start.membership.learners.insert(ME);
    let twice = Replica::new(options(), both, &mut Vec::new()).unwrap_err();
    assert_eq!(twice, Error::TwiceAMember(ME));
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    let refuse =
        |options| Replica::new(options, Recovered::default(), &mut Vec::new()).unwrap_err();
    let nobody = Options {
        id: ReplicaId(0),
        ..options()
    };
    assert_eq!(refuse(nobody), Error::ZeroId);
    assert_eq!(
        refuse(Options {
            heartbeat_ticks: 10,
            ..options()
        }),
        Error::Ticks {
            election_ticks: 10,
            heartbeat_ticks: 10
        }
    );
}

#[test]
fn an_impossible_commit_stops_the_replica() {
    let mut follower = start(3, Recovered::default()).0;
    handle(&mut follower, from_peer(&append(&[b"a"], 1)));
    let beyond = Message {
        commit: 9,
        ..message(MessageType::MsgHeartbeat, 1)
    };
    let outputs = handle(&mut follower, from_peer(&beyond));
    let [Output::Broken { reason }] = outputs.as_slice() else {
        panic!("{outputs:?}")
    };
    assert!(
        reason.contains("entry 9") && reason.contains("ends at 1"),
        "{reason}"
    );
    assert_eq!(handle(&mut follower, Input::Persisted { batch: 1 }), []);
    assert_eq!(propose(&mut follower, 1, b"a"), []);
    assert!(!follower.is_leader());

    let mut leader = leader_with_a_proposal();
    let beyond = Message {
        commit: 9,
        ..message(MessageType::MsgHeartbeatResponse, 1)
    };
    assert!(matches!(
        handle(&mut leader, from_peer(&beyond)).as_slice(),
        [Output::Broken { .. }]
    ));
}

#[test]
fn a_leader_that_lacks_what_is_committed_stops_the_replica() {
    let log = vec![entry(1, 1, b"a"), entry(2, 1, b"b")];
    let mut replica = start(3, recovered(1, 2, log)).0;
    let mut other = append(&[b"c"], 0);
    (other.term, other.entries[0].term) = (2, 2);
    let outputs = handle(&mut replica, from_peer(&other));
    assert!(
        matches!(outputs.as_slice(), [Output::Broken { .. }]),
        "{outputs:?}"
    );
}

#[test]
fn what_no_peer_sends_is_counted_and_ignored() {
    let mut replica = start(3, Recovered::default()).0;
    let good = append(&[b"a"], 0);
    let bytes = good.write_to_bytes().unwrap();
    let mut bad = vec![
        Input::Message {
            from: PEER,
            bytes: b"no message".to_vec(),
        },
        Input::Message {
            from: PEER,
            bytes: vec![0; (8 << 20) + 1],
        },
        Input::Message {
            from: ReplicaId(3),
            bytes: bytes.clone(),
        },
        Input::Message {
            from: ReplicaId(9),
            bytes,
        },
        Input::Persisted { batch: 77 },
    ];
    let twisted: [fn(&mut Message); 10] = [
        |message| message.to = 3,
        |message| message.from = 9,
        |message| message.term = 0,
        |message| message.term = u64::MAX,
        |message| message.priority = -1,
        |message| message.context = b"CampaignTransfer".to_vec().into(),
        |message| message.index = 7,
        |message| message.entries[0].index = 2,
        |message| message.entries[0].term = 5,
        |message| message.msg_type = MessageType::MsgTimeoutNow,
    ];
    bad.extend(twisted.iter().map(|twist| {
        let mut message = good.clone();
        twist(&mut message);
        from_peer(&message)
    }));
    for (count, input) in (1..).zip(bad) {
        assert_eq!(handle(&mut replica, input.clone()), [], "{input:?}");
        assert_eq!(replica.num_refused(), count, "{input:?}");
    }
    assert!(
        !handle(&mut replica, from_peer(&good)).is_empty(),
        "and it still works"
    );
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_is_ignored() {
    let mut leader = leader_with_a_proposal();
    for (index, reject_hint) in [(3, 0), (2, 3)] {
        let answer = message(MessageType::MsgAppendResponse, 1);
        let beyond = Message {
            index,
            reject_hint,
            reject: reject_hint > 0,
            ..answer
        };
        assert_eq!(handle(&mut leader, from_peer(&beyond)), []);
    }
    assert_eq!(leader.num_refused(), 2);
    let answer = Message {
        index: 2,
        ..message(MessageType::MsgAppendResponse, 1)
    };
    let outputs = handle(&mut leader, from_peer(&answer));
    let proposal = Output::Apply {
        index: 2,
        term: 1,
        data: b"a".to_vec(),
        request: Some(8),
    };
    assert!(outputs.contains(&proposal), "{outputs:?}");
}

#[test]
fn votes_are_not_counted_before_they_were_asked_for() {
    let (mut replica, _) = start(3, Recovered::default());
    // Entries that never become durable, then silence: the requests for votes wait behind them.
    handle(&mut replica, from_peer(&append(&[b"a"], 0)));
    for _ in 0..20 {
        handle(&mut replica, Input::Tick);
    }
    handle(
        &mut replica,
        from_peer(&message(MessageType::MsgRequestPreVoteResponse, 2)),
    );
    assert_eq!(replica.term(), 2);
    let vote = from_peer(&message(MessageType::MsgRequestVoteResponse, 2));
    assert_eq!(handle(&mut replica, vote), []);
    assert_eq!(replica.num_refused(), 1);
}
