//! `workers.redundancy`: who keeps the optimizer's state decides what a job survives without a
//! checkpoint, and no bit.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::OnceLock;
use std::time::Duration;

use muster_tests::{
    Cluster, Finished, Halts, Sandbox, Signal, TrainCommand, eventually, processes_of,
};
use serde_json::Value;

const STEPS: u64 = 120;
const DEADLINE: Duration = Duration::from_secs(60);

fn job<'a>(sandbox: &'a Sandbox, redundancy: &str, num_workers: u32) -> TrainCommand<'a> {
    sandbox
        .train("job.toml")
        .workers(num_workers)
        .set(&format!("train.steps={STEPS}"))
        .set(&format!("workers.redundancy={redundancy}"))
        .set("checkpoint.every_steps=25")
}

/// The bits of a run of one rank that keeps everything.
fn expected() -> &'static [String; 3] {
    static BITS: OnceLock<[String; 3]> = OnceLock::new();
    BITS.get_or_init(|| {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        job(&sandbox, "full", 1).start().finish().bits()
    })
}

fn check(sandbox: &Sandbox, finished: &Finished, what: &str) {
    let events = &finished.events;
    let stderr = &finished.stderr;
    assert_eq!(
        finished.status.code(),
        Some(0),
        "{what}\n{events:#?}\n{stderr}"
    );
    assert_eq!(&finished.bits(), expected(), "{what}");
    assert_eq!(processes_of(sandbox), [], "{what}: nothing is left behind");
}

#[test]
fn any_number_of_ranks_ends_in_the_same_bits_whoever_keeps_the_state() {
    for redundancy in ["full", "shadow", "none"] {
        for num_workers in [1, 2, 4] {
            let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
            let finished = job(&sandbox, redundancy, num_workers).start().finish();
            check(
                &sandbox,
                &finished,
                &format!("{redundancy}, {num_workers} ranks"),
            );
        }
    }
}

fn check_no_step_is_lost(finished: &Finished, what: &str) {
    let events = &finished.events;
    assert_eq!(finished.histories().len(), 1, "{what}: {events:#?}");
    assert_eq!(finished.steps(), (1..=STEPS).collect::<Vec<_>>(), "{what}");
    assert_eq!(finished.end()["steps_run"], STEPS, "{what}");
}

#[test]
fn with_shadows_a_rank_that_is_killed_costs_no_step() {
    for (rank, step) in [(0, 30), (1, 44), (2, 71), (1, 98)] {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let train = job(&sandbox, "shadow", 3).start_and_kill(rank, step);
        let finished = train.finish();
        let what = format!("rank {rank} at step {step}");
        check(&sandbox, &finished, &what);
        check_no_step_is_lost(&finished, &what);
    }
}

/// Two of four ranks die in their first world, as far as anyone can tell at once: who is stopped says
/// nothing of another one's death.
fn two_killed_at_once(sandbox: &Sandbox, ranks: [u64; 2], step: u64) -> Finished {
    let halts = Halts::new();
    let holds = ranks.map(|rank| halts.hold_at(rank, step));
    let train = job(sandbox, "shadow", 4).halted_by(&halts).start();
    let held = holds.map(|hold| hold.wait("the step", DEADLINE));
    for one in &held {
        train.kill(one.point.pid, Signal::STOP);
    }
    for one in held {
        sandbox.kill_held(one);
    }
    train.finish()
}

/// Of four ranks the first two keep every even share, and the other two every odd one: one of each
/// pair is enough.
#[test]
fn with_shadows_two_deaths_at_once_that_leave_one_holder_of_each_share_cost_no_step() {
    for (ranks, step) in [([0, 2], 30), ([1, 3], 44), ([0, 3], 71), ([2, 1], 98)] {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let finished = two_killed_at_once(&sandbox, ranks, step);
        let what = format!("ranks {ranks:?} at step {step}");
        check(&sandbox, &finished, &what);
        check_no_step_is_lost(&finished, &what);
        assert_eq!(finished.of_kind("lost").count(), 2, "{what}");
    }
}

#[test]
fn with_shadows_two_deaths_at_once_that_leave_no_holder_of_a_share_fall_back() {
    for (ranks, share) in [([0, 1], 0), ([3, 2], 1)] {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let finished = two_killed_at_once(&sandbox, ranks, 40);
        let what = format!("ranks {ranks:?}");
        check(&sandbox, &finished, &what);
        let events = &finished.events;
        assert_eq!(finished.histories(), [1, 2], "{what}: {events:#?}");
        let mut worlds = finished.of_kind("generation");
        let fallen = worlds.find(|world| world["history"] == 2).unwrap();
        // To the last one that was whole by then: its files are written beside training.
        let told = events.iter().take_while(|event| *event != fallen);
        let from = told.filter(|event| event["event"] == "checkpoint").last();
        let from = from.map_or(0.into(), |event| event["step"].clone());
        assert_eq!(fallen["from_step"], from, "{what}: {events:#?}");
        let reason = fallen["reason"].as_str().unwrap();
        let says = format!(
            "with it went share {share} of the optimizer's state; falls back to step {from}"
        );
        assert!(reason.contains(&says), "{what}: {reason}");
    }
}

/// One after another, each when the one before is healed, down to the last rank: a process that takes a
/// dead one's place has nothing before it is given it.
#[test]
fn with_shadows_the_last_rank_has_everything() {
    let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
    let holds = [halts.hold_at(2, 20), halts.hold_at(1, 40)];
    let train = job(&sandbox, "shadow", 3).halted_by(&halts).start();
    for (hold, step) in holds.into_iter().zip([20, 40]) {
        let held = hold.wait("the last rank", DEADLINE);
        let generation = held.point.generation;
        // Whoever is left has what it was given at the beginning of this world.
        halts.wait_for("the first rank", DEADLINE, |point| {
            (point.generation, point.rank, point.step) == (generation, 0, step)
                && point.place == "reduce"
        });
        sandbox.kill_held(held);
    }
    let finished = train.finish();
    let what = "a rank after another";
    check(&sandbox, &finished, what);
    check_no_step_is_lost(&finished, what);
    assert_eq!(finished.of_kind("lost").count(), 2, "{what}");
}

#[test]
fn without_redundancy_a_death_falls_back_and_changes_no_bit() {
    for (rank, step) in [(0, 40), (1, 77)] {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let train = job(&sandbox, "none", 2).start_and_kill(rank, step);
        let finished = train.finish();
        let what = format!("rank {rank} at step {step}");
        check(&sandbox, &finished, &what);
        assert_eq!(
            finished.histories().len(),
            2,
            "{what}: {:#?}",
            finished.events
        );
        let mut worlds = finished.of_kind("generation");
        let says_why = |world: &Value| {
            let reason = world["reason"].as_str().unwrap_or_default();
            reason.contains("of the optimizer's state; falls back to step")
        };
        assert!(worlds.any(says_why), "{what}: {:#?}", finished.events);
    }
}

/// A checkpoint of shares is read by ranks that keep everything, and the other way round.
#[test]
fn redundancy_may_change_where_a_job_resumes() {
    for (first, second) in [("none", "full"), ("full", "shadow")] {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        drop(job(&sandbox, first, 2).start_and_stand(0, 60, |train, _| {
            let is_it = |event: &Value| event["event"] == "checkpoint" && event["step"] == 50;
            train.wait_for(is_it, DEADLINE);
            sandbox.kill_all();
        }));
        let finished = job(&sandbox, second, 2).start().finish();
        check(&sandbox, &finished, &format!("{first}, then {second}"));
        let mut worlds = finished.of_kind("generation");
        let from = worlds.next().and_then(|event| event["from_step"].as_u64());
        assert_eq!(from, Some(50), "{first}, then {second}");
    }
}

#[test]
fn without_redundancy_ranks_hand_over_what_they_keep_before_they_leave() {
    const JOB: &str = "digits-mlp";
    // A rank that stands still for a while takes nothing along.
    let patient = ["--detect-ms", "10000"];
    let mut cluster = Cluster::with(env!("CARGO_BIN_EXE_muster"), &patient);
    for name in ["a", "b", "c"] {
        cluster.start_worker(name, 1);
    }
    let set = [
        "workers.max=3",
        "train.epochs=100000",
        "workers.redundancy='none'",
    ];
    cluster.submit("mlp.toml", &set);
    let show = || cluster.json(&["show", JOB, "--json"]);
    let wait_for_size = |size: u64| {
        eventually(DEADLINE, "a world of another size", || {
            let job = show();
            (job["step"].as_u64() > Some(5) && job["world_size"] == size).then_some(job)
        })
    };
    wait_for_size(3);
    for size in [2, 3] {
        let reply = cluster.json(&["scale", JOB, &size.to_string(), "--json"]);
        assert_eq!(reply["workers"]["max"], size);
        wait_for_size(size);
    }
    for name in ["a", "b"] {
        let text = cluster.text(&["drain", name, "--wait"]);
        assert!(
            text.ends_with(&format!("worker {name} is free\n")),
            "{text}"
        );
    }
    let job = wait_for_size(1);
    assert_eq!(job["history"], 1, "nothing fell back: {job:#}");
    let ledger = cluster.run(&["ledger", JOB, "--verify", "--json"]);
    let text = String::from_utf8(ledger.stdout).unwrap();
    assert!(text.contains("\"verified\":true"), "{text}");
}
