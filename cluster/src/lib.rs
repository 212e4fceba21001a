//! The vocabulary and the decisions of Muster, as plain values and functions.
//!
//! Nothing here knows the time, draws a random number, opens a file or a socket: `now` and seeds
//! are arguments. Read in this order:
//!
//! 1. [`ids`]: one type per number that must not be mistaken for another.
//! 2. [`tree`]: the canonical reduction tree over logical shards; [`device`]: what a rank runs on.
//! 3. [`job`]: a job as written (`JobDraft`) and as understood (`JobSpec`).
//! 4. [`shares`]: who keeps which part of an optimizer's state.
//! 5. [`state`]: what Raft replicates; [`command`]: what can be asked of it; [`apply`]: how a
//!    command changes it; [`answered`]: what retries are answered.
//! 6. [`plan`]: what the leader decides, from the state, what it observed, and the time.

pub mod answered;
pub mod apply;
mod chain;
pub mod command;
pub mod device;
pub mod ids;
pub mod job;
pub mod plan;
pub mod shares;
pub mod state;
pub mod tree;

pub use chain::chain as error_chain;
pub use device::Device;
pub use ids::{Generation, History, Incarnation, JobName, RankId, ShardId, Step, WorkerName};

#[cfg(test)]
mod testing;
