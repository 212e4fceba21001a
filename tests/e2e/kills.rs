//! SIGKILL for a rank, a worker, the coordinator and the whole tree, at moments that a seed draws:
//! the job ends with the bits of an undisturbed run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::OnceLock;
use std::time::Duration;

use muster_tests::{Finished, Halts, Sandbox, Signal, TrainCommand, processes_of};
use serde_json::Value;

const STEPS: u64 = 180;
const DEADLINE: Duration = Duration::from_secs(60);

fn job(sandbox: &Sandbox) -> TrainCommand<'_> {
    job_on(sandbox, 2)
}

fn job_on(sandbox: &Sandbox, num_workers: u32) -> TrainCommand<'_> {
    let steps = format!("train.steps={STEPS}");
    // So many are kept that none is left out, however slow the coordinator is to answer.
    sandbox
        .train("job.toml")
        .workers(num_workers)
        .set(&steps)
        .set("checkpoint.every_steps=25")
        .set("checkpoint.keep=10")
}

/// The bits of a run that nobody disturbs.
fn undisturbed() -> &'static [String; 3] {
    static BITS: OnceLock<[String; 3]> = OnceLock::new();
    BITS.get_or_init(|| {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        job(&sandbox).start().finish().bits()
    })
}

/// Ten steps to strike at, drawn by a linear congruential generator (Knuth, MMIX).
fn moments(seed: u64) -> impl Iterator<Item = u64> {
    let next = |state: &u64| {
        Some(
            state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407),
        )
    };
    std::iter::successors(next(&seed), next)
        .map(|state| 1 + (state >> 33) % (STEPS - 10))
        .take(10)
}

/// The process whose command line holds this text.
fn pid_of(sandbox: &Sandbox, text: &str) -> u32 {
    let processes = processes_of(sandbox);
    let found = processes.iter().find(|(_, line)| line.contains(text));
    found
        .unwrap_or_else(|| panic!("no {text:?} in {processes:#?}"))
        .0
}

fn check(sandbox: &Sandbox, finished: &Finished, what: &str) {
    finished.check_completed(sandbox, what);
    assert_eq!(&finished.bits(), undisturbed(), "{what}");
    assert_eq!(finished.steps().into_iter().max(), Some(STEPS), "{what}");
}

/// Every step was applied, and told, once.
fn check_no_step_is_lost(finished: &Finished, what: &str) {
    assert_eq!(finished.steps(), (1..=STEPS).collect::<Vec<_>>(), "{what}");
    assert_eq!(finished.end()["steps_run"], STEPS, "{what}");
}

/// There was more than one world, and none of them fell back.
fn check_one_history(finished: &Finished, what: &str) {
    let worlds: Vec<_> = finished.of_kind("generation").collect();
    assert!(worlds.len() > 1, "{what}: {worlds:#?}");
    let is_first = |world: &&Value| world["history"] == worlds[0]["history"];
    assert!(worlds.iter().all(is_first), "{what}: {worlds:#?}");
}

#[test]
fn a_rank_that_is_killed_at_ten_moments_loses_no_step_and_changes_no_bit() {
    for (number, step) in (0..).zip(moments(1)) {
        let rank = number % 2;
        let what = format!("rank {rank} at step {step}");
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let finished = job(&sandbox).start_and_kill(rank, step).finish();
        check(&sandbox, &finished, &what);
        check_no_step_is_lost(&finished, &what);
        let lost: Vec<_> = finished.of_kind("lost").collect();
        assert_eq!(lost.len(), 1, "{lost:#?}");
        assert_eq!(
            (&lost[0]["rank"], &lost[0]["reason"]),
            (&rank.into(), &"signal 9".into())
        );
        check_one_history(&finished, &what);
    }
}

/// Two of four ranks at once: the others go on at the step where they are, and those that take the
/// places of the dead get the state from them.
#[test]
fn two_of_four_ranks_killed_at_once_lose_no_step_and_change_no_bit() {
    for (number, step) in (0..).zip(moments(5).take(5)) {
        let (one, other) = (number % 4, (number + 1 + number / 4) % 4);
        let what = format!("ranks {one} and {other} at step {step}");
        let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
        let holds = [one, other].map(|rank| halts.hold_at(rank, step));
        let train = job_on(&sandbox, 4).halted_by(&halts).start();
        let held = holds.map(|hold| hold.wait(&what, DEADLINE));
        for one in held {
            sandbox.kill_held(one);
        }
        let finished = train.finish();
        check(&sandbox, &finished, &what);
        check_no_step_is_lost(&finished, &what);
        check_one_history(&finished, &what);
    }
}

#[test]
fn a_worker_that_is_killed_at_ten_moments_changes_no_bit() {
    for (number, step) in (0..).zip(moments(2)) {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let worker = format!("--name worker-{}", number % 2);
        let train = job(&sandbox).start_and_stand(step % 2, step, |_, _| {
            sandbox.kill(pid_of(&sandbox, &worker), Signal::KILL);
        });
        let finished = train.finish();
        let what = format!("{worker} at step {step}");
        check(&sandbox, &finished, &what);
        check_no_step_is_lost(&finished, &what);
        assert_eq!(
            finished.of_kind("generation").count(),
            1,
            "{what}: its ranks went on meanwhile"
        );
    }
}

#[test]
fn a_whole_tree_that_is_killed_at_ten_moments_goes_on_to_the_same_bits() {
    for step in moments(3) {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let committed = step / 25 * 25;
        drop(job(&sandbox).start_and_stand(step % 2, step, |train, _| {
            // It is written, and comes to count, beside training.
            let is_it =
                |event: &Value| event["event"] == "checkpoint" && event["step"] == committed;
            if committed > 0 {
                train.wait_for(is_it, DEADLINE);
            }
            sandbox.kill_all();
        }));
        let finished = job(&sandbox).start().finish();
        check(&sandbox, &finished, &format!("the tree at step {step}"));
        // It did not start over: what was committed counts.
        let from = finished
            .of_kind("generation")
            .next()
            .and_then(|event| event["from_step"].as_u64());
        assert_eq!(from, Some(committed), "killed at {step}");
    }
}

#[test]
fn a_root_that_is_killed_takes_its_tree_with_it() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let _train = job(&sandbox).start_and_stand(0, 20, |train, _| {
        let processes = processes_of(&sandbox);
        let there = "a root, a coordinator, two workers, two ranks";
        assert!(processes.len() >= 6, "{there}: {processes:#?}");
        train.kill(train.pid(), Signal::KILL);
    });
    muster_tests::eventually(DEADLINE, "the end of the tree", || {
        processes_of(&sandbox).is_empty().then_some(())
    });
}

#[test]
fn a_coordinator_that_is_killed_at_ten_moments_interrupts_no_world() {
    for step in moments(4) {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let train = job(&sandbox).start_and_stand(step % 2, step, |_, _| {
            sandbox.kill(pid_of(&sandbox, "muster coordinator"), Signal::KILL);
        });
        let finished = train.finish();
        check(
            &sandbox,
            &finished,
            &format!("the coordinator at step {step}"),
        );
        assert_eq!(
            finished.of_kind("generation").count(),
            1,
            "the ranks went on meanwhile"
        );
        assert_eq!(
            finished.steps(),
            (1..=STEPS).collect::<Vec<_>>(),
            "each step is told once"
        );
    }
}

#[test]
fn a_coordinator_that_is_killed_as_soon_as_it_is_there_is_started_again() {
    let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
    // The job does not complete before the kill.
    let hold = halts.hold_at(0, 1);
    let train = job(&sandbox).halted_by(&halts).start();
    let pid = muster_tests::eventually(DEADLINE, "a coordinator", || {
        let processes = processes_of(&sandbox);
        let found = processes
            .iter()
            .find(|(_, line)| line.contains("muster coordinator"));
        found.map(|(pid, _)| *pid)
    });
    sandbox.kill(pid, Signal::KILL);
    drop(hold);
    check(&sandbox, &train.finish(), "the coordinator at its start");
}
