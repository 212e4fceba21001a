//! Which process a process id means, and whether it still runs. The system gives an id to another
//! process sooner or later: nobody here is waited for or killed by a bare one.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How often the system is asked whether a process has ended. Its handle becomes readable then, but
/// tokio registers descriptors of others only by an unsafe call.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long a process that was killed may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Names one process of this boot of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    /// When it was started, in clock ticks since the boot.
    pub(crate) started: u64,
}

impl Identity {
    /// The process that has this id now, if there is one that has not ended.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let started = start_time(&stat)?;
        Some(Self { pid, started })
    }

    /// The process that was started with this variable in its environment.
    pub(crate) fn with_variable(name: &str, value: &str) -> Option<Self> {
        let entries = fs::read_dir("/proc").ok()?;
        entries.flatten().find_map(|entry| {
            let process = Self::of(entry.file_name().to_str()?.parse().ok()?)?;
            process.has_variable(name, value).then_some(process)
        })
    }

    /// Whether it was started with this variable in its environment.
    pub(crate) fn has_variable(self, name: &str, value: &str) -> bool {
        let wanted = format!("{name}={value}").into_bytes();
        // Those of others cannot be read.
        let environment = fs::read(format!("/proc/{}/environ", self.pid)).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        variables.any(|variable| variable == wanted)
    }

    /// Takes hold of the process; `None` when it has ended.
    ///
    /// # Errors
    /// When the system does not say, which proves nothing.
    pub(crate) fn take(self) -> io::Result<Option<Handle>> {
        let Some(pid) = Pid::from_raw(self.pid.cast_signed()) else {
            return Ok(None);
        };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(handle) => handle,
            Err(Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // It was opened by its id: only now is it sure to stay the process that is meant.
        let is_same = Self::of(self.pid) == Some(self);
        Ok(is_same.then_some(Handle {
            identity: self,
            handle,
        }))
    }
}

/// A process that is somebody else's child.
#[derive(Debug)]
pub(crate) struct Handle {
    identity: Identity,
    handle: OwnedFd,
}

impl Handle {
    pub(crate) fn pid(&self) -> u32 {
        self.identity.pid
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        // It may have ended just now.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    /// Whether it is proved to have ended: a system that does not answer proves nothing.
    fn has_ended(&self) -> bool {
        let Identity { pid, started } = self.identity;
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => start_time(&stat) != Some(started),
            Err(error) => {
                let is_gone = error.raw_os_error() == Some(Errno::SRCH.raw_os_error());
                is_gone || error.kind() == io::ErrorKind::NotFound
            }
        }
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) {
        while !self.has_ended() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Ends it and waits until it has ended; `false` when it takes too long.
    pub(crate) async fn end(&self) -> bool {
        self.kill();
        tokio::time::timeout(END_TIMEOUT, self.ended())
            .await
            .is_ok()
    }
}

/// When a process was started, by what `/proc/PID/stat` says; `None` for one that has ended and is
/// not waited for. Its name, the second field, is in parentheses and may contain anything: proc(5).
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let has_ended = matches!(state, "Z" | "X" | "x");
    // The first behind the name is the third field, and the start time is the 22nd.
    let started = fields.nth(18)?.parse().ok()?;
    (!has_ended).then_some(started)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn the_start_time_is_read_behind_any_name() {
        let rest = "1 7 7 0 -1 4194304 110 0 0 0 0 0 0 0 20 0 1 0 4711 5 6";
        assert_eq!(start_time(&format!("7 (sleep) S {rest}")), Some(4711));
        assert_eq!(start_time(&format!("7 (a) R 1 (b) S {rest}")), Some(4711));
        assert_eq!(start_time(&format!("7 (sleep) Z {rest}")), None, "a zombie");
        assert_eq!(start_time("7 (sleep) S 1 2"), None);
        assert_eq!(start_time(""), None);
    }

    #[tokio::test]
    async fn a_process_is_found_held_and_ended_and_its_id_means_nobody_else() {
        let mut command = Command::new("sleep");
        let value = format!("alive-{}", std::process::id());
        let mut child = command
            .arg("1000")
            .env("MUSTER_TEST_ALIVE", &value)
            .spawn()
            .unwrap();
        let identity = Identity::of(child.id()).unwrap();
        let later = Identity {
            started: identity.started + 1,
            ..identity
        };
        assert!(
            later.take().unwrap().is_none(),
            "another process of that id"
        );
        let found = loop {
            // Between fork and exec it has the environment of this process.
            if let Some(found) = Identity::with_variable("MUSTER_TEST_ALIVE", &value) {
                break found;
            }
        };
        assert_eq!(found, identity);
        let handle = identity.take().unwrap().unwrap();
        assert!(handle.end().await);
        assert_eq!(Identity::of(child.id()), None, "it is a zombie");
        child.wait().unwrap();
        assert!(identity.take().unwrap().is_none());
    }
}
