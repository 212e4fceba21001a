//! Where the time of a job's ranks went: every rank-second is told, also behind a death, and by a
//! coordinator that was started again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use muster_tests::{Cluster, Halts};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const JOB: &str = "digits-mlp";
const PARTS: [&str; 6] = [
    "useful_s",
    "healing_s",
    "waiting_for_world_s",
    "waiting_for_checkpoint_s",
    "data_s",
    "queued_s",
];

fn show(cluster: &Cluster) -> Value {
    cluster.json(&["show", JOB, "--json"])
}

/// From the making of each world to that of the next, times its ranks; and what came before.
fn rank_seconds(events: &[Value]) -> f64 {
    let time = |event: &Value| event["time"].as_f64().unwrap();
    let size = |event: &Value| event["world_size"].as_f64().unwrap();
    let worlds: Vec<&Value> = events
        .iter()
        .filter(|event| event["event"] == "generation")
        .collect();
    let until = worlds.iter().skip(1).copied().chain(events.last());
    let queued = size(worlds[0]) * (time(worlds[0]) - time(&events[0]));
    let spans = worlds.iter().zip(until);
    queued
        + spans
            .map(|(world, next)| size(world) * (time(next) - time(world)))
            .sum::<f64>()
}

fn parts(time: &Value) -> f64 {
    PARTS.iter().map(|part| time[part].as_f64().unwrap()).sum()
}

/// The same but for the digits that a time loses as JSON.
#[track_caller]
fn assert_same(one: &Value, other: &Value) {
    for part in PARTS {
        let (one, other) = (one[part].as_f64().unwrap(), other[part].as_f64().unwrap());
        assert!((one - other).abs() < 1e-4, "{part}: {one} {other}");
    }
}

#[test]
fn every_second_of_every_rank_is_told_also_behind_a_death() {
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_muster"));
    let halts = Halts::new();
    cluster.halted_by(&halts);
    let hold = halts.hold_at(1, 100);
    let set = ["workers.min=1", "workers.max=2", "train.epochs=60"];
    // It waits for its worker for some time.
    cluster.submit("mlp.toml", &set);
    cluster.start_worker("a", 2);
    cluster.sandbox.kill_held(hold.wait("steps", DEADLINE));
    let live = show(&cluster);
    assert!(parts(&live["rank_time"]) > 0.0, "{live:#}");
    assert!(cluster.text(&["wait", JOB]).contains("completed"));

    let text = cluster.text(&["logs", JOB, "--events"]);
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let time = &events.last().unwrap()["rank_time"];
    let (told, expected) = (parts(time), rank_seconds(&events));
    // Ranks and leader stamp their events in different processes of one machine.
    assert!(
        (told - expected).abs() < 0.01 * expected,
        "{expected} rank-seconds: {time:#}"
    );
    assert!(
        PARTS.iter().all(|part| time[part].as_f64() >= Some(0.0)),
        "{time:#}"
    );
    for part in [
        "useful_s",
        "healing_s",
        "waiting_for_world_s",
        "queued_s",
        "data_s",
    ] {
        assert!(time[part].as_f64() > Some(0.0), "{part}: {time:#}");
    }
    let goodput = events.last().unwrap()["goodput"].as_f64().unwrap();
    assert!((goodput - time["useful_s"].as_f64().unwrap() / told).abs() < 1e-9);

    let before = show(&cluster);
    assert_same(&before["rank_time"], time);
    cluster.kill_coordinator();
    cluster.start_coordinator();
    assert_same(&show(&cluster)["rank_time"], time);
    let shown = cluster.text(&["show", JOB]);
    assert!(
        shown.contains("rank time ") && shown.contains("healing"),
        "{shown}"
    );
}
