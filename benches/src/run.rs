//! One `muster train --json` in a state folder of its own, seen from outside: its events, and its
//! processes, which a measurement may kill.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A run under way.
pub(crate) struct Run {
    child: Child,
    lines: Receiver<String>,
    state: PathBuf,
    /// The process of each rank of the newest world.
    pids: Vec<Option<u32>>,
    /// Everything so far.
    pub(crate) events: Vec<Value>,
}

/// What waiting for an event came to.
pub(crate) enum Waited {
    Event(Value),
    TimedOut,
    Ended,
}

impl Run {
    /// Starts a job of `examples/digits` with these further arguments.
    pub(crate) fn start(muster: &Path, job: &str, arguments: &[String]) -> Result<Self, String> {
        static RUN: AtomicU32 = AtomicU32::new(0);
        let number = RUN.fetch_add(1, Ordering::Relaxed);
        let name = format!("muster-bench-{}-{number}", std::process::id());
        let state = std::env::temp_dir().join(name);
        let job = format!("{}/../examples/digits/{job}", env!("CARGO_MANIFEST_DIR"));
        let mut child = Command::new(muster)
            .args(["train", &job, "--json", "--threads", "1", "--state"])
            .arg(&state)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| format!("{}: {error}", muster.display()))?;
        let stdout = child.stdout.take().ok_or("the run has no output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            lines,
            state,
            pids: Vec::new(),
            events: Vec::new(),
        })
    }

    /// The next event, if one comes before `until`.
    pub(crate) fn wait(&mut self, until: Option<Instant>) -> Result<Waited, String> {
        let line = match until {
            None => self
                .lines
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                self.lines.recv_timeout(left)
            }
        };
        let line = match line {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => return Ok(Waited::TimedOut),
            Err(RecvTimeoutError::Disconnected) => return Ok(Waited::Ended),
        };
        let event: Value =
            serde_json::from_str(&line).map_err(|error| format!("{line}: {error}"))?;
        let index = |name: &str| event[name].as_u64().and_then(|it| usize::try_from(it).ok());
        match event["event"].as_str() {
            Some("generation") => {
                let size = index("world_size").unwrap_or_default();
                self.pids.resize(size, None);
            }
            Some("rank") => {
                let pid = event["pid"]
                    .as_u64()
                    .and_then(|pid| u32::try_from(pid).ok());
                if let Some(slot) = index("rank").and_then(|rank| self.pids.get_mut(rank)) {
                    *slot = pid;
                }
            }
            _ => {}
        }
        self.events.push(event.clone());
        Ok(Waited::Event(event))
    }

    /// The processes of the newest world's ranks that are known.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.pids.iter().flatten().copied().collect()
    }

    /// Takes all that still comes, and removes the state folder of a run that ended well.
    pub(crate) fn finish(mut self) -> Result<Vec<Value>, String> {
        while let Waited::Event(_) = self.wait(None)? {}
        let status = self.child.wait().map_err(|error| error.to_string())?;
        let state = self.state.display();
        // What is left of a failed run may help to find out why.
        if !status.success() {
            return Err(format!(
                "the run ended with {status}; its state is in {state}"
            ));
        }
        std::fs::remove_dir_all(&self.state).map_err(|error| format!("{state}: {error}"))?;
        Ok(self.events)
    }
}

impl Run {
    /// Ends a run that would go on for ever, at once.
    pub(crate) fn end(mut self) {
        // Its processes end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.state);
    }
}

/// Numbers that a seed decides: a linear congruential generator (Knuth, MMIX), its high bits.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    /// Even in `0.0..1.0`.
    pub(crate) fn even(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Exponential with this mean.
    pub(crate) fn wait(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.even()).ln())
    }

    /// One of these.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let index = (self.even() * from.len() as f64) as usize;
        from.get(index).copied()
    }
}

/// A number of an event.
pub(crate) fn number(event: &Value, name: &str) -> Result<f64, String> {
    event[name]
        .as_f64()
        .ok_or_else(|| format!("no {name} in {event}"))
}

/// The middle one; of an even number the upper one.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
