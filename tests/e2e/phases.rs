//! SIGKILL for a rank at known points of a step: while it computes, between two frames of a
//! reduction, while it updates, while it writes a checkpoint; and for a second one while the first
//! death is being healed. Every survivor applies every step once, and the bits are those of an
//! undisturbed run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "phases/heals.rs"]
mod heals;
#[path = "phases/shares.rs"]
mod shares;

use std::sync::OnceLock;
use std::time::Duration;

use muster_tests::{Finished, Halts, Held, Point, Sandbox, Signal, TrainCommand, processes_of};
use serde_json::Value;

const STEPS: u64 = 24;
const EVERY: u64 = 8;
const DEADLINE: Duration = Duration::from_secs(60);

/// The step that is struck: it is applied behind so many.
const AT: u64 = 9;

fn job(sandbox: &Sandbox, num_workers: u32) -> TrainCommand<'_> {
    let steps = format!("train.steps={STEPS}");
    let every = format!("checkpoint.every_steps={EVERY}");
    let train = sandbox.train("job.toml").workers(num_workers);
    train.arg("--threads").arg("1").set(&steps).set(&every)
}

fn undisturbed() -> &'static [String; 3] {
    static BITS: OnceLock<[String; 3]> = OnceLock::new();
    BITS.get_or_init(|| {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        job(&sandbox, 2).start().finish().bits()
    })
}

/// A place of a rank of the first world, in the step that is struck.
fn first(rank: u64, place: &'static str) -> impl Fn(&Point) -> bool + Send + Clone {
    move |point| {
        (point.generation, point.rank, point.step) == (1, rank, AT)
            && point.place.starts_with(place)
    }
}

/// Kills who is held, and only then lets it go.
fn kill(sandbox: &Sandbox, held: Held) {
    sandbox.kill(held.point.pid, Signal::KILL);
    drop(held);
}

fn check(sandbox: &Sandbox, finished: &Finished, what: &str) {
    let said = || format!("{what}\n{:#?}\n{}", finished.events, finished.stderr);
    assert_eq!(finished.status.code(), Some(0), "{}", said());
    assert_eq!(&finished.bits(), undisturbed(), "{}", said());
    assert_eq!(processes_of(sandbox), [], "{what}: nothing is left behind");
}

/// No step was lost, and none told twice; all worlds are of one history.
fn check_no_step_is_lost(finished: &Finished, num_lost: usize, what: &str) {
    assert_eq!(finished.steps(), (1..=STEPS).collect::<Vec<_>>(), "{what}");
    assert_eq!(finished.end()["steps_run"], STEPS, "{what}");
    let histories = finished
        .of_kind("generation")
        .map(|world| &world["history"]);
    let histories: Vec<&Value> = histories.collect();
    assert!(histories.len() > num_lost, "{what}: {histories:?}");
    assert!(histories.iter().all(|one| *one == histories[0]), "{what}");
    assert_eq!(finished.of_kind("lost").count(), num_lost, "{what}");
    let steps = finished
        .of_kind("checkpoint")
        .map(|event| event["step"].as_u64());
    let last = steps.max().flatten();
    assert_eq!(last, Some(STEPS), "{what}: checkpoints count");
}

/// How often each process made the update of each step: once, or not at all where the process came
/// later or was killed.
fn check_updates(halts: &Halts, what: &str) {
    let mut updates: Vec<(u64, u64)> = halts
        .passed()
        .into_iter()
        .filter(|point| point.place == "updated")
        .map(|point| (point.process, point.step))
        .collect();
    let num = updates.len();
    updates.sort_unstable();
    updates.dedup();
    assert_eq!(updates.len(), num, "{what}: {:#?}", halts.passed());
}

/// Kills rank 2 of four at a place; before that, `meanwhile` waits for what the others do.
fn killed_at(place: &'static str, meanwhile: impl Fn(&Halts)) {
    killed_with("full", place, meanwhile);
}

fn killed_with(redundancy: &str, place: &'static str, meanwhile: impl Fn(&Halts)) {
    let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
    let hold = halts.hold(first(2, place));
    let (name, value) = halts.variable();
    let redundancy = format!("workers.redundancy={redundancy}");
    let train = job(&sandbox, 4).set(&redundancy).env(name, &value);
    let train = train.start();
    let held = hold.wait(place, DEADLINE);
    meanwhile(&halts);
    kill(&sandbox, held);
    let finished = train.finish();
    check(&sandbox, &finished, place);
    check_no_step_is_lost(&finished, 1, place);
    check_updates(&halts, place);
}

fn waits_for(rank: u64, place: &'static str) -> impl Fn(&Halts) {
    move |halts| halts.wait_for(place, DEADLINE, first(rank, place))
}

fn updates_of(ranks: &'static [u64]) -> impl Fn(&Halts) {
    move |halts| {
        for rank in ranks {
            halts.wait_for("the update", DEADLINE, first(*rank, "updated"));
        }
    }
}

fn nothing(_: &Halts) {}

#[test]
fn a_rank_that_is_killed_while_it_computes_loses_nothing() {
    killed_at("compute", nothing);
    // With what it has computed on its way to nobody, and the others waiting for it.
    killed_at("reduce", waits_for(0, "sent 6 "));
}

/// A reduction among four, each with one sum: notes to the three others, sums to the three owners of
/// the other chunks, and the total of its own chunk to all three, each time to rank 3 first, then to
/// 0, then to 1.
#[test]
fn a_rank_that_is_killed_between_its_frames_loses_nothing() {
    for place in ["sent 1 ", "sent 3 ", "sent 4 ", "sent 6 "] {
        killed_at(place, nothing);
    }
    // One, then two, have all they need and apply the step; the others do not get the total, and are
    // given the whole vector.
    killed_at("sent 7 ", updates_of(&[3]));
    killed_at("sent 8 ", updates_of(&[3, 0]));
}

#[test]
fn a_rank_that_is_killed_behind_its_last_frame_loses_nothing() {
    killed_at("sent 9 ", updates_of(&[3, 0, 1]));
    killed_at("reduced", updates_of(&[3, 0, 1]));
}

#[test]
fn a_rank_that_is_killed_while_it_updates_loses_nothing() {
    killed_at("update", nothing);
    killed_at("updated", nothing);
}

/// The files of a checkpoint are rank 0's and rank 1's to write, beside training.
#[test]
fn a_rank_that_is_killed_while_it_writes_a_checkpoint_costs_no_step_and_no_checkpoint() {
    for (rank, place) in [
        (0, "write params"),
        (0, "written params"),
        (1, "write optimizer"),
        (1, "written optimizer"),
    ] {
        let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
        let hold = halts.hold(move |point| point.rank == rank && point.place == place);
        let (name, value) = halts.variable();
        let train = job(&sandbox, 4).env(name, &value).start();
        let held = hold.wait(place, DEADLINE);
        assert_eq!(held.point.step, EVERY);
        kill(&sandbox, held);
        let finished = train.finish();
        check(&sandbox, &finished, place);
        check_no_step_is_lost(&finished, 1, place);
        check_updates(&halts, place);
    }
}
