//! The processes of a local cluster: coordinators and workers as children, started again
//! when they die. The standard input of each child, and of each of theirs, is one pipe that only
//! this process holds open, so that none outlives it, however it ends; and a worker that dies alone
//! leaves its ranks at work, for the one that is started in its place.

use std::io::{PipeReader, PipeWriter, pipe};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::patience::{Patience, gave_up};
use crate::failure::Failure;

/// How long children may take to end when they are asked to.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// What a child is.
#[derive(Clone, Debug)]
pub(crate) struct Role {
    pub(crate) name: String,
    pub(crate) arguments: Vec<String>,
    /// Where its standard error goes.
    pub(crate) log: PathBuf,
}

/// One child that runs.
struct Running {
    child: Child,
    started: Instant,
    /// How long its log was when it started: what is before is an older process's.
    log_start: u64,
}

fn spawn(role: &Role, life: &PipeReader) -> Result<Running, Failure> {
    let about_log = |error| Failure::failed(format!("{}: {error}", role.log.display()));
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&role.log)
        .map_err(about_log)?;
    let log_start = log.metadata().map_err(about_log)?.len();
    let child = Command::new(std::env::current_exe()?)
        .args(&role.arguments)
        .stdin(life.try_clone()?)
        .stdout(Stdio::piped())
        .stderr(log)
        // A group of its own: an interrupt from the terminal is this process's to handle.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            Failure::failed(format!("the {} cannot be started: {error}", role.name))
        })?;
    Ok(Running {
        child,
        started: Instant::now(),
        log_start,
    })
}

/// Why a child ended, with the last line that it logged.
fn obituary(role: &Role, status: Option<ExitStatus>, log_start: u64) -> String {
    let how = status.map_or_else(
        || "it could not be waited for".to_owned(),
        |status| status.to_string(),
    );
    let last = last_line(&role.log, log_start)
        .map(|line| format!(": {line}"))
        .unwrap_or_default();
    format!(
        "the {} ended ({how}){last}; its log is {}",
        role.name,
        role.log.display()
    )
}

fn last_line(log: &Path, start: u64) -> Option<String> {
    let text = std::fs::read(log).ok()?;
    let own = text.get(usize::try_from(start).ok()?..)?;
    let text = String::from_utf8_lossy(own);
    text.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .map(str::to_owned)
}

/// Starts a coordinator, and returns the address on which it serves, and its process id.
pub(crate) async fn start_coordinator(
    role: &mut Role,
    tree: &mut Tree,
) -> Result<(String, u32), Failure> {
    let mut patience = Patience::default();
    let (running, address) = loop {
        let mut running = spawn(role, &tree.life)?;
        if let Some(address) = read_address(&mut running).await? {
            break (running, address);
        }
        let status = running.child.wait().await.ok();
        // What it says itself it would say again; a kill tells nothing about the next try.
        let was_killed = status.is_some_and(|status| status.signal().is_some());
        // However long it ran, it never served: that counts as fast.
        let wait = patience.after(Duration::ZERO).filter(|_| was_killed);
        let Some(wait) = wait else {
            return Err(Failure::failed(obituary(role, status, running.log_start)));
        };
        tokio::time::sleep(wait).await;
    };
    // It comes back where its workers look for it.
    for argument in &mut role.arguments {
        if argument == "127.0.0.1:0" {
            argument.clone_from(&address);
        }
    }
    let pid = running.child.id().unwrap_or_default();
    tree.watch(role.clone(), running);
    Ok((address, pid))
}

/// The address in the line that a coordinator prints when it serves; `None` when it ends before.
async fn read_address(running: &mut Running) -> Result<Option<String>, Failure> {
    let stdout = running.child.stdout.take();
    let stdout = stdout.ok_or_else(|| Failure::failed("the coordinator has no standard output"))?;
    let line = BufReader::new(stdout).lines().next_line().await?;
    let ready = line.and_then(|line| serde_json::from_str::<serde_json::Value>(&line).ok());
    Ok(ready
        .as_ref()
        .and_then(|ready| ready["addr"].as_str())
        .map(str::to_owned))
}

/// All children.
#[derive(Debug)]
pub(crate) struct Tree {
    ended: CancellationToken,
    failures: mpsc::UnboundedSender<Failure>,
    /// What makes going on useless.
    pub(crate) failed: mpsc::UnboundedReceiver<Failure>,
    watches: Vec<tokio::task::JoinHandle<()>>,
    /// The end of this pipe is the end of the tree; nothing is ever written to it.
    life: Arc<PipeReader>,
    _root: PipeWriter,
}

impl Tree {
    pub(crate) fn new() -> Result<Self, Failure> {
        let (failures, failed) = mpsc::unbounded_channel();
        let (life, root) = pipe()?;
        Ok(Self {
            ended: CancellationToken::new(),
            failures,
            failed,
            watches: Vec::new(),
            life: Arc::new(life),
            _root: root,
        })
    }

    /// Starts a child, and keeps it running; its process id.
    pub(crate) fn start(&mut self, role: Role) -> Result<u32, Failure> {
        let running = spawn(&role, &self.life)?;
        let pid = running.child.id().unwrap_or_default();
        self.watch(role, running);
        Ok(pid)
    }

    fn watch(&mut self, role: Role, running: Running) {
        let (ended, failures) = (self.ended.clone(), self.failures.clone());
        let life = Arc::clone(&self.life);
        self.watches.push(tokio::spawn(async move {
            if let Err(failure) = keep(role, running, &life, &ended).await {
                // The command may be ending.
                let _ = failures.send(failure);
            }
        }));
    }

    /// Asks all children to end, and waits until they have. Those that take too long are killed.
    pub(crate) async fn end(self) {
        self.ended.cancel();
        for watch in self.watches {
            // A task that panicked has dropped its child, and so killed it.
            let _ = watch.await;
        }
    }
}

/// Starts a child again whenever it ends, until it fails too fast.
async fn keep(
    role: Role,
    mut running: Running,
    life: &PipeReader,
    ended: &CancellationToken,
) -> Result<(), Failure> {
    let mut patience = Patience::default();
    loop {
        let status = tokio::select! {
            () = ended.cancelled() => {
                end(&mut running.child).await;
                return Ok(());
            }
            status = running.child.wait() => status.ok(),
        };
        let Some(wait) = patience.after(running.started.elapsed()) else {
            let last = obituary(&role, status, running.log_start);
            return Err(Failure::failed(format!("{last}; {}", gave_up())));
        };
        tracing::warn!(
            "{}; starting it again",
            obituary(&role, status, running.log_start)
        );
        tokio::select! {
            () = ended.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
        running = spawn(&role, life)?;
    }
}

async fn end(child: &mut Child) {
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    if let Some(pid) = pid {
        // It may have ended just now.
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(END_TIMEOUT, child.wait())
        .await
        .is_err()
    {
        let _ = child.kill().await;
    }
}
