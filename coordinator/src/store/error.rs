//! Why a store cannot be opened or written.

use std::io;
use std::path::PathBuf;

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
    #[error("{}: {what} is damaged: {reason}; restore the folder from a copy", .folder.display())]
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
    /// sled's own complaint, mostly about damaged files.
    #[error("{}: the store's files are damaged or of another kind; restore the folder from a copy", .folder.display())]
    Sled {
        /// The store's folder.
        folder: PathBuf,
        /// What sled says.
        #[source]
        source: sled::Error,
    },
    /// sled gave up.
    #[error("{}: the store's files are damaged ({text}); restore the folder from a copy", .folder.display())]
    Panicked {
        /// The store's folder.
        folder: PathBuf,
        /// Its last words.
        text: String,
    },
}
