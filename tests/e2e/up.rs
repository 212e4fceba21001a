//! Several coordinators on this machine, in one process tree: `muster train --coordinators 3` whose
//! leader dies again and again, and `muster up`, which stays and comes back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Output, Stdio};
use std::time::Duration;

use muster_tests::{Halts, Sandbox, Signal, eventually, leader_of, processes_of, status_of};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(90);

/// How often the leader dies.
const NUM_KILLS: u64 = 3;

const STEPS: u64 = 400;

fn steps() -> String {
    format!("train.steps={STEPS}")
}

fn undisturbed() -> [String; 3] {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let train = sandbox.train("job.toml").workers(1).set(&steps());
    train.start().finish().bits()
}

/// Where the coordinators of a tree are, as its workers are told.
fn addresses_of(sandbox: &Sandbox) -> String {
    eventually(DEADLINE, "a worker", || {
        let mut processes = processes_of(sandbox).into_iter();
        let (_, line) = processes.find(|(_, line)| line.contains(" worker "))?;
        let (_, behind) = line.split_once("--join ")?;
        behind.split(' ').next().map(str::to_owned)
    })
}

#[test]
fn a_run_whose_leader_is_killed_again_and_again_is_one_world_with_the_same_bits() {
    let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
    // It does not end before all have died, however long that takes.
    let last = halts.hold_at(0, STEPS - 10);
    let train = sandbox.train("job.toml").workers(2).set(&steps());
    let train = train.arg("--coordinators").arg("3");
    let train = train.halted_by(&halts).start();
    train.wait_for_step(10, DEADLINE);
    let addresses = addresses_of(&sandbox);
    assert_eq!(addresses.split(',').count(), 3, "{addresses}");
    let mut killed = Vec::new();
    for number in 1..=NUM_KILLS {
        let (id, pid) = eventually(DEADLINE, "a leader", || {
            let status = status_of(&mut sandbox.muster(), &addresses)?;
            let leader = leader_of(&status)?;
            Some((leader["id"].as_u64()?, leader["pid"].as_u64()?))
        });
        killed.push(id);
        train.kill(u32::try_from(pid).unwrap(), Signal::KILL);
        // Steps are told that were made behind the death.
        train.wait_for_step(number * STEPS / 5, DEADLINE);
    }
    assert!(
        train
            .events()
            .iter()
            .all(|event| event["event"] != "finished"),
        "all of them died while it ran"
    );
    drop(last);
    let finished = train.finish();
    assert_eq!(finished.status.code(), Some(0), "{}", finished.stderr);
    assert_eq!(finished.state(), "completed");
    let worlds: Vec<&Value> = finished.of_kind("generation").collect();
    assert_eq!(worlds.len(), 1, "killed {killed:?}: {worlds:#?}");
    assert_eq!(finished.steps(), (1..=STEPS).collect::<Vec<_>>());
    assert_eq!(finished.bits(), undisturbed(), "killed {killed:?}");
    assert_eq!(processes_of(&sandbox), [], "nothing is left behind");
}

/// A `muster up --json` that runs.
struct Up<'a> {
    sandbox: &'a Sandbox,
    child: Child,
    ready: Value,
    addresses: String,
}

impl<'a> Up<'a> {
    fn start(sandbox: &'a Sandbox, arguments: &[&str]) -> Self {
        let log = std::fs::File::create(sandbox.path().join("up.log")).unwrap();
        let mut command = sandbox.muster();
        command
            .args(["up", "--json", "--workers", "2", "--port", "0"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|error| {
            let log = std::fs::read_to_string(sandbox.path().join("up.log")).unwrap();
            panic!("{line:?}: {error}\n{log}")
        });
        let coordinators = ready["coordinators"].as_array().unwrap().iter();
        let addresses: Vec<&str> = coordinators
            .map(|member| member["addr"].as_str().unwrap())
            .collect();
        let addresses = addresses.join(",");
        Self {
            sandbox,
            child,
            ready,
            addresses,
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.sandbox.muster();
        command.args(arguments);
        let output = command.args(["--coordinator", &self.addresses]);
        output.output().unwrap()
    }

    #[track_caller]
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn show(&self, job: &str) -> Value {
        serde_json::from_str(&self.text(&["show", job, "--json"])).unwrap()
    }

    /// What Ctrl-C does.
    #[track_caller]
    fn interrupt(mut self) {
        self.sandbox.kill(self.child.id(), Signal::INT);
        let status = eventually(DEADLINE, "the end of the command", || {
            self.child.try_wait().unwrap()
        });
        let log = std::fs::read_to_string(self.sandbox.path().join("up.log")).unwrap();
        assert_eq!(status.code(), Some(0), "{log}");
        assert_eq!(processes_of(self.sandbox), [], "nothing is left behind");
    }
}

impl Drop for Up<'_> {
    fn drop(&mut self) {
        // It may have ended already; its children end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_cluster_on_this_machine_says_what_it_is_and_comes_back_with_its_jobs_at_other_ports() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let up = Up::start(&sandbox, &["--coordinators", "3"]);
    let ready = &up.ready;
    assert_eq!(ready["event"], "ready", "{ready:#}");
    let is_process = |one: &Value| {
        let pid = one["pid"].as_u64().unwrap();
        let mut processes = processes_of(&sandbox).into_iter();
        processes.any(|(known, _)| u64::from(known) == pid)
    };
    let coordinators = ready["coordinators"].as_array().unwrap();
    let ids: Vec<&Value> = coordinators.iter().map(|member| &member["id"]).collect();
    assert_eq!(ids, [1, 2, 3]);
    let workers = ready["workers"].as_array().unwrap();
    let names: Vec<&Value> = workers.iter().map(|worker| &worker["name"]).collect();
    assert_eq!(names, ["worker-0", "worker-1"]);
    assert!(
        coordinators.iter().chain(workers).all(is_process),
        "{ready:#}"
    );

    let small = ["--set", "train.epochs=2"];
    let _ = up.text(&[&["submit", "mlp.toml"], &small[..]].concat());
    assert!(up.text(&["wait", "digits-mlp"]).contains("completed"));
    let done = up.show("digits-mlp");
    let long = [
        "--set",
        &steps(),
        "--set",
        "checkpoint.every_steps=50",
        "--set",
        "workers.max=2",
    ];
    let _ = up.text(&[&["submit", "job.toml"], &long[..]].concat());
    eventually(DEADLINE, "a checkpoint", || {
        let job = up.show("digits");
        (!job["checkpoints"].as_array()?.is_empty()).then_some(())
    });
    let before = up.addresses.clone();
    up.interrupt();

    // As many as before, which is not said again.
    let up = Up::start(&sandbox, &[]);
    assert_eq!(up.ready["coordinators"].as_array().unwrap().len(), 3);
    let known: Vec<&str> = before.split(',').collect();
    let is_new = |address: &str| !known.contains(&address);
    assert!(
        up.addresses.split(',').any(is_new),
        "{before} {}",
        up.addresses
    );
    let again = up.show("digits-mlp");
    assert_eq!(again, done, "it is as it was");
    assert!(up.text(&["wait", "digits"]).contains("completed"));
    let events = up.text(&["logs", "digits", "--events"]);
    let end: Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    let bits = ["arena_hash", "optimizer_hash", "trace"].map(|name| end[name].as_str().unwrap());
    assert_eq!(bits, undisturbed().each_ref().map(String::as_str));
    // Where the members are now the group knows itself.
    let status = status_of(&mut sandbox.muster(), &up.addresses).unwrap();
    let members = status["members"].as_array().unwrap().iter();
    let addresses: Vec<&str> = members
        .map(|one| one["address"].as_str().unwrap())
        .collect();
    assert_eq!(addresses.join(","), up.addresses);
    up.interrupt();
}

#[test]
fn another_number_of_coordinators_than_before_is_refused_and_a_second_one_too() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let up = Up::start(&sandbox, &["--coordinators", "3"]);
    let refused = |arguments: &[&str]| {
        let output = sandbox.muster().arg("up").args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        stderr
    };
    let second = refused(&[]);
    assert!(second.contains("in use by another command"), "{second}");
    up.interrupt();
    for number in ["1", "5"] {
        let other = refused(&["--coordinators", number]);
        assert!(other.contains("say --coordinators 3"), "{other}");
    }
    let even = refused(&["--coordinators", "2"]);
    assert!(even.contains("1, 3 or 5"), "{even}");
    assert_eq!(processes_of(&sandbox), []);
}
