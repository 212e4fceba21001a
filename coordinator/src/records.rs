//! The jobs' event streams on disk: one file a job, one JSON object a line, written by a thread of its
//! own. They follow from the log: what was written behind the snapshot that the log rests on is written
//! over when the log is applied again, so that it does not matter what a crash took of it. Whoever reads
//! a file reads no more than the length that is known here. What an event means, and whether it was told
//! before, is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::{oneshot, watch};

use crate::store::WAY_OUT;

mod staging;

pub(crate) use staging::{Staged, staging_folder};

/// Files that are open at once.
const MAX_OPEN_FILES: usize = 128;

/// More than so many changed files are synced with all others of their file system.
const MAX_SINGLE_SYNCS: usize = 64;

/// Why the events cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The disk, or what lies between.
    #[error("{}: the events cannot be read or written", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There is less than the snapshot counts.
    #[error("{}: {found} bytes are there, and the snapshot counts {expected}; {}", .path.display(), WAY_OUT)]
    Short {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// What it should be.
        expected: u64,
    },
}

/// How many bytes of events each job has behind an entry of the log.
pub(crate) type Lengths = BTreeMap<String, u64>;

enum Item {
    Event {
        job: String,
        line: String,
    },
    /// The state is that of a snapshot which was received.
    Install {
        index: u64,
        lengths: Lengths,
    },
    /// Say when all before is written.
    Written(oneshot::Sender<()>),
    /// Say when all before is durable.
    Durable(std::sync::mpsc::SyncSender<()>),
}

#[derive(Debug, Default)]
struct Streams {
    lengths: Lengths,
    /// Of the jobs that somebody follows.
    followed: BTreeMap<String, watch::Sender<u64>>,
}

/// The streams of all jobs.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    folder: PathBuf,
    streams: Arc<Mutex<Streams>>,
    items: Sender<Item>,
}

impl Records {
    /// Begins with as much of a folder's files as the snapshot counts that the log rests on, and starts
    /// the thread that writes behind it. `failed` is called once, on that thread, when the disk fails.
    pub(crate) fn open(
        folder: &Path,
        index: u64,
        lengths: Lengths,
        failed: impl FnOnce(RecordsError) + Send + 'static,
    ) -> Result<Self, RecordsError> {
        fs::create_dir_all(folder).map_err(|source| io_error(folder, source))?;
        staging::install(folder, index, &lengths)?;
        let streams = Arc::new(Mutex::new(Streams {
            lengths,
            followed: BTreeMap::new(),
        }));
        let (items, receiver) = channel();
        let writer = Writer {
            folder: folder.to_owned(),
            streams: Arc::clone(&streams),
            files: BTreeMap::new(),
            changed: BTreeSet::new(),
        };
        thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || writer.run(&receiver, failed))
            .map_err(|source| io_error(folder, source))?;
        let folder = folder.to_owned();
        Ok(Self {
            folder,
            streams,
            items,
        })
    }

    /// Hands over the line of an event.
    pub(crate) fn append(&self, job: String, line: String) {
        // The thread ends only after a failure, which it reported.
        let _ = self.items.send(Item::Event { job, line });
    }

    /// Makes the files those of a snapshot that was received.
    pub(crate) fn install(&self, index: u64, lengths: Lengths) {
        let _ = self.items.send(Item::Install { index, lengths });
    }

    /// Waits until what was handed over is in the files.
    pub(crate) async fn written(&self) {
        let (sender, receiver) = oneshot::channel();
        let _ = self.items.send(Item::Written(sender));
        let _ = receiver.await;
    }

    /// Waits until what was handed over survives a loss of power; false if the disk has failed.
    pub(crate) fn sync(&self) -> bool {
        let (sender, receiver) = sync_channel(1);
        let _ = self.items.send(Item::Durable(sender));
        receiver.recv().is_ok()
    }

    /// A job's file, and how much of it is there; changes as it grows.
    pub(crate) fn stream(&self, job: &str) -> (PathBuf, watch::Receiver<u64>) {
        let mut streams = lock(&self.streams);
        let length = streams.lengths.get(job).copied().unwrap_or_default();
        let followed = streams.followed.entry(job.to_owned());
        let stream = followed.or_insert_with(|| watch::Sender::new(length));
        (path_of(&self.folder, job), stream.subscribe())
    }

    /// How much of each of these jobs' files is there.
    pub(crate) fn lengths(&self) -> Lengths {
        lock(&self.streams).lengths.clone()
    }

    /// The folder of the files.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

fn lock(streams: &Mutex<Streams>) -> MutexGuard<'_, Streams> {
    streams.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn path_of(folder: &Path, job: &str) -> PathBuf {
    folder.join(format!("{job}.jsonl"))
}

fn io_error(path: &Path, source: io::Error) -> RecordsError {
    RecordsError::Io {
        path: path.to_owned(),
        source,
    }
}

/// The thread's side.
struct Writer {
    folder: PathBuf,
    streams: Arc<Mutex<Streams>>,
    files: BTreeMap<String, File>,
    /// What is not durable yet.
    changed: BTreeSet<String>,
}

impl Writer {
    fn run(mut self, items: &Receiver<Item>, failed: impl FnOnce(RecordsError)) {
        while let Ok(first) = items.recv() {
            // What waits for one file shares one write.
            let batch = std::iter::once(first).chain(items.try_iter());
            if let Err(error) = self.take(batch) {
                failed(error);
                return;
            }
        }
    }

    fn take(&mut self, batch: impl Iterator<Item = Item>) -> Result<(), RecordsError> {
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        for item in batch {
            match item {
                Item::Event { job, line } => {
                    texts.entry(job).or_default().push_str(&line);
                    continue;
                }
                Item::Install { index, lengths } => {
                    self.write(&mut texts)?;
                    self.files.clear();
                    self.changed.clear();
                    staging::install(&self.folder, index, &lengths)?;
                    let mut streams = lock(&self.streams);
                    for (job, stream) in &streams.followed {
                        stream.send_replace(lengths.get(job).copied().unwrap_or_default());
                    }
                    streams.lengths = lengths;
                }
                Item::Written(done) => {
                    self.write(&mut texts)?;
                    // Whoever asked may have gone.
                    let _ = done.send(());
                }
                Item::Durable(done) => {
                    self.write(&mut texts)?;
                    self.sync()?;
                    let _ = done.send(());
                }
            }
        }
        self.write(&mut texts)
    }

    fn write(&mut self, texts: &mut BTreeMap<String, String>) -> Result<(), RecordsError> {
        for (job, text) in std::mem::take(texts) {
            self.append(&job, &text)
                .map_err(|source| io_error(&path_of(&self.folder, &job), source))?;
        }
        Ok(())
    }

    fn append(&mut self, job: &str, text: &str) -> io::Result<()> {
        if self.files.len() >= MAX_OPEN_FILES {
            self.files.clear();
        }
        if !self.files.contains_key(job) {
            let path = path_of(&self.folder, job);
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            self.files.insert(job.to_owned(), file);
        }
        let file = self.files.get(job);
        let file = file.ok_or_else(|| io::Error::other("the file was not opened"))?;
        let length = lock(&self.streams).lengths.get(job).copied();
        file.write_all_at(text.as_bytes(), length.unwrap_or_default())?;
        if !self.changed.contains(job) {
            self.changed.insert(job.to_owned());
        }
        let mut streams = lock(&self.streams);
        let length = streams.lengths.entry(job.to_owned()).or_default();
        *length += text.len() as u64;
        let length = *length;
        if let Some(stream) = streams.followed.get(job) {
            if stream.is_closed() {
                streams.followed.remove(job);
            } else {
                stream.send_replace(length);
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), RecordsError> {
        let folder = File::open(&self.folder).map_err(|source| io_error(&self.folder, source))?;
        if self.changed.len() > MAX_SINGLE_SYNCS {
            let synced = rustix::fs::syncfs(&folder);
            synced.map_err(|source| io_error(&self.folder, source.into()))?;
        } else {
            for job in &self.changed {
                let path = path_of(&self.folder, job);
                let synced = File::open(&path).and_then(|file| file.sync_all());
                synced.map_err(|source| io_error(&path, source))?;
            }
            let synced = folder.sync_all();
            synced.map_err(|source| io_error(&self.folder, source))?;
        }
        self.changed.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
