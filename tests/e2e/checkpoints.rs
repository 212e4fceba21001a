//! Checkpoints that cannot be read or written: what is damaged is dropped, unless it is all there is;
//! what is only out of reach is not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use muster_tests::{Finished, Sandbox, TrainCommand, processes_of};

const STEPS: u64 = 180;
const EVERY: u64 = 25;
const DEADLINE: Duration = Duration::from_secs(60);

fn job(sandbox: &Sandbox, keep: u32) -> TrainCommand<'_> {
    let train = sandbox.train("job.toml").workers(2);
    train
        .set(&format!("train.steps={STEPS}"))
        .set(&format!("checkpoint.every_steps={EVERY}"))
        .set(&format!("checkpoint.keep={keep}"))
}

fn undisturbed() -> &'static [String; 3] {
    static BITS: OnceLock<[String; 3]> = OnceLock::new();
    BITS.get_or_init(|| {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        job(&sandbox, 3).start().finish().bits()
    })
}

fn check_is_completed(finished: &Finished) {
    let said = || format!("{:#?}\n{}", finished.events, finished.stderr);
    assert_eq!(finished.status.code(), Some(0), "{}", said());
    assert_eq!(&finished.bits(), undisturbed(), "{}", said());
}

/// Checks that the job failed, with all of this in the reason.
fn check_has_failed(finished: &Finished, words: &[&str]) {
    let said = || format!("{:#?}\n{}", finished.events, finished.stderr);
    assert_eq!(finished.status.code(), Some(1), "{}", said());
    assert_eq!(finished.state(), "failed", "{}", said());
    let reason = finished.end()["reason"].as_str().unwrap();
    for word in words {
        assert!(reason.contains(word), "no {word:?} in {reason:?}");
    }
}

fn from_steps(finished: &Finished) -> Vec<u64> {
    let worlds = finished.of_kind("generation");
    worlds
        .filter_map(|event| event["from_step"].as_u64())
        .collect()
}

/// Runs the job until Ctrl-C behind its second checkpoint; the step at which it rests.
fn interrupted(sandbox: &Sandbox, keep: u32) -> u64 {
    let train = job(sandbox, keep).start();
    train.wait_for_step(2 * EVERY + 5, DEADLINE);
    train.interrupt();
    let finished = train.finish();
    assert_eq!(finished.state(), "interrupted", "{}", finished.stderr);
    finished.end()["step"].as_u64().unwrap()
}

/// The only folder of checkpoints that the job has.
fn folder(sandbox: &Sandbox) -> PathBuf {
    let folders = sandbox.state_dir().join("train/digits/checkpoints");
    let mut folders = fs::read_dir(folders).unwrap();
    let folder = folders.next().unwrap().unwrap().path();
    assert!(folders.next().is_none());
    folder
}

/// The parameters in the newest checkpoint.
fn newest(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder).unwrap();
    let paths = files.map(|entry| entry.unwrap().path());
    let is_params = |path: &PathBuf| path.display().to_string().contains("-params-");
    paths.filter(is_params).max().unwrap()
}

fn alter(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_checkpoint_out_of_reach_is_tried_again_and_given_up_by_nobody() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let step = interrupted(&sandbox, 3);
    let folder = folder(&sandbox);
    let (file, aside) = (newest(&folder), sandbox.path().join("aside"));
    let name = format!("step-{step:08}-");
    let fails = |why: &str| {
        let finished = job(&sandbox, 3).start().finish();
        let words = ["5 worlds in a row", &name, why, "still counts", "--fresh"];
        check_has_failed(&finished, &words);
        assert_eq!(from_steps(&finished), [step; 5]);
        assert_eq!(finished.of_kind("damaged").count(), 0);
        assert_eq!(finished.end()["step"].as_u64(), Some(step));
        assert_eq!(processes_of(&sandbox), [], "nothing is left behind");
    };
    // As a file system that is not mounted.
    fs::rename(&folder, &aside).unwrap();
    fails("its folder is not there");
    fs::rename(&aside, &folder).unwrap();
    // A file that nobody can open, whoever asks.
    fs::rename(&file, &aside).unwrap();
    symlink(&file, &file).unwrap();
    fails("symbolic links");
    fs::remove_file(&file).unwrap();
    fs::rename(&aside, &file).unwrap();

    let finished = job(&sandbox, 3).start().finish();
    assert_eq!(from_steps(&finished), [step], "it goes on where it was");
    check_is_completed(&finished);
}

#[test]
fn a_job_whose_only_checkpoint_is_damaged_fails_and_does_not_begin_anew() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let step = interrupted(&sandbox, 1);
    let file = newest(&folder(&sandbox));
    let name = file.file_name().unwrap().to_str().unwrap();
    let whole = fs::read(&file).unwrap();
    alter(&file);
    let only = format!("its only checkpoint, of step {step}, is damaged");
    for _ in 0..2 {
        let finished = job(&sandbox, 1).start().finish();
        check_has_failed(&finished, &[&only, name, "--fresh"]);
        assert_eq!(from_steps(&finished), [step]);
    }
    fs::write(&file, whole).unwrap();
    let finished = job(&sandbox, 1).start().finish();
    assert_eq!(from_steps(&finished), [step]);
    check_is_completed(&finished);
}
