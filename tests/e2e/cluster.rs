//! A coordinator and workers that are started by hand, as on a cluster: submitted jobs, what the
//! commands show of them, strangers at the ports, and a clean end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::Write as _;
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use muster_tests::{Cluster, Signal, eventually, processes_of};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

/// One in which a pause of a process, as on a machine that does other things, is no silence.
fn patient() -> Cluster {
    Cluster::with(env!("CARGO_BIN_EXE_muster"), &["--detect-ms", "10000"])
}

fn submit(cluster: &Cluster, arguments: &[&str]) -> Value {
    let all = [
        &["submit", "mlp.toml", "--json", "--set", "train.epochs=4"],
        arguments,
    ]
    .concat();
    cluster.json(&all)
}

#[test]
fn a_submitted_job_waits_says_why_runs_and_is_shown() {
    let mut cluster = patient();
    assert!(cluster.text(&["ps"]).contains("no jobs"));
    assert!(cluster.text(&["nodes"]).contains("no workers"));
    let reply = submit(&cluster, &["--set", "workers.min=3"]);
    assert_eq!(
        (&reply["job"], &reply["status"]),
        (&"digits-mlp".into(), &"queued".into())
    );
    let ps = cluster.text(&["ps"]);
    assert!(ps.contains("waits for workers: 0 free, 3 needed"), "{ps}");
    assert_eq!(
        submit(&cluster, &["--set", "workers.min=3"])["status"],
        "already_running"
    );
    cluster.start_worker("a", 1);
    cluster.start_worker("b", 2);
    assert!(cluster.text(&["wait", "digits-mlp"]).contains("completed"));
    let nodes = cluster.text(&["nodes", "--json"]);
    let devices: Vec<Value> = nodes
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["devices"].clone())
        .collect();
    assert_eq!(devices, [1, 2]);
    let job = cluster.json(&["show", "digits-mlp", "--json"]);
    assert_eq!(
        (&job["state"], &job["step"]),
        (&"completed".into(), &job["total_steps"])
    );
    assert_eq!(job["worlds"][0]["world_size"], 3, "{job:#}");
    let peaks = job["peak_memory_bytes"].as_array().unwrap();
    // The program alone is larger.
    let is_real = |peak: &Value| peak.as_u64() > Some(4 << 20);
    assert!(peaks.len() == 3 && peaks.iter().all(is_real), "{job:#}");
    let shown = cluster.text(&["show", "digits-mlp"]);
    assert!(shown.contains("first world"), "{shown}");
    let events = cluster.text(&["logs", "digits-mlp", "--events"]);
    let last: Value = serde_json::from_str(events.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&last["event"], &last["state"]),
        (&"finished".into(), &"completed".into())
    );
    assert_eq!(last["peak_memory_bytes"], job["peak_memory_bytes"]);
    assert_eq!(submit(&cluster, &[])["status"], "already_finished");
}

#[test]
fn a_job_for_gpus_is_taken_and_waits_until_a_worker_lends_one() {
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_muster"));
    // Whatever the machine has.
    cluster.start_worker_as("a", "a", &["--gpus", "none"]);
    let reply = submit(&cluster, &["--set", "workers.device=cuda"]);
    assert_eq!(reply["status"], "queued");
    eventually(DEADLINE, "the worker, and the reason", || {
        let nodes = cluster.text(&["nodes", "--json"]);
        let node: Value = serde_json::from_str(nodes.lines().next()?).unwrap();
        assert_eq!(node["gpus"], serde_json::json!([]));
        let ps = cluster.text(&["ps"]);
        let why = "waits for GPUs: 0 free, 1 needed; no worker lends one";
        (node["connected"] == true && ps.contains(why)).then_some(())
    });
    // The device is no part of what the job is: on processors it is the same one.
    assert!(!cluster.text(&["cancel", "digits-mlp"]).is_empty());
    assert_eq!(
        submit(&cluster, &["--set", "workers.device=auto"])["status"],
        "queued"
    );
    assert!(cluster.text(&["wait", "digits-mlp"]).contains("completed"));
    let job = cluster.json(&["show", "digits-mlp", "--json"]);
    let why = job["worlds"][0]["reason"].as_str().unwrap();
    assert!(
        why.contains("on processors, since the cluster has 0 GPUs"),
        "{why}"
    );
}

#[test]
fn a_doctor_compares_clocks_and_connects() {
    let cluster = Cluster::new(env!("CARGO_BIN_EXE_muster"));
    let address = cluster.address().to_owned();
    let arguments = [
        "doctor",
        "--json",
        "--peer",
        &address,
        "--peer",
        "127.0.0.1:1",
    ];
    let output = cluster.run(&arguments);
    assert_eq!(
        output.status.code(),
        Some(1),
        "nobody listens at one of them"
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let of = |check: &str| -> Vec<&Value> {
        findings
            .iter()
            .filter(|one| one["check"] == check)
            .collect()
    };
    let [near, far] = of("peer")[..] else {
        panic!("two peers: {report:#}");
    };
    assert_eq!(
        (&near["status"], &far["status"]),
        (&"ok".into(), &"FAIL".into())
    );
    // One machine has one clock.
    assert_eq!(of("coordinator")[0]["status"], "ok", "{report:#}");
    assert!(
        of("disk sync")[0]["found"]
            .as_str()
            .unwrap()
            .contains("reaches the disk")
    );
    assert_eq!(report["ok"], false);
}

#[test]
fn a_cancelled_job_rests_and_its_coordinator_comes_back_with_all_it_knew() {
    let mut cluster = patient();
    let worker = cluster.start_worker("a", 2);
    submit(&cluster, &["--set", "train.epochs=4000"]);
    eventually(DEADLINE, "some steps", || {
        let job = cluster.json(&["show", "digits-mlp", "--json"]);
        (job["step"].as_u64() > Some(50)).then_some(())
    });
    assert!(
        cluster
            .text(&["cancel", "digits-mlp"])
            .contains("checkpoint")
    );
    let waited = cluster.run(&["wait", "digits-mlp"]);
    assert_eq!(waited.status.code(), Some(1), "cancelled is not completed");
    let before = cluster.json(&["show", "digits-mlp", "--json"]);
    assert_eq!(before["state"], "cancelled");
    let events = cluster.text(&["logs", "digits-mlp", "--events"]);

    cluster.kill_coordinator();
    cluster.start_coordinator();
    let after = cluster.json(&["show", "digits-mlp", "--json"]);
    for key in [
        "state",
        "step",
        "history",
        "generation",
        "checkpoints",
        "worlds",
        "peak_memory_bytes",
        "identity",
    ] {
        assert_eq!(after[key], before[key], "{key}");
    }
    assert_eq!(
        cluster.text(&["logs", "digits-mlp", "--events"]),
        events,
        "every event once"
    );

    // The same job goes on from where it rested.
    let reply = submit(&cluster, &["--set", "train.epochs=4000"]);
    assert_eq!(
        (&reply["status"], &reply["step"]),
        (&"resumed".into(), &before["step"])
    );
    // A worker that is told to end ends its ranks first.
    eventually(DEADLINE, "its ranks", || {
        let num_ranks = processes_of(&cluster.sandbox)
            .iter()
            .filter(|(_, line)| line.ends_with(" rank"))
            .count();
        (num_ranks == 2).then_some(())
    });
    cluster.sandbox.kill(worker, Signal::TERM);
    eventually(DEADLINE, "the end of the worker", || {
        let all = processes_of(&cluster.sandbox);
        (!all
            .iter()
            .any(|(_, line)| line.contains(" worker ") || line.ends_with(" rank")))
        .then_some(())
    });
    // Its last words were that its ranks ended: nobody waits for them to come back.
    eventually(DEADLINE, "the reason why the job waits", || {
        cluster
            .text(&["ps"])
            .contains("waits for workers: 0 free, 1 needed")
            .then_some(())
    });
    assert_eq!(cluster.run(&["show", "nobody"]).status.code(), Some(2));
}

#[test]
fn strangers_at_the_ports_disturb_nobody() {
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_muster"));
    let garbage: [&[u8]; 4] = [
        &[0xff; 4096],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0; 9],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
    ];
    for bytes in garbage {
        let mut stream = TcpStream::connect(&cluster.address).unwrap();
        // It may be cut off in the middle.
        let _ = stream.write_all(bytes);
    }
    // The last of them begins as HTTP/2 does, and is ended there.
    cluster.wait_for_refusals("coordinator", 3);
    cluster.start_worker("a", 2);
    submit(
        &cluster,
        &["--set", "workers.min=2", "--set", "train.epochs=40"],
    );
    // The worker's port for its ranks, as seen from outside.
    let ports = eventually(DEADLINE, "a rank", || {
        let ranks: Vec<u32> = processes_of(&cluster.sandbox)
            .into_iter()
            .filter(|(_, line)| line.ends_with(" rank"))
            .map(|(pid, _)| pid)
            .collect();
        let environment = std::fs::read(format!("/proc/{}/environ", ranks.first()?)).ok()?;
        let text = String::from_utf8_lossy(&environment).into_owned();
        let door = text
            .split('\0')
            .find_map(|variable| variable.strip_prefix("MUSTER_RANK_DOOR="))?;
        let said = std::fs::read_to_string(door).ok()?;
        said.split(' ').next().map(str::to_owned)
    });
    // A hello without a rank, as the protocol would have it, and the others' garbage.
    let nameless: &[u8] = b"\x08\0\0\0\x0a\x06\x0a\x04xxxx";
    for bytes in garbage.into_iter().chain([nameless]) {
        TcpStream::connect(&ports)
            .unwrap()
            .write_all(bytes)
            .unwrap();
    }
    cluster.wait_for_refusals("a", 5);
    assert!(cluster.text(&["wait", "digits-mlp"]).contains("completed"));
}

#[test]
fn a_coordinator_that_says_nothing_does_not_hide_another() {
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_muster"));
    // The system takes connections to it, and nobody answers them.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let both = format!("{},{}", silent.local_addr().unwrap(), cluster.address);
    let mut command = cluster.sandbox.muster();
    command
        .args(["worker", "--join", &both, "--name", "a"])
        .stdout(Stdio::null());
    cluster.spawn("a", &mut command);
    eventually(DEADLINE, "the worker", || {
        cluster.text(&["nodes"]).contains("connected").then_some(())
    });
    let log = std::fs::read_to_string(cluster.log_of("a")).unwrap();
    assert!(log.contains("said nothing for 2 s"), "{log}");
}

#[test]
fn a_follower_of_logs_outlives_a_coordinator_and_gets_each_line_once() {
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_muster"));
    let worker = cluster.start_worker("a", 1);
    submit(&cluster, &["--set", "train.epochs=100000"]);
    let log_of_rank = cluster.log_of_first_process("a");
    // Lines of the rank's as if it had printed them.
    let print = |text: &str| {
        let mut log = std::fs::OpenOptions::new()
            .append(true)
            .open(&log_of_rank)
            .unwrap();
        log.write_all(format!("{text}\n").as_bytes()).unwrap();
    };
    let mut command = cluster.sandbox.muster();
    command.args([
        "logs",
        "digits-mlp",
        "--follow",
        "--timeout",
        "60",
        "--coordinator",
        &cluster.address,
    ]);
    let followed = cluster.sandbox.path().join("followed");
    command.stdout(std::fs::File::create(&followed).unwrap());
    cluster.spawn("follower", &mut command);
    let wait_for = |text: &str| {
        eventually(DEADLINE, text, || {
            let lines = std::fs::read_to_string(&followed).unwrap();
            lines.contains(text).then_some(())
        });
    };
    print("line one");
    wait_for("line one");
    cluster.kill_coordinator();
    cluster.start_coordinator();
    // What is printed before a worker has noticed that its coordinator is gone may be lost.
    eventually(DEADLINE, "the worker", || {
        let nodes = cluster.text(&["nodes", "--json"]);
        let node: Value = serde_json::from_str(nodes.lines().next()?).unwrap();
        (node["connected"] == true).then_some(())
    });
    print("line two");
    wait_for("line two");
    let lines = std::fs::read_to_string(&followed).unwrap();
    for text in ["line one", "line two"] {
        assert_eq!(lines.matches(text).count(), 1, "{text}: {lines}");
    }
    cluster.sandbox.kill(worker, Signal::TERM);
}
