//! The same job gives the same bits, however many workers run it and however many threads they
//! have; another seed gives others.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use muster_tests::{Finished, Sandbox, processes_of};

fn run(job: &str, workers: u32, arguments: &[&str]) -> Finished {
    run_in(
        &Sandbox::new(env!("CARGO_BIN_EXE_muster")),
        job,
        workers,
        arguments,
    )
}

fn run_in(sandbox: &Sandbox, job: &str, workers: u32, arguments: &[&str]) -> Finished {
    let mut train = sandbox.train(job).workers(workers);
    for argument in arguments {
        train = train.arg(argument);
    }
    let finished = train.start().finish();
    assert_eq!(
        finished.status.code(),
        Some(0),
        "{:#?}\n{}",
        finished.events,
        finished.stderr
    );
    assert_eq!(processes_of(sandbox), [], "nothing is left behind");
    finished
}

#[test]
fn the_digits_are_learnt_to_the_same_bits_by_one_two_and_three_workers() {
    let one = run("job.toml", 1, &[]);
    assert_eq!(one.of_kind("step").count(), 675);
    let accuracy = one.end()["metrics"]["accuracy"].as_f64().unwrap();
    assert!(accuracy >= 0.97, "{accuracy}");
    for workers in [2, 3] {
        let other = run("job.toml", workers, &[]);
        assert_eq!(other.bits(), one.bits(), "{workers} workers");
        let losses = |run: &Finished| {
            run.of_kind("step")
                .map(|step| step["loss"].clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(losses(&other), losses(&one), "{workers} workers");
        assert_eq!(other.end()["metrics"], one.end()["metrics"]);
    }
}

#[test]
fn an_mlp_is_learnt_to_the_same_bits_and_another_seed_gives_others() {
    let short = ["--set", "train.epochs=6"];
    let one = run("mlp.toml", 1, &short);
    let four = run("mlp.toml", 4, &short);
    assert_eq!(four.bits(), one.bits());
    let other = run(
        "mlp.toml",
        2,
        &["--set", "train.epochs=6", "--set", "train.seed=1"],
    );
    let (bits, others) = (one.bits(), other.bits());
    assert!(
        bits.iter().zip(&others).all(|(one, other)| one != other),
        "{bits:?} {others:?}"
    );
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let one = run(
        "job.toml",
        1,
        &["--set", "train.epochs=4", "--threads", "1"],
    );
    let four = run(
        "job.toml",
        2,
        &["--set", "train.epochs=4", "--threads", "4"],
    );
    assert_eq!(one.bits(), four.bits());
}

/// A text, and a model that writes out its own gradients; dropout and an evaluation on the way.
#[test]
fn a_gpt_is_learnt_to_the_same_bits_by_one_and_two_workers() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/gpt2");
    let run = |workers: u32| {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        for (from, to) in [("job.toml", "gpt2.toml"), ("genesis.txt", "genesis.txt")] {
            let from = std::path::Path::new(example).join(from);
            std::fs::copy(from, sandbox.path().join(to)).unwrap();
        }
        let arguments = [
            "--set",
            "train.steps=4",
            "--set",
            "train.evaluate_every_steps=2",
            "--set",
            "schedule.warmup_steps=1",
            "--set",
            "model.dropout=0.1",
        ];
        run_in(&sandbox, "gpt2.toml", workers, &arguments)
    };
    let (one, two) = (run(1), run(2));
    assert_eq!(one.of_kind("step").count(), 4);
    assert_eq!(two.bits(), one.bits());
    assert_eq!(two.end()["metrics"], one.end()["metrics"]);
}
