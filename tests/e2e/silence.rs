//! SIGSTOP: a machine that says nothing any more and wakes up again, and a leader that was away.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use muster_tests::{Cluster, Sandbox, Signal, eventually, processes_of};
use serde_json::Value;

const STEPS: u64 = 900;
const JOB: &str = "digits";
const DEADLINE: Duration = Duration::from_secs(90);

/// `detect_ms` of a coordinator that is not told another one.
const DETECT: Duration = Duration::from_secs(1);

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

/// A job on workers of these names, with a device each, and the process ids of their daemons.
fn running<const N: usize>(names: [&str; N]) -> (Cluster, [u32; N]) {
    running_at_least("workers.min=1", names)
}

/// The same, with a setting of the fewest ranks.
fn running_at_least<const N: usize>(min: &str, names: [&str; N]) -> (Cluster, [u32; N]) {
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_muster"));
    let daemons = names.map(|name| cluster.start_worker_as(name, name, &["--threads", "1"]));
    let (steps, max) = (steps(), format!("workers.max={N}"));
    let sets = ["--set", &steps, "--set", &max, "--set", min];
    let _ = cluster.text(&[&["submit", "job.toml"][..], &sets[..]].concat());
    eventually(DEADLINE, "some steps of all", || {
        let job = show(&cluster);
        (job["step"].as_u64() > Some(20) && job["world_size"] == N).then_some(())
    });
    (cluster, daemons)
}

fn show(cluster: &Cluster) -> Value {
    cluster.json(&["show", JOB, "--json"])
}

fn of_kind(cluster: &Cluster, kind: &str) -> Vec<Value> {
    let mut events = cluster.events(JOB);
    events.retain(|event| event["event"] == kind);
    events
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

#[test]
fn a_machine_that_stops_is_left_out_and_heals_back_in_when_it_wakes() {
    let (cluster, [_, b, _]) = running(["a", "b", "c"]);
    let asleep = [b, rank_on(&cluster, "b")];
    let stopped = Instant::now();
    for pid in asleep {
        cluster.sandbox.kill(pid, Signal::STOP);
    }
    let at = show(&cluster)["step"].as_u64();
    eventually(DEADLINE, "steps without it", || {
        let job = show(&cluster);
        (job["world_size"] == 2 && job["step"].as_u64() > at).then_some(())
    });
    let took = stopped.elapsed();
    println!("{took:?} from the stop to a step without it");
    // Twice: its peers miss it behind one, and the leader may give it a second one to answer in.
    assert!(took > DETECT / 2 && took < 6 * DETECT, "{took:?}");
    for pid in asleep {
        // Its rank may be ended as soon as the daemon hears of the world without it.
        cluster.sandbox.kill_if_there(pid, Signal::CONT);
    }
    let is_over = |job: &Value| job["state"] == "completed";
    eventually(DEADLINE, "its return", || {
        let job = show(&cluster);
        assert!(!is_over(&job), "it came too late: {job:#}");
        (job["world_size"] == 3).then_some(())
    });
    finish(&cluster);
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
fn a_leader_that_was_stopped_for_five_seconds_takes_nobody_for_lost() {
    const ASLEEP: Duration = Duration::from_secs(5);
    let (cluster, _) = running(["a", "b"]);
    let coordinator = cluster.children[0].id();
    let since_epoch = || {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.unwrap().as_secs_f64()
    };
    let began = since_epoch();
    cluster.sandbox.kill(coordinator, Signal::STOP);
    // Not for something to be so: this is what is done to it.
    std::thread::sleep(ASLEEP);
    cluster.sandbox.kill(coordinator, Signal::CONT);
    let ended = since_epoch();
    finish(&cluster);
    assert_eq!(of_kind(&cluster, "lost").len(), 0, "nobody is lost");
    assert_eq!(of_kind(&cluster, "generation").len(), 1, "one world");
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
    let (cluster, _) = running_at_least("workers.min=2", ["a", "b"]);
    let frozen = rank_on(&cluster, "b");
    cluster.sandbox.kill(frozen, Signal::STOP);
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
