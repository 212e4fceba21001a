//! The plain values that cross this crate's face; none of raft-rs's types do.

use std::collections::BTreeSet;

/// One replica of the control plane; never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u64);

/// What a replica must remember of its promises (Raft §5.2 and §5.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// The newest term it has seen.
    pub term: u64,
    /// Whom it voted for in that term; 0 for nobody.
    pub vote: u64,
    /// The last index it knows to be committed.
    pub commit: u64,
}

/// What an entry's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A command of the caller's; empty where a new leader opened its term.
    Normal,
    /// A change of the membership.
    Config,
}

/// One entry of the replicated log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the log, from 1, without gaps.
    pub index: u64,
    /// The term of the leader that wrote it.
    pub term: u64,
    /// What its bytes are.
    pub kind: EntryKind,
    /// The bytes.
    pub data: Vec<u8>,
}

/// Who belongs to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Those that elect leaders, and of which a majority makes an entry count.
    pub voters: BTreeSet<ReplicaId>,
    /// Those that only receive the log.
    pub learners: BTreeSet<ReplicaId>,
}

impl Membership {
    /// A group of these voters.
    #[must_use]
    pub fn of(voters: impl IntoIterator<Item = ReplicaId>) -> Self {
        Self {
            voters: voters.into_iter().collect(),
            learners: BTreeSet::new(),
        }
    }

    /// Whether a replica belongs to it.
    #[must_use]
    pub fn has(&self, id: ReplicaId) -> bool {
        self.voters.contains(&id) || self.learners.contains(&id)
    }
}

/// A change of the membership, of one replica at a time (Raft thesis §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A replica that is to receive the log, and does not vote yet.
    AddLearner(ReplicaId),
    /// A learner that has caught up votes from now on.
    Promote(ReplicaId),
    /// A replica that is not to belong to the group any more.
    Remove(ReplicaId),
}

/// A place in the log, and who belonged to the group there: where a snapshot ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// The last entry that it covers; 0 for a replica that has nothing of the log yet.
    pub index: u64,
    /// The term of that entry.
    pub term: u64,
    /// Who belonged to the group behind that entry.
    pub membership: Membership,
}

impl Mark {
    /// Where the log of a new group begins: behind a first entry that nobody ever sees, so that every
    /// replica which comes later begins with a snapshot, and knows whom the group began with.
    #[must_use]
    pub fn genesis(voters: impl IntoIterator<Item = ReplicaId>) -> Self {
        Self {
            index: 1,
            term: 1,
            membership: Membership::of(voters),
        }
    }
}

/// What a store gives back after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last one that was made durable.
    pub hard_state: HardState,
    /// What the state was taken from that entries are applied to: the newest snapshot, or the genesis
    /// of the group. The default is that of a replica that is to join a group.
    pub start: Mark,
    /// The log, without gaps; from the entry behind `start`, or from an earlier one.
    pub entries: Vec<Entry>,
}

impl Recovered {
    /// What a replica of a new group begins with.
    #[must_use]
    pub fn genesis(voters: impl IntoIterator<Item = ReplicaId>) -> Self {
        let start = Mark::genesis(voters);
        Self {
            hard_state: HardState {
                term: start.term,
                vote: 0,
                commit: start.index,
            },
            start,
            entries: Vec::new(),
        }
    }
}
