//! A folder for one test, and the processes that belong to it. Processes are found by their
//! environment, not by their parents: a daemon or a rank that lost its parent still counts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::halts::{Held, Point};
use crate::train::TrainCommand;
use crate::wait::eventually;

/// The variable that names the state folder, and marks the processes of a sandbox.
const STATE: &str = "MUSTER_STATE";

/// A folder with a state folder and a copy of `examples/digits`. Dropping it kills its processes.
#[derive(Debug)]
pub struct Sandbox {
    dir: TempDir,
    binary: PathBuf,
}

impl Sandbox {
    /// A new folder for the binary at this path: `Sandbox::new(env!("CARGO_BIN_EXE_muster"))`.
    ///
    /// # Panics
    /// When the folder cannot be made or the example cannot be copied.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("muster-test-")
            .tempdir()
            .expect("make a temporary folder");
        let sandbox = Self {
            dir,
            binary: binary.into(),
        };
        std::fs::create_dir(sandbox.state_dir()).expect("make the state folder");
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/digits");
        for entry in std::fs::read_dir(example).expect("list examples/digits") {
            let entry = entry.expect("list examples/digits");
            std::fs::copy(entry.path(), sandbox.path().join(entry.file_name()))
                .expect("copy a file of examples/digits");
        }
        sandbox
    }

    /// The folder: the job files, their data, and whatever the test puts there.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The state folder; empty at first.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.path().join("state")
    }

    /// The binary, in this folder and with this state folder; the caller adds arguments.
    #[must_use]
    pub fn muster(&self) -> Command {
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MUSTER_") {
                command.env_remove(name);
            }
        }
        command
            .env(STATE, self.state_dir())
            .current_dir(self.path());
        command
    }

    /// `muster train <job> --json`; the job's path is relative to the folder.
    #[must_use]
    pub fn train(&self, job: &str) -> TrainCommand<'_> {
        TrainCommand::new(self, job)
    }

    /// Sends a signal to a process of this sandbox.
    ///
    /// # Panics
    /// When the process is none of this sandbox's, so that a wrong number never hits a stranger.
    #[track_caller]
    pub fn kill(&self, pid: u32, signal: Signal) {
        let known = processes_of(self);
        assert!(
            known.iter().any(|(known, _)| *known == pid),
            "process {pid} is none of the sandbox's: {known:?}"
        );
        // It may have ended since, and then what the signal was for has happened.
        let _ = send(pid, signal);
    }

    /// Kills a rank that is held, and only then lets go of it; says where it was.
    ///
    /// # Panics
    /// When it is none of this sandbox's.
    #[track_caller]
    pub fn kill_held(&self, held: Held) -> Point {
        self.kill(held.point.pid, Signal::KILL);
        let at = held.point.clone();
        drop(held);
        at
    }

    /// Sends a signal to a process, unless it has ended, and its number may be a stranger's.
    pub fn kill_if_there(&self, pid: u32, signal: Signal) {
        if processes_of(self).iter().any(|(known, _)| *known == pid) {
            let _ = send(pid, signal);
        }
    }

    /// Kills every process of this sandbox, and waits until none is left.
    ///
    /// # Panics
    /// When one survives SIGKILL for ten seconds.
    pub fn kill_all(&self) {
        // A process that is about to start another one may do so between the look and the kill.
        eventually(
            Duration::from_secs(10),
            "the end of every process of the sandbox",
            || {
                let left = processes_of(self);
                for (pid, _) in &left {
                    let _ = send(*pid, Signal::KILL);
                }
                left.is_empty().then_some(())
            },
        );
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.kill_all();
    }
}

fn send(pid: u32, signal: Signal) -> Option<()> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    kill_process(pid, signal).ok()
}

/// The living processes that were started with this sandbox's state folder, by process id, with
/// their command lines. Zombies are not among them.
///
/// # Panics
/// When `/proc` cannot be read.
#[must_use]
pub fn processes_of(sandbox: &Sandbox) -> Vec<(u32, String)> {
    use std::os::unix::ffi::OsStrExt;
    let mut mark = format!("{STATE}=").into_bytes();
    mark.extend_from_slice(sandbox.state_dir().as_os_str().as_bytes());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("list /proc") {
        // A process may end at any point of this; then it is none.
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let Ok(environ) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        if !environ
            .split(|byte| *byte == 0)
            .any(|variable| variable == mark)
        {
            continue;
        }
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let words = command
            .split(|byte| *byte == 0)
            .map(String::from_utf8_lossy);
        found.push((
            pid,
            words.collect::<Vec<_>>().join(" ").trim_end().to_owned(),
        ));
    }
    found.sort_unstable();
    found
}
