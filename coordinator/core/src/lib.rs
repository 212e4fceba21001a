//! The control plane without IO: consensus, state and the leader's duties.
//!
//! 1. [`coordinator`]: the one machine; inputs in, outputs out.
//! 2. [`ranks`]: what the leader saw of each world, and when a world can begin or is over.
//! 3. [`view`]: what people are shown.
//!
//! There is no clock, socket, disk or thread here: the shell (`muster-coordinator`) has them all.

pub mod coordinator;
pub mod ranks;
pub mod view;

pub use coordinator::{Coordinator, Input, Now, Output, Reply, ReplyTo, Session};
pub use muster_consensus as consensus;
