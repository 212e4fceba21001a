//! Audited steps: they change no bit, and a rank that computes wrongly is named and left out, with the
//! bits of a run in which all compute rightly.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::OnceLock;
use std::time::Duration;

use muster_tests::{Finished, Halts, Sandbox, Signal, TrainCommand, processes_of};
use serde_json::Value;

const STEPS: u64 = 120;
const DEADLINE: Duration = Duration::from_secs(60);

/// The process that `flaw` spoils is the second one, which `worker-1` has.
const FLAWED: &str = "worker-1";

fn job(sandbox: &Sandbox, num_workers: u32) -> TrainCommand<'_> {
    sandbox
        .train("job.toml")
        .workers(num_workers)
        .set(&format!("train.steps={STEPS}"))
        .set("checkpoint.every_steps=25")
}

/// From step 20 on the second process gives a wrong contribution where it is audited, or audits.
fn flawed<'a>(sandbox: &'a Sandbox, num_workers: u32, how: &str) -> TrainCommand<'a> {
    job(sandbox, num_workers)
        .set("train.audit_every=1")
        .env("MUSTER_TEST_FLAW", &format!("2:20:{how}"))
}

/// The bits of a run that nobody audits and nothing disturbs.
fn undisturbed() -> &'static [String; 3] {
    static BITS: OnceLock<[String; 3]> = OnceLock::new();
    BITS.get_or_init(|| {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        job(&sandbox, 2).start().finish().bits()
    })
}

fn check(sandbox: &Sandbox, finished: &Finished, what: &str) {
    finished.check_completed(sandbox, what);
    assert_eq!(&finished.bits(), undisturbed(), "{what}");
    let steps = finished.of_kind("step");
    let steps: Vec<_> = steps.filter_map(|event| event["step"].as_u64()).collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>(), "{what}");
}

/// One worker is distrusted, by name, and the others go on without it.
fn check_left_out(finished: &Finished, num_workers: u32, what: &str) {
    let is_distrust = |event: &Value| event["event"] == "distrusted";
    let events = &finished.events;
    let at = events.iter().position(is_distrust);
    let at = at.unwrap_or_else(|| panic!("{what}: nobody is distrusted: {events:#?}"));
    assert_eq!(events[at]["worker"], FLAWED, "{what}");
    let reason = events[at]["reason"].as_str().unwrap();
    let words = "what rank 1 computes of shard ";
    assert!(reason.contains(words), "{what}: {reason}");
    let behind = &events[at + 1..];
    assert!(!behind.iter().any(is_distrust), "{what}: {behind:#?}");
    let of_kind = |kind| behind.iter().filter(move |event| event["event"] == kind);
    let sizes: Vec<_> = of_kind("generation")
        .map(|world| &world["world_size"])
        .collect();
    assert_eq!(
        sizes,
        [&Value::from(num_workers - 1)],
        "{what}: {behind:#?}"
    );
    let mut ranks = of_kind("rank");
    assert!(
        ranks.all(|rank| rank["worker"] != FLAWED),
        "{what}: {behind:#?}"
    );
    let histories = events.iter().map(|event| &event["history"]);
    assert!(
        histories
            .clone()
            .eq(histories.map(|_| &events[0]["history"])),
        "{what}: nothing fell back"
    );
}

#[test]
fn audits_change_no_bit_and_accuse_nobody_whoever_is_killed() {
    for (num_workers, every) in [(1, 1), (2, 1), (3, 7)] {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let audited = job(&sandbox, num_workers).set(&format!("train.audit_every={every}"));
        let finished = audited.start().finish();
        let what = format!("{num_workers} workers, each {every} steps");
        check(&sandbox, &finished, &what);
        assert_eq!(finished.of_kind("distrusted").count(), 0, "{what}");
    }
    for (number, step) in (0..).zip([7, 30, 64, 101]) {
        let rank = number % 3;
        let what = format!("rank {rank} is killed at step {step}");
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let train = job(&sandbox, 3).set("train.audit_every=1");
        let finished = train.start_and_kill(rank, step).finish();
        check(&sandbox, &finished, &what);
        assert!(finished.of_kind("lost").count() > 0, "{what}");
        assert_eq!(finished.of_kind("distrusted").count(), 0, "{what}");
    }
}

#[test]
fn one_of_three_ranks_that_computes_wrongly_is_named_and_left_out() {
    for (how, redundancy) in [("once", "full"), ("lasting", "full"), ("lasting", "shadow")] {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let train = flawed(&sandbox, 3, how).set(&format!("workers.redundancy={redundancy}"));
        let finished = train.start().finish();
        let what = format!("{how}, {redundancy}");
        check(&sandbox, &finished, &what);
        check_left_out(&finished, 3, &what);
    }
}

#[test]
fn a_coordinator_that_starts_again_still_leaves_the_worker_out() {
    let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
    let hold = halts.hold(|point| point.generation == 2 && point.place == "reduce");
    let train = flawed(&sandbox, 3, "lasting").halted_by(&halts).start();
    let held = hold.wait("the world without it", DEADLINE);
    train.wait_for(|event| event["event"] == "distrusted", DEADLINE);
    let processes = processes_of(&sandbox);
    let coordinator = processes
        .iter()
        .find(|(_, line)| line.contains("muster coordinator"));
    sandbox.kill(coordinator.unwrap().0, Signal::KILL);
    drop(held);
    let finished = train.finish();
    check(&sandbox, &finished, "a coordinator is killed");
    check_left_out(&finished, 3, "a coordinator is killed");
}

#[test]
fn one_of_two_ranks_is_left_out_where_it_contradicts_itself() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let finished = flawed(&sandbox, 2, "once").start().finish();
    check(&sandbox, &finished, "two workers");
    check_left_out(&finished, 2, "two workers");
}

#[test]
fn a_job_stops_where_nobody_can_tell_who_computes_wrongly() {
    for (num_workers, names) in [
        (1, &["rank 0 computed", "rank 0 on worker-0"][..]),
        (2, &["rank 0 on worker-0", "rank 1 on worker-1"]),
    ] {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let train = job(&sandbox, num_workers).set("train.audit_every=1");
        let flaw = format!(
            "{num_workers}:20:{}",
            ["once", "lasting"][num_workers as usize - 1]
        );
        let finished = train.env("MUSTER_TEST_FLAW", &flaw).start().finish();
        let (events, stderr) = (&finished.events, &finished.stderr);
        assert_eq!(finished.status.code(), Some(1), "{events:#?}\n{stderr}");
        assert_eq!(finished.state(), "failed");
        assert_eq!(processes_of(&sandbox), [], "nothing is left behind");
        let reason = finished.end()["reason"].as_str().unwrap();
        for name in names {
            assert!(reason.contains(name), "{reason}");
        }
        assert!(reason.contains("was not applied"), "{reason}");
        assert_eq!(finished.of_kind("distrusted").count(), 0);
        let num_steps = finished.of_kind("step").count() as u64;
        assert!((20..STEPS).contains(&num_steps), "{num_steps}");
    }
}
