//! The jobs' event streams on disk: one file a job, one JSON object a line, appended and synced by
//! a thread of its own. What an event means, and whether it was told before, is decided elsewhere.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use muster_proto::event::Event;
use muster_proto::v1;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};

/// One line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    event: Event,
    /// The entry of the replicated log that it tells of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    entry: Option<u64>,
}

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
    /// A line is not an event.
    #[error("{}, line {line}: this is no event: {reason}; restore the file from a copy", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What does not fit.
        reason: String,
    },
}

/// How much of a job's stream is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Durable {
    pub(crate) bytes: u64,
}

/// What the thread is given, in order.
enum Item {
    Event {
        index: Option<u64>,
        event: Box<Event>,
    },
    Ack(v1::RecordAck),
}

type Streams = Arc<Mutex<BTreeMap<String, watch::Sender<Durable>>>>;

/// The streams of all jobs.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    folder: PathBuf,
    streams: Streams,
    items: Sender<Item>,
    acks: broadcast::Sender<v1::RecordAck>,
}

/// Acknowledgements that a slow worker's stream may be behind. One that is further behind is ended,
/// and the worker sends again what it has.
const MAX_ACKS_BEHIND: usize = 4096;

/// What the files hold, in order, each event with the entry it tells of.
pub(crate) type Past = Vec<(Option<u64>, Event)>;

impl Records {
    /// Reads the files of a folder, and starts the thread that appends to them. A last line that
    /// was cut off by the end of the process before is removed: it was never acknowledged.
    /// `failed` is called once, on that thread, when the disk fails.
    pub(crate) fn open(
        folder: &Path,
        failed: impl FnOnce(RecordsError) + Send + 'static,
    ) -> Result<(Self, Past), RecordsError> {
        fs::create_dir_all(folder).map_err(|source| io_error(folder, source))?;
        let mut past = Past::new();
        let mut known = BTreeMap::new();
        let files = fs::read_dir(folder).map_err(|source| io_error(folder, source))?;
        for file in files {
            let path = file.map_err(|source| io_error(folder, source))?.path();
            if path
                .extension()
                .is_none_or(|extension| extension != "jsonl")
            {
                continue;
            }
            let Some(job) = path
                .file_stem()
                .map(|job| job.to_string_lossy().into_owned())
            else {
                continue;
            };
            let bytes = read(&path, &mut past)?;
            known.insert(job, watch::Sender::new(Durable { bytes }));
        }
        let streams: Streams = Arc::new(Mutex::new(known));
        let (items, receiver) = channel();
        let acks = broadcast::Sender::new(MAX_ACKS_BEHIND);
        let records = Self {
            folder: folder.to_owned(),
            streams,
            items,
            acks,
        };
        let writer = Writer {
            folder: records.folder.clone(),
            streams: Arc::clone(&records.streams),
            acks: records.acks.clone(),
            files: BTreeMap::new(),
        };
        thread::Builder::new()
            .name("records".to_owned())
            .spawn(move || writer.run(&receiver, failed))
            .map_err(|source| io_error(folder, source))?;
        Ok((records, past))
    }

    /// Hands over an event. Whoever follows its job sees it once it is durable.
    pub(crate) fn append(&self, index: Option<u64>, event: Event) {
        // The thread ends only after a failure, which it reported.
        let _ = self.items.send(Item::Event {
            index,
            event: Box::new(event),
        });
    }

    /// Sends an acknowledgement when all events before it are durable.
    pub(crate) fn acknowledge(&self, ack: v1::RecordAck) {
        let _ = self.items.send(Item::Ack(ack));
    }

    /// The acknowledgements from now on.
    pub(crate) fn acks(&self) -> broadcast::Receiver<v1::RecordAck> {
        self.acks.subscribe()
    }

    /// A job's file, and how much of it is durable; changes as it grows.
    pub(crate) fn stream(&self, job: &str) -> (PathBuf, watch::Receiver<Durable>) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = streams
            .entry(job.to_owned())
            .or_insert_with(|| watch::Sender::new(Durable::default()));
        (path_of(&self.folder, job), stream.subscribe())
    }
}

fn path_of(folder: &Path, job: &str) -> PathBuf {
    folder.join(format!("{job}.jsonl"))
}

fn io_error(path: &Path, source: io::Error) -> RecordsError {
    RecordsError::Io {
        path: path.to_owned(),
        source,
    }
}

/// Reads a file into `past`; returns its length after a torn last line is cut off.
fn read(path: &Path, past: &mut Past) -> Result<u64, RecordsError> {
    let bytes = fs::read(path).map_err(|source| io_error(path, source))?;
    let whole = bytes
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    if whole < bytes.len() {
        tracing::warn!(file = %path.display(), bytes = bytes.len() - whole, "cut off an unfinished last line");
        let file = OpenOptions::new()
            .write(true)
            .open(path)
            .map_err(|source| io_error(path, source))?;
        let cut = file.set_len(whole as u64).and_then(|()| file.sync_data());
        cut.map_err(|source| io_error(path, source))?;
    }
    for (number, line) in (1..).zip(bytes[..whole].split_inclusive(|byte| *byte == b'\n')) {
        let line: Line = serde_json::from_slice(line).map_err(|error| RecordsError::Damaged {
            path: path.to_owned(),
            line: number,
            reason: error.to_string(),
        })?;
        past.push((line.entry, line.event));
    }
    Ok(whole as u64)
}

/// The thread's side.
struct Writer {
    folder: PathBuf,
    streams: Streams,
    acks: broadcast::Sender<v1::RecordAck>,
    files: BTreeMap<String, File>,
}

impl Writer {
    fn run(mut self, items: &Receiver<Item>, failed: impl FnOnce(RecordsError)) {
        while let Ok(first) = items.recv() {
            // What waits shares one sync.
            let batch: Vec<Item> = std::iter::once(first).chain(items.try_iter()).collect();
            if let Err(error) = self.write(batch) {
                failed(error);
                return;
            }
        }
    }

    fn write(&mut self, batch: Vec<Item>) -> Result<(), RecordsError> {
        let mut texts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        let mut acks = Vec::new();
        for item in batch {
            match item {
                Item::Event {
                    index: entry,
                    event,
                } => {
                    let text = texts.entry(event.job.clone()).or_default();
                    let line = Line {
                        event: *event,
                        entry,
                    };
                    serde_json::to_writer(&mut *text, &line)
                        .map_err(|error| io_error(&self.folder, io::Error::other(error)))?;
                    text.push(b'\n');
                }
                Item::Ack(ack) => acks.push(ack),
            }
        }
        for (job, text) in texts {
            self.append(&job, &text)
                .map_err(|source| io_error(&path_of(&self.folder, &job), source))?;
        }
        for ack in acks {
            // Nobody listens while no worker is connected.
            let _ = self.acks.send(ack);
        }
        Ok(())
    }

    fn append(&mut self, job: &str, text: &[u8]) -> io::Result<()> {
        if !self.files.contains_key(job) {
            let path = path_of(&self.folder, job);
            let file = OpenOptions::new().create(true).append(true).open(&path)?;
            File::open(&self.folder)?.sync_all()?;
            self.files.insert(job.to_owned(), file);
        }
        let file = self
            .files
            .get_mut(job)
            .ok_or_else(|| io::Error::other("the file was not opened"))?;
        file.write_all(text)?;
        file.sync_data()?;
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let stream = streams
            .entry(job.to_owned())
            .or_insert_with(|| watch::Sender::new(Durable::default()));
        stream.send_modify(|durable| durable.bytes += text.len() as u64);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
