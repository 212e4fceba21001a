//! Why a store cannot be opened or written.

use std::io;
use std::path::PathBuf;

/// What is left to do where a store is lost. An old copy of it is no way out: it has forgotten votes.
pub(crate) const WAY_OUT: &str = "replace this member (`muster coordinator remove`, then `add` with a new id and a new folder), or begin anew from a backup if there is no other";

/// What is wrong, and with which folder.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process, or this one, has it open.
    #[error("{}: in use by another coordinator; stop it, or give this one a folder of its own", .folder.display())]
    InUse {
        /// The store's folder.
        folder: PathBuf,
    },
    /// It was written by another version of this program.
    #[error("{}: the store has format {found}, this program reads {expected}; use the version that wrote it", .folder.display())]
    Version {
        /// The store's folder.
        folder: PathBuf,
        /// The version in the store.
        found: u32,
        /// The version of this program.
        expected: u32,
    },
    /// A value is not what was written.
    #[error("{}: {what} is damaged: {reason}; {}", .folder.display(), WAY_OUT)]
    Damaged {
        /// The store's folder.
        folder: PathBuf,
        /// Which value; an entry by its index.
        what: String,
        /// What does not fit.
        reason: String,
    },
    /// The entries of a batch are not neighbours, or do not follow the log.
    #[error("{}: entry {found} was given where entry {expected} belongs; nothing was written", .folder.display())]
    Gap {
        /// The store's folder.
        folder: PathBuf,
        /// The index that belongs there.
        expected: u64,
        /// The index that was given.
        found: u64,
    },
    /// The disk, or what lies between.
    #[error("{}: the store cannot be read or written; see that its disk has room and can be written, then start again", .folder.display())]
    Io {
        /// The store's folder.
        folder: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The engine's own complaint, mostly about damaged files.
    #[error("{}: the store's files are damaged or of another kind; {}", .folder.display(), WAY_OUT)]
    Engine {
        /// The store's folder.
        folder: PathBuf,
        /// What the engine says.
        #[source]
        source: raft_engine::Error,
    },
    /// The engine gave up.
    #[error("{}: the store cannot be read or written ({text}); if its disk is whole and has room, {}", .folder.display(), WAY_OUT)]
    Panicked {
        /// The store's folder.
        folder: PathBuf,
        /// Its last words.
        text: String,
    },
}
