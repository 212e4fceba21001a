//! Ranks that die at the same step again and again: the job stops, and says at which step and shards,
//! which samples those have, and what the last rank printed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use muster_tests::{Halts, Point, Sandbox, Signal};

const DEADLINE: Duration = Duration::from_secs(60);

#[test]
fn a_job_whose_ranks_die_at_one_step_stops_and_names_its_samples() {
    let is_it = |point: &Point| point.step == 1 && point.place == "reduce";
    let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
    let mut next = halts.hold(is_it);
    let train = sandbox.train("job.toml").workers(1).set("train.steps=100");
    let train = train.halted_by(&halts).start();
    for generation in 1..=5 {
        let held = next.wait("the second step", DEADLINE);
        assert_eq!(held.point.generation, generation);
        // Of a step that is not told, nobody knows that it was applied.
        let is_first = |event: &serde_json::Value| {
            event["event"] == "step" && event["generation"] == generation
        };
        assert_eq!(train.wait_for(is_first, DEADLINE)["step"], 1);
        next = halts.hold(is_it);
        sandbox.kill_held(held);
    }
    let finished = train.finish();
    assert_eq!(finished.state(), "failed");
    let reason = finished.end()["reason"].as_str().unwrap();
    for part in [
        "5 worlds in a row lost a rank that had shard 0..8 of step 1 to compute",
        "(shard 0 begins with rows ",
        "shard 3 begins with rows ",
        "rank 0 is gone: signal 9",
        "the last lines of its log: ",
        "ranks died that had this shard to compute",
    ] {
        assert!(reason.contains(part), "{part:?} is not in {reason:?}");
    }
}

/// Three ranks with 0..3, 3..6 and 6..8 of eight shards. What the first of the dead had to compute is
/// divided over the other two, so that the second death leaves only one shard to be suspected.
#[test]
fn a_shard_that_kills_whoever_computes_it_is_named_with_its_samples() {
    const STEP: u64 = 5;
    let is_it = |point: &Point| point.step == STEP && point.place == "compute 5";
    let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
    let train = sandbox.train("job.toml").workers(3).arg("--threads");
    let train = train.arg("1").halted_by(&halts).start();
    let mut next = halts.hold(is_it);
    let mut dead = Vec::new();
    for _ in 0..5 {
        let held = next.wait("whoever computes the shard", DEADLINE);
        if dead.is_empty() {
            // With all of theirs computed: what they lack would be divided, too.
            for rank in [0, 2] {
                halts.wait_for("the others", DEADLINE, |point| {
                    (point.rank, point.step) == (rank, STEP) && point.place == "reduce"
                });
            }
        }
        next = halts.hold(is_it);
        train.kill(held.point.pid, Signal::KILL);
        dead.push(held.point.clone());
    }
    let finished = train.finish();
    assert_eq!(finished.state(), "failed", "{dead:#?}");
    let reason = finished.end()["reason"].as_str().unwrap();
    for part in [
        "5 worlds in a row lost a rank that had shard 5 of step 5 to compute (shard 5 begins with rows ",
        &format!("rank {} is gone: signal 9", dead[4].rank),
        "the last lines of its log: ",
        "ranks died that had this shard to compute step=5 shard=5 rows=[",
    ] {
        assert!(reason.contains(part), "{part:?} is not in {reason:?}");
    }
    let rows = |behind: &str, before: &str| -> Vec<u32> {
        let (_, rest) = reason.split_once(behind).unwrap();
        let (rows, _) = rest.split_once(before).unwrap();
        rows.split(", ").map(|row| row.parse().unwrap()).collect()
    };
    let named = rows("begins with rows ", " of the data");
    assert_eq!(named, rows("rows=[", "]"), "{reason}");
    // The example has so many images, a fifth of which is not trained on.
    assert!(
        named.len() == 4 && named.iter().all(|row| *row < 1797),
        "{reason}"
    );
    let ranks: Vec<u64> = dead.iter().map(|point| point.rank).collect();
    assert_eq!(ranks[..2], [1, 0], "{dead:#?}");
    let mut processes: Vec<u64> = dead.iter().map(|point| point.process).collect();
    processes.sort_unstable();
    processes.dedup();
    assert_eq!(processes.len(), 5, "{dead:#?}");
}
