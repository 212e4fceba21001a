//! A rank that is slowed down is named, and computes fewer shards; the job ends in the same bits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use muster_tests::{Cluster, Sandbox, Signal, eventually};
use rustix::process::{Pid, kill_process};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const JOB: &str = "digits";
const STEPS: &str = "train.steps=1500";

fn show(cluster: &Cluster) -> Value {
    cluster.json(&["show", JOB, "--json"])
}

/// How many shards the rank of a worker has, from the second step of its world on.
fn num_shards(job: &Value, worker: &str) -> u64 {
    let mut ranks = job["ranks"].as_array().unwrap().iter();
    let rank = ranks.find(|rank| rank["worker"] == worker);
    rank.map_or(0, |rank| {
        rank["shards"][1].as_u64().unwrap() - rank["shards"][0].as_u64().unwrap()
    })
}

/// Lets a process run for a third of the time, in turns that nobody takes for silence, until told.
fn slow_down(pid: Pid, is_over: &AtomicBool) {
    while !is_over.load(Ordering::SeqCst) {
        // It may have ended; then there is nothing to slow down.
        let _ = kill_process(pid, Signal::STOP);
        std::thread::sleep(Duration::from_millis(20));
        let _ = kill_process(pid, Signal::CONT);
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_slow_rank_is_named_gets_fewer_shards_and_changes_no_bit() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let undisturbed = sandbox
        .train("job.toml")
        .workers(2)
        .set(STEPS)
        .start()
        .finish();
    drop(sandbox);

    let mut cluster = Cluster::with(env!("CARGO_BIN_EXE_muster"), &["--detect-ms", "500"]);
    cluster.start_worker("a", 1);
    cluster.start_worker("b", 1);
    let set = ["workers.min=2", "workers.max=2", STEPS];
    cluster.submit("job.toml", &set);
    let job = eventually(DEADLINE, "steps of two ranks", || {
        let job = show(&cluster);
        (job["step"].as_u64() > Some(30)).then_some(job)
    });
    assert_eq!((num_shards(&job, "a"), num_shards(&job, "b")), (4, 4));
    let ranks = job["ranks"].as_array().unwrap();
    let slow = ranks.iter().find(|rank| rank["worker"] == "b").unwrap();
    let pid = Pid::from_raw(i32::try_from(slow["pid"].as_u64().unwrap()).unwrap()).unwrap();

    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| slow_down(pid, &is_over));
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(DEADLINE, "the name of the slow rank", || {
                let ranks = show(&cluster)["ranks"].clone();
                let ranks = ranks.as_array().unwrap();
                let of_b = ranks.iter().find(|rank| rank["worker"] == "b")?;
                (of_b["slow"]["in"] == "computing").then_some(())
            });
            let job = eventually(DEADLINE, "fewer shards for the slow rank", || {
                let job = show(&cluster);
                (num_shards(&job, "b") < num_shards(&job, "a")).then_some(job)
            });
            assert_eq!(job["history"], 1, "nothing fell back: {job:#}");
        }));
        is_over.store(true, Ordering::SeqCst);
        if let Err(panic) = seen {
            std::panic::resume_unwind(panic);
        }
    });
    assert!(cluster.text(&["wait", JOB]).contains("completed"));
    let events = cluster.text(&["logs", JOB, "--events"]);
    let end: Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    let bits = ["arena_hash", "optimizer_hash", "trace"]
        .map(|name| end[name].as_str().unwrap().to_owned());
    assert_eq!(bits, undisturbed.bits());
    assert!(
        cluster
            .text(&["show", JOB])
            .contains("shards move to the faster ranks")
    );
}
