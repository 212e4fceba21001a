//! SIGSTOP: a machine that says nothing any more and wakes up again, and a leader that was away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use muster_tests::{Cluster, Halts, Held, Sandbox, Signal, eventually, processes_of};
use serde_json::Value;

const STEPS: u64 = 900;
const JOB: &str = "digits";
const DEADLINE: Duration = Duration::from_secs(90);

/// `detect_ms` of the coordinators. A busy machine does not let a process run for a second or two at
/// times, and a quarter of this may lie between two signs of one that does.
const DETECT: Duration = Duration::from_secs(4);

/// How long a leader is stopped: longer than it waits for an answer, which is twice `DETECT`.
const ASLEEP: Duration = Duration::from_secs(9);

/// Where each job stands until it is struck.
const AT: u64 = 30;

fn steps() -> String {
    format!("train.steps={STEPS}")
}

fn undisturbed() -> &'static [String; 3] {
    static BITS: OnceLock<[String; 3]> = OnceLock::new();
    BITS.get_or_init(|| {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let train = sandbox.train("job.toml").workers(2).set(&steps());
        train.arg("--threads").arg("1").start().finish().bits()
    })
}

/// A job on workers with a device each.
struct Site<const N: usize> {
    cluster: Cluster,
    /// The process ids of the workers' daemons.
    daemons: [u32; N],
    /// Where its ranks ask. Once this is dropped they do not, and are as fast as ever.
    halts: Halts,
    /// Rank 0, which stands behind step [`AT`].
    held: Held,
}

/// A job on workers of these names.
fn running<const N: usize>(names: [&str; N]) -> Site<N> {
    running_at_least("workers.min=1", names)
}

/// The same, with a setting of the fewest ranks.
fn running_at_least<const N: usize>(min: &str, names: [&str; N]) -> Site<N> {
    let detect_ms = DETECT.as_millis().to_string();
    let settings = ["--detect-ms", &detect_ms];
    let mut cluster = Cluster::with(env!("CARGO_BIN_EXE_muster"), &settings);
    let halts = Halts::new();
    cluster.halted_by(&halts);
    let daemons = names.map(|name| cluster.start_worker_as(name, name, &["--threads", "1"]));
    cluster.wait_for_workers(N);
    let hold = halts.hold_at(0, AT);
    let (steps, max) = (steps(), format!("workers.max={N}"));
    let sets = ["--set", &steps, "--set", &max, "--set", min];
    let _ = cluster.text(&[&["submit", "job.toml"][..], &sets[..]].concat());
    let held = hold.wait("some steps", DEADLINE);
    eventually(DEADLINE, "some steps of all", || {
        let job = show(&cluster);
        (job["step"] == AT && job["world_size"] == N).then_some(())
    });
    Site {
        cluster,
        daemons,
        halts,
        held,
    }
}

fn show(cluster: &Cluster) -> Value {
    cluster.json(&["show", JOB, "--json"])
}

fn of_kind(cluster: &Cluster, kind: &str) -> Vec<Value> {
    let mut events = cluster.events(JOB);
    events.retain(|event| event["event"] == kind);
    events
}

/// The worlds that were made, but for those that only move shards from a rank that is slow for long, as
/// one may be on a busy machine.
fn worlds(cluster: &Cluster) -> Vec<Value> {
    let mut worlds = of_kind(cluster, "generation");
    worlds.retain(|world| {
        let reason = world["reason"].as_str().unwrap();
        !reason.contains("shards move to the faster ranks")
    });
    worlds
}

/// Waits for the job's end, and checks its bits and that each step was told once, in one history.
fn finish(cluster: &Cluster) {
    assert!(cluster.text(&["wait", JOB]).contains("completed"));
    let end = of_kind(cluster, "finished").remove(0);
    let bits = ["arena_hash", "optimizer_hash", "trace"].map(|name| end[name].as_str().unwrap());
    assert_eq!(&bits, undisturbed());
    let steps: Vec<_> = of_kind(cluster, "step")
        .iter()
        .filter_map(|event| event["step"].as_u64())
        .collect();
    assert_eq!(steps, (1..=STEPS).collect::<Vec<_>>());
    assert_eq!(show(cluster)["history"], 1);
}

/// The pid of the newest rank on a worker.
fn rank_on(cluster: &Cluster, worker: &str) -> u32 {
    let ranks = of_kind(cluster, "rank").into_iter().rev();
    let mut pids = ranks.filter(|event| event["worker"] == worker);
    u32::try_from(pids.next().unwrap()["pid"].as_u64().unwrap()).unwrap()
}

/// Now, as events tell the time: in seconds since the epoch.
fn now_s() -> f64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs_f64()
}

/// When the leader heard of a worker last, at the latest so long after it did as this look takes.
fn last_heard_s(cluster: &Cluster, worker: &str) -> f64 {
    let now_s = now_s();
    let nodes = cluster.text(&["nodes", "--json"]);
    let mut nodes = nodes
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let node = nodes.find(|node| node["worker"] == worker).unwrap();
    now_s - node["last_seen_ms_ago"].as_f64().unwrap() / 1000.0
}

#[test]
fn a_machine_that_stops_is_left_out_and_heals_back_in_when_it_wakes() {
    let site = running(["a", "b", "c"]);
    let (cluster, halts, [_, b, _]) = (site.cluster, site.halts, site.daemons);
    let asleep = [b, rank_on(&cluster, "b")];
    let stopped = Instant::now();
    for pid in asleep {
        cluster.sandbox.kill(pid, Signal::STOP);
    }
    let heard_s = last_heard_s(&cluster, "b");
    let without_it = halts.hold(|point| {
        (point.generation, point.rank) == (2, 0) && point.step > AT && point.place == "reduce"
    });
    drop(site.held);
    let mut held = Some(without_it.wait("a step without it", DEADLINE));
    eventually(DEADLINE, "steps without it", || {
        let job = show(&cluster);
        (job["world_size"] == 2 && job["step"].as_u64() > Some(AT)).then_some(())
    });
    println!("{:?} from the stop to a step without it", stopped.elapsed());
    for pid in asleep {
        // Its rank may be ended as soon as the daemon hears of the world without it.
        cluster.sandbox.kill_if_there(pid, Signal::CONT);
    }
    let is_over = |job: &Value| job["state"] == "completed";
    halts.slowly("its return", DEADLINE, || {
        // From the first look on it is held up at each step.
        drop(held.take());
        let job = show(&cluster);
        assert!(!is_over(&job), "it came too late: {job:#}");
        (job["world_size"] == 3).then_some(())
    });
    drop(halts);
    finish(&cluster);
    let lost = of_kind(&cluster, "lost");
    assert_eq!(lost.len(), 1, "{lost:#?}");
    let reason = "nothing is heard of it any more";
    assert_eq!(
        (&lost[0]["worker"], &lost[0]["reason"]),
        (&"b".into(), &reason.into())
    );
    let silent_s = lost[0]["time"].as_f64().unwrap() - heard_s;
    println!("{silent_s:.3} s from its last sign to its loss");
    // Times are told in whole milliseconds, and two clocks are read.
    let least = DETECT.as_secs_f64() - 0.01;
    assert!(silent_s > least, "lost after {silent_s} s");
    eventually(DEADLINE, "the end of all ranks", || {
        let processes = processes_of(&cluster.sandbox);
        processes
            .iter()
            .all(|(_, line)| !line.ends_with(" rank"))
            .then_some(())
    });
    let log = std::fs::read_to_string(cluster.log_of("b")).unwrap();
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}

#[test]
fn a_leader_that_was_stopped_for_long_takes_nobody_for_lost() {
    let site = running(["a", "b"]);
    let cluster = site.cluster;
    let coordinator = cluster.coordinator();
    let began = now_s();
    cluster.sandbox.kill(coordinator, Signal::STOP);
    drop((site.held, site.halts));
    // Not for something to be so: this is what is done to it.
    std::thread::sleep(ASLEEP);
    cluster.sandbox.kill(coordinator, Signal::CONT);
    let ended = now_s();
    finish(&cluster);
    assert_eq!(of_kind(&cluster, "lost").len(), 0, "nobody is lost");
    let worlds = worlds(&cluster);
    assert_eq!(worlds.len(), 1, "{worlds:#?}");
    let meanwhile = of_kind(&cluster, "step").into_iter().filter(|event| {
        let time = event["time"].as_f64().unwrap();
        time > began && time < ended
    });
    let num = meanwhile.count();
    println!("{num} steps while the leader was stopped");
    assert!(num > 20, "{num} steps went on meanwhile");
}

/// A process hangs, its daemon lives, and the job cannot go on with fewer ranks.
#[test]
fn a_rank_that_hangs_is_killed_and_replaced() {
    let site = running_at_least("workers.min=2", ["a", "b"]);
    let cluster = site.cluster;
    let frozen = rank_on(&cluster, "b");
    cluster.sandbox.kill(frozen, Signal::STOP);
    drop((site.held, site.halts));
    let lost = eventually(DEADLINE, "the loss", || {
        of_kind(&cluster, "lost").first().cloned()
    });
    assert_eq!(lost["worker"], "b");
    assert!(
        lost["reason"].as_str().unwrap().contains("signal 9"),
        "{lost}"
    );
    eventually(DEADLINE, "another rank on b", || {
        (rank_on(&cluster, "b") != frozen).then_some(())
    });
    finish(&cluster);
}

/// The peers of a rank that is stopped have closed their world, and the leader waits for what it holds
/// when it is stopped itself, and the daemon with it. All wake together: that the leader heard nothing
/// meanwhile proves nothing, and who wakes gets the time to answer.
#[test]
fn a_leader_that_was_stopped_while_a_rank_was_waited_for_takes_it_back() {
    for machine_first in [true, false] {
        let site = running(["a", "b", "c"]);
        let (cluster, [_, b, _]) = (site.cluster, site.daemons);
        let (coordinator, rank) = (cluster.coordinator(), rank_on(&cluster, "b"));
        cluster.sandbox.kill(rank, Signal::STOP);
        drop((site.held, site.halts));
        eventually(DEADLINE, "a world that is closed", || {
            let job = show(&cluster);
            assert_eq!(job["generation"], 1, "{job:#}");
            let reason = job["reason"].as_str().unwrap();
            reason.contains("waits for what rank").then_some(())
        });
        for pid in [coordinator, b] {
            cluster.sandbox.kill(pid, Signal::STOP);
        }
        std::thread::sleep(ASLEEP);
        let mut asleep = [rank, b, coordinator];
        if !machine_first {
            asleep.reverse();
        }
        for pid in asleep {
            cluster.sandbox.kill(pid, Signal::CONT);
        }
        finish(&cluster);
        assert_eq!(of_kind(&cluster, "lost").len(), 0, "nobody is lost");
        let worlds = worlds(&cluster);
        let sizes: Vec<_> = worlds.iter().map(|world| &world["world_size"]).collect();
        assert_eq!(sizes, [3, 3], "{worlds:#?}");
    }
}
