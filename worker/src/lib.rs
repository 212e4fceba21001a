//! The daemon of a machine: keeps a stream to the coordinator, starts and ends the processes of
//! ranks, and passes on what both say. What it does when is decided by the agent of
//! `muster-worker-core`; no model is known here.
//!
//! 1. [`run`]: the process, from its start to its end.
//! 2. Inside: the hub owns the agent; `link` is the coordinator's side, `door` the ranks' side,
//!    `child` a rank's process.

mod child;
mod door;
mod hub;
mod link;
mod probe;
mod run;

pub use run::{Error, Options, run};
