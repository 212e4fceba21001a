//! Ranks whose vectors stay on devices: the bits of any world, deaths, and the sums of another order. The
//! devices are this machine's processors, as CubeCL has them; everything but NCCL and a GPU's driver is
//! what a GPU has. It takes minutes, for kernels are compiled and tuned in every process, and runs with
//! the feature `cube-cpu` alone:
//!
//! ```sh
//! cargo test -p muster --features cube-cpu --test devices
//! ```

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::time::Duration;

use muster_tests::{Finished, Sandbox, Signal, Train, TrainCommand};

const STEPS: u64 = 40;
const DEADLINE: Duration = Duration::from_secs(900);

/// The digits, learnt by a model whose kernels are few.
fn job(sandbox: &Sandbox, num_workers: u32) -> TrainCommand<'_> {
    let file = sandbox.path().join("job.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let is_of_cnn = |line: &&str| line.starts_with("channels") || line.starts_with("hidden");
    let lines: Vec<&str> = text.lines().filter(|line| !is_of_cnn(line)).collect();
    let text = lines
        .join("\n")
        .replace("family = \"cnn\"", "family = \"mlp\"\nhidden = [32]");
    std::fs::write(&file, text).unwrap();
    let steps = format!("train.steps={STEPS}");
    sandbox
        .train("job.toml")
        .workers(num_workers)
        .set(&steps)
        .set("data.shape=[64]")
        .set("checkpoint.every_steps=1000")
        .env("MUSTER_TEST_CUBE", "1")
        .env(
            "MUSTER_KERNELS",
            concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels"),
        )
}

fn finish(sandbox: &Sandbox, train: Train<'_>, what: &str) -> Finished {
    let finished = train.finish_within(DEADLINE);
    finished.check_completed(sandbox, what);
    let all: Vec<u64> = (1..=STEPS).collect();
    assert_eq!(finished.steps(), all, "{what}: no step is lost");
    finished
}

/// In how many worlds ranks said that their devices are connected, by the lines that they logged.
fn num_connected(folder: &Path) -> usize {
    let mut number = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            number += num_connected(&path);
        } else if path.extension().is_some_and(|extension| extension == "log") {
            let text = std::fs::read_to_string(path).unwrap();
            number += text.matches("vectors go from device to device").count();
        }
    }
    number
}

#[test]
fn any_world_ends_in_the_same_bits_also_when_a_rank_is_killed() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let alone = finish(&sandbox, job(&sandbox, 1).start(), "one rank");
    assert_eq!(num_connected(sandbox.path()), 0);

    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let two = finish(&sandbox, job(&sandbox, 2).start(), "two ranks");
    assert_eq!(two.bits(), alone.bits());
    assert!(num_connected(sandbox.path()) >= 2);

    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let train = job(&sandbox, 3).start();
    train.wait_for_step(10, DEADLINE);
    train.kill(train.pid_of_rank(1), Signal::KILL);
    let killed = finish(&sandbox, train, "one of three killed");
    assert_eq!(killed.bits(), alone.bits());
    assert!(killed.of_kind("generation").count() > 1);
    assert!(
        num_connected(sandbox.path()) >= 5,
        "a new world connects anew"
    );
}

#[test]
fn the_other_order_trains_and_loses_no_step_either() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let train = job(&sandbox, 3).set("train.reduction=fast").start();
    train.wait_for_step(10, DEADLINE);
    train.kill(train.pid_of_rank(0), Signal::KILL);
    let fast = finish(&sandbox, train, "one of three killed");
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let canonical = finish(&sandbox, job(&sandbox, 1).start(), "one rank");
    let loss = |finished: &Finished| finished.end()["metrics"]["loss"].as_f64().unwrap();
    let (fast, canonical) = (loss(&fast), loss(&canonical));
    assert!(
        (fast - canonical).abs() < 1e-3 * canonical,
        "{fast} is not near {canonical}"
    );
}
