//! What end-to-end tests of the `muster` binary share. It knows the binary's command line and
//! output and no crate of Muster's: a test sees what a user sees.
//!
//! 1. [`Sandbox`]: a folder with a state folder and a job, and the processes that belong to it.
//! 2. [`Train`]: one running `muster train --json`, and what it has said so far.
//! 3. [`Cluster`]: a coordinator and workers that are started by hand.
//! 4. [`Group`]: several coordinators that are one.
//! 5. [`Halts`]: holds ranks up at known moments.
//! 6. [`Network`]: machines in namespaces, with links that can be cut.
//! 7. [`linearizable`]: decides whether what clients saw can be the truth.
//! 8. [`eventually`]: waits for a state, never for a time.
//!
//! A helper that fails panics, as an assertion does, and prints what the program said.

mod cluster;
mod group;
mod halts;
mod linear;
mod network;
mod sandbox;
mod train;
mod wait;

pub use cluster::{Cluster, Machines};
pub use group::{Group, leader_of, status_of};
pub use halts::{Halts, Held, Hold, Point};
pub use linear::{Model, Operation, linearizable};
pub use network::{Machine, Network};
pub use rustix::process::Signal;
pub use sandbox::{Sandbox, processes_of};
pub use train::{Finished, Train, TrainCommand};
pub use wait::eventually;
