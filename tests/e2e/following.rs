//! Processes that wait follow the steps: a spare takes a dead rank's place in one world, and a worker
//! that joins enters behind a step; neither changes a bit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use muster_tests::{Cluster, Halts, Sandbox, Signal, eventually};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const JOB: &str = "digits-mlp";
const SET: [&str; 3] = [
    "train.steps=1500",
    "train.evaluate_every_steps=500",
    "checkpoint.every_steps=500",
];

fn show(cluster: &Cluster) -> Value {
    cluster.json(&["show", JOB, "--json"])
}

/// The job on these workers, all of which are there before it.
fn running(workers: &[&str], max: u32, spares: u32, halts: &Halts) -> Cluster {
    // Nobody is missed that stands still for a while: that would be one more world.
    let patient = ["--detect-ms", "10000"];
    let mut cluster = Cluster::with(env!("CARGO_BIN_EXE_muster"), &patient);
    cluster.halted_by(halts);
    for worker in workers {
        cluster.start_worker(worker, 1);
    }
    cluster.wait_for_workers(workers.len());
    let (max, spares) = (
        format!("workers.max={max}"),
        format!("workers.spares={spares}"),
    );
    let set = [&SET[..], &["workers.min=1", &max, &spares]].concat();
    cluster.submit("mlp.toml", &set);
    cluster
}

/// The bits of a run that nobody disturbs.
fn undisturbed() -> [String; 3] {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let mut train = sandbox.train("mlp.toml").workers(1);
    for one in SET {
        train = train.set(one);
    }
    train.start().finish().bits()
}

/// The bits in which the job ends.
fn bits(cluster: &Cluster) -> [String; 3] {
    let end = cluster.text(&["wait", JOB]);
    assert!(end.contains("completed"), "{end}");
    let events = cluster.text(&["logs", JOB, "--events"]);
    let last: Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    ["arena_hash", "optimizer_hash", "trace"].map(|name| last[name].as_str().unwrap().to_owned())
}

/// The job, once a process of it waits and follows, and reaches every rank.
fn with_a_follower(cluster: &Cluster) -> Option<Value> {
    let job = show(cluster);
    let mut standbys = job["standbys"].as_array().unwrap().iter();
    let follows = |standby: &Value| standby["state"] == "follows" && standby["reason"] == "";
    standbys.any(follows).then_some(job)
}

fn workers_of(job: &Value) -> Vec<&str> {
    let ranks = job["ranks"].as_array().unwrap().iter();
    ranks.map(|rank| rank["worker"].as_str().unwrap()).collect()
}

#[test]
fn a_death_and_its_replacement_by_a_spare_are_one_world() {
    let halts = Halts::new();
    let cluster = running(&["a", "b", "c"], 2, 1, &halts);
    let job = halts.slowly("a process to follow", DEADLINE, || {
        let job = with_a_follower(&cluster)?;
        assert!(cluster.text(&["show", JOB]).contains("follows"));
        // The job stands at a step meanwhile.
        let pid = job["ranks"][0]["pid"].as_u64().unwrap();
        let pid = u32::try_from(pid).unwrap();
        cluster.sandbox.kill(pid, Signal::KILL);
        Some(job)
    });
    assert_eq!(job["generation"], 1, "{job:#}");
    let spare = &job["standbys"][0];
    let (ranks, waits) = (workers_of(&job), spare["worker"].as_str().unwrap());
    assert_eq!(ranks.len(), 2, "{job:#}");
    assert_eq!(spare["reason"], "", "it reaches every rank");
    let job = eventually(DEADLINE, "another world", || {
        let job = show(&cluster);
        (job["generation"] != 1).then_some(job)
    });
    // The dead rank's worker may start the next spare, and that one may enter no world that has room.
    let second = job["worlds"][1].clone();
    assert_eq!(second["world_size"], 2, "{job:#}");
    let reason = second["reason"].as_str().unwrap();
    assert!(
        reason.contains("signal 9") && reason.contains(&format!("{waits} enters")),
        "{reason}"
    );
    assert_eq!(bits(&cluster), undisturbed());
    let job = show(&cluster);
    assert_eq!(job["history"], 1, "{job:#}");
    assert_eq!(job["worlds"].as_array().unwrap().len(), 2, "{job:#}");
}

#[test]
fn a_worker_that_joins_in_the_middle_of_an_epoch_enters_behind_a_step() {
    let halts = Halts::new();
    let hold = halts.hold_at(0, 30);
    let mut cluster = running(&["a"], 3, 0, &halts);
    let mut held = Some(hold.wait("some steps", DEADLINE));
    cluster.start_worker("b", 2);
    let job = halts.slowly("three ranks", DEADLINE, || {
        // From the first look on it is held up at each step.
        drop(held.take());
        let job = show(&cluster);
        (job["world_size"] == 3).then_some(job)
    });
    let worlds = job["worlds"].as_array().unwrap().clone();
    for world in &worlds[1..] {
        let reason = world["reason"].as_str().unwrap();
        assert!(reason.contains("a rank on b enters"), "{reason}");
        assert!(world["first_step"].as_u64() > Some(20), "{job:#}");
    }
    assert_eq!(bits(&cluster), undisturbed());
    assert_eq!(show(&cluster)["history"], 1);
}
