//! One `muster train --json`: started, listened to, signalled and ended. What its events mean is
//! the tests' business.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Signal;
use crate::halts::{Halts, Point};
use crate::sandbox::{Sandbox, processes_of};
use crate::wait::eventually;

/// How long [`Train::finish`] waits.
const FINISH: Duration = Duration::from_secs(120);

/// How long a rank may take to where a test waits for it.
const STAND: Duration = Duration::from_secs(60);

/// How long a rank may be silent, unless a test says otherwise: a machine that is busy with other
/// tests does not let a process run for a second at times, and that is no death.
const DETECT: Duration = Duration::from_secs(10);

/// How long output may stay open behind the end of the process that was started.
const OUTPUT: Duration = Duration::from_secs(20);

/// `muster train <job> --json` before it is started.
#[derive(Debug)]
pub struct TrainCommand<'a> {
    sandbox: &'a Sandbox,
    command: Command,
    detect: Duration,
}

impl<'a> TrainCommand<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox, job: &str) -> Self {
        let mut command = sandbox.muster();
        command.args(["train", job, "--json"]);
        Self {
            sandbox,
            command,
            detect: DETECT,
        }
    }

    /// Has its ranks miss one that is silent for so long.
    #[must_use]
    pub fn detect(mut self, detect: Duration) -> Self {
        self.detect = detect;
        self
    }

    /// Adds `--workers`.
    #[must_use]
    pub fn workers(self, num_workers: u32) -> Self {
        self.arg("--workers").arg(&num_workers.to_string())
    }

    /// Adds `--set key=value`.
    #[must_use]
    pub fn set(self, key_value: &str) -> Self {
        self.arg("--set").arg(key_value)
    }

    /// Adds any other argument.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Has its ranks ask there whether they may go on.
    #[must_use]
    pub fn halted_by(self, halts: &Halts) -> Self {
        let (name, value) = halts.variable();
        self.env(name, &value)
    }

    /// Starts it, and has something done while it stands: a rank has applied so many steps, and computed
    /// what it has of the next one. What is told of steps may be many behind, and says nothing of where
    /// the ranks are.
    ///
    /// # Panics
    /// When it cannot be started, or the rank does not come there within a minute.
    #[must_use]
    #[track_caller]
    pub fn start_and_stand(
        self,
        rank: u64,
        step: u64,
        meanwhile: impl FnOnce(&Train<'a>, &Point),
    ) -> Train<'a> {
        let halts = Halts::new();
        let hold = halts.hold_at(rank, step);
        let train = self.halted_by(&halts).start();
        let held = hold.wait(&format!("rank {rank} behind step {step}"), STAND);
        meanwhile(&train, &held.point);
        train
    }

    /// The same, for the death of that rank.
    ///
    /// # Panics
    /// As for [`start_and_stand`](Self::start_and_stand).
    #[must_use]
    #[track_caller]
    pub fn start_and_kill(self, rank: u64, step: u64) -> Train<'a> {
        self.start_and_stand(rank, step, |train, rank| train.kill(rank.pid, Signal::KILL))
    }

    /// The same, for Ctrl-C: it goes on once rank 0, which stands, has been told to stop.
    ///
    /// # Panics
    /// As for [`start_and_stand`](Self::start_and_stand).
    #[must_use]
    #[track_caller]
    pub fn start_and_interrupt(self, step: u64) -> Train<'a> {
        let halts = Halts::new();
        let hold = halts.hold_at(0, step);
        let train = self.halted_by(&halts).start();
        let held = hold.wait(&format!("rank 0 behind step {step}"), STAND);
        train.interrupt();
        halts.wait_for("that rank 0 is told to stop", STAND, |point| {
            point.rank == 0 && point.place == "told to stop"
        });
        drop(held);
        train
    }

    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(mut self) -> Train<'a> {
        use std::os::unix::process::CommandExt;
        let detect_ms = self.detect.as_millis().to_string();
        self.command.args(["--detect-ms", &detect_ms]);
        // A group of its own: what it sends to its group must not reach the test.
        self.command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self
            .command
            .spawn()
            .unwrap_or_else(|error| panic!("start {:?}: {error}", self.command));
        let said = Arc::new(Said::default());
        let (stdout, stderr) = (
            child.stdout.take().expect("it is piped"),
            child.stderr.take().expect("it is piped"),
        );
        let (to_events, to_stderr) = (Arc::clone(&said), Arc::clone(&said));
        // The readers end with the pipes; nobody joins them, since a stray process may hold one.
        thread::spawn(move || to_events.read_events(stdout));
        thread::spawn(move || to_stderr.read_stderr(stderr));
        Train {
            sandbox: self.sandbox,
            child,
            said,
            is_finished: false,
        }
    }
}

/// What the program said so far.
#[derive(Debug, Default)]
struct Said {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    events: Vec<Value>,
    /// A line of standard output that is no JSON, should there be one.
    malformed: Option<String>,
    stderr: String,
    events_ended: bool,
    stderr_ended: bool,
}

impl Said {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn read_events(&self, stdout: impl Read) {
        for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
            self.change(|said| match serde_json::from_slice(&line) {
                Ok(event) => said.events.push(event),
                Err(_) => drop(
                    said.malformed
                        .get_or_insert(String::from_utf8_lossy(&line).into_owned()),
                ),
            });
        }
        self.change(|said| said.events_ended = true);
    }

    fn read_stderr(&self, stderr: impl Read) {
        for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
            self.change(|said| {
                said.stderr += &String::from_utf8_lossy(&line);
                said.stderr.push('\n');
            });
        }
        self.change(|said| said.stderr_ended = true);
    }
}

/// A running `muster train --json`. Dropping it kills every process of its sandbox, unless
/// [`finish`](Train::finish) saw its end.
#[derive(Debug)]
pub struct Train<'a> {
    sandbox: &'a Sandbox,
    child: Child,
    said: Arc<Said>,
    is_finished: bool,
}

/// The end of a `muster train --json`, and everything that it said.
#[derive(Debug)]
pub struct Finished {
    /// How the process that was started ended.
    pub status: ExitStatus,
    /// Every line of its standard output.
    pub events: Vec<Value>,
    /// Its standard error.
    pub stderr: String,
}

impl Finished {
    /// That it ended with exit code 0, and left no process of its sandbox behind.
    ///
    /// # Panics
    /// Where it did not, with all that was said.
    pub fn check_completed(&self, sandbox: &Sandbox, what: &str) {
        let Self { events, stderr, .. } = self;
        let code = self.status.code();
        assert_eq!(code, Some(0), "{what}\n{events:#?}\n{stderr}");
        let left = processes_of(sandbox);
        assert!(left.is_empty(), "{what}: {left:?} is left behind");
    }

    /// The `finished` event.
    ///
    /// # Panics
    /// When there is none, with all that was said.
    #[must_use]
    pub fn end(&self) -> &Value {
        let end = self
            .events
            .iter()
            .rev()
            .find(|event| event["event"] == "finished");
        end.unwrap_or_else(|| panic!("no `finished` event: {:#?}\n{}", self.events, self.stderr))
    }

    /// How the job ended, in one word.
    ///
    /// # Panics
    /// As for [`end`](Self::end).
    #[must_use]
    pub fn state(&self) -> &str {
        self.end()["state"].as_str().unwrap_or_default()
    }

    /// What must be the same in two runs of one job: the hashes of the parameters, of the
    /// optimizer's state and of the samples that were read.
    ///
    /// # Panics
    /// As for [`end`](Self::end).
    #[must_use]
    pub fn bits(&self) -> [String; 3] {
        ["arena_hash", "optimizer_hash", "trace"].map(|name| {
            let hash = self.end()[name].as_str().unwrap_or_default();
            assert_eq!(hash.len(), 64, "{name}: {:#?}", self.end());
            hash.to_owned()
        })
    }

    /// The steps that were told, in that order.
    #[must_use]
    pub fn steps(&self) -> Vec<u64> {
        let steps = self.of_kind("step");
        steps.filter_map(|event| event["step"].as_u64()).collect()
    }

    /// The histories of the worlds that were made, each once, in that order.
    #[must_use]
    pub fn histories(&self) -> Vec<u64> {
        let worlds = self.of_kind("generation");
        let mut histories: Vec<u64> = worlds
            .filter_map(|world| world["history"].as_u64())
            .collect();
        histories.dedup();
        histories
    }

    /// The events of one kind.
    pub fn of_kind<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Value> {
        self.events
            .iter()
            .filter(move |event| event["event"] == kind)
    }
}

impl Train<'_> {
    /// The process that was started; the root of its tree.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The events so far.
    #[must_use]
    pub fn events(&self) -> Vec<Value> {
        self.said.lock().events.clone()
    }

    /// Waits for the first event, from the start of the run, that `is_it` accepts.
    ///
    /// # Panics
    /// When there was none before the deadline or the end of the output, with all that was said.
    #[track_caller]
    pub fn wait_for(&self, is_it: impl Fn(&Value) -> bool, deadline: Duration) -> Value {
        let start = Instant::now();
        let mut said = self.said.lock();
        loop {
            if let Some(event) = said.events.iter().find(|event| is_it(event)) {
                return event.clone();
            }
            if let Some(line) = &said.malformed {
                panic!("a line of the output is no JSON: {line:?}\n{}", tell(&said));
            }
            assert!(
                !said.events_ended,
                "the output ended before the event came\n{}",
                tell(&said)
            );
            let left = deadline.saturating_sub(start.elapsed());
            assert!(
                !left.is_zero(),
                "the event did not come within {deadline:?}\n{}",
                tell(&said)
            );
            let waited = self.said.changed.wait_timeout(said, left);
            said = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until this step is told, or one behind it.
    ///
    /// # Panics
    /// As for [`wait_for`](Self::wait_for).
    #[track_caller]
    pub fn wait_for_step(&self, step: u64, deadline: Duration) {
        self.wait_for(
            |event| event["event"] == "step" && event["step"].as_u64() >= Some(step),
            deadline,
        );
    }

    /// The newest process of a rank.
    ///
    /// # Panics
    /// When none was told of yet; it is before its world's first step.
    #[must_use]
    #[track_caller]
    pub fn pid_of_rank(&self, rank: u64) -> u32 {
        let events = self.events();
        let of_rank = |event: &&Value| event["event"] == "rank" && event["rank"] == rank;
        let newest = events.iter().rev().find(of_rank);
        let pid = newest.and_then(|event| event["pid"].as_u64());
        let pid = pid.and_then(|pid| u32::try_from(pid).ok());
        pid.unwrap_or_else(|| panic!("no process of rank {rank}: {events:#?}"))
    }

    /// Sends a signal to a process of the sandbox.
    ///
    /// # Panics
    /// When the process is none of the sandbox's.
    #[track_caller]
    pub fn kill(&self, pid: u32, signal: Signal) {
        self.sandbox.kill(pid, signal);
    }

    /// What Ctrl-C does to the process that was started.
    ///
    /// # Panics
    /// When it has ended already.
    #[track_caller]
    pub fn interrupt(&self) {
        self.kill(self.pid(), Signal::INT);
    }

    /// Waits for the end, at most two minutes. Processes that outlive it are left for
    /// [`processes_of`] to be seen.
    ///
    /// # Panics
    /// When it goes on, or its output holds a line that is no JSON.
    #[track_caller]
    pub fn finish(self) -> Finished {
        self.finish_within(FINISH)
    }

    /// [`finish`](Train::finish), with a deadline.
    ///
    /// # Panics
    /// When it goes on, or its output holds a line that is no JSON.
    #[track_caller]
    pub fn finish_within(mut self, deadline: Duration) -> Finished {
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("wait for the program") {
                Some(status) => break status,
                None if start.elapsed() < deadline => thread::sleep(Duration::from_millis(10)),
                None => panic!(
                    "the program goes on after {deadline:?}\n{}",
                    tell(&self.said.lock())
                ),
            }
        };
        let what = "the end of the program's output behind its own end";
        eventually(
            OUTPUT,
            &format!(
                "{what}; processes that may hold it: {:?}",
                processes_of(self.sandbox)
            ),
            || {
                let said = self.said.lock();
                (said.events_ended && said.stderr_ended).then_some(())
            },
        );
        self.is_finished = true;
        let said = self.said.lock();
        assert!(
            said.malformed.is_none(),
            "a line of the output is no JSON: {:?}\n{}",
            said.malformed,
            tell(&said)
        );
        Finished {
            status,
            events: said.events.clone(),
            stderr: said.stderr.clone(),
        }
    }
}

impl Drop for Train<'_> {
    fn drop(&mut self) {
        if !self.is_finished {
            self.sandbox.kill_all();
            // Without this the killed child stays a zombie until the test process ends.
            let _ = self.child.wait();
        }
    }
}

/// All that was said, for the message of a failure.
fn tell(said: &Inner) -> String {
    let events: String = said
        .events
        .iter()
        .map(|event| format!("{event}\n"))
        .collect();
    format!("-- events:\n{events}-- standard error:\n{}", said.stderr)
}
