//! Why a replica cannot begin.

use crate::types::ReplicaId;

/// What is wrong with the options, or with what a store gave back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An identity is 0, which Raft keeps for "nobody".
    #[error("replica id 0 means nobody; number the replicas from 1")]
    ZeroId,
    /// A replica is both voter and learner.
    #[error("replica {} is a voter and a learner; it can only be one of them", .0.0)]
    TwiceAMember(ReplicaId),
    /// A log without the beginning of its group.
    #[error("there is a log, but nothing says whom its group began with; the store is damaged")]
    NoGenesis,
    /// The two timeouts leave no room for a heartbeat to arrive.
    #[error(
        "election_ticks {election_ticks} must be greater than heartbeat_ticks {heartbeat_ticks}, which must be at least 1"
    )]
    Ticks {
        /// As given.
        election_ticks: u32,
        /// As given.
        heartbeat_ticks: u32,
    },
    /// The recovered log has a hole, or begins too late.
    #[error("recovered log: entry {found} stands where entry {expected} belongs")]
    Gap {
        /// The index that belongs there.
        expected: u64,
        /// The index that stands there.
        found: u64,
    },
    /// The recovered log goes back in time.
    #[error("recovered log: entry {index} has term {term}, after an entry of term {before}")]
    TermGoesBack {
        /// The entry.
        index: u64,
        /// Its term.
        term: u64,
        /// The term of the entry before it.
        before: u64,
    },
    /// The log has an entry of a term that the replica has not seen.
    #[error(
        "recovered log ends in term {last}, but the hard state has only seen term {seen}; a write was lost"
    )]
    TermUnseen {
        /// The term of the last entry.
        last: u64,
        /// The term of the hard state.
        seen: u64,
    },
    /// The log is shorter than what is known to be committed.
    #[error(
        "recovered log ends at entry {last}, but entry {commit} is committed; its tail was lost"
    )]
    LostTail {
        /// The commit index of the hard state.
        commit: u64,
        /// The last index of the log.
        last: u64,
    },
    /// A number is larger than any cluster reaches, so that counting on would overflow.
    #[error("recovered {what} {value} is larger than any log reaches; the store is damaged")]
    TooLarge {
        /// Which number.
        what: &'static str,
        /// It.
        value: u64,
    },
    /// A change of the membership that cannot be read.
    #[error(
        "recovered log: entry {index} changes the membership in a way that nothing is known of"
    )]
    Membership {
        /// The entry.
        index: u64,
    },
    /// raft-rs refuses for a reason of its own.
    #[error("the consensus library refuses to start: {0}")]
    Library(String),
}
