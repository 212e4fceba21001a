//! The files of a checkpoint: what is in them ([`format`]) and how they reach and leave a folder
//! (`files`).
//!
//! A checkpoint is two files, each named by what it holds and not by the rank that wrote it:
//! `params`, the arena, and `optimizer`, the optimizer's state. Both are safetensors files, which
//! PyTorch reads. Not here: the manifest, which says which files count, and which rank writes
//! what; the coordinator and `rank` decide that.

mod files;
mod format;

use std::io;
use std::path::PathBuf;

pub use files::{check_writable, publish, read_verified, remove_retired};
pub(crate) use format::decode;
pub use format::{Meta, encode};
pub use muster_cluster::state::FileRef;

/// The logical names of a checkpoint's files, in their order in the manifest.
pub const FILES: [&str; 2] = ["params", "optimizer"];

/// Why a file of a checkpoint could not be written, read or used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The size is not the one that was recorded.
    #[error(
        "checkpoint file {} has {found} bytes and was written with {expected}; it is damaged and not used",
        path.display()
    )]
    WrongSize {
        /// The file.
        path: PathBuf,
        /// As recorded.
        expected: u64,
        /// As found.
        found: u64,
    },
    /// The content is not the one that was recorded.
    #[error(
        "checkpoint file {} has BLAKE3 {found} and was written with {expected}; it is damaged and not used",
        path.display()
    )]
    WrongHash {
        /// The file.
        path: PathBuf,
        /// As recorded, in hex.
        expected: String,
        /// As found, in hex.
        found: String,
    },
    /// A name that no checkpoint file has.
    #[error(
        "{name:?} is no name of a checkpoint file; expected step-<number>-<params or optimizer>-<16 hex digits>.safetensors"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// The bytes are no checkpoint file.
    #[error("the {file} file is no checkpoint of ours: {reason}")]
    Malformed {
        /// The logical name.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint file of something else.
    #[error(
        "the {file} file does not belong to this state: {what} is {found}, expected {expected}"
    )]
    Mismatch {
        /// The logical name.
        file: &'static str,
        /// What differs.
        what: String,
        /// As expected.
        expected: String,
        /// As found.
        found: String,
    },
}

#[cfg(test)]
mod tests;
