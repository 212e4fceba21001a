//! What a replica says of itself and of the others, for people.

use std::collections::BTreeSet;

use raft::{ProgressState, StateRole};

use super::Replica;
use crate::types::{Membership, ReplicaId};

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads.
    Leader,
    /// It asks for votes, or whether it would get them.
    Candidate,
    /// It follows, or waits for a leader.
    Follower,
    /// It follows, and does not vote.
    Learner,
}

impl Role {
    /// The word for people and scripts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Candidate => "candidate",
            Role::Follower => "follower",
            Role::Learner => "learner",
        }
    }
}

/// How far another replica is, as the leader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Which one.
    pub id: ReplicaId,
    /// It has all entries through this one.
    pub matched: u64,
    /// Whether it was heard of lately.
    pub is_active: bool,
    /// Whether it needs a snapshot.
    pub needs_snapshot: bool,
}

/// What a replica says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it is.
    pub role: Role,
    /// The newest term it has seen.
    pub term: u64,
    /// Who leads it, as far as is known here.
    pub leader: Option<ReplicaId>,
    /// The last entry that is known to be committed.
    pub committed: u64,
    /// The last entry that was applied.
    pub applied: u64,
    /// The first and the last entry of the log.
    pub log: (u64, u64),
    /// The last entry that the newest snapshot covers.
    pub snapshot: u64,
    /// Who belongs to the group, by what was applied.
    pub membership: Membership,
    /// The others, where this replica leads.
    pub peers: Vec<Peer>,
}

impl Replica {
    /// What it says of itself.
    #[must_use]
    pub fn status(&self) -> Status {
        let raft = &self.node.raft;
        let leader = (raft.leader_id != raft::INVALID_ID).then_some(ReplicaId(raft.leader_id));
        let membership = self.applied.membership.clone();
        let role = match raft.state {
            StateRole::Leader => Role::Leader,
            StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
            StateRole::Follower if membership.learners.contains(&self.options.id) => Role::Learner,
            StateRole::Follower => Role::Follower,
        };
        let leads = raft.state == StateRole::Leader;
        let others = raft.prs().iter().filter(|(id, _)| leads && **id != raft.id);
        let mut peers: Vec<Peer> = others
            .map(|(id, progress)| Peer {
                id: ReplicaId(*id),
                matched: progress.matched,
                is_active: progress.recent_active,
                needs_snapshot: progress.state == ProgressState::Snapshot,
            })
            .collect();
        peers.sort_by_key(|peer| peer.id);
        let log = &raft.raft_log;
        Status {
            role,
            term: raft.term,
            leader,
            committed: log.committed,
            applied: self.applied.index,
            log: (log.first_index(), log.last_index()),
            snapshot: self.node.store().snapshot_mark().index,
            membership,
            peers,
        }
    }

    /// The learners that do not have all that is committed, or are not heard of.
    pub(super) fn behind(&self) -> BTreeSet<ReplicaId> {
        let raft = &self.node.raft;
        let committed = raft.raft_log.committed;
        let learners = self.applied.membership.learners.iter();
        let behind = learners.filter(|id| {
            let progress = raft.prs().get(id.0);
            progress.is_none_or(|one| one.matched < committed || !one.recent_active)
        });
        behind.copied().collect()
    }
}
