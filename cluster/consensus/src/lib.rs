//! Raft without IO: raft-rs behind one surface of inputs and outputs.
//!
//! The only crate that imports raft-rs. It has no clock, no thread, no socket and no disk: ticks,
//! messages and "this is durable now" come in, "make this durable", "send this" and "apply this"
//! go out. What an entry means is none of its business.

mod types;

pub use types::{Entry, EntryKind, HardState, Recovered, ReplicaId};
