//! What opening a store has to make durable: the names of its files, and what a process that was
//! killed wrote and did not sync. From then on the engine syncs what it writes.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Syncs the engine's files and the folders that have their names.
pub(super) fn sync_all(folder: &Path, entries: &str) -> io::Result<()> {
    for place in [&folder.join(entries), folder] {
        for found in fs::read_dir(place)? {
            let path = found?.path();
            if path.is_file() {
                File::open(path)?.sync_all()?;
            }
        }
        File::open(place)?.sync_all()?;
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
