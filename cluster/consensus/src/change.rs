//! Changes of the membership as entries of the log.

use std::collections::BTreeSet;

use protobuf::Message as _;
use raft::eraftpb::{ConfChange, ConfChangeType};

use crate::types::{Change, Membership, ReplicaId};

/// The change and what comes with it, as raft-rs proposes it.
pub(crate) fn to_raft(change: Change, data: Vec<u8>) -> ConfChange {
    let (kind, id) = match change {
        Change::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
        Change::Promote(id) => (ConfChangeType::AddNode, id),
        Change::Remove(id) => (ConfChangeType::RemoveNode, id),
    };
    ConfChange {
        change_type: kind,
        node_id: id.0,
        context: data.into(),
        ..ConfChange::default()
    }
}

/// The change that the bytes of an entry are; `None` where they are none.
pub(crate) fn decode(bytes: &[u8]) -> Option<(ConfChange, Change)> {
    let mut message = ConfChange::default();
    message.merge_from_bytes(bytes).ok()?;
    let id = ReplicaId(message.node_id);
    if id.0 == 0 {
        return None;
    }
    let change = match message.change_type {
        ConfChangeType::AddLearnerNode => Change::AddLearner(id),
        ConfChangeType::AddNode => Change::Promote(id),
        ConfChangeType::RemoveNode => Change::Remove(id),
    };
    Some((message, change))
}

/// Why a change makes no sense in a group that `leader` leads; `behind` are the learners that do not
/// have the log yet.
pub(crate) fn fault_of(
    change: Change,
    membership: &Membership,
    leader: ReplicaId,
    behind: &BTreeSet<ReplicaId>,
) -> Option<String> {
    let fault = match change {
        Change::AddLearner(ReplicaId(0)) => "replica id 0 means nobody".to_owned(),
        Change::AddLearner(id) if membership.has(id) => {
            format!("replica {} belongs to the group already", id.0)
        }
        Change::Promote(id) if membership.voters.contains(&id) => {
            format!("replica {} votes already", id.0)
        }
        Change::Promote(id) | Change::Remove(id) if !membership.has(id) => {
            format!("replica {} does not belong to the group", id.0)
        }
        Change::Promote(id) if behind.contains(&id) => {
            format!(
                "replica {} has not caught up with the log yet; try again later",
                id.0
            )
        }
        Change::Remove(id) if id == leader => {
            format!("replica {} leads; have another one lead first", id.0)
        }
        _ => return None,
    };
    Some(fault)
}
