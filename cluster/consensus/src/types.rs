//! The plain values that cross this crate's face; none of raft-rs's types do.

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

/// What a store gives back after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The last one that was made durable.
    pub hard_state: HardState,
    /// The whole log, from index 1.
    pub entries: Vec<Entry>,
}
