//! A sample whose gradient is not finite: the job stops and names it, or skips the steps that read
//! it, with the same bits on any number of workers and whoever is killed on the way.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;

use muster_tests::{Finished, Sandbox, TrainCommand, processes_of};
use serde_json::Value;

/// 240 rows, of which 192 are trained on: 6 steps an epoch.
const NUM_ROWS: u64 = 240;
const STEPS_PER_EPOCH: u64 = 6;

/// A row that is trained on. Its features are finite as `f32`, and their products with weights are not.
const BAD_ROW: u64 = 100;

/// A job over rows of eight numbers, one of which overflows in the model.
fn job(sandbox: &Sandbox, num_workers: u32, steps: u64) -> TrainCommand<'_> {
    let row = |row: u64| {
        let label = row * 7 % 4;
        let feature = |at: u64| (row * 31 + at * 17 + label * at * 5) % 16;
        let features = (0..8).map(|at| match row {
            BAD_ROW => "5.2e39".to_owned(),
            _ => feature(at).to_string(),
        });
        let features: Vec<String> = features.collect();
        format!("{},{label}\n", features.join(","))
    };
    let rows: String = (0..NUM_ROWS).map(row).collect();
    fs::write(sandbox.path().join("rows.csv"), rows).unwrap();
    sandbox
        .train("mlp.toml")
        .workers(num_workers)
        .set("data.source=rows.csv")
        .set("data.shape=[8]")
        .set("data.num_classes=4")
        .set("train.global_batch_size=32")
        .set("checkpoint.every_steps=25")
        .set(&format!("train.steps={steps}"))
}

/// Thirty epochs of a job that skips.
const STEPS: u64 = 30 * STEPS_PER_EPOCH;

fn skipping(sandbox: &Sandbox, num_workers: u32) -> TrainCommand<'_> {
    job(sandbox, num_workers, STEPS).set("train.not_finite=skip")
}

/// The numbers of the steps that made no update, each with its reason.
fn skipped(finished: &Finished) -> Vec<(u64, String)> {
    let skipped = finished.of_kind("step").filter_map(|step| {
        let why = step["skipped"].as_str()?;
        Some((step["step"].as_u64()?, why.to_owned()))
    });
    skipped.collect()
}

#[test]
fn a_job_stops_at_a_gradient_that_is_not_finite_and_names_step_shard_and_samples() {
    let mut reasons = Vec::new();
    for num_workers in [1, 3] {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let finished = job(&sandbox, num_workers, 60).start().finish();
        let (events, stderr) = (&finished.events, &finished.stderr);
        assert_eq!(finished.status.code(), Some(1), "{events:#?}\n{stderr}");
        assert_eq!(finished.state(), "failed");
        assert_eq!(processes_of(&sandbox), [], "nothing is left behind");
        assert_eq!(skipped(&finished), []);
        let num_steps = finished.of_kind("step").count() as u64;
        assert!(num_steps < STEPS_PER_EPOCH, "the first epoch has it");
        let reason = finished.end()["reason"].as_str().unwrap();
        let (_, reason) = reason.split_once(": ").unwrap();
        let was = format!("step {num_steps} was not applied: the gradient of shard ");
        assert!(reason.starts_with(&was), "{reason}");
        assert!(reason.contains("is not finite (NaN in "), "{reason}");
        let (_, rows) = reason.split_once("its samples are rows ").unwrap();
        let (rows, _) = rows.split_once(" of the data").unwrap();
        assert!(
            rows.split(", ").any(|row| row == BAD_ROW.to_string()),
            "{rows}"
        );
        reasons.push(reason.to_owned());
    }
    assert_eq!(reasons[0], reasons[1]);
}

#[test]
fn a_job_that_skips_ends_in_the_same_bits_whatever_its_workers_and_whoever_is_killed() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let one = skipping(&sandbox, 1).start().finish();
    one.check_completed(&sandbox, "one worker");
    let bad_steps = skipped(&one);
    assert_eq!(bad_steps.len(), 30, "one in each epoch: {bad_steps:#?}");
    assert_eq!(one.end()["steps_skipped"], 30);
    let is_whole = |step: &Value| step["skipped"].is_null() && step["grad_norm"].is_number();
    let num_whole = one.of_kind("step").filter(|step| is_whole(step)).count();
    assert_eq!(num_whole as u64, STEPS - 30);

    for (num_workers, redundancy) in [(2, "full"), (3, "full"), (3, "shadow"), (2, "none")] {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let train = skipping(&sandbox, num_workers);
        let train = train.set(&format!("workers.redundancy={redundancy}"));
        let finished = train.start().finish();
        let what = format!("{num_workers} workers, {redundancy}");
        finished.check_completed(&sandbox, &what);
        assert_eq!(finished.bits(), one.bits(), "{what}");
        assert_eq!(skipped(&finished), bad_steps, "{what}");
    }

    // The bad step is computed, and nobody has heard of it yet.
    for (number, (bad, _)) in bad_steps.iter().enumerate().skip(2).step_by(4) {
        let redundancy = ["full", "shadow"][number / 8 % 2];
        let rank = [0, 1][number / 4 % 2];
        let what = format!("rank {rank} is killed before step {bad}, {redundancy}");
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let train = skipping(&sandbox, 2).set(&format!("workers.redundancy={redundancy}"));
        let finished = train.start_and_kill(rank, bad - 1).finish();
        finished.check_completed(&sandbox, &what);
        assert_eq!(finished.bits(), one.bits(), "{what}");
        assert_eq!(skipped(&finished), bad_steps, "{what}");
        assert_eq!(finished.end()["steps_skipped"], 30, "{what}");
        assert!(finished.of_kind("lost").count() > 0, "{what}");
    }
}

#[test]
fn a_job_that_skips_is_another_job_than_one_that_stops() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let finished = job(&sandbox, 1, 60).start().finish();
    assert_eq!(finished.state(), "failed");
    let again = job(&sandbox, 1, 60).set("train.not_finite=stop").start();
    assert_eq!(again.finish().state(), "failed", "the default is no change");
    let other = job(&sandbox, 1, 60).set("train.not_finite=skip").start();
    let refused = other.finish();
    assert_eq!(refused.status.code(), Some(2), "{}", refused.stderr);
    let words = "train.not_finite was not set and is skip now";
    assert!(refused.stderr.contains(words), "{}", refused.stderr);
    let fresh = job(&sandbox, 1, 60).set("train.not_finite=skip");
    let finished = fresh.arg("--fresh").start().finish();
    finished.check_completed(&sandbox, "another job");
    assert_eq!(skipped(&finished).len(), 10);
}
