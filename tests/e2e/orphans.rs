//! SIGKILL for the daemon of a worker while its ranks work: they go on, and a restarted daemon takes
//! them back; without one they end, and the job goes on without them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use muster_tests::{Halts, Sandbox, Signal, eventually, processes_of};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);
const STEPS: u64 = 450;

/// A coordinator and workers that are started by hand, with one device each.
struct Cluster {
    sandbox: Sandbox,
    address: String,
    orphan_ms: &'static str,
    /// Where its ranks ask whether they may go on.
    halt: (&'static str, String),
    children: Vec<Child>,
}

impl Cluster {
    fn new(orphan_ms: &'static str, halts: &Halts) -> Self {
        let mut cluster = Self {
            sandbox: Sandbox::new(env!("CARGO_BIN_EXE_muster")),
            address: String::new(),
            orphan_ms,
            halt: halts.variable(),
            children: Vec::new(),
        };
        let mut command = cluster.sandbox.muster();
        command.args(["coordinator", "--ready-json", "--listen", "127.0.0.1:0"]);
        // A process that stands still for a while is not missed.
        command.args(["--data", "data", "--detect-ms", "10000"]);
        command.stdout(Stdio::piped());
        let output = cluster.spawn("coordinator", &mut command).stdout.take();
        let mut line = String::new();
        BufReader::new(output.unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        cluster.address = ready["addr"].as_str().unwrap().to_owned();
        cluster
    }

    /// Starts a process whose log is in `<name>.log`.
    fn spawn(&mut self, name: &str, command: &mut Command) -> &mut Child {
        let path = self.sandbox.path().join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).open(path);
        let child = command.stderr(log.unwrap()).spawn().unwrap();
        self.children.push(child);
        self.children.last_mut().unwrap()
    }

    /// Starts the daemon of a worker, always with the same command; returns its process id.
    fn start(&mut self, name: &str) -> u32 {
        let mut command = self.sandbox.muster();
        command.args(["worker", "--join", &self.address, "--name", name]);
        command.args(["--threads", "1", "--orphan-ms", self.orphan_ms]);
        command
            .arg("--state")
            .arg(self.sandbox.state_dir().join(name))
            .env(self.halt.0, &self.halt.1);
        self.spawn(name, command.stdout(Stdio::null())).id()
    }

    /// Kills a daemon, and nothing but it.
    fn kill(&mut self, daemon: u32) {
        self.sandbox.kill(daemon, Signal::KILL);
        let child = self.children.iter_mut().find(|child| child.id() == daemon);
        child.unwrap().wait().unwrap();
    }

    fn text(&self, arguments: &[&str]) -> String {
        let mut command = self.sandbox.muster();
        let output = command
            .args(arguments)
            .args(["--coordinator", &self.address]);
        let output = output.output().unwrap();
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        assert!(output.status.success(), "{arguments:?}: {text}\n{output:?}");
        text
    }

    /// Submits the job, once both workers are there.
    fn submit(&self, min: u32) {
        eventually(DEADLINE, "both workers", || {
            let nodes = self.text(&["nodes", "--json"]);
            (nodes.matches("\"connected\":true").count() == 2).then_some(())
        });
        let (min, steps) = (format!("workers.min={min}"), format!("train.steps={STEPS}"));
        let sets = ["--set", &min, "--set", &steps, "--set", "workers.max=2"];
        self.text(&[&["submit", "job.toml"][..], &sets[..]].concat());
    }

    fn events(&self) -> Vec<Value> {
        let text = self.text(&["logs", "digits", "--events"]);
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn of_kind(&self, kind: &str) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|event| event["event"] == kind);
        events
    }

    fn wait_for_step(&self, step: u64) {
        eventually(DEADLINE, "a step", || {
            let shown = self.text(&["show", "digits", "--json"]);
            let job: Value = serde_json::from_str(&shown).unwrap();
            (job["step"].as_u64() >= Some(step)).then_some(())
        });
    }

    /// The processes of ranks.
    fn ranks(&self) -> Vec<u32> {
        let processes = processes_of(&self.sandbox).into_iter();
        let ranks = processes.filter(|(_, line)| line.ends_with(" rank"));
        ranks.map(|(pid, _)| pid).collect()
    }

    /// The process of the rank that a worker runs, by its newest event.
    fn rank_of(&self, worker: &str) -> u32 {
        let ranks = self.of_kind("rank").into_iter().rev();
        let mut pids = ranks.filter(|event| event["worker"] == worker);
        let pid = pids.next().unwrap()["pid"].as_u64().unwrap();
        u32::try_from(pid).unwrap()
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.sandbox.path().join(format!("{name}.log"))).unwrap()
    }

    /// Waits for the job's end; it has the bits of a run that nobody disturbs.
    fn finish(&self) {
        self.text(&["wait", "digits"]);
        assert_eq!(self.bits(), *undisturbed());
    }

    fn bits(&self) -> [String; 3] {
        let finished = self.of_kind("finished").remove(0);
        ["arena_hash", "optimizer_hash", "trace"].map(|name| {
            let hash = finished[name].as_str().unwrap_or_default();
            assert_eq!(hash.len(), 64, "{finished:#}");
            hash.to_owned()
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["coordinator", "a", "b"] {
                let path = self.sandbox.path().join(format!("{name}.log"));
                let log = std::fs::read_to_string(path).unwrap_or_default();
                eprintln!("-- {name}:\n{log}");
            }
        }
        for child in &mut self.children {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn undisturbed() -> &'static [String; 3] {
    static BITS: OnceLock<[String; 3]> = OnceLock::new();
    BITS.get_or_init(|| {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let steps = format!("train.steps={STEPS}");
        let train = sandbox.train("job.toml").workers(2).set(&steps);
        train.arg("--threads").arg("1").start().finish().bits()
    })
}

#[test]
fn a_restarted_daemon_takes_its_ranks_back_with_nothing_lost() {
    let halts = Halts::new();
    let mut cluster = Cluster::new("30000", &halts);
    let mut daemons = [cluster.start("a"), cluster.start("b")];
    // The job does not end before both have been killed.
    let hold = halts.hold_at(0, STEPS - 50);
    cluster.submit(2);
    cluster.wait_for_step(20);
    let ranks = cluster.ranks();
    assert_eq!(ranks.len(), 2);
    // One of the two runs rank 0, whose records nobody takes meanwhile.
    for (round, name) in [(1, 0), (2, 1)].map(|(round, at)| (round, ["a", "b"][at])) {
        let at = usize::from(name == "b");
        cluster.kill(daemons[at]);
        // What a rank prints does not end it.
        assert_eq!(cluster.ranks(), ranks, "they go on without daemon {name}");
        daemons[at] = cluster.start(name);
        eventually(DEADLINE, "the return of the rank", || {
            cluster.log(name).contains("takes ranks back").then_some(())
        });
        cluster.wait_for_step(20 + round * 60);
        assert_eq!(cluster.ranks(), ranks, "the same processes");
    }
    drop(hold);
    cluster.finish();
    assert_eq!(cluster.of_kind("generation").len(), 1);
    assert_eq!(cluster.of_kind("lost").len(), 0);
    let steps: Vec<_> = cluster
        .of_kind("step")
        .iter()
        .filter_map(|event| event["step"].as_u64())
        .collect();
    let all: Vec<_> = (1..=STEPS).collect();
    assert_eq!(steps, all, "each step is told once");
    eventually(DEADLINE, "the end of the ranks", || {
        cluster.ranks().is_empty().then_some(())
    });
    let roster = cluster.sandbox.state_dir().join("a/ranks");
    eventually(DEADLINE, "an empty roster", || {
        (std::fs::read_dir(&roster).unwrap().count() == 0).then_some(())
    });
}

#[test]
fn a_rank_that_is_killed_while_its_daemon_is_away_is_missed_by_the_next_one() {
    let halts = Halts::new();
    let mut cluster = Cluster::new("30000", &halts);
    let daemon = cluster.start("a");
    cluster.start("b");
    let hold = halts.hold_at(0, 20);
    cluster.submit(2);
    let held = hold.wait("some steps", DEADLINE);
    cluster.wait_for_step(20);
    let rank = cluster.rank_of("a");
    cluster.kill(daemon);
    cluster.sandbox.kill(rank, Signal::KILL);
    drop(held);
    cluster.start("a");
    cluster.finish();
    assert!(cluster.of_kind("generation").len() >= 2);
    assert_ne!(cluster.rank_of("a"), rank);
}

#[test]
fn ranks_without_a_daemon_end_after_a_while_and_the_job_goes_on_without_them() {
    let halts = Halts::new();
    let mut cluster = Cluster::new("300", &halts);
    let daemon = cluster.start("a");
    cluster.start("b");
    // Only in a world of two is there a rank 1, and the job does not end before the orphan.
    let hold = halts.hold(|point| point.rank == 1 && point.step >= 20 && point.place == "reduce");
    cluster.submit(1);
    let held = hold.wait("some steps of two", DEADLINE);
    cluster.wait_for_step(20);
    let rank = cluster.rank_of("a");
    cluster.kill(daemon);
    eventually(DEADLINE, "the end of the orphan", || {
        (!cluster.ranks().contains(&rank)).then_some(())
    });
    drop(held);
    cluster.finish();
    let last = cluster.of_kind("generation").pop().unwrap();
    assert_eq!(last["world_size"], 1, "{last:#}");
}

#[test]
fn a_second_daemon_is_refused_the_state_folder_of_the_first() {
    let mut cluster = Cluster::new("30000", &Halts::new());
    let first = cluster.start("a");
    eventually(DEADLINE, "the first", || {
        cluster.log("a").contains("worker runs").then_some(())
    });
    let second = cluster.start("a");
    let child = cluster
        .children
        .iter_mut()
        .find(|child| child.id() == second);
    assert_eq!(child.unwrap().wait().unwrap().code(), Some(2));
    let said = format!("in use by another worker (pid {first})");
    assert!(cluster.log("a").contains(&said), "{}", cluster.log("a"));
}
