//! What goes into a replica and what comes out; how one leads to the other is in `replica`.

use crate::types::{Change, Entry, HardState, Mark, Membership, ReplicaId};

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
    /// Somebody wants to read what is true now. Ends in one [`Output::Readable`] or
    /// [`Output::Dropped`] with the same `request`.
    Read {
        /// The caller's number for it, from the same numbers as those of proposals.
        request: u64,
    },
    /// An operator wants the group to be another one. Ends as a proposal does.
    Change {
        /// The caller's number for it.
        request: u64,
        /// What is to change.
        change: Change,
        /// What comes with it, for whoever applies it.
        data: Vec<u8>,
    },
    /// An operator wants another replica to lead. Nothing comes of it where that one does not answer.
    Transfer {
        /// Which one.
        to: ReplicaId,
    },
    /// A snapshot is durable that covers all entries through this one, which was applied; the log
    /// need not reach back beyond it any more, but for those that are to be kept for replicas that
    /// are a little behind.
    Snapshotted {
        /// As [`Replica::mark`](crate::Replica::mark) said when the snapshot was taken.
        mark: Mark,
        /// So many entries before its end are kept.
        num_kept: u64,
    },
    /// What became of an [`Output::SendSnapshot`].
    SnapshotSent {
        /// To whom.
        to: ReplicaId,
        /// Whether it is there, and its message was handed over.
        is_there: bool,
    },
    /// A peer cannot be reached: what was sent to it last is lost.
    Unreachable {
        /// Which one.
        peer: ReplicaId,
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
        /// Before the entries: the log is given up for a snapshot that ends here, which was received
        /// and is durable. `None` mostly.
        restore: Option<Mark>,
    },
    /// Entries up to this one are needed no more.
    Discard {
        /// Which one.
        through: u64,
    },
    /// The state is to become that of the snapshot that ends here, which was received. Comes when the
    /// batch is durable that gave up the log for it.
    Restore {
        /// Where.
        mark: Mark,
    },
    /// A peer is too far behind for the log: it needs the newest snapshot. Send it that, then hand it
    /// the message, and say [`Input::SnapshotSent`].
    SendSnapshot {
        /// The peer.
        to: ReplicaId,
        /// Where the snapshot ends that is meant.
        index: u64,
        /// For [`Input::Message`] there, once the snapshot is durable.
        bytes: Vec<u8>,
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
    /// The group has changed. It is an entry of the log as those of [`Output::Apply`] are.
    Changed {
        /// Its place in the log.
        index: u64,
        /// The term of the leader that wrote it.
        term: u64,
        /// What was to change.
        change: Change,
        /// Who belongs to the group now; as before where the change made no sense any more.
        membership: Membership,
        /// What came with it.
        data: Vec<u8>,
        /// The number of the proposal, if it was made here since the start.
        request: Option<u64>,
    },
    /// All is applied that was acknowledged to anybody before the read was asked for, and this
    /// replica led since then.
    Readable {
        /// The number of the read.
        request: u64,
    },
    /// A proposal will never be applied, or a read cannot be answered here.
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
