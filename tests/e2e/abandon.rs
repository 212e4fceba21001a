//! `muster job abandon-state`: an operator knows that the last holders of a job's state will not come
//! back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use muster_tests::{Cluster, Signal, eventually};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const JOB: &str = "digits-mlp";

fn show(cluster: &Cluster) -> Value {
    cluster.json(&["show", JOB, "--json"])
}

fn rank_of(job: &Value, worker: &str) -> u32 {
    let mut ranks = job["ranks"].as_array().unwrap().iter();
    let rank = ranks.find(|rank| rank["worker"] == worker).unwrap();
    u32::try_from(rank["pid"].as_u64().unwrap()).unwrap()
}

#[test]
fn a_job_waits_for_its_last_holder_until_an_operator_gives_it_up() {
    // Nobody is missed that only stands still for a while.
    let patient = ["--detect-ms", "10000"];
    let mut cluster = Cluster::with(env!("CARGO_BIN_EXE_muster"), &patient);
    cluster.start_worker("a", 1);
    let daemon = cluster.start_worker("b", 1);
    let set = [
        "workers.min=1",
        "workers.max=2",
        "train.epochs=100000",
        "checkpoint.every_steps=20",
    ];
    cluster.submit("mlp.toml", &set);
    let job = eventually(DEADLINE, "a checkpoint of two ranks", || {
        let job = show(&cluster);
        let is_committed = !job["checkpoints"].as_array().unwrap().is_empty();
        (is_committed && job["world_size"] == 2).then_some(job)
    });
    let refused = cluster.run(&["job", "abandon-state", JOB]);
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr.contains("waits for no rank that is missed"),
        "{stderr}"
    );

    let (first, last) = (rank_of(&job, "a"), rank_of(&job, "b"));
    // The last holder may say what it has of their world: its daemon does not hear it.
    cluster.sandbox.kill(daemon, Signal::STOP);
    cluster.sandbox.kill(first, Signal::KILL);
    cluster.sandbox.kill(last, Signal::STOP);
    eventually(DEADLINE, "the wait for the last holder", || {
        let job = show(&cluster);
        let reason = job["reason"].as_str().unwrap();
        let nodes = cluster.text(&["nodes"]);
        (reason.contains("waits for what rank") && nodes.contains("silent for")).then_some(())
    });
    let reply = cluster.json(&["job", "abandon-state", JOB, "--json"]);
    let message = reply["message"].as_str().unwrap();
    assert!(message.contains("waits no longer"), "{message}");
    let job = eventually(DEADLINE, "steps from the checkpoint", || {
        let job = show(&cluster);
        let is_on = job["step"].as_u64() > reply["committed_step"].as_u64();
        (job["history"] == 2 && job["world_size"] == 1 && is_on).then_some(job)
    });
    let worlds = job["worlds"].as_array().unwrap();
    let reason = worlds.iter().find(|world| world["history"] == 2).unwrap()["reason"].clone();
    let reason = reason.as_str().unwrap();
    assert!(
        reason.contains("an operator said that the ranks which are missed will not"),
        "{reason}"
    );

    // The operator was wrong: what comes back is ended, and its worker serves the job anew.
    // The rank first: once its daemon goes on, that ends it.
    cluster.sandbox.kill(last, Signal::CONT);
    cluster.sandbox.kill(daemon, Signal::CONT);
    let job = eventually(DEADLINE, "two ranks", || {
        let job = show(&cluster);
        (job["world_size"] == 2).then_some(job)
    });
    assert_eq!(job["history"], 2);
    assert_ne!(rank_of(&job, "b"), last);
}
