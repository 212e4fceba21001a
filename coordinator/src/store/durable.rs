//! What sled leaves out: `fdatasync` on its files.
//!
//! sled 0.34's `flush` ends in `sync_file_range` on Linux, which neither waits for the disk's cache
//! nor writes the file's length. Its blobs (values and pages beyond about 128 KiB) are not synced at
//! all; `format` sees to it that there are none.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// The file of one sled folder that is written all the time.
#[derive(Debug)]
pub(super) struct Files {
    /// sled's log. It is kept open so that no write error that the kernel reports to this file goes
    /// unseen.
    log: File,
}

impl Files {
    /// Opens them once sled has, and makes durable what it wrote to do so. All files but the log are
    /// written then and only then.
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        for place in [&folder.join("blobs"), folder] {
            for found in fs::read_dir(place)? {
                let path = found?.path();
                if path.is_file() {
                    File::open(path)?.sync_all()?;
                }
            }
            // The names of its files are the folder's content.
            File::open(place)?.sync_all()?;
        }
        let log = File::open(folder.join("db"))?;
        Ok(Self { log })
    }

    /// Returns when all that sled has written is on the disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        self.log.sync_data()
    }
}

/// Removes the snapshots of its page table that sled had not finished when it was stopped. It writes
/// them under a name of their own, but would read them in spite of it, and refuse the store. Finished
/// ones must stay: from its log alone sled does not find everything again.
pub(super) fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for found in fs::read_dir(folder)? {
        let path = found?.path();
        if path.extension().is_some_and(|end| end == "generating") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Makes the name of a new folder durable.
pub(super) fn sync_parent(folder: &Path) -> io::Result<()> {
    match folder.canonicalize()?.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
