//! The log and the hard state of one coordinator on disk, in sled.
//!
//! Only this module imports sled. What a value's bytes are is in `format`, what makes them durable
//! in `durable`, how a loss is noticed in `watermark`, who may open it in `lock`, and the
//! thread that shares one sync among waiting batches in [`thread`]. What an entry means, and whether
//! the log makes sense, is consensus's business.

mod durable;
mod error;
mod format;
mod lock;
pub mod thread;
mod watermark;

use std::fs::{self, File};
use std::io::Read as _;
use std::ops::RangeBounds;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_coordinator_core::consensus::{Entry, HardState, Mark, Recovered};
use sled::transaction::{ConflictableTransactionError, TransactionError};
use sled::{Transactional as _, Tree};

pub use error::StoreError;
use watermark::Watermark;

/// What sled may write without a sync. It reuses a segment of its log (512 KiB) as soon as what was
/// in it lies in later ones that are full, whether or not those are on the disk: after a loss of
/// power both may be gone. Half a segment between two syncs keeps a sync between the two.
const MAX_UNSYNCED_BYTES: usize = 256 << 10;
/// What sled writes for a key beside its value. After each tenth change to a page it writes all of
/// the page, of up to 16 keys.
const BYTES_PER_KEY: usize = 1 << 10;
/// Keys that are removed at once.
const MAX_REMOVED: usize = 64;

/// An open store; nobody else opens its folder meanwhile.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    db: sled::Db,
    log: Tree,
    meta: Tree,
    files: durable::Files,
    watermark: Watermark,
    /// Where the snapshot ends that the log rests on; the default where it rests on none.
    start: Mark,
    last_index: u64,
    /// How many batches were ever appended; the number of the last one.
    num_batches: u64,
    /// The format of what is in it.
    version: u32,
    /// About how much sled has written since the last sync, at most.
    num_unsynced_bytes: usize,
    num_syncs: Arc<AtomicU64>,
    /// Let go of last.
    _lock: lock::Lock,
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
    /// damaged, or when the disk fails.
    pub fn open(folder: &Path) -> Result<(Self, Recovered, Meta), StoreError> {
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
        durable::remove_unfinished(folder).map_err(io_error)?;
        let (db, log, meta) = open_sled(folder)?;
        let files = durable::Files::open(folder).map_err(io_error)?;
        let version = check_version(folder, &meta)?;
        let num_batches = read_num_batches(folder, &meta)?;
        let watermark = Watermark::open(folder, num_batches).map_err(io_error)?;
        let watermark = watermark.map_err(|reason| damaged(folder, "store", reason))?;
        let mut store = Self {
            folder: folder.to_owned(),
            db,
            log,
            meta,
            files,
            watermark,
            start: Mark::default(),
            last_index: 0,
            num_batches,
            num_unsynced_bytes: 0,
            version: version.unwrap_or(format::VERSION_WITHOUT_START),
            num_syncs: Arc::new(AtomicU64::new(0)),
            _lock: lock,
        };
        if version.is_none() {
            store.begin()?;
        }
        store.start = store.read_start()?;
        let recovered = Recovered {
            hard_state: store.read_hard_state()?,
            start: store.start.clone(),
            entries: store.read_log()?,
        };
        let last = recovered.entries.last().map_or(0, |entry| entry.index);
        store.last_index = last.max(store.start.index);
        let cluster_id = store.read_cluster_id()?;
        // What is found counts as durable from now on, but a killed process may not have synced it.
        store.sync()?;
        Ok((store, recovered, Meta { cluster_id }))
    }

    /// Writes one batch, all of it or nothing. The log then ends with the last of the entries: what
    /// stood at their places or behind is gone. Where the batch restores a snapshot, which is durable
    /// elsewhere, all that was there is gone before. It is durable after [`Store::sync`], not before.
    ///
    /// # Errors
    /// When the entries are not neighbours or leave a gap behind the log, or when sled fails.
    pub fn append(
        &mut self,
        entries: &[Entry],
        hard_state: Option<HardState>,
        restore: Option<&Mark>,
    ) -> Result<(), StoreError> {
        let (last_index, start) = match restore {
            Some(mark) => (mark.index, mark.index),
            None => (self.last_index, self.start.index),
        };
        let first = entries.first().map_or(last_index + 1, |entry| entry.index);
        let mut expected = first.clamp(start + 1, last_index + 1);
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
        let last = if entries.is_empty() {
            last_index
        } else {
            expected - 1
        };
        let num_batches = self.num_batches + 1;
        // The parts of an entry that is written over may be more than its successor's.
        let overtaken = match restore {
            Some(_) => self.keys(..)?,
            None => self.keys(format::key(first.min(last + 1), 0)..)?,
        };
        let parts: Vec<_> = entries.iter().flat_map(format::encode_entry).collect();
        let version = match restore {
            _ if parts.len() > entries.len() => format::VERSION,
            Some(_) => format::VERSION_WITHOUT_PARTS,
            None => format::VERSION_WITHOUT_START,
        };
        guard(&self.folder, || {
            let both = (&self.log, &self.meta);
            let written = both.transaction(|(log, meta)| {
                for key in &overtaken {
                    log.remove(key)?;
                }
                if let Some(mark) = restore {
                    meta.insert(format::KEY_START, format::encode_start(mark))?;
                }
                if version > self.version {
                    meta.insert(format::KEY_FORMAT, &version.to_le_bytes())?;
                }
                for (key, value) in &parts {
                    log.insert(key.as_slice(), value.as_slice())?;
                }
                if let Some(hard_state) = &hard_state {
                    meta.insert(
                        format::KEY_HARD_STATE,
                        format::encode_hard_state(hard_state),
                    )?;
                }
                meta.insert(
                    format::KEY_NUM_BATCHES,
                    format::encode_num_batches(num_batches),
                )?;
                Ok::<(), ConflictableTransactionError<()>>(())
            });
            written.map_err(|error| match error {
                TransactionError::Storage(error) => error,
                TransactionError::Abort(()) => unreachable!("nothing above aborts"),
            })
        })?;
        if let Some(mark) = restore {
            self.start = mark.clone();
        }
        self.last_index = last;
        self.num_batches = num_batches;
        self.version = self.version.max(version);
        let num_bytes: usize = parts
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum();
        self.written(num_bytes, parts.len() + overtaken.len())
    }

    /// The log rests on a snapshot from now on, which is durable elsewhere and covers entries that are
    /// in the log. They stay until [`Store::discard`]. It is durable after [`Store::sync`].
    ///
    /// # Errors
    /// When sled fails.
    pub fn rest_on(&mut self, mark: &Mark) -> Result<(), StoreError> {
        if mark.index <= self.start.index {
            // A newer one was received meanwhile.
            return Ok(());
        }
        let version = self.version.max(format::VERSION_WITHOUT_PARTS);
        guard(&self.folder, || {
            let mut batch = sled::Batch::default();
            batch.insert(format::KEY_START, format::encode_start(mark));
            batch.insert(format::KEY_FORMAT, &version.to_le_bytes());
            self.meta.apply_batch(batch)
        })?;
        self.start = mark.clone();
        self.version = version;
        self.written(0, 1)
    }

    /// Removes the entries up to one that the snapshot covers. Whether they come back after a loss of
    /// power makes no difference.
    ///
    /// # Errors
    /// When sled fails.
    pub fn discard(&mut self, through: u64) -> Result<(), StoreError> {
        let through = through.min(self.start.index);
        let covered = self.keys(..format::key(through + 1, 0))?;
        // Each entry goes as a whole, but they need not go together.
        let is_same = |a: &sled::IVec, b: &sled::IVec| a[..8] == b[..8];
        let mut covered = covered.chunk_by(is_same).peekable();
        while covered.peek().is_some() {
            let mut batch = sled::Batch::default();
            let mut num_removed = 0;
            while num_removed < MAX_REMOVED
                && let Some(keys) = covered.next()
            {
                keys.iter().for_each(|key| batch.remove(key));
                num_removed += keys.len();
            }
            guard(&self.folder, || self.log.apply_batch(batch))?;
            self.written(0, num_removed)?;
        }
        Ok(())
    }

    /// The keys of a range of the log.
    fn keys(&self, range: impl RangeBounds<Vec<u8>>) -> Result<Vec<sled::IVec>, StoreError> {
        guard(&self.folder, || self.log.range(range).keys().collect())
    }

    /// Syncs once sled may have written half a segment of its log without one.
    fn written(&mut self, num_bytes: usize, num_keys: usize) -> Result<(), StoreError> {
        self.num_unsynced_bytes += 3 * num_bytes + BYTES_PER_KEY * (num_keys + 1);
        if self.num_unsynced_bytes > MAX_UNSYNCED_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    /// Returns when all that was appended survives a loss of power.
    ///
    /// # Errors
    /// When the disk fails. What is on it then is unknown: open the store anew.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        guard(&self.folder, || self.db.flush())?;
        let durable = self
            .files
            .sync()
            .and_then(|()| self.watermark.raise(self.num_batches));
        durable.map_err(|source| StoreError::Io {
            folder: self.folder.clone(),
            source,
        })?;
        self.num_unsynced_bytes = 0;
        self.num_syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// How often [`Store::sync`] was done since the store was opened.
    #[must_use]
    pub fn num_syncs(&self) -> u64 {
        self.num_syncs.load(Ordering::SeqCst)
    }

    /// Writes what a store has from its first day.
    fn begin(&mut self) -> Result<(), StoreError> {
        if guard(&self.folder, || {
            Ok(!self.log.is_empty() || !self.meta.is_empty())
        })? {
            return Err(self.damaged(
                "format version",
                "it is missing, but there is content".to_owned(),
            ));
        }
        let mut cluster_id = [0; 16];
        File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut cluster_id))
            .map_err(|source| StoreError::Io {
                folder: "/dev/urandom".into(),
                source,
            })?;
        guard(&self.folder, || {
            // The first batch: from here on, an empty store is one that was lost.
            let mut batch = sled::Batch::default();
            batch.insert(format::KEY_NUM_BATCHES, format::encode_num_batches(1));
            batch.insert(
                format::KEY_FORMAT,
                &format::VERSION_WITHOUT_START.to_le_bytes(),
            );
            batch.insert(
                format::KEY_CLUSTER_ID,
                format::encode_cluster_id(&cluster_id),
            );
            self.meta.apply_batch(batch)
        })?;
        self.num_batches = 1;
        self.sync()
    }

    fn read_hard_state(&self) -> Result<HardState, StoreError> {
        match guard(&self.folder, || self.meta.get(format::KEY_HARD_STATE))? {
            Some(value) => format::decode_hard_state(&value)
                .map_err(|reason| self.damaged("hard state", reason)),
            None => Ok(HardState::default()),
        }
    }

    fn read_start(&self) -> Result<Mark, StoreError> {
        match guard(&self.folder, || self.meta.get(format::KEY_START))? {
            Some(value) => {
                format::decode_start(&value).map_err(|reason| self.damaged("start", reason))
            }
            None => Ok(Mark::default()),
        }
    }

    fn read_cluster_id(&self) -> Result<[u8; 16], StoreError> {
        let value = guard(&self.folder, || self.meta.get(format::KEY_CLUSTER_ID))?;
        let value = value.ok_or_else(|| self.damaged("cluster id", "it is missing".to_owned()))?;
        format::decode_cluster_id(&value).map_err(|reason| self.damaged("cluster id", reason))
    }

    fn read_log(&self) -> Result<Vec<Entry>, StoreError> {
        let found = guard(&self.folder, || {
            self.log.iter().collect::<Result<Vec<_>, _>>()
        })?;
        let parts = found
            .iter()
            .map(|(key, value)| {
                let (index, part) =
                    format::decode_key(key).map_err(|reason| self.damaged("log", reason))?;
                Ok((index, part, value))
            })
            .collect::<Result<Vec<_>, StoreError>>()?;
        let entry = |parts: &[(u64, u16, &sled::IVec)]| {
            let index = parts[0].0;
            let is_whole = (0..).zip(parts).all(|(number, part)| part.1 == number);
            let value: Vec<u8> = parts
                .iter()
                .flat_map(|part| part.2.iter().copied())
                .collect();
            let entry = is_whole.then(|| format::decode_entry(index, &value));
            entry
                .unwrap_or_else(|| Err("a part is missing".to_owned()))
                .map_err(|reason| self.damaged(&format!("entry {index}"), reason))
        };
        parts.chunk_by(|a, b| a.0 == b.0).map(entry).collect()
    }

    fn damaged(&self, what: &str, reason: String) -> StoreError {
        damaged(&self.folder, what, reason)
    }
}

fn open_sled(folder: &Path) -> Result<(sled::Db, Tree, Tree), StoreError> {
    // No flushes by time: this module says when, and nothing is acknowledged in between.
    let config = sled::Config::new().path(folder).flush_every_ms(None);
    guard(folder, || {
        let db = lock::wait_for_sled(|| config.open())?;
        let (log, meta) = (db.open_tree("log")?, db.open_tree("meta")?);
        Ok((db, log, meta))
    })
}

/// Refuses a store of another version; `None` if it has none yet.
fn check_version(folder: &Path, meta: &Tree) -> Result<Option<u32>, StoreError> {
    let Some(value) = guard(folder, || meta.get(format::KEY_FORMAT))? else {
        return Ok(None);
    };
    let version = value.as_ref().try_into();
    let version =
        version.map_err(|_| damaged(folder, "format version", "it is not 4 bytes".to_owned()))?;
    match u32::from_le_bytes(version) {
        found @ format::VERSION_WITHOUT_START..=format::VERSION => Ok(Some(found)),
        found => Err(StoreError::Version {
            folder: folder.to_owned(),
            found,
            expected: format::VERSION,
        }),
    }
}

fn read_num_batches(folder: &Path, meta: &Tree) -> Result<u64, StoreError> {
    match guard(folder, || meta.get(format::KEY_NUM_BATCHES))? {
        Some(value) => format::decode_num_batches(&value)
            .map_err(|reason| damaged(folder, "number of batches", reason)),
        None => Ok(0),
    }
}

fn damaged(folder: &Path, what: &str, reason: String) -> StoreError {
    StoreError::Damaged {
        folder: folder.to_owned(),
        what: what.to_owned(),
        reason,
    }
}

/// Calls sled. It panics on some damaged files; here that becomes an error like any other.
fn guard<T>(folder: &Path, call: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    let folder = || folder.to_owned();
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) if lock::is_held(&error) => Err(StoreError::InUse { folder: folder() }),
        Ok(Err(sled::Error::Io(source))) => Err(StoreError::Io {
            folder: folder(),
            source,
        }),
        Ok(Err(source)) => Err(StoreError::Sled {
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
