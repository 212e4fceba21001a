//! What sled leaves out: `fdatasync` on its files.
//!
//! sled 0.34's `flush` ends in `sync_file_range` on Linux, which neither waits for the disk's cache
//! nor writes the file's length, and its blobs (values beyond about 128 KiB) are not synced at all.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// The files of one sled folder, and which of them are known to be on the disk.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
    /// sled's log. It is written all the time, and kept open so that no write error that the
    /// kernel reports to this file goes unseen.
    log: File,
    /// All others are written once, under a name of their own.
    synced: BTreeSet<(Place, OsString)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Folder,
    Blobs,
}

const LOG: &str = "db";

impl Files {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let log = File::open(folder.join(LOG))?;
        Ok(Self {
            folder: folder.to_owned(),
            log,
            synced: BTreeSet::new(),
        })
    }

    /// Returns when all that sled has written is on the disk.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        // Blobs first: the log points at them.
        self.sync_new_files(Place::Blobs)?;
        rustix::fs::fdatasync(&self.log)?;
        self.sync_new_files(Place::Folder)
    }

    fn sync_new_files(&mut self, place: Place) -> io::Result<()> {
        let folder = match place {
            Place::Folder => self.folder.clone(),
            Place::Blobs => self.folder.join("blobs"),
        };
        let mut present = BTreeSet::new();
        let mut num_new = 0;
        for found in fs::read_dir(&folder)? {
            let key = (place, found?.file_name());
            let is_new = !self.synced.contains(&key);
            if !is_new || sync_file(&folder.join(&key.1))? {
                num_new += usize::from(is_new);
                present.insert(key);
            }
        }
        if num_new > 0 {
            // The names of new files are the folder's content.
            rustix::fs::fsync(File::open(&folder)?)?;
        }
        self.synced.retain(|(other, _)| *other != place);
        self.synced.append(&mut present);
        Ok(())
    }
}

/// False if sled has removed the file meanwhile.
fn sync_file(path: &Path) -> io::Result<bool> {
    match File::open(path) {
        Ok(file) => {
            rustix::fs::fsync(file)?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes the name of a new folder durable.
pub(super) fn sync_parent(folder: &Path) -> io::Result<()> {
    match folder.canonicalize()?.parent() {
        Some(parent) => Ok(rustix::fs::fsync(File::open(parent)?)?),
        None => Ok(()),
    }
}
