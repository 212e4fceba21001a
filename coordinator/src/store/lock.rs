//! One opener at a time, over all of a store's files.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;

/// Holds the folder until it is dropped, or the process dies.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held, never used")] File);

impl Lock {
    /// `None` if another opener has the folder.
    pub(super) fn take(folder: &Path) -> io::Result<Option<Self>> {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}
