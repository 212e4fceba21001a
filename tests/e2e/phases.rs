//! SIGKILL for a rank at known points of a step: while it computes, between two frames of a
//! reduction, while it updates, while it writes a checkpoint; and for a second one while the first
//! death is being healed. Every survivor applies every step once, no shard is computed twice but those
//! that died with a rank, and the bits are those of an undisturbed run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "phases/heals.rs"]
mod heals;
#[path = "phases/shares.rs"]
mod shares;

use std::sync::OnceLock;
use std::time::Duration;

use muster_tests::{Finished, Halts, Point, Sandbox, Train, TrainCommand, processes_of};
use serde_json::Value;

const STEPS: u64 = 24;
const EVERY: u64 = 8;

/// The job's `logical_shards`: two for each of four ranks.
const SHARDS: u64 = 8;

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

/// The worlds that were made, by what they say of themselves.
fn worlds(finished: &Finished) -> Vec<(u64, u64)> {
    let worlds = finished.of_kind("generation");
    let number = |world: &Value, key: &str| world[key].as_u64().unwrap();
    worlds
        .map(|world| (number(world, "history"), number(world, "from_step")))
        .collect()
}

/// Waits until the first checkpoint counts.
fn wait_for_checkpoint(train: &Train<'_>) {
    let is_it = |event: &Value| event["event"] == "checkpoint" && event["step"] == EVERY;
    train.wait_for(is_it, DEADLINE);
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
    let lost: Vec<&Value> = finished.of_kind("lost").collect();
    assert_eq!(lost.len(), num_lost, "{what}: {lost:#?}");
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

/// How often each shard of each step was computed, over all worlds: once, by those who were not killed
/// before the step was applied, or whose sums were in it. What one of the killed took along is
/// computed again. Returns how many shards of the step that is struck were.
fn check_contributions(halts: &Halts, killed: &[&Point], what: &str) -> u64 {
    let passed = halts.passed();
    let mut num_begun = 0;
    for step in 0..STEPS {
        let here = || passed.iter().filter(|point| point.step == step);
        let lives = |point: &&Point| killed.iter().all(|one| one.process != point.process);
        let updates = here().filter(|point| point.place == "updated");
        let applied_in = updates.filter(lives).map(|point| point.generation).min();
        let is_in_vain = |point: &Point| {
            let mut killed = killed.iter().filter(|one| one.process == point.process);
            killed.any(|one| Some(one.generation) < applied_in)
        };
        let shard = |point: &Point| point.place.strip_prefix("compute ")?.parse::<u64>().ok();
        let begun = here().filter_map(|point| Some((shard(point)?, is_in_vain(point))));
        let begun: Vec<(u64, bool)> = begun.collect();
        let counts = begun.iter().filter(|(_, is_in_vain)| !is_in_vain);
        let mut counts: Vec<u64> = counts.map(|(shard, _)| *shard).collect();
        counts.sort_unstable();
        let all: Vec<u64> = (0..SHARDS).collect();
        assert_eq!(counts, all, "{what}: step {step}: {passed:#?}");
        if step == AT {
            num_begun = begun.len() as u64;
        }
    }
    num_begun - SHARDS
}

/// Checks everything of a run in which these were killed where they are said to have been, and no step
/// was lost. Returns how many shards of the step that is struck were computed again.
fn check_healed(
    sandbox: &Sandbox,
    finished: &Finished,
    halts: &Halts,
    killed: &[&Point],
    what: &str,
) -> u64 {
    check(sandbox, finished, what);
    check_no_step_is_lost(finished, killed.len(), what);
    check_updates(halts, what);
    check_contributions(halts, killed, what)
}

/// Kills rank 2 of four at a place; before that, `meanwhile` waits for what the others do. Returns
/// how many shards of that step are computed again.
fn killed_at(place: &'static str, meanwhile: impl Fn(&Halts)) -> u64 {
    killed_with("full", place, meanwhile)
}

fn killed_with(redundancy: &str, place: &'static str, meanwhile: impl Fn(&Halts)) -> u64 {
    let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
    let hold = halts.hold(first(2, place));
    let redundancy = format!("workers.redundancy={redundancy}");
    let train = job(&sandbox, 4).set(&redundancy).halted_by(&halts);
    let train = train.start();
    let held = hold.wait(place, DEADLINE);
    meanwhile(&halts);
    let killed = sandbox.kill_held(held);
    let finished = train.finish();
    check_healed(&sandbox, &finished, &halts, &[&killed], place)
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
    // It had begun one of its two shards.
    assert_eq!(killed_at("compute", nothing), 1);
    // With what it has computed on its way to nobody, and the others waiting for it.
    assert_eq!(killed_at("reduce", waits_for(0, "sent 6 ")), 2);
}

/// A reduction among four, each with one sum: notes to the three others, sums to the three owners of
/// the other chunks, and the total of its own chunk to all three, each time to rank 3 first, then to
/// 0, then to 1.
#[test]
fn a_rank_that_is_killed_between_its_frames_loses_nothing() {
    // Nobody has all totals: the others keep their six shards.
    for place in ["sent 1 ", "sent 3 ", "sent 4 ", "sent 6 "] {
        assert_eq!(killed_at(place, nothing), 2, "{place}");
    }
    // One, then two, have all they need and apply the step; the others do not get the total, and are
    // given the whole vector.
    assert_eq!(killed_at("sent 7 ", updates_of(&[3])), 0);
    assert_eq!(killed_at("sent 8 ", updates_of(&[3, 0])), 0);
}

#[test]
fn a_rank_that_is_killed_behind_its_last_frame_loses_nothing() {
    assert_eq!(killed_at("sent 9 ", updates_of(&[3, 0, 1])), 0);
    assert_eq!(killed_at("reduced", updates_of(&[3, 0, 1])), 0);
}

#[test]
fn a_rank_that_is_killed_while_it_updates_loses_nothing() {
    // Another one may have applied the step by then, or none.
    for place in ["update", "updated"] {
        let again = killed_at(place, nothing);
        println!("{place}: {again} shards are computed again");
    }
    assert_eq!(killed_at("updated", updates_of(&[3, 0, 1])), 0);
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
        let train = job(&sandbox, 4).halted_by(&halts).start();
        let held = hold.wait(place, DEADLINE);
        assert_eq!(held.point.step, EVERY);
        let killed = sandbox.kill_held(held);
        let finished = train.finish();
        check_healed(&sandbox, &finished, &halts, &[&killed], place);
    }
}
