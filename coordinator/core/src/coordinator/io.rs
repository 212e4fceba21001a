//! What goes into a coordinator and what comes out.

use muster_cluster::apply::Answer;
use muster_cluster::command::{Command, RequestId};
use muster_consensus::{Change, Entry, HardState, Mark, Membership, ReplicaId};
use muster_proto::event::Event;
use muster_proto::v1;

use crate::links::Session;
use crate::members::Members;
use crate::snapshot::{Snapshot, Taken};

/// The time, as the shell's clocks say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds that never go back; for timeouts.
    pub monotonic_ms: u64,
    /// Milliseconds since the epoch; for stamps.
    pub wall_ms: u64,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ReplyTo(pub u64);

/// What can happen to a coordinator.
#[derive(Debug)]
pub enum Input {
    /// Time went on; every [`TICK_MS`](super::TICK_MS).
    Tick,
    /// A client wants a command to be applied.
    Request {
        /// Where the answer goes.
        reply_to: ReplyTo,
        /// The client's id of it.
        request: Option<RequestId>,
        /// What it wants.
        command: Command,
    },
    /// A worker opened a stream and said who it is.
    Hello {
        /// The stream.
        session: Session,
        /// What it said.
        hello: v1::WorkerHello,
    },
    /// A worker said something else.
    FromWorker {
        /// The stream.
        session: Session,
        /// What it said.
        message: v1::from_worker::Message,
    },
    /// A worker's stream ended.
    WorkerGone {
        /// The stream.
        session: Session,
    },
    /// Rank 0 of some world recorded a step.
    Record(v1::StepRecord),
    /// These writes are durable.
    Persisted {
        /// The batch that [`Output::Persist`] named.
        batch: u64,
    },
    /// Somebody wants to see what is true now. Ends in one [`Output::Readable`] or
    /// [`Output::Reply`].
    Read {
        /// Who.
        reply_to: ReplyTo,
    },
    /// Another member says something of consensus's.
    Peer {
        /// Which one.
        from: ReplicaId,
        /// The bytes of its [`Output::Send`] or [`Output::SendSnapshot`].
        bytes: Vec<u8>,
        /// The snapshot that they speak of, which was received and is durable.
        snapshot: Option<Box<Snapshot>>,
    },
    /// A member was admitted to speak, and this is what it says of itself.
    PeerHello(v1::Member),
    /// A member cannot be reached.
    Unreachable(ReplicaId),
    /// What became of an [`Output::SendSnapshot`].
    SnapshotSent {
        /// To whom.
        to: ReplicaId,
        /// Whether it is there.
        is_there: bool,
    },
    /// The snapshot of [`Output::Snapshot`] is durable, and the log rests on it.
    Snapshotted {
        /// Where it ends.
        mark: Mark,
        /// The size of its file.
        num_bytes: u64,
    },
    /// An operator wants the group to be another one.
    Change {
        /// Whom to answer.
        reply_to: ReplyTo,
        /// What is to change.
        change: Change,
        /// Where a new member is reached; else empty.
        address: String,
    },
    /// Another member is to lead: this one, or whichever is furthest.
    Transfer(Option<ReplicaId>),
}

/// What a coordinator wants done, in order.
#[derive(Debug)]
pub enum Output {
    /// Make this durable, then say [`Input::Persisted`].
    Persist {
        /// Names the write.
        batch: u64,
        /// Entries; the first may overwrite a tail.
        entries: Vec<Entry>,
        /// The promises, where they changed.
        hard_state: Option<HardState>,
        /// The snapshot that takes the place of all that was there before; `None` mostly.
        restore: Option<Mark>,
    },
    /// Answer a client.
    Reply {
        /// Whom.
        reply_to: ReplyTo,
        /// What.
        reply: Reply,
    },
    /// Tell a worker.
    ToWorker {
        /// On which stream.
        session: Session,
        /// What.
        message: v1::to_worker::Message,
    },
    /// Append an event to its job's stream: every replica does, in the same order.
    Event {
        /// The event.
        event: Event,
        /// The line that tells it.
        line: String,
    },
    /// A record is told, and survives any coordinator.
    Ack(v1::RecordAck),
    /// Send this to another member; it may be lost, late or doubled.
    Send {
        /// Which one.
        to: ReplicaId,
        /// For [`Input::Peer`] there.
        bytes: Vec<u8>,
    },
    /// Send the snapshot that ends here to a member, then these bytes, and say
    /// [`Input::SnapshotSent`].
    SendSnapshot {
        /// Which one.
        to: ReplicaId,
        /// The last entry that the snapshot covers.
        index: u64,
        /// For [`Input::Peer`] there, with the snapshot.
        bytes: Vec<u8>,
    },
    /// Make this snapshot durable, have the log rest on it, and say [`Input::Snapshotted`].
    Snapshot(Box<Taken>),
    /// Entries up to this one are needed no more.
    Discard {
        /// Which one.
        through: u64,
    },
    /// The state is that of the snapshot which ends here and was received: so are the jobs' streams.
    Restored {
        /// Where.
        mark: Mark,
    },
    /// All is applied that was acknowledged when this was asked for.
    Readable {
        /// By whom.
        reply_to: ReplyTo,
    },
    /// Whether this one leads has changed. One that does not lead any more ends its workers' streams
    /// and its clients'.
    Leads(bool),
    /// The members of the group are others, or are reached elsewhere.
    Members(Members),
    /// This one belongs to the group no more.
    Removed,
    /// The replica cannot go on; the process must stop, and say why.
    Broken {
        /// Why.
        reason: String,
    },
}

/// The answer to a client.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// The command was applied, or refused.
    Applied {
        /// What came of it.
        answer: Answer,
        /// Where it was a submission, the position in the job's stream of its first event; else 0.
        first_event: u64,
    },
    /// The group is this one now.
    Changed(Membership),
    /// Nothing can be asked here: another one leads, if anybody is known to.
    NotLeading(Option<ReplicaId>),
    /// It makes no sense; the text says why.
    Refused(String),
    /// It could not be done; the text says why.
    Unavailable(String),
}
