//! How an operation between ranks ends when it does not succeed.

use std::io;

use muster_cluster::RankId;

use crate::frame::Refusal;

/// Why an operation did not complete.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A rank that the operation still needed is gone.
    #[error("lost rank {rank}: {reason}")]
    PeerLost {
        /// The rank that is gone.
        rank: RankId,
        /// How that was seen, and so how strong a proof of death it is.
        reason: LossReason,
    },
    /// The world was closed from outside; a newer generation will follow.
    #[error("this generation was revoked")]
    Revoked,
    /// The operation's deadline passed.
    #[error("the deadline passed while waiting for {}", list(waiting_for))]
    TimedOut {
        /// The ranks whose frames are still missing, in order; of a send, the rank that has no
        /// room for more. None where vectors travel between devices, whose libraries do not say
        /// for whom they wait.
        waiting_for: Vec<RankId>,
    },
    /// A rank broke the rules of the exchange, or sent a vector of another length than expected.
    #[error("rank {rank} broke the protocol: {what}")]
    Protocol {
        /// The rank that did it.
        rank: RankId,
        /// What it sent, and what was expected.
        what: String,
    },
    /// The caller asked for something impossible; nothing was sent.
    #[error("impossible operation: {what}")]
    Invalid {
        /// What is wrong with it, and what was expected.
        what: String,
    },
    /// This rank's device, or the library that moves its vectors, has failed while no rank is known
    /// to be lost.
    #[error("the device failed: {what}")]
    Device {
        /// What failed, and what to do about it.
        what: String,
    },
    /// As [`Self::Device`], and what moves its vectors may still read and write their memory: the process
    /// must end, and use none of it before.
    #[error("the device failed, and does not let go of its memory: {what}")]
    Stuck {
        /// What failed before that.
        what: String,
    },
    /// The operating system refused a resource (a thread, a socket).
    #[error("could not {doing}: {kind}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        kind: io::ErrorKind,
    },
}

impl Error {
    /// The ranks that are missed with it. Only a connection that ended without a goodbye, or that is
    /// silent, speaks against a peer.
    #[must_use]
    pub fn missed(&self) -> &[RankId] {
        match self {
            Error::PeerLost {
                rank,
                reason: LossReason::Closed(_) | LossReason::Silent,
            } => std::slice::from_ref(rank),
            Error::TimedOut { waiting_for } => waiting_for,
            _ => &[],
        }
    }

    pub(crate) fn system(doing: &'static str) -> impl Fn(io::Error) -> Error {
        move |error| Error::System {
            doing,
            kind: error.kind(),
        }
    }
}

fn list(ranks: &[RankId]) -> String {
    let ranks: Vec<String> = ranks.iter().map(|rank| format!("rank {rank}")).collect();
    if ranks.is_empty() {
        "no rank in particular".to_owned()
    } else {
        ranks.join(", ")
    }
}

/// How the loss of a rank was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LossReason {
    /// Its connection ended without a goodbye: the process or the link died.
    #[error("its connection ended without a goodbye ({0})")]
    Closed(io::ErrorKind),
    /// Its connection stands, and nothing came over it for the time that
    /// [`tcp::connect`](crate::tcp::connect) was given: its machine has stopped, or the network
    /// drops everything. It may be alive.
    #[error("nothing came from it for too long")]
    Silent,
    /// It said goodbye in good order; it may well be alive.
    #[error("it left the world")]
    Left,
    /// It said goodbye after a failure of its own (a deadline, a broken rule); it may be alive.
    #[error("it gave up")]
    GaveUp,
    /// It said goodbye because its generation was revoked; operations answer [`Error::Revoked`].
    #[error("its generation was revoked")]
    Revoked,
    /// Another rank lost it first and said so while leaving.
    #[error("reported by rank {by}")]
    Reported {
        /// The rank that saw it.
        by: RankId,
    },
    /// What it sent is no frame of ours; the stream cannot be trusted any further.
    #[error("it sent garbage ({0})")]
    Garbage(Refusal),
}
