//! A rank that is slowed down is named, and computes fewer shards; the job ends in the same bits.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use muster_tests::{Cluster, Halts, Held, Sandbox, eventually};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const JOB: &str = "digits";

/// With a slow rank they take four times as long as shards have to be uneven before they move, which is
/// five times `detect_ms`.
const STEPS: &str = "train.steps=600";
const DETECT_MS: &str = "2000";

/// So much longer the slow rank takes for a shard than the other one, which takes a few milliseconds.
const SLOWNESS: Duration = Duration::from_millis(20);

/// How often this is tried: where a rank stands still for as long as `detect_ms`, on a machine that does
/// other things, shards move for that.
const ATTEMPTS: usize = 3;

fn show(cluster: &Cluster) -> Value {
    cluster.json(&["show", JOB, "--json"])
}

/// The rank of a worker.
fn rank_of<'a>(job: &'a Value, worker: &str) -> Option<&'a Value> {
    let mut ranks = job["ranks"].as_array().unwrap().iter();
    ranks.find(|rank| rank["worker"] == worker)
}

/// How many shards the rank of a worker has, from the second step of its world on.
fn num_shards(job: &Value, worker: &str) -> u64 {
    rank_of(job, worker).map_or(0, |rank| {
        rank["shards"][1].as_u64().unwrap() - rank["shards"][0].as_u64().unwrap()
    })
}

/// Lets a job go on in which the process with this id is held up at each shard that it computes, until
/// told. It goes on with all else, so that nobody takes it for silent.
fn slow_down(halts: &Halts, job: Held, pid: &Arc<AtomicU64>, is_over: &AtomicBool) {
    let next = || {
        let pid = Arc::clone(pid);
        halts.hold(move |point| {
            let is_it = u64::from(point.pid) == pid.load(Ordering::SeqCst);
            is_it && point.place.starts_with("compute ")
        })
    };
    let mut hold = next();
    drop(job);
    while !is_over.load(Ordering::SeqCst) {
        let held = hold.wait("a shard of the slow rank", DEADLINE);
        // Not for something to be so: this is how slow it is.
        std::thread::sleep(SLOWNESS);
        hold = next();
        drop(held);
    }
}

/// Slows a rank down until it computes fewer shards. Whether these moved since it is slow, and for no
/// other reason; the bits that the job ends in.
fn slowed_down() -> (bool, [String; 3]) {
    let settings = ["--detect-ms", DETECT_MS];
    let mut cluster = Cluster::with(env!("CARGO_BIN_EXE_muster"), &settings);
    let halts = Halts::new();
    cluster.halted_by(&halts);
    cluster.start_worker("a", 1);
    cluster.start_worker("b", 1);
    let held = halts.hold_at(0, 40);
    let set = ["workers.min=2", "workers.max=2", STEPS];
    cluster.submit("job.toml", &set);
    let held = held.wait("steps of two ranks", DEADLINE);
    let job = show(&cluster);
    let is_first = job["worlds"].as_array().unwrap().len() == 1;
    if is_first {
        assert_eq!((num_shards(&job, "a"), num_shards(&job, "b")), (4, 4));
    }
    let pid = Arc::new(AtomicU64::new(0));
    let look = || {
        let job = show(&cluster);
        let of_b = rank_of(&job, "b").and_then(|rank| rank["pid"].as_u64());
        // One that was missed for another reason may be another process when it comes back.
        if let Some(of_b) = of_b {
            pid.store(of_b, Ordering::SeqCst);
        }
        job
    };
    let _ = look();

    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| slow_down(&halts, held, &pid, &is_over));
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(DEADLINE, "the name of the slow rank", || {
                let job = look();
                (rank_of(&job, "b")?["slow"]["in"] == "computing").then_some(())
            });
            let job = eventually(DEADLINE, "fewer shards for the slow rank", || {
                let job = look();
                let of_b = num_shards(&job, "b");
                (of_b > 0 && of_b < num_shards(&job, "a")).then_some(job)
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
    let shown = cluster.text(&["show", JOB]);
    let is_why = shown.contains("shards move to the faster ranks");
    (is_first && is_why, bits)
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

    let is_right = (0..ATTEMPTS).any(|_| {
        let (is_right, bits) = slowed_down();
        assert_eq!(bits, undisturbed.bits());
        is_right
    });
    assert!(is_right, "shards never moved to the faster rank alone");
}
