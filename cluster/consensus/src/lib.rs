//! Raft without IO: raft-rs behind one surface of inputs and outputs.
//!
//! 1. [`Replica`]: the machine; [`Input`]s in, [`Output`]s out.
//! 2. [`Options`]: who it is and how patient.
//! 3. The plain values that cross its face: [`Entry`], [`HardState`], [`Recovered`], [`ReplicaId`],
//!    [`Membership`] and the [`Change`]s of it, and the [`Mark`] at which a snapshot ends.
//!
//! The only crate that imports raft-rs. It has no clock, no thread, no socket and no disk: ticks,
//! messages and "this is durable now" come in, "make this durable", "send this" and "apply this"
//! go out. What an entry means is none of its business, nor what is in a snapshot.

mod change;
mod check;
mod error;
mod io;
mod log;
mod replica;
mod types;

pub use error::Error;
pub use io::{Input, Output};
pub use replica::{Options, Peer, Replica, Role, Status};
pub use types::{Change, Entry, EntryKind, HardState, Mark, Membership, Recovered, ReplicaId};
