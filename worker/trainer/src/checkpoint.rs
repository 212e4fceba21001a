//! The files of a checkpoint: what is in them ([`format`]) and how they reach and leave a folder
//! (`files`).
//!
//! Files are named by what they hold and not by the rank that wrote them: `params`, the arena, and
//! `optimizer`, the optimizer's state, or a file for each share of it, `optimizer.00` and so on,
//! where ranks keep shares. All are safetensors files, which PyTorch reads. Not here: the manifest, which says which files count, and which rank writes
//! what; the coordinator and `rank` decide that.

mod files;
mod format;

use std::path::PathBuf;
use std::{fmt, io};

pub use files::{check_writable, publish, read_part, read_verified, remove_retired};
pub(crate) use format::decode;
pub use format::{Meta, encode};
pub use muster_cluster::state::FileRef;

use muster_cluster::shares::NUM_SHARES;

/// What a file of a checkpoint holds. Its text is the file's logical name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The arena.
    Params,
    /// The optimizer's state.
    Optimizer,
    /// A share of the optimizer's state.
    Share(u32),
}

impl Content {
    /// What the files of a checkpoint hold, by their numbers.
    #[must_use]
    pub fn all(is_shared: bool) -> Vec<Self> {
        let mut all = vec![Content::Params];
        if is_shared {
            all.extend((0..NUM_SHARES).map(Content::Share));
        } else {
            all.push(Content::Optimizer);
        }
        all
    }

    /// What a file with this logical name holds.
    #[must_use]
    pub fn of_logical(name: &str) -> Option<Self> {
        match name {
            "params" => Some(Content::Params),
            "optimizer" => Some(Content::Optimizer),
            _ => {
                let share = name.strip_prefix("optimizer.")?.parse().ok();
                let content = share
                    .filter(|share| *share < NUM_SHARES)
                    .map(Content::Share);
                content.filter(|content| content.to_string() == name)
            }
        }
    }

    /// What a published file holds, by its name.
    #[must_use]
    pub fn of_file(name: &str) -> Option<Self> {
        files::parse(name).map(|(_, content)| content)
    }
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Content::Params => f.write_str("params"),
            Content::Optimizer => f.write_str("optimizer"),
            Content::Share(share) => write!(f, "optimizer.{share:02}"),
        }
    }
}

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
    /// The file is not there, and others of its checkpoint are.
    #[error(
        "checkpoint file {} is gone, and other files of its checkpoint are there",
        path.display()
    )]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// A name that no checkpoint file has.
    #[error(
        "{name:?} is no name of a checkpoint file; expected step-<number>-<params, optimizer or optimizer.NN>-<16 hex digits>.safetensors"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// A file that is needed is not there.
    #[error("the checkpoint has no {file} file")]
    Missing {
        /// The logical name.
        file: String,
    },
    /// The bytes are no checkpoint file.
    #[error("the {file} file is no checkpoint of ours: {reason}")]
    Malformed {
        /// The logical name.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint file of something else.
    #[error(
        "the {file} file does not belong to this state: {what} is {found}, expected {expected}"
    )]
    Mismatch {
        /// The logical name.
        file: String,
        /// What differs.
        what: String,
        /// As expected.
        expected: String,
        /// As found.
        found: String,
    },
}

impl CheckpointError {
    /// Whether a file is not what was written, whoever looks. All else may be a fault of the machine
    /// that looks, and another one may read the file.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::WrongSize { .. } | Self::WrongHash { .. } | Self::Gone { .. }
        )
    }
}

#[cfg(test)]
mod tests;
