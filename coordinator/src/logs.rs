//! What ranks print, kept for people: a file of lines a job, and one older file. It is not the
//! truth of anything: a lost line is lost, and nothing waits for the disk.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_proto::{convert, v1};
use serde::{Deserialize, Serialize};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Mutex, broadcast};

/// A job's file is put aside when it is this long; the one that was put aside before goes.
const MAX_FILE_BYTES: u64 = 8 << 20;

/// A longer line is cut.
const MAX_LINE_BYTES: usize = 16 << 10;

/// Lines that a follower may be behind; it misses those before.
const MAX_LINES_BEHIND: usize = 4096;

#[derive(Debug, Serialize, Deserialize)]
struct Line {
    time: f64,
    generation: u64,
    rank: u32,
    text: String,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    files: Mutex<BTreeMap<String, Open>>,
    live: broadcast::Sender<(String, v1::LogRecord)>,
}

/// The logs of all jobs.
#[derive(Clone, Debug)]
pub(crate) struct Logs(Arc<Inner>);

impl Logs {
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let live = broadcast::Sender::new(MAX_LINES_BEHIND);
        Ok(Self(Arc::new(Inner {
            folder: folder.to_owned(),
            files: Mutex::new(BTreeMap::new()),
            live,
        })))
    }

    /// Takes a line of a rank's.
    pub(crate) async fn append(&self, line: &v1::LogLine) {
        let Some(key) = &line.key else { return };
        // The name becomes a file's.
        if convert::job_name(&key.job).is_err() {
            return;
        }
        let mut text = line.text.clone();
        text.truncate(text.floor_char_boundary(MAX_LINE_BYTES));
        let record = v1::LogRecord {
            rank: key.rank,
            time: line.time,
            text,
            generation: key.generation,
        };
        if let Err(error) = self.write(&key.job, &record).await {
            tracing::warn!(job = key.job, %error, "a line of a rank's log is lost");
        }
        // Nobody may be listening.
        let _ = self.0.live.send((key.job.clone(), record));
    }

    async fn write(&self, job: &str, record: &v1::LogRecord) -> io::Result<()> {
        let line = Line {
            time: record.time,
            generation: record.generation,
            rank: record.rank,
            text: record.text.clone(),
        };
        let mut text = serde_json::to_vec(&line).map_err(io::Error::other)?;
        text.push(b'\n');
        let mut files = self.0.files.lock().await;
        if files
            .get(job)
            .is_some_and(|open| open.bytes > MAX_FILE_BYTES)
        {
            files.remove(job);
            fs::rename(self.path(job, "jsonl"), self.path(job, "1.jsonl")).await?;
        }
        if !files.contains_key(job) {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.path(job, "jsonl"))
                .await?;
            let bytes = file.metadata().await?.len();
            files.insert(job.to_owned(), Open { file, bytes });
        }
        let open = files
            .get_mut(job)
            .ok_or_else(|| io::Error::other("the file was not opened"))?;
        open.file.write_all(&text).await?;
        open.file.flush().await?;
        open.bytes += text.len() as u64;
        Ok(())
    }

    fn path(&self, job: &str, extension: &str) -> PathBuf {
        self.0.folder.join(format!("{job}.{extension}"))
    }

    /// The lines that are kept, oldest first, and those from now on.
    pub(crate) async fn read(
        &self,
        job: &str,
    ) -> io::Result<(
        Vec<v1::LogRecord>,
        broadcast::Receiver<(String, v1::LogRecord)>,
    )> {
        // Under the lock, so that no line falls between the two.
        let _files = self.0.files.lock().await;
        let live = self.0.live.subscribe();
        let mut records = Vec::new();
        for extension in ["1.jsonl", "jsonl"] {
            let bytes = match fs::read(self.path(job, extension)).await {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let lines = bytes.split(|byte| *byte == b'\n');
            // A line that a crash tore is left out.
            records.extend(
                lines
                    .filter_map(|line| serde_json::from_slice::<Line>(line).ok())
                    .map(|line| v1::LogRecord {
                        rank: line.rank,
                        time: line.time,
                        text: line.text,
                        generation: line.generation,
                    }),
            );
        }
        Ok((records, live))
    }
}
