//! `muster ledger --verify` proves what a disturbed run did, and names what was tampered with.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::time::Duration;

use muster_tests::{Cluster, Halts, eventually};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const JOB: &str = "digits-mlp";

/// A job on two ranks of one worker.
fn submitted(epochs: &str, halts: Option<&Halts>) -> Cluster {
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_muster"));
    let variable = halts.map(Halts::variable);
    let variable = variable.map(|(name, value)| (name.to_owned(), value));
    cluster.environment.extend(variable);
    cluster.start_worker("a", 2);
    let set = [
        "workers.min=1",
        "workers.max=2",
        "checkpoint.every_steps=100",
        epochs,
    ];
    cluster.submit("mlp.toml", &set);
    cluster
}

/// A job that ran to its end although a rank of it was killed.
fn disturbed() -> Cluster {
    let halts = Halts::new();
    let hold = halts.hold_at(1, 20);
    let cluster = submitted("train.epochs=20", Some(&halts));
    cluster.sandbox.kill_held(hold.wait("some steps", DEADLINE));
    assert!(cluster.text(&["wait", JOB]).contains("completed"));
    cluster
}

fn fails_with(cluster: &Cluster, expected: &str) {
    let output = cluster.run(&["ledger", JOB, "--verify"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(expected), "{expected:?} in {stderr}");
}

#[test]
fn a_disturbed_run_is_proved_and_what_is_tampered_with_is_named() {
    let cluster = disturbed();
    let text = cluster.text(&["ledger", JOB, "--verify"]);
    assert!(
        text.contains("verified up to step 450")
            && text.contains("each of 1438 exactly once in each of 20 epochs"),
        "{text}"
    );
    let lines = cluster.text(&["ledger", JOB, "--verify", "--json"]);
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (proof, worlds) = lines.split_last().unwrap();
    assert_eq!(
        (&proof["verified"], &proof["step"]),
        (&true.into(), &450.into())
    );
    // What counts of the worlds is every step once.
    assert!(worlds.len() >= 2, "{worlds:#?}");
    let mut next = 0;
    for world in worlds
        .iter()
        .filter(|world| world["steps"][0] != world["steps"][1])
    {
        assert_eq!(world["steps"][0], next, "{worlds:#?}");
        next = world["steps"][1].as_u64().unwrap();
    }
    assert_eq!(next, 450, "{worlds:#?}");

    // A byte in the middle of a checkpoint file.
    let job = cluster.json(&["show", JOB, "--json"]);
    let newest = job["checkpoints"].as_array().unwrap().last().unwrap();
    let file = newest["files"][0]["name"].as_str().unwrap();
    let path = PathBuf::from(newest["folder"].as_str().unwrap()).join(file);
    let sound = std::fs::read(&path).unwrap();
    let mut bytes = sound.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    fails_with(&cluster, file);
    std::fs::remove_file(&path).unwrap();
    fails_with(&cluster, file);
    std::fs::write(&path, &sound).unwrap();
    assert!(
        cluster
            .text(&["ledger", JOB, "--verify"])
            .contains("verified up to")
    );

    // A byte of the data.
    let data = cluster.sandbox.path().join("digits.csv.gz");
    let mut bytes = std::fs::read(&data).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&data, &bytes).unwrap();
    fails_with(&cluster, "digits.csv.gz has BLAKE3");
}

/// The files of events follow from the log: what somebody changes in one does not stay.
#[test]
fn an_event_that_was_changed_in_its_file_is_put_right_from_the_log() {
    let mut cluster = disturbed();
    let _ = cluster.text(&["ledger", JOB, "--verify"]);
    cluster.kill_coordinator();
    let path = cluster.data().join("events").join(format!("{JOB}.jsonl"));
    let events = std::fs::read_to_string(&path).unwrap();
    let tampered = events.lines().map(|line| {
        let mut event: Value = serde_json::from_str(line).unwrap();
        if event["generation"] == 2 && event["event"] == "generation" {
            event["ledger_hash"] = "0".repeat(64).into();
        }
        event.to_string() + "\n"
    });
    std::fs::write(&path, tampered.collect::<String>()).unwrap();
    cluster.start_coordinator();
    let _ = cluster.text(&["ledger", JOB, "--verify"]);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), events);
}

#[test]
fn chaos_strikes_as_often_as_it_was_told_and_the_run_is_proved() {
    let cluster = submitted("train.epochs=100000", None);
    let arguments = [
        "--kill-every",
        "300ms",
        "--kills",
        "4",
        "--for",
        "60s",
        "--json",
    ];
    let lines = cluster.text(&[&["chaos", JOB], &arguments[..]].concat());
    let acts: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (end, acts) = acts.split_last().unwrap();
    assert_eq!(
        (&end["event"], &end["acts"]),
        (&"ended".into(), &4.into()),
        "{lines}"
    );
    assert!(acts.iter().all(|act| act["what"] == "rank"), "{lines}");
    assert_eq!(acts.len(), 4, "{lines}");
    let struck = cluster.json(&["show", JOB, "--json"])["generation"].as_u64();
    assert!(struck > Some(1), "{struck:?}");
    let then = cluster.json(&["show", JOB, "--json"])["step"].as_u64();
    eventually(DEADLINE, "more steps", || {
        let job = cluster.json(&["show", JOB, "--json"]);
        (job["step"].as_u64() > then).then_some(())
    });
    let _ = cluster.text(&["cancel", JOB]);
    assert_eq!(cluster.run(&["wait", JOB]).status.code(), Some(1));
    let text = cluster.text(&["ledger", JOB, "--verify"]);
    assert!(text.contains("verified up to step"), "{text}");
    let over = cluster.run(&["chaos", JOB, "--kill-every", "1s"]);
    assert_eq!(over.status.code(), Some(2));
}
