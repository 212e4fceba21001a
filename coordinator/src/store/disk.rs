//! The engine's files, and whether one of them could not be synced.
//!
//! raft-engine panics where a sync fails, once more for each file as it closes, and so ends the process
//! without a word. Here a sync that fails is noted for the store, which asks before it relies on
//! anything; from then on nothing is synced, and no file is removed.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission};

/// The files of one engine.
#[derive(Clone, Default)]
pub(super) struct Disk {
    failure: Arc<Failure>,
}

impl Disk {
    /// Whether all syncs so far were done.
    ///
    /// # Errors
    /// What the system said of the first that was not.
    pub(super) fn check(&self) -> io::Result<()> {
        match &*self.failure.lock() {
            Some(error) => {
                let kind = error.kind();
                // The engine's text is the name of the call; what the disk said is in the system's log.
                let text = format!("{error} failed ({kind}); see the system's log, such as dmesg");
                Err(io::Error::new(kind, text))
            }
            None => Ok(()),
        }
    }
}

/// What the system said of the first sync that failed.
#[derive(Default)]
struct Failure(Mutex<Option<io::Error>>);

impl Failure {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<io::Error>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open file.
pub(super) struct OneFile {
    file: Arc<<DefaultFileSystem as FileSystem>::Handle>,
    failure: Arc<Failure>,
}

impl Handle for OneFile {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.file.truncate(offset)
    }

    fn file_size(&self) -> io::Result<usize> {
        self.file.file_size()
    }

    fn sync(&self) -> io::Result<()> {
        let mut failure = self.failure.lock();
        if failure.is_none()
            && let Err(error) = Handle::sync(&*self.file)
        {
            *failure = Some(error);
        }
        Ok(())
    }
}

impl FileSystem for Disk {
    type Handle = OneFile;
    type Reader = <DefaultFileSystem as FileSystem>::Reader;
    type Writer = <DefaultFileSystem as FileSystem>::Writer;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<OneFile> {
        Ok(self.one(DefaultFileSystem.create(path)?))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> io::Result<OneFile> {
        Ok(self.one(DefaultFileSystem.open(path, permission)?))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        self.check()?;
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        self.check()?;
        DefaultFileSystem.rename(from, to)
    }

    fn new_reader(&self, file: Arc<OneFile>) -> io::Result<Self::Reader> {
        DefaultFileSystem.new_reader(Arc::clone(&file.file))
    }

    fn new_writer(&self, file: Arc<OneFile>) -> io::Result<Self::Writer> {
        DefaultFileSystem.new_writer(Arc::clone(&file.file))
    }
}

impl Disk {
    fn one(&self, file: <DefaultFileSystem as FileSystem>::Handle) -> OneFile {
        OneFile {
            file: Arc::new(file),
            failure: Arc::clone(&self.failure),
        }
    }
}
