//! Checkpoints that cannot be read or written: what is damaged is dropped, unless it is all there is;
//! what is only out of reach is not.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use muster_tests::{
    Cluster, Finished, Halts, Point, Sandbox, Signal, Train, TrainCommand, eventually, processes_of,
};
use serde_json::Value;

const STEPS: u64 = 180;
const EVERY: u64 = 25;
const DEADLINE: Duration = Duration::from_secs(60);

fn job(sandbox: &Sandbox, keep: u32) -> TrainCommand<'_> {
    job_on(sandbox, 2, keep)
}

fn job_on(sandbox: &Sandbox, num_workers: u32, keep: u32) -> TrainCommand<'_> {
    let train = sandbox.train("job.toml").workers(num_workers);
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

/// The steps that its worlds began with. On a busy machine there may be more worlds than losses, since
/// shards move from a rank that is slow for long.
fn from_steps(finished: &Finished) -> Vec<u64> {
    let worlds = finished.of_kind("generation");
    worlds
        .filter_map(|event| event["from_step"].as_u64())
        .collect()
}

/// Runs the job until Ctrl-C behind its second checkpoint; the step at which it rests.
fn interrupted(sandbox: &Sandbox, keep: u32) -> u64 {
    let train = job(sandbox, keep).start_and_interrupt(2 * EVERY + 5);
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
        // The pauses between two worlds are multiples of it, and each is twice the one before.
        let job = job(&sandbox, 3).detect(Duration::from_secs(2));
        let finished = job.start().finish();
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
    assert_eq!(from_steps(&finished)[0], step, "it goes on where it was");
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
    assert_eq!(from_steps(&finished)[0], step);
    check_is_completed(&finished);
}

/// A folder for checkpoints that can be exchanged for nothing, and back, at any moment.
struct Disk {
    link: PathBuf,
    folder: PathBuf,
}

impl Disk {
    fn new(sandbox: &Sandbox) -> Self {
        let disk = Self {
            link: sandbox.path().join("disk"),
            folder: sandbox.path().join("real"),
        };
        fs::create_dir(&disk.folder).unwrap();
        disk.point_at(&disk.folder);
        disk
    }

    fn point_at(&self, target: &Path) {
        let next = self.link.with_extension("next");
        symlink(target, &next).unwrap();
        fs::rename(next, &self.link).unwrap();
    }

    /// From here on nothing can be read or written.
    fn fail(&self) {
        self.point_at(Path::new("/dev/null"));
    }

    fn mend(&self) {
        self.point_at(&self.folder);
    }

    fn setting(&self) -> String {
        format!("checkpoint.folder={}", self.link.display())
    }
}

/// Waits for the first event of a kind behind this step.
fn wait_for(train: &Train<'_>, kind: &str, step: u64) -> Value {
    let is_it = |event: &Value| event["event"] == kind && event["step"].as_u64() > Some(step);
    train.wait_for(is_it, DEADLINE)
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_told_and_the_next_one_is_tried() {
    let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
    let disk = Disk::new(&sandbox);
    let hold = halts.hold(|point| point.place == "write params" && point.step == 2 * EVERY);
    let again = halts.hold(|point| point.place == "snapshot" && point.step == 4 * EVERY);
    let train = job(&sandbox, 3).set(&disk.setting()).halted_by(&halts);
    let train = train.start();
    let held = hold.wait("the second checkpoint", DEADLINE);
    // All files of the first one are written, and its steps are recorded.
    wait_for(&train, "checkpoint", 0);
    disk.fail();
    drop(held);
    let told = wait_for(&train, "unwritten", EVERY);
    let reason = told["reason"].as_str().unwrap();
    assert!(
        reason.contains("could not") && reason.contains("Not a directory"),
        "{told}"
    );
    assert!(
        told["rank"].is_u64() && told["worker"].is_string(),
        "{told}"
    );
    wait_for(&train, "unwritten", 2 * EVERY);
    let held = again.wait("the fourth checkpoint", DEADLINE);
    disk.mend();
    drop(held);
    let finished = train.finish();
    check_is_completed(&finished);
    assert_eq!(finished.histories().len(), 1, "no step was run again");
    let steps = |kind: &'static str| {
        let steps = finished.of_kind(kind);
        steps
            .filter_map(|event| event["step"].as_u64())
            .collect::<Vec<_>>()
    };
    let written = steps("checkpoint");
    assert!(written.contains(&EVERY) && !written.contains(&(3 * EVERY)));
    assert!(
        written.contains(&(5 * EVERY)) && written.ends_with(&[STEPS]),
        "{written:?}"
    );
    let unwritten = steps("unwritten");
    assert!(
        unwritten.iter().all(|step| !written.contains(step)),
        "{unwritten:?}"
    );
}

#[test]
fn a_job_that_cannot_write_its_last_checkpoint_fails_and_goes_on_from_the_one_before() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let disk = Disk::new(&sandbox);
    let job = || job(&sandbox, 3).set(&disk.setting());
    let halts = Halts::new();
    let hold = halts.hold_at(0, EVERY + 5);
    let train = job().halted_by(&halts).start();
    let held = hold.wait("a step behind the first checkpoint", DEADLINE);
    wait_for(&train, "checkpoint", 0);
    disk.fail();
    train.interrupt();
    halts.wait_for("that rank 0 is told to stop", DEADLINE, |point| {
        point.rank == 0 && point.place == "told to stop"
    });
    drop(held);
    let finished = train.finish();
    check_has_failed(
        &finished,
        &["the last checkpoint, of step", "Not a directory"],
    );
    let rests_at = finished.end()["step"].as_u64();

    disk.mend();
    let train = job().start_and_stand(0, 2 * EVERY + 5, |_, _| disk.fail());
    let finished = train.finish();
    assert_eq!(from_steps(&finished).first().copied(), rests_at);
    check_has_failed(
        &finished,
        &[&format!("of step {STEPS}"), "run the job again"],
    );
    assert!(finished.of_kind("unwritten").count() > 0);

    disk.mend();
    check_is_completed(&job().start().finish());
    assert_eq!(processes_of(&sandbox), [], "nothing is left behind");
}

/// The steps of which there are files in the folders of this one.
fn steps_in(folder: &Path) -> BTreeSet<String> {
    let folders = fs::read_dir(folder).unwrap();
    let files = folders.flat_map(|folder| fs::read_dir(folder.unwrap().path()).unwrap());
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let names = names.filter(|name| name.starts_with("step-"));
    names.map(|name| name[..13].to_owned()).collect()
}

/// Ranks go on without their coordinator, and leave out what nobody would ever remove.
#[test]
fn checkpoints_do_not_pile_up_while_the_coordinator_is_away() {
    const KEEP: usize = 2;
    // No process is missed that stands still for a while.
    let patient = ["--detect-ms", "10000"];
    let mut cluster = Cluster::with(env!("CARGO_BIN_EXE_muster"), &patient);
    let halts = Halts::new();
    // Behind the third checkpoint: the first is retired then.
    let hold = halts.hold_at(0, 10);
    cluster.halted_by(&halts);
    cluster.start_worker("a", 2);
    let folder = cluster.sandbox.path().join("kept");
    let settings = [
        "train.epochs=4000",
        "workers.min=2",
        "checkpoint.every_steps=3",
        "checkpoint.keep=2",
        &format!("checkpoint.folder={}", folder.display()),
    ];
    cluster.submit("mlp.toml", &settings);
    let newest = |cluster: &Cluster| {
        let job = cluster.json(&["show", "digits-mlp", "--json"]);
        let all = job["checkpoints"].as_array().unwrap().clone();
        all.last().and_then(|newest| newest["step"].as_u64())
    };
    let held = hold.wait("three checkpoints", DEADLINE);
    eventually(DEADLINE, "that all of them count, or did", || {
        (newest(&cluster) == Some(9) && steps_in(&folder).len() == KEEP).then_some(())
    });
    cluster.kill_coordinator();
    let away_from = held.point.step;
    drop(held);
    halts.wait_for("a hundred steps", DEADLINE, |point| {
        point.step > away_from + 100
    });
    // Those that count, and one more than as many that wait.
    let steps = steps_in(&folder);
    assert!(steps.len() <= 2 * KEEP + 1, "{steps:?}");

    cluster.start_coordinator();
    eventually(DEADLINE, "a checkpoint of a later step", || {
        (newest(&cluster) > Some(away_from + 100)).then_some(())
    });
    let said = cluster.text(&["cancel", "digits-mlp"]);
    assert!(said.contains("checkpoint"), "{said}");
    let waited = cluster.run(&["wait", "digits-mlp"]);
    assert_eq!(waited.status.code(), Some(1), "cancelled is not completed");
    let job = cluster.json(&["show", "digits-mlp", "--json"]);
    assert_eq!(job["state"], "cancelled", "{job:#}");
}

/// Rank 0 writes a file for as long as the test lets it, and waits with the next snapshot.
#[test]
fn a_rank_that_waits_for_its_disk_leaves_a_world_that_is_closed_at_once() {
    let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
    let hold = halts.hold(|point| point.place == "write params" && point.step == EVERY);
    let train = job_on(&sandbox, 3, 3).halted_by(&halts).start();
    let held = hold.wait("the first checkpoint", DEADLINE);
    let is_at = |rank: u64, place: &'static str| {
        move |point: &Point| (point.rank, point.step) == (rank, 2 * EVERY) && point.place == place
    };
    assert_eq!(held.point.rank, 0);
    halts.wait_for("the snapshot", DEADLINE, is_at(0, "snapshot"));
    halts.wait_for("the next step", DEADLINE, is_at(2, "reduce"));
    let other = halts.passed().into_iter().find(is_at(2, "reduce"));
    train.kill(other.unwrap().pid, Signal::KILL);
    let is_out =
        |point: &Point| (point.process, point.place.as_str()) == (held.point.process, "closed");
    halts.wait_for("the end of the world", DEADLINE, is_out);
    drop(held);
    let finished = train.finish();
    check_is_completed(&finished);
    assert_eq!(finished.histories().len(), 1);
    assert_eq!(finished.steps(), (1..=STEPS).collect::<Vec<_>>());
}
