//! A job that is interrupted, changed, finished or damaged, and then run again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use muster_tests::{Finished, Halts, Sandbox, Signal, TrainCommand, eventually, processes_of};
use serde_json::Value;

const STEPS: u64 = 180;
const DEADLINE: Duration = Duration::from_secs(60);

fn job(sandbox: &Sandbox) -> TrainCommand<'_> {
    let steps = format!("train.steps={STEPS}");
    sandbox
        .train("job.toml")
        .set(&steps)
        .set("checkpoint.every_steps=25")
}

fn undisturbed() -> [String; 3] {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    job(&sandbox).workers(1).start().finish().bits()
}

/// Runs the job until Ctrl-C at a step.
fn interrupted(sandbox: &Sandbox, workers: u32, step: u64) -> Finished {
    let train = job(sandbox).workers(workers).start_and_interrupt(step);
    let finished = train.finish();
    assert_eq!(
        finished.status.code(),
        Some(130),
        "{:#?}\n{}",
        finished.events,
        finished.stderr
    );
    assert_eq!(finished.state(), "interrupted");
    assert_eq!(processes_of(sandbox), [], "nothing is left behind");
    finished
}

fn from_step(finished: &Finished) -> u64 {
    finished
        .of_kind("generation")
        .next()
        .and_then(|event| event["from_step"].as_u64())
        .unwrap()
}

/// A checkpoint of this step, or of one behind it, counts.
fn counts(step: u64) -> impl Fn(&Value) -> bool {
    move |event| event["event"] == "checkpoint" && event["step"].as_u64() >= Some(step)
}

/// The files in the only folder of checkpoints that the job has.
fn checkpoint_files(sandbox: &Sandbox) -> Vec<PathBuf> {
    let list = |folder: PathBuf| {
        let entries = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path());
        let mut paths: Vec<PathBuf> = entries.collect();
        paths.sort();
        paths
    };
    let folders = list(sandbox.state_dir().join("train/digits/checkpoints"));
    assert_eq!(folders.len(), 1, "{folders:#?}");
    list(folders[0].clone())
}

#[test]
fn an_interrupted_job_rests_behind_a_checkpoint_and_goes_on_with_other_workers() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let first = interrupted(&sandbox, 2, 60);
    let step = first.end()["step"].as_u64().unwrap();
    let checkpoints: Vec<_> = first
        .of_kind("checkpoint")
        .map(|event| event["step"].as_u64().unwrap())
        .collect();
    assert_eq!(
        checkpoints.last(),
        Some(&step),
        "the last step is in a checkpoint"
    );
    // Twice more, each with another number of workers.
    let second = interrupted(&sandbox, 3, step + 40);
    assert_eq!(from_step(&second), step, "no step is run again");
    let last = job(&sandbox).workers(1).start().finish();
    assert_eq!(last.status.code(), Some(0), "{}", last.stderr);
    assert_eq!(last.bits(), undisturbed());

    let again = job(&sandbox).workers(2).start().finish();
    assert_eq!(again.status.code(), Some(0), "{}", again.stderr);
    assert_eq!(
        again.of_kind("step").count(),
        0,
        "a finished job runs no step"
    );
    assert_eq!(again.bits(), last.bits());

    let fresh = job(&sandbox).workers(2).arg("--fresh").start().finish();
    assert_eq!(fresh.of_kind("step").count() as u64, STEPS);
    assert_eq!(fresh.bits(), last.bits());
}

#[test]
fn a_run_that_is_asked_twice_to_end_does_so_and_loses_no_committed_step() {
    let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
    let hold = halts.hold_at(0, 30);
    let train = job(&sandbox).workers(2).halted_by(&halts).start();
    let held = hold.wait("a step behind the first checkpoint", DEADLINE);
    train.wait_for(counts(25), DEADLINE);
    // While a rank stands, the job neither stops at a step nor completes.
    train.interrupt();
    train.kill(train.pid(), Signal::TERM);
    let finished = train.finish();
    drop(held);
    assert_eq!(finished.status.code(), Some(130), "{}", finished.stderr);
    eventually(DEADLINE, "the end of all processes", || {
        processes_of(&sandbox).is_empty().then_some(())
    });
    let last = job(&sandbox).workers(2).start().finish();
    assert!(from_step(&last) >= 25);
    assert_eq!(last.bits(), undisturbed());
}

/// The worker that is no more is given up without anybody's word: it ended with its tree.
#[test]
fn a_tree_that_was_killed_goes_on_with_fewer_workers() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let train = job(&sandbox).workers(3);
    drop(train.start_and_stand(0, 60, |train, _| {
        train.wait_for(counts(50), DEADLINE);
        sandbox.kill_all();
    }));
    let last = job(&sandbox).workers(2).start().finish();
    assert_eq!(last.status.code(), Some(0), "{}", last.stderr);
    assert_eq!(last.bits(), undisturbed());
    assert_eq!(from_step(&last), 50, "what was committed counts");
}

#[test]
fn another_job_of_the_same_name_is_refused_and_told_what_differs() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    interrupted(&sandbox, 1, 10);
    let other = job(&sandbox).set("train.seed=5").start().finish();
    assert_eq!(other.status.code(), Some(2), "{}", other.stderr);
    for word in ["train.seed", "--fresh"] {
        assert!(other.stderr.contains(word), "{}", other.stderr);
    }
}

#[test]
fn a_truncated_and_an_altered_checkpoint_are_told_and_the_one_before_is_used() {
    let expected = undisturbed();
    let truncate = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    };
    let alter = |path: &PathBuf| {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let remove = |path: &PathBuf| fs::remove_file(path).unwrap();
    let damages = [
        ("truncated", truncate as fn(&PathBuf)),
        ("altered", alter),
        ("gone", remove),
    ];
    for (what, damage) in damages {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let step = interrupted(&sandbox, 2, 60).end()["step"].as_u64().unwrap();
        let newest = checkpoint_files(&sandbox)
            .into_iter()
            .rfind(|path| path.display().to_string().contains("params"));
        let newest = newest.unwrap();
        damage(&newest);
        let finished = job(&sandbox).workers(2).start().finish();
        assert_eq!(
            finished.status.code(),
            Some(0),
            "{what}\n{:#?}\n{}",
            finished.events,
            finished.stderr
        );
        let damaged: Vec<_> = finished.of_kind("damaged").collect();
        assert_eq!(damaged.len(), 1, "{what}: {damaged:#?}");
        assert_eq!(damaged[0]["step"].as_u64(), Some(step), "{what}");
        let reason = damaged[0]["reason"].as_str().unwrap();
        assert!(
            reason.contains(newest.file_name().unwrap().to_str().unwrap()),
            "{what}: {reason}"
        );
        let worlds: Vec<_> = finished
            .of_kind("generation")
            .filter_map(|event| event["from_step"].as_u64())
            .collect();
        assert!(worlds[1] < step && worlds[1] > 0, "{what}: {worlds:?}");
        assert_eq!(finished.bits(), expected, "{what}");
    }
}

#[test]
fn only_so_many_checkpoints_are_kept() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let finished = job(&sandbox)
        .workers(2)
        .set("checkpoint.keep=2")
        .start()
        .finish();
    // There are eight, but for those that are left out where the coordinator is slow to answer: one
    // more than are kept may wait for it, and the last one is never left out.
    let num_checkpoints = finished.of_kind("checkpoint").count();
    assert!((4..=8).contains(&num_checkpoints), "{num_checkpoints}");
    let names: Vec<_> = checkpoint_files(&sandbox);
    assert_eq!(names.len(), 4, "{names:#?}");
}

#[test]
fn a_second_run_of_the_same_job_is_refused_while_the_first_runs() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let first = job(&sandbox).workers(1).start_and_stand(0, 1, |_, _| {
        let mut second = sandbox.muster();
        let second = second.args(["train", "job.toml"]).output().unwrap();
        let stderr = String::from_utf8_lossy(&second.stderr);
        assert_eq!(second.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("in use by another"), "{stderr}");
    });
    assert_eq!(first.finish().status.code(), Some(0));
}
