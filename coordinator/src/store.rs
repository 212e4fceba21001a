//! The log and the hard state of one coordinator on disk, in a raft-engine.
//!
//! Only this module and `disk` import raft-engine. What a value's bytes are is in `format`, what
//! opening has to make durable in `durable`, what becomes of a sync that fails in `disk`, how a loss is
//! noticed in `watermark`, who may open it in `lock`, and the thread that shares one sync among waiting
//! batches in [`thread`]. What an entry means, and whether the log makes sense, is consensus's business.
//!
//! What is appended waits in memory until [`Store::sync`] writes all of it in one batch of the engine
//! and syncs the file. So there is never more than one batch on the disk that is not durable, and it
//! is the last one: the engine checks all bytes of the last batch as it opens, and takes no other
//! that is torn for whole.

mod disk;
mod durable;
mod error;
mod format;
mod lock;
pub mod thread;
mod watermark;

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_coordinator_core::consensus::{Entry, HardState, Mark, Recovered};
use raft_engine::{Command, Config, LogBatch, ReadableSize};

use disk::Disk;
pub use error::StoreError;
pub(crate) use error::WAY_OUT;
use format::{Head, Value};
use watermark::Watermark;

type Engine = raft_engine::Engine<Disk>;

/// The engine keeps logs of many groups; here is one.
const GROUP: u64 = 1;
/// Where the engine's files are, below the store's folder.
const ENTRIES: &str = "entries";

/// How large the engine's files become.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Bytes of one file before the next is begun.
    file: u64,
    /// Bytes of all files before those are removed that have only discarded entries.
    all: u64,
}

const SIZES: Sizes = Sizes {
    file: 8 << 20,
    all: 32 << 20,
};

/// Bytes that may wait for [`Store::sync`]; beyond, they are synced at once.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// An open store; nobody else opens its folder meanwhile.
pub struct Store {
    folder: PathBuf,
    engine: Engine,
    disk: Disk,
    watermark: Watermark,
    /// What the engine has beside the entries, once what waits is written.
    head: Head,
    /// What waits.
    batch: LogBatch,
    /// Whether anything does.
    is_waiting: bool,
    /// Whether entries are discarded since files were last removed.
    has_discarded: bool,
    num_syncs: Arc<AtomicU64>,
    /// Let go of last.
    _lock: lock::Lock,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { folder, head, .. } = self;
        let mut debug = formatter.debug_struct("Store");
        debug.field("folder", folder).field("head", head);
        debug.finish_non_exhaustive()
    }
}

/// What a store says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Drawn by chance when the store was made.
    pub cluster_id: [u8; 16],
}

impl Store {
    /// Opens the store of a folder, or makes one there, and reads all of it. What it gives back is
    /// each value as it was written; whether they are a log is for consensus to say.
    ///
    /// # Errors
    /// When another process has it open, when it was written by another version, when a value is
    /// damaged or missing, or when the disk fails.
    pub fn open(folder: &Path) -> Result<(Self, Recovered, Meta), StoreError> {
        Self::open_sized(folder, SIZES)
    }

    fn open_sized(folder: &Path, sizes: Sizes) -> Result<(Self, Recovered, Meta), StoreError> {
        let io_error = |source| StoreError::Io {
            folder: folder.to_owned(),
            source,
        };
        fs::create_dir_all(folder).map_err(io_error)?;
        durable::sync_parent(folder).map_err(io_error)?;
        let lock = lock::Lock::take(folder).map_err(io_error)?;
        let lock = lock.ok_or_else(|| StoreError::InUse {
            folder: folder.to_owned(),
        })?;
        refuse_sled(folder)?;
        let (engine, disk) = open_engine(folder, sizes)?;
        durable::sync_all(folder, ENTRIES).map_err(io_error)?;
        let head = read_head(folder, &engine)?;
        let num_batches = head.as_ref().map_or(0, |head| head.num_batches);
        let watermark = Watermark::open(folder, num_batches).map_err(io_error)?;
        let watermark = watermark.map_err(|reason| damaged(folder, "store", reason))?;
        let is_new = head.is_none();
        let head = match head {
            Some(head) => head,
            None => Head::new(draw_cluster_id()?),
        };
        let entries = read_log(folder, &engine, &head)?;
        let mut store = Self {
            folder: folder.to_owned(),
            engine,
            disk,
            watermark,
            head,
            batch: LogBatch::default(),
            is_waiting: is_new,
            has_discarded: false,
            num_syncs: Arc::new(AtomicU64::new(0)),
            _lock: lock,
        };
        // The first batch of a new one: from here on, an empty store is one that was lost.
        store.sync()?;
        let recovered = Recovered {
            hard_state: store.head.hard_state,
            start: store.head.start.clone(),
            entries,
        };
        let cluster_id = store.head.cluster_id;
        Ok((store, recovered, Meta { cluster_id }))
    }

    /// Takes one batch. The log then ends with the last of the entries: what stood at their places or
    /// behind is gone. Where the batch restores a snapshot, which is durable elsewhere, all that was
    /// there is gone before. It is written, all of it or nothing, by [`Store::sync`], not before.
    ///
    /// # Errors
    /// When the entries are not neighbours or leave a gap behind the log, or when the engine fails.
    pub fn append(
        &mut self,
        entries: &[Entry],
        hard_state: Option<HardState>,
        restore: Option<&Mark>,
    ) -> Result<(), StoreError> {
        let (last, start) = match restore {
            Some(mark) => (mark.index, mark.index),
            None => (self.head.last, self.head.start.index),
        };
        let first = entries.first().map_or(last + 1, |entry| entry.index);
        let mut expected = first.clamp(start + 1, last + 1);
        for entry in entries {
            if entry.index != expected {
                return Err(StoreError::Gap {
                    folder: self.folder.clone(),
                    expected,
                    found: entry.index,
                });
            }
            expected += 1;
        }
        if let Some(mark) = restore {
            // What stands behind it is written over by what comes; until then it is behind the last.
            let index = mark.index + 1;
            self.batch.add_command(GROUP, Command::Compact { index });
            self.has_discarded = true;
            self.head.start = mark.clone();
            self.head.last = mark.index;
        }
        if !entries.is_empty() {
            let values: Vec<_> = entries.iter().map(format::encode_entry).collect();
            guard(&self.folder, || {
                self.batch.add_entries::<Value>(GROUP, &values)
            })?;
            self.head.last = expected - 1;
        }
        self.head.hard_state = hard_state.unwrap_or(self.head.hard_state);
        self.is_waiting = true;
        if self.batch.approximate_size() > MAX_WAITING_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// The log rests on a snapshot from now on, which is durable elsewhere and covers entries that are
    /// in the log. They stay until [`Store::discard`]. It is durable after [`Store::sync`].
    pub fn rest_on(&mut self, mark: &Mark) {
        // A newer one may have been received meanwhile.
        if mark.index > self.head.start.index {
            self.head.start = mark.clone();
            self.is_waiting = true;
        }
    }

    /// Removes the entries up to one that the snapshot covers, with the next [`Store::sync`]. Whether
    /// they come back after a loss of power makes no difference.
    pub fn discard(&mut self, through: u64) {
        let index = through.min(self.head.start.index) + 1;
        self.batch.add_command(GROUP, Command::Compact { index });
        self.has_discarded = true;
        self.is_waiting = true;
    }

    /// Returns when all that was taken survives a loss of power.
    ///
    /// # Errors
    /// When the disk fails. What is on it then is unknown: open the store anew.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        if !self.is_waiting {
            return Ok(());
        }
        self.head.num_batches += 1;
        let head = format::encode_head(&self.head);
        guard(&self.folder, || {
            self.batch.put(GROUP, format::KEY_HEAD.to_vec(), head)?;
            self.engine.write(&mut self.batch, true)
        })?;
        let synced = self.disk.check();
        let raised = synced.and_then(|()| self.watermark.raise(self.head.num_batches));
        raised.map_err(|source| StoreError::Io {
            folder: self.folder.clone(),
            source,
        })?;
        self.is_waiting = false;
        self.num_syncs.fetch_add(1, Ordering::SeqCst);
        if std::mem::take(&mut self.has_discarded) {
            guard(&self.folder, || {
                self.engine.purge_expired_files()?;
                Ok(self.disk.check()?)
            })?;
        }
        Ok(())
    }

    /// How often [`Store::sync`] had something to write since the store was opened.
    #[must_use]
    pub fn num_syncs(&self) -> u64 {
        self.num_syncs.load(Ordering::SeqCst)
    }
}

fn open_engine(folder: &Path, sizes: Sizes) -> Result<(Engine, Disk), StoreError> {
    let folder_of_entries = folder.join(ENTRIES);
    let dir = folder_of_entries.to_str().ok_or_else(|| StoreError::Io {
        folder: folder.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, "its path is not UTF-8"),
    })?;
    let config = Config {
        dir: dir.to_owned(),
        // Entries are small: to compress them costs more than it saves.
        batch_compression_threshold: ReadableSize(0),
        target_file_size: ReadableSize(sizes.file),
        purge_threshold: ReadableSize(sizes.all),
        // A file is removed, and never has another's bytes in it.
        enable_log_recycle: false,
        // There are few files, and they are read in their order.
        recovery_threads: 1,
        ..Config::default()
    };
    let disk = Disk::default();
    guard(folder, || {
        let engine = Engine::open_with_file_system(config, Arc::new(disk.clone()))?;
        disk.check()?;
        Ok((engine, disk))
    })
}

/// Refuses a folder of the formats 1 to 3, which were kept in sled.
fn refuse_sled(folder: &Path) -> Result<(), StoreError> {
    match folder.join("db").exists() && folder.join("conf").exists() {
        true => Err(StoreError::Version {
            folder: folder.to_owned(),
            found: format::LAST_VERSION_IN_SLED,
            expected: format::VERSION,
        }),
        false => Ok(()),
    }
}

fn read_head(folder: &Path, engine: &Engine) -> Result<Option<Head>, StoreError> {
    let value = guard(folder, || Ok(engine.get(GROUP, format::KEY_HEAD)))?;
    let Some(value) = value else {
        return match guard(folder, || Ok(engine.first_index(GROUP)))? {
            Some(_) => Err(damaged(folder, "head", "it is missing".to_owned())),
            None => Ok(None),
        };
    };
    let version = format::version_in(&value).map_err(|reason| damaged(folder, "head", reason))?;
    if version != format::VERSION {
        return Err(StoreError::Version {
            folder: folder.to_owned(),
            found: version,
            expected: format::VERSION,
        });
    }
    let head = format::decode_head(&value);
    head.map(Some)
        .map_err(|reason| damaged(folder, "head", reason))
}

fn read_log(folder: &Path, engine: &Engine, head: &Head) -> Result<Vec<Entry>, StoreError> {
    let (start, last) = (head.start.index, head.last);
    let first = guard(folder, || Ok(engine.first_index(GROUP)))?;
    // What is behind the last was written over by a snapshot that was restored.
    let first = first.filter(|first| *first <= last).unwrap_or(last + 1);
    if first > last.min(start) + 1 {
        let reason = format!("entries {} to {} are missing", start + 1, first - 1);
        return Err(damaged(folder, "log", reason));
    }
    let mut values = Vec::new();
    guard(folder, || {
        engine.fetch_entries_to::<Value>(GROUP, first, last + 1, None, &mut values)
    })?;
    (first..=last)
        .zip(&values)
        .map(|(index, value)| {
            let entry = format::decode_entry(index, value);
            entry.map_err(|reason| damaged(folder, &format!("entry {index}"), reason))
        })
        .collect()
}

fn draw_cluster_id() -> Result<[u8; 16], StoreError> {
    let source = Path::new("/dev/urandom");
    let mut cluster_id = [0; 16];
    File::open(source)
        .and_then(|mut source| source.read_exact(&mut cluster_id))
        .map_err(|error| StoreError::Io {
            folder: source.to_owned(),
            source: error,
        })?;
    Ok(cluster_id)
}

fn damaged(folder: &Path, what: &str, reason: String) -> StoreError {
    StoreError::Damaged {
        folder: folder.to_owned(),
        what: what.to_owned(),
        reason,
    }
}

/// Calls the engine. It panics on some damaged files, and where it can neither write nor take back what
/// it wrote; here that becomes an error like any other.
fn guard<T>(folder: &Path, call: impl FnOnce() -> raft_engine::Result<T>) -> Result<T, StoreError> {
    let folder = || folder.to_owned();
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(raft_engine::Error::Io(source))) => Err(StoreError::Io {
            folder: folder(),
            source,
        }),
        // It has tried in another file, too.
        Ok(Err(raft_engine::Error::TryAgain(reason))) => Err(StoreError::Io {
            folder: folder(),
            source: io::Error::new(io::ErrorKind::StorageFull, reason),
        }),
        Ok(Err(source)) => Err(StoreError::Engine {
            folder: folder(),
            source,
        }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(StoreError::Panicked {
                folder: folder(),
                text: text.to_owned(),
            })
        }
    }
}

#[cfg(test)]
mod durability;
#[cfg(test)]
mod tests;
