//! The daemon of a machine: keeps a stream to the coordinator, starts and ends the processes of
//! ranks, and passes on what both say. Ranks go on while there is no daemon, and the next one takes
//! them back. What it does when is decided by the agent of
//! `muster-worker-core`; no model is known here.
//!
//! 1. [`run`]: the process, from its start to its end.
//! 2. Inside: the hub owns the agent; `link` is the coordinator's side, `door` the ranks' side,
//!    `child` a rank's process and `tail` its log.
//! 3. [`devices`]: the machine's GPUs, and which of them it lends.
//! 4. What the next daemon must know: `home` is the state folder, `roster` a file per process,
//!    `alive` whether a process still runs, `succession` what becomes of those that do.

mod alive;
mod child;
pub mod devices;
mod door;
mod home;
mod hub;
mod link;
mod probe;
mod roster;
mod run;
mod succession;
mod tail;

pub use run::{Error, Options, run};
