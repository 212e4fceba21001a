//! The control plane without IO: consensus, state and the leader's duties.
//!
//! 1. [`coordinator`]: the one machine; inputs in, outputs out.
//! 2. [`links`]: the workers' streams, and what was sent over each.
//! 3. [`ranks`]: what the leader saw of each world, and when a world can begin or is over.
//! 4. `paces`: how fast they are.
//! 5. `goodput`: where the time of a job's ranks went.
//! 6. [`view`]: what people are shown.
//! 7. [`members`]: who belongs to the group; `archive`: the jobs that are over; [`snapshot`]: all of it,
//!    for a file.
//!
//! There is no clock, socket, disk or thread here: the shell (`muster-coordinator`) has them all.

mod archive;
pub mod coordinator;
mod goodput;
pub mod links;
pub mod members;
mod paces;
pub mod ranks;
pub mod snapshot;
pub mod view;

pub use coordinator::{Coordinator, Input, Now, Output, Reply, ReplyTo};
pub use links::Session;
pub use members::{Member, Members};
pub use muster_consensus as consensus;
pub use snapshot::{Snapshot, Taken};
