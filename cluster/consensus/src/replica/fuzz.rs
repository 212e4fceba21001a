//! Messages by chance, most of them almost right: none may make a replica panic.

use protobuf::Message as _;
use raft::eraftpb::{self, EntryType, Message, MessageType};

use super::mix;
use super::tests::{
    PEER, entry, from_peer, handle, leader_with_a_proposal, message, recovered, start,
};
use crate::{Change, Input, Output, Recovered, ReplicaId, change};

/// Numbers that mostly come near the replica's own.
fn number(draw: &mut impl FnMut(u64) -> u64) -> u64 {
    match draw(12) {
        0 => u64::MAX - draw(2),
        1 => u64::MAX / 4 + 1 - draw(3),
        _ => draw(6),
    }
}

fn random_message(draw: &mut impl FnMut(u64) -> u64) -> Message {
    let kinds = [
        MessageType::MsgAppend,
        MessageType::MsgAppend,
        MessageType::MsgAppendResponse,
        MessageType::MsgAppendResponse,
        MessageType::MsgHeartbeat,
        MessageType::MsgHeartbeatResponse,
        MessageType::MsgRequestVote,
        MessageType::MsgRequestVoteResponse,
        MessageType::MsgRequestPreVote,
        MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgPropose,
        MessageType::MsgHup,
        MessageType::MsgSnapshot,
        MessageType::MsgTimeoutNow,
        MessageType::MsgReadIndex,
        MessageType::MsgTransferLeader,
    ];
    let mut message = message(kinds[draw(16) as usize], number(draw));
    message.log_term = number(draw);
    message.index = number(draw);
    message.commit = if draw(3) == 0 { number(draw) } else { 0 };
    message.commit_term = number(draw);
    message.reject = draw(2) == 0;
    message.reject_hint = number(draw);
    message.request_snapshot = if draw(20) == 0 { number(draw) } else { 0 };
    let first = if draw(10) == 0 {
        number(draw)
    } else {
        message.index
    };
    let mut term = message.log_term.max(1);
    for offset in 1..=draw(4) {
        term = term.wrapping_add(u64::from(draw(4) == 0));
        let kind = match draw(20) {
            0 => EntryType::EntryConfChangeV2,
            1..4 => EntryType::EntryConfChange,
            _ => EntryType::EntryNormal,
        };
        let data = match kind {
            EntryType::EntryConfChange if draw(8) > 0 => random_change(draw),
            _ => vec![7u8; draw(3) as usize],
        };
        message.entries.push(eraftpb::Entry {
            entry_type: kind,
            index: first.wrapping_add(offset),
            term,
            data: data.into(),
            ..Default::default()
        });
    }
    if (message.msg_type == MessageType::MsgSnapshot) == (draw(20) > 0) {
        let (index, term) = (number(draw), number(draw));
        let mut ids = |most| (0..draw(most)).map(|_| draw(5)).collect::<Vec<u64>>();
        let conf_state = eraftpb::ConfState::from((ids(4), ids(2)));
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        metadata.set_conf_state(conf_state);
    }
    if draw(10) == 0 {
        let context = match draw(3) {
            0 => raft::CAMPAIGN_TRANSFER.to_vec(),
            1 => draw(4).to_le_bytes().to_vec(),
            _ => vec![1; draw(10) as usize],
        };
        message.context = context.into();
    }
    message
}

fn random_change(draw: &mut impl FnMut(u64) -> u64) -> Vec<u8> {
    let id = ReplicaId(draw(5));
    let change = match draw(3) {
        0 => Change::AddLearner(id),
        1 => Change::Promote(id),
        _ => Change::Remove(id),
    };
    change::to_raft(change, vec![7]).write_to_bytes().unwrap()
}

#[test]
fn no_bytes_make_a_replica_panic() {
    let mut state = 11;
    let mut draw = |bound: u64| {
        state = mix(state);
        state % bound
    };
    let (mut num_broken, mut num_leading, mut num_refused) = (0, 0, 0);
    for _ in 0..20_000 {
        let mut replica = match draw(3) {
            0 => leader_with_a_proposal(),
            1 => {
                start(
                    3,
                    recovered(
                        2,
                        1,
                        vec![entry(1, 1, b"a"), entry(2, 2, b"b"), entry(3, 2, b"c")],
                    ),
                )
                .0
            }
            _ => start(3, Recovered::default()).0,
        };
        let mut batch = 0;
        for _ in 0..60 {
            let input = match draw(10) {
                0 => match draw(6) {
                    0 => Input::Read { request: 1 },
                    1 => Input::Transfer { to: PEER },
                    2 => Input::Unreachable { peer: PEER },
                    3 => Input::SnapshotSent {
                        to: PEER,
                        is_there: draw(2) == 0,
                    },
                    4 => Input::Change {
                        request: 1,
                        change: Change::Remove(ReplicaId(draw(4))),
                        data: vec![7],
                    },
                    _ => Input::Tick,
                },
                1 if draw(6) == 0 => Input::Snapshotted {
                    mark: replica.mark().clone(),
                    num_kept: draw(3),
                },
                1 => Input::Persisted { batch },
                2 => Input::Propose {
                    request: 1,
                    data: vec![1; draw(3) as usize],
                },
                3 => Input::Message {
                    from: PEER,
                    bytes: (0..draw(40)).map(|_| draw(256) as u8).collect(),
                },
                4 => {
                    let mut bytes = random_message(&mut draw).write_to_bytes().unwrap();
                    let at = draw(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << draw(8);
                    Input::Message { from: PEER, bytes }
                }
                _ => from_peer(&random_message(&mut draw)),
            };
            let outputs = handle(&mut replica, input);
            for output in &outputs {
                match output {
                    Output::Persist { batch: newest, .. } => batch = *newest,
                    Output::Broken { .. } => num_broken += 1,
                    _ => {}
                }
            }
            num_leading += u64::from(replica.node.raft.state == raft::StateRole::Leader);
        }
        num_refused += replica.num_refused();
    }
    // Every way through was taken often.
    assert!(num_broken > 100, "{num_broken}");
    assert!(num_leading > 1000, "{num_leading}");
    assert!(num_refused > 10_000, "{num_refused}");
}
