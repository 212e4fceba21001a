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

/// Files that are open at once.
const MAX_OPEN_FILES: usize = 128;

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
    /// Its number among the lines of the job, from 1.
    seq: u64,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
    next_seq: u64,
}

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    files: Mutex<BTreeMap<String, Open>>,
    live: broadcast::Sender<(String, v1::LogRecord)>,
    /// Those that came from workers, for the other members.
    taken: broadcast::Sender<(String, v1::LogRecord)>,
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
            taken: broadcast::Sender::new(MAX_LINES_BEHIND),
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
        let mut record = v1::LogRecord {
            rank: key.rank,
            time: line.time,
            text,
            generation: key.generation,
            seq: 0,
        };
        // Under the lock, so that followers get the lines in the order of their numbers.
        let mut files = self.0.files.lock().await;
        if let Err(error) = self.write(&mut files, &key.job, &mut record).await {
            tracing::warn!(job = key.job, %error, "a line of a rank's log is lost");
        }
        // Nobody may be listening.
        let _ = self.0.taken.send((key.job.clone(), record.clone()));
        let _ = self.0.live.send((key.job.clone(), record));
    }

    /// The lines that come from workers from now on.
    pub(crate) fn taken(&self) -> broadcast::Receiver<(String, v1::LogRecord)> {
        self.0.taken.subscribe()
    }

    /// Keeps a line as the leader has numbered it, so that it is here when the leader is gone.
    pub(crate) async fn keep(&self, line: v1::PeerLine) {
        let Some(mut record) = line.record else {
            return;
        };
        // The name becomes a file's.
        if convert::job_name(&line.job).is_err() {
            return;
        }
        let mut files = self.0.files.lock().await;
        if let Some(open) = files.get_mut(&line.job) {
            open.next_seq = open.next_seq.max(record.seq);
        }
        if let Err(error) = self.write(&mut files, &line.job, &mut record).await {
            tracing::warn!(job = line.job, %error, "a line of a rank's log is lost");
        }
        let _ = self.0.live.send((line.job, record));
    }

    /// Numbers a line and appends it.
    async fn write(
        &self,
        files: &mut BTreeMap<String, Open>,
        job: &str,
        record: &mut v1::LogRecord,
    ) -> io::Result<()> {
        if let Some(full) = files
            .get_mut(job)
            .filter(|open| open.bytes > MAX_FILE_BYTES)
        {
            fs::rename(self.path(job, "jsonl"), self.path(job, "1.jsonl")).await?;
            *full = self.open_file(job, full.next_seq).await?;
        }
        if !files.contains_key(job) {
            if files.len() >= MAX_OPEN_FILES {
                files.clear();
            }
            let last = self.kept(job).await?.last().map_or(0, |line| line.seq);
            let open = self.open_file(job, record.seq.max(last + 1)).await?;
            files.insert(job.to_owned(), open);
        }
        let open = files
            .get_mut(job)
            .ok_or_else(|| io::Error::other("the file was not opened"))?;
        record.seq = open.next_seq;
        open.next_seq += 1;
        let line = Line {
            time: record.time,
            generation: record.generation,
            rank: record.rank,
            text: record.text.clone(),
            seq: record.seq,
        };
        let mut text = serde_json::to_vec(&line).map_err(io::Error::other)?;
        text.push(b'\n');
        open.file.write_all(&text).await?;
        open.file.flush().await?;
        open.bytes += text.len() as u64;
        Ok(())
    }

    async fn open_file(&self, job: &str, next_seq: u64) -> io::Result<Open> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path(job, "jsonl"))
            .await?;
        let bytes = file.metadata().await?.len();
        Ok(Open {
            file,
            bytes,
            next_seq,
        })
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
        Ok((self.kept(job).await?, live))
    }

    /// The lines of a job's files, oldest first.
    async fn kept(&self, job: &str) -> io::Result<Vec<v1::LogRecord>> {
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
                        seq: line.seq,
                    }),
            );
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> v1::LogLine {
        v1::LogLine {
            key: Some(v1::RankKey {
                job: "digits".to_owned(),
                ..Default::default()
            }),
            text: text.to_owned(),
            ..Default::default()
        }
    }

    async fn kept(logs: &Logs) -> Vec<(u64, String)> {
        let (kept, _) = logs.read("digits").await.unwrap();
        kept.into_iter().map(|line| (line.seq, line.text)).collect()
    }

    #[tokio::test]
    async fn lines_keep_their_numbers_in_later_processes_and_files() {
        let folder = tempfile::tempdir().unwrap();
        let logs = Logs::open(folder.path()).unwrap();
        logs.append(&line("one")).await;
        drop(logs);
        let logs = Logs::open(folder.path()).unwrap();
        let (_, mut live) = logs.read("digits").await.unwrap();
        logs.append(&line("two")).await;
        assert_eq!(live.recv().await.unwrap().1.seq, 2);
        let both = [(1, "one".to_owned()), (2, "two".to_owned())];
        assert_eq!(kept(&logs).await, both);
        // The file is full, and put aside.
        logs.0.files.lock().await.get_mut("digits").unwrap().bytes = MAX_FILE_BYTES + 1;
        logs.append(&line("three")).await;
        assert_eq!(kept(&logs).await.last(), Some(&(3, "three".to_owned())));
        drop(logs);
        let logs = Logs::open(folder.path()).unwrap();
        logs.append(&line("four")).await;
        assert_eq!(kept(&logs).await.last(), Some(&(4, "four".to_owned())));
    }
}
