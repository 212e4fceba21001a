//! The process of one rank: how it is started or taken over, what it prints, and how it ended. It
//! outlives the daemon that started it.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, SystemTime};

use muster_proto::{convert, v1};
use muster_worker_core::agent::place;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::alive::{Handle, Identity};
use crate::hub::{Lines, Note, Notes, Start};
use crate::roster::{Exit, TOKEN};
use crate::tail::{Tail, open_log};

/// How often the log is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How a process ended whose exit code only its parent was told.
const ENDED_ALONE: &str = "it ended, and the daemon that started it is no more";
const ENDED_UNSEEN: &str = "it ended while its worker's daemon was away";

/// What attends a process.
pub(crate) struct Care {
    /// What it is at each time.
    pub(crate) present: watch::Receiver<v1::RankKey>,
    pub(crate) kill: CancellationToken,
    pub(crate) lines: watch::Receiver<Option<Lines>>,
    pub(crate) notes: Notes,
}

/// A process, as much of it as is ours.
enum Body {
    Child(Child),
    Adopted(Handle),
}

impl Body {
    fn kill(&mut self) {
        match self {
            // It may have ended just now.
            Body::Child(child) => drop(child.start_kill()),
            Body::Adopted(handle) => handle.kill(),
        }
    }

    /// Waits for its end, and says how it ended.
    async fn ended(&mut self) -> String {
        match self {
            Body::Child(child) => {
                let status = child.wait().await;
                status.map_or_else(|error| error.to_string(), describe)
            }
            Body::Adopted(handle) => {
                handle.ended().await;
                ENDED_ALONE.to_owned()
            }
        }
    }
}

/// Runs a process to its end, and says how it ended. It is started, and its end is told, as what it
/// is at first.
pub(crate) async fn run(care: Care, token: String, cuda: Option<u32>, start: Start) {
    let key = care.present.borrow().clone();
    let exit = match spawn(&key, &token, cuda, &start) {
        Ok((child, tail)) => {
            if let Some(pid) = child.id() {
                let key = key.clone();
                let _ = care.notes.send(Note::Started { key, pid });
            }
            care.attend(Body::Child(child), tail).await
        }
        Err(error) => Exit {
            reason: format!("could not be started: {error}"),
            log_tail: String::new(),
        },
    };
    care.tell(key, exit);
}

/// Attends a process of an earlier daemon to its end; without a handle it has ended already, and
/// `exited` is how, where that daemon saw it.
pub(crate) async fn adopt(care: Care, start: Start, handle: Option<Handle>, exited: Option<Exit>) {
    let key = care.present.borrow().clone();
    let log = open_log(&start.logs.join(&key.job), key.process);
    let tail = log.map(|log| Tail::go_on(log, start.roster.mark(&place(&key))));
    let exit = match (exited, handle, tail) {
        (Some(exit), _, _) => exit,
        (None, None, tail) => Exit {
            reason: ENDED_UNSEEN.to_owned(),
            log_tail: tail.map_or_else(|_| String::new(), |mut tail| care.finish(&mut tail)),
        },
        (None, Some(handle), Ok(tail)) => care.attend(Body::Adopted(handle), tail).await,
        (None, Some(handle), Err(error)) => {
            handle.end().await;
            Exit {
                reason: format!("it was ended, since its log cannot be read: {error}"),
                log_tail: String::new(),
            }
        }
    };
    care.tell(key, exit);
}

fn spawn(
    key: &v1::RankKey,
    token: &str,
    cuda: Option<u32>,
    start: &Start,
) -> io::Result<(Child, Tail)> {
    // The name becomes a folder's.
    let job = convert::job_name(&key.job).map_err(io::Error::other)?;
    // Before anything else: the next daemon must know of every process.
    start.roster.add(key, token)?;
    let place = place(key);
    let log = open_log(&start.logs.join(job.to_string()), key.process)?;
    let mut command = Command::new(&start.program);
    command
        .arg("rank")
        .env("MUSTER_RANK_DOOR", &start.door)
        .env(
            "MUSTER_RANK_ORPHAN_MS",
            start.orphan.as_millis().to_string(),
        )
        .env("MUSTER_RANK_HOST", start.host.to_string())
        .env(TOKEN, token)
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
        .stdout(log.try_clone()?)
        .stderr(log.try_clone()?)
        // What the terminal or a service manager sends to the daemon's group is for the daemon.
        .process_group(0)
        .kill_on_drop(false);
    if let Some(index) = cuda {
        let number = start.gpus.get(index as usize).ok_or_else(|| {
            let number = start.gpus.len();
            io::Error::other(format!(
                "it was given GPU {index}, and this worker sees {number}, counted from 0"
            ))
        })?;
        // It sees its own alone, whatever order CUDA counts in: what is known of kernels is known by the
        // device's index, and so holds for every GPU of this machine.
        command
            .env("CUDA_VISIBLE_DEVICES", number)
            .env("MUSTER_RANK_CUDA", "0");
    }
    if start.shares_gpus {
        // NCCL takes no two ranks of one host on one GPU, so each is a host of its own.
        command
            .env("NCCL_HOSTID", format!("muster-{}-{}", key.job, key.process))
            .env("NCCL_NET", "Socket")
            .env("NCCL_SOCKET_IFNAME", "lo");
    }
    if start.tree {
        command.env("MUSTER_TREE", "1");
    }
    let tail = Tail::begin(log, start.roster.mark(&place))?;
    let child = command.spawn()?;
    if let Some(process) = child.id().and_then(Identity::of) {
        start.roster.started(&place, process);
    }
    Ok((child, tail))
}

impl Care {
    /// Waits for the end of a process, and tells what it prints meanwhile.
    async fn attend(&self, mut body: Body, mut tail: Tail) -> Exit {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_killed = false;
        let reason = loop {
            tokio::select! {
                biased;
                () = self.kill.cancelled(), if !is_killed => {
                    is_killed = true;
                    body.kill();
                }
                reason = body.ended() => break reason,
                _ = looks.tick() => self.look(&mut tail),
            }
        };
        let log_tail = self.finish(&mut tail);
        Exit { reason, log_tail }
    }

    /// Tells what is new in a log. While no coordinator listens it stays there.
    fn look(&self, tail: &mut Tail) {
        let lines = self.lines.borrow();
        let looked = match &*lines {
            Some(lines) => tail.read(false).map(|read| self.tell_lines(lines, read)),
            None => tail.bound(),
        };
        if let Err(error) = looked {
            let key = self.present.borrow();
            tracing::debug!(job = key.job, rank = key.rank, %error, "a rank's log cannot be read");
        }
    }

    /// Tells the rest of a log; returns its last lines.
    fn finish(&self, tail: &mut Tail) -> String {
        while let Ok(read) = tail.read(true)
            && !read.is_empty()
        {
            if let Some(lines) = &*self.lines.borrow() {
                self.tell_lines(lines, read);
            }
        }
        tail.last_lines()
    }

    fn tell_lines(&self, lines: &Lines, read: Vec<String>) {
        let since_epoch = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        for text in read {
            let line = v1::LogLine {
                key: Some(self.present.borrow().clone()),
                time: since_epoch.as_secs_f64(),
                text,
            };
            // The file has it; a slow coordinator holds nobody up.
            let _ = lines.0.try_send(line);
        }
    }

    fn tell(&self, key: v1::RankKey, exit: Exit) {
        let Exit { reason, log_tail } = exit;
        // The worker may have ended.
        let _ = self.notes.send(Note::Exited(v1::RankExited {
            key: Some(key),
            reason,
            log_tail,
        }));
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => status.to_string(),
    }
}
