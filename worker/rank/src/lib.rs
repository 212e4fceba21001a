//! The process of a rank: joins the rank's machine, the collective and the trainer. A program that
//! has learners of its own calls [`rank_main`] with them.
//!
//! 1. [`rank_main`]: the process, from its environment to its exit code.
//! 2. [`class`] and [`probe`]: what decides its bits beside the job.
//! 3. [`end_with_the_tree`]: how a process of a tree notices that its root is gone.
//! 4. [`validate`]: whether a job fits its data, before anything is started; [`verify`]: whether a
//!    ledger is true, at any time.

mod audit;
mod class;
mod door;
mod feed;
mod flaw;
mod follow;
mod halt;
mod heal;
mod held;
#[cfg(feature = "devices")]
mod kernels;
mod last;
mod life;
mod links;
mod memory;
mod note;
mod prepare;
mod process;
mod records;
mod said;
mod shared;
mod shares;
mod suspects;
mod tree;
mod validate;
mod verify;
mod work;
mod writer;

/// NCCL's self-check, for whoever starts ranks on GPUs.
#[cfg(feature = "cuda")]
pub mod nccl {
    pub use muster_collective::device::check::CheckOptions;
    pub use muster_collective::nccl::Options;
    pub use muster_collective::nccl::check::{Ended, check, check_rank};
}

pub use class::{class, probe};
pub use prepare::Build;
pub use process::rank_main;
pub use tree::end_with_the_tree;
pub use validate::{DataSummary, check_checkpoint_folder, digest_file, validate};
pub use verify::{Verified, verify};
