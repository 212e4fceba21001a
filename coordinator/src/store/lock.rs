//! One opener at a time.
//!
//! sled has a lock of its own, but lets go of it late: threads of its pool hold the database for a
//! moment after the last handle is gone. This lock says at once whether another coordinator has the
//! folder; with it in hand, sled's can only be held by such a thread, and is worth waiting for.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long sled's threads may take to end. They need milliseconds; beyond this, something else
/// has opened sled's files.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(2);

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

/// Tries again while sled's own lock is held. There is nothing that tells when it is let go of, so
/// that this looks every few milliseconds.
pub(super) fn wait_for_sled<T>(mut open: impl FnMut() -> sled::Result<T>) -> sled::Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match open() {
            Err(error) if is_held(&error) && Instant::now() < deadline => std::thread::sleep(PAUSE),
            done => return done,
        }
    }
}

/// sled has no error of its own for a lock that is held.
pub(super) fn is_held(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().starts_with("could not acquire lock"))
}
