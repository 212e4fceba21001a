//! Moves and sums flat vectors of `f32` between the ranks of one world, always to the same bits.
//!
//! This crate knows nothing about jobs, tensors, models or the coordinator: a rank is a number, a
//! contribution is a vector, and what decides who holds what comes from outside. Read in this
//! order:
//!
//! 1. [`world`]: which ranks talk, and the number that fences everything older.
//! 2. [`accumulator`]: a rank sums the shards it computed into aligned subtrees.
//! 3. [`reduction`]: the sans-IO machine of one all-reduce: who sends which piece when.
//! 4. [`frame`]: what crosses a wire.
//! 5. [`group`]: the handle that a rank holds, the same over every driver.
//! 6. The drivers: [`memory`] (threads of one process) and [`tcp`] (hosts).
//! 7. [`device`]: the same sums over the memory of devices, beside a group that keeps watch;
//!    behind the feature `nccl`, the module of that name moves them among NVIDIA's.
//!
//! ```
//! use std::time::Duration;
//!
//! use muster_cluster::{Generation, History, ShardId, Step, tree};
//! use muster_collective::{Accumulator, Operation, memory};
//!
//! // Two ranks sum the vectors [s, 1] of the logical shards s = 0, 1, 2.
//! let runs = tree::runs(3, 2).unwrap();
//! let holdings: Vec<_> = runs.iter().map(|run| tree::subtrees(3, *run)).collect();
//! let groups = memory::groups(History(0), Generation(1), 2);
//! let ranks = groups.into_iter().zip(runs).map(|(mut group, run)| {
//!     let holdings = holdings.clone();
//!     std::thread::spawn(move || {
//!         let mut accumulator = Accumulator::new(3, 2, group.pool());
//!         for shard in run.shards() {
//!             let mut values = accumulator.buffer();
//!             values.copy_from_slice(&[shard as f32, 1.0]);
//!             accumulator.push(ShardId(shard), values).unwrap();
//!         }
//!         let operation = Operation {
//!             step: Step(0),
//!             num_shards: 3,
//!             num_elements: 2,
//!             holdings,
//!             mine: accumulator.subtrees(),
//!             note: b"finite".to_vec(),
//!         };
//!         let reduced = group.all_reduce(operation, Duration::from_secs(10)).unwrap();
//!         assert_eq!(*reduced.vector, [3.0, 3.0]);
//!         assert_eq!(reduced.notes, [b"finite", b"finite"]);
//!     })
//! });
//! for rank in ranks.collect::<Vec<_>>() {
//!     rank.join().unwrap();
//! }
//! ```

pub mod accumulator;
mod chunks;
pub mod device;
mod error;
pub mod frame;
pub mod group;
pub mod memory;
#[cfg(feature = "nccl")]
pub mod nccl;
mod queue;
pub mod reduction;
pub mod tcp;
mod values;
pub mod world;

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod testing;

pub use accumulator::{Accumulator, PushError};
pub use error::{Error, LossReason};
pub use group::{Counters, Group, OnSent, Revoker};
pub use reduction::{Operation, Reduced, Reduction};
pub use values::{Pool, Subtree, Summand, Values};
pub use world::World;
