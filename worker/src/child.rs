//! The process of one rank: how it is started, what it prints, and how it ended.

use std::collections::VecDeque;
use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use muster_proto::{convert, v1};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::hub::{Lines, Note, Notes, Start};

/// A longer line is told in pieces.
const MAX_LINE_BYTES: u64 = 16 << 10;

/// How long the output of a process that has ended is still read.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// What is kept of one process's output.
const MAX_LOG_BYTES: usize = 64 << 20;

/// How many of the last lines a report of the exit carries.
const TAIL_LINES: usize = 10;

/// Lines that may wait between the readers of a rank's output and its log.
const MAX_WAITING_LINES: usize = 256;

/// Runs a process to its end, and says how it ended. `present` is what it is at each time; it is
/// started, and its end is told, as what it is at first.
pub(crate) async fn run(
    present: watch::Receiver<v1::RankKey>,
    token: String,
    start: Start,
    kill: CancellationToken,
    lines: watch::Receiver<Option<Lines>>,
    notes: Notes,
) {
    let key = present.borrow().clone();
    let (reason, log_tail) = match spawn(&key, &token, &start).await {
        Ok((child, log)) => {
            if let Some(pid) = child.id() {
                let key = key.clone();
                let _ = notes.send(Note::Started { key, pid });
            }
            attend(child, log, &present, &kill, lines).await
        }
        Err(error) => (format!("could not be started: {error}"), String::new()),
    };
    // The worker may have ended.
    let _ = notes.send(Note::Exited(v1::RankExited {
        key: Some(key),
        reason,
        log_tail,
    }));
}

async fn spawn(key: &v1::RankKey, token: &str, start: &Start) -> io::Result<(Child, Log)> {
    // The name becomes a folder's.
    let job = convert::job_name(&key.job).map_err(io::Error::other)?;
    let log = Log::open(&start.logs.join(job.to_string()), key).await?;
    let mut command = Command::new(&start.program);
    command
        .arg("rank")
        .env("MUSTER_RANK_ADDR", start.address.to_string())
        .env("MUSTER_RANK_HOST", start.host.to_string())
        .env("MUSTER_RANK_TOKEN", token)
        .env("MUSTER_RANK_JOB", &key.job)
        .env("MUSTER_RANK_HISTORY", key.history.to_string())
        .env("MUSTER_RANK_GENERATION", key.generation.to_string())
        .env("MUSTER_RANK_RANK", key.rank.to_string())
        .env("MUSTER_RANK_PROCESS", key.process.to_string())
        .env("RAYON_NUM_THREADS", start.threads.to_string())
        .stdin(if start.tree {
            Stdio::inherit()
        } else {
            Stdio::null()
        })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if start.tree {
        command.env("MUSTER_TREE", "1");
    }
    Ok((command.spawn()?, log))
}

/// The file of what a rank prints, which does not fill the disk.
struct Log {
    file: File,
    bytes: usize,
}

impl Log {
    async fn open(folder: &Path, key: &v1::RankKey) -> io::Result<Self> {
        fs::create_dir_all(folder).await?;
        let path = folder.join(format!("p{}.log", key.process));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .await?;
        Ok(Self { file, bytes: 0 })
    }

    /// Appends a line, until there are too many.
    async fn write(&mut self, line: &str) -> io::Result<()> {
        if self.bytes >= MAX_LOG_BYTES {
            return Ok(());
        }
        self.bytes += line.len() + 1;
        let note = if self.bytes < MAX_LOG_BYTES {
            ""
        } else {
            "(the log is full; what follows is not kept)\n"
        };
        self.file
            .write_all(format!("{line}\n{note}").as_bytes())
            .await
    }
}

/// Waits for the end of a process, and keeps what it prints meanwhile.
async fn attend(
    mut child: Child,
    mut log: Log,
    present: &watch::Receiver<v1::RankKey>,
    kill: &CancellationToken,
    lines: watch::Receiver<Option<Lines>>,
) -> (String, String) {
    let (sender, mut printed) = mpsc::channel(MAX_WAITING_LINES);
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(read_lines(stdout, sender.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(read_lines(stderr, sender.clone()));
    }
    drop(sender);
    let mut tail = VecDeque::new();
    let mut is_killed = false;
    let status = loop {
        tokio::select! {
            biased;
            () = kill.cancelled(), if !is_killed => {
                is_killed = true;
                // It may have ended just now.
                let _ = child.start_kill();
            }
            Some(line) = printed.recv() => keep(line, &mut log, present, &lines, &mut tail).await,
            status = child.wait() => break status,
        }
    };
    // A process that it started may hold its output open for ever; its own last lines are there.
    let rest = async {
        while let Some(line) = printed.recv().await {
            keep(line, &mut log, present, &lines, &mut tail).await;
        }
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, rest).await;
    let _ = log.file.flush().await;
    let reason = status.map_or_else(|error| error.to_string(), describe);
    (reason, Vec::from(tail).join("\n"))
}

async fn keep(
    line: String,
    log: &mut Log,
    present: &watch::Receiver<v1::RankKey>,
    lines: &watch::Receiver<Option<Lines>>,
    tail: &mut VecDeque<String>,
) {
    let key = present.borrow().clone();
    if let Err(error) = log.write(&line).await {
        tracing::warn!(job = key.job, rank = key.rank, %error, "a line of a rank's log is lost");
    }
    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let told = v1::LogLine {
        key: Some(key),
        time: since_epoch.as_secs_f64(),
        text: line.clone(),
    };
    if let Some(lines) = &*lines.borrow() {
        // The file has it; a slow or absent coordinator does not hold a rank up.
        let _ = lines.0.try_send(told);
    }
    tail.push_back(line);
    if tail.len() > TAIL_LINES {
        tail.pop_front();
    }
}

async fn read_lines(output: impl AsyncRead + Unpin, lines: mpsc::Sender<String>) {
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        let read = (&mut output)
            .take(MAX_LINE_BYTES)
            .read_until(b'\n', &mut bytes)
            .await;
        if !read.is_ok_and(|read| read > 0) {
            return;
        }
        let line = String::from_utf8_lossy(&bytes).trim_end().to_owned();
        if lines.send(line).await.is_err() {
            return;
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => status.to_string(),
    }
}
