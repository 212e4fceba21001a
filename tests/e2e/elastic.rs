//! `muster scale` and `muster drain` on a job that runs: ranks enter and leave at step boundaries,
//! in the same history.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use muster_tests::{Cluster, eventually};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const JOB: &str = "digits-mlp";

fn show(cluster: &Cluster) -> Value {
    cluster.json(&["show", JOB, "--json"])
}

fn workers_of(job: &Value) -> Vec<String> {
    let ranks = job["ranks"].as_array().unwrap().iter();
    ranks
        .map(|rank| rank["worker"].as_str().unwrap().to_owned())
        .collect()
}

/// A job that runs on two workers for longer than any test here, at a step of its own.
fn running() -> Cluster {
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_muster"));
    cluster.start_worker("a", 1);
    cluster.start_worker("b", 1);
    let set = ["workers.min=1", "workers.max=2", "train.epochs=100000"];
    cluster.submit("mlp.toml", &set);
    eventually(DEADLINE, "steps of two ranks", || {
        let job = show(&cluster);
        (job["step"].as_u64() > Some(5) && job["world_size"] == 2).then_some(())
    });
    cluster
}

#[test]
fn a_job_is_scaled_down_and_up_while_it_runs() {
    let cluster = running();
    let reply = cluster.json(&["scale", JOB, "1", "--json"]);
    assert_eq!(reply["workers"]["max"], 1);
    let message = reply["message"].as_str().unwrap();
    assert!(message.contains("goes on with 1"), "{message}");
    eventually(DEADLINE, "one rank", || {
        (show(&cluster)["world_size"] == 1).then_some(())
    });
    let ps = cluster.text(&["ps"]);
    assert!(ps.contains("1 of 1"), "{ps}");
    let text = cluster.text(&["scale", JOB, "2"]);
    assert!(text.contains("takes in 1 more"), "{text}");
    let job = eventually(DEADLINE, "two ranks", || {
        let job = show(&cluster);
        (job["world_size"] == 2).then_some(job)
    });
    assert_eq!(job["history"], 1, "nothing fell back: {job:#}");

    let refused = cluster.run(&["scale", JOB, "9"]);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr.contains("expected 1 to 8"), "{stderr}");
    let unknown = cluster.run(&["scale", "nobody", "2"]);
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn a_drained_node_is_free_and_may_be_given_back() {
    let cluster = running();
    let text = cluster.text(&["drain", "b", "--wait"]);
    assert!(
        text.contains("goes on without its 1 rank there") && text.ends_with("worker b is free\n"),
        "{text}"
    );
    let job = show(&cluster);
    assert_eq!(workers_of(&job), ["a"]);
    assert_eq!(job["history"], 1, "nothing fell back: {job:#}");
    let nodes = cluster.text(&["nodes"]);
    assert!(nodes.contains("connected, drained"), "{nodes}");
    // The last rank has nowhere to go, and stays.
    let text = cluster.text(&["drain", "a"]);
    assert!(text.contains("until other workers have room"), "{text}");
    let reply = cluster.json(&["drain", "b", "--undo", "--json"]);
    assert_eq!(reply["draining"], false);
    eventually(DEADLINE, "the rank to move to b", || {
        (workers_of(&show(&cluster)) == ["b"]).then_some(())
    });
    let unknown = cluster.run(&["drain", "nobody"]);
    let stderr = String::from_utf8(unknown.stderr).unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    assert!(stderr.contains("no worker is named nobody"), "{stderr}");
}

#[test]
fn a_drain_that_waits_says_what_for() {
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_muster"));
    cluster.start_worker("a", 1);
    let set = ["workers.min=1", "workers.max=1", "train.epochs=100000"];
    cluster.submit("mlp.toml", &set);
    eventually(DEADLINE, "steps", || {
        (show(&cluster)["step"].as_u64() > Some(5)).then_some(())
    });
    let mut command = cluster.sandbox.muster();
    command.args(["drain", "a", "--wait", "--coordinator", &cluster.address]);
    let number = cluster.children.len();
    cluster.spawn("drain", &mut command);
    eventually(DEADLINE, "the reason of the wait", || {
        let log = std::fs::read_to_string(cluster.log_of("drain")).unwrap();
        let says = "still waits: worker a gets no more ranks; job digits-mlp needs at least 1 rank";
        (log.contains(says) && log.contains("until other workers have room")).then_some(())
    });
    cluster.start_worker("b", 1);
    let status = cluster.children[number].wait().unwrap();
    assert!(status.success(), "{status:?}");
    assert_eq!(workers_of(&show(&cluster)), ["b"]);
}
