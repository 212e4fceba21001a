//! What goes into a replica and what comes out; how one leads to the other is in `replica`.

use crate::types::{Entry, HardState, ReplicaId};

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// One tick of the caller's clock went by.
    Tick,
    /// A caller wants bytes in the log. Ends in one [`Output::Apply`] or [`Output::Dropped`] with
    /// the same `request`, or in neither if the replica cannot learn the outcome: after a restart,
    /// after [`Output::Broken`], or while the log does not reach the proposal's place again.
    Propose {
        /// The caller's number for it; not replicated.
        request: u64,
        /// The bytes: not empty, at most 4 MiB.
        data: Vec<u8>,
    },
    /// A peer sent this.
    Message {
        /// The peer, as the connection knows it.
        from: ReplicaId,
        /// The bytes of its [`Output::Send`].
        bytes: Vec<u8>,
    },
    /// This batch and all before it are durable.
    Persisted {
        /// The number of the [`Output::Persist`].
        batch: u64,
    },
}

/// Something must be done, in the order of the outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Make this durable, all of it or nothing, and say [`Input::Persisted`]. Batches are made
    /// durable in their order; several may share a sync.
    Persist {
        /// Rises from batch to batch; not without gaps.
        batch: u64,
        /// Entries with neighbouring indexes. The log ends with the last of them: what stood at
        /// their places or behind must go. Empty where only the hard state changes.
        entries: Vec<Entry>,
        /// What replaces the hard state; `None` if it stays.
        hard_state: Option<HardState>,
    },
    /// Send this to a peer; it may be lost, late or doubled.
    Send {
        /// The peer.
        to: ReplicaId,
        /// Opaque; for [`Input::Message`] there.
        bytes: Vec<u8>,
    },
    /// This is committed and durable here: apply it. Every replica applies the same sequence, from
    /// the beginning after every start.
    Apply {
        /// Its place in the log. Rises; the entries that open a term are left out.
        index: u64,
        /// The term of the leader that wrote it.
        term: u64,
        /// What was proposed.
        data: Vec<u8>,
        /// The number of the proposal, if it was made here since the start.
        request: Option<u64>,
    },
    /// A proposal will never be applied.
    Dropped {
        /// Its number.
        request: u64,
        /// Why, for a person.
        reason: String,
    },
    /// Who leads has changed.
    Leader {
        /// The newest term seen.
        term: u64,
        /// Who leads it, as far as is known here.
        leader: Option<ReplicaId>,
        /// Whether this replica leads and has applied all that earlier leaders committed, so that
        /// its state is fit to decide from. Comes later than `leader` naming this replica.
        is_me: bool,
    },
    /// The cluster's promises do not hold: this replica does nothing any more.
    Broken {
        /// What contradicts what, for a person.
        reason: String,
    },
}
