//! A short job under kills of random processes at random moments, all drawn from one seed: whatever
//! was struck, it ends with the bits of an undisturbed run.
//!
//! ```text
//! CHAOS_SEED=7 cargo test --workspace --test chaos one_seed -- --nocapture      one seed, told
//! CHAOS_SEEDS=0..200 cargo test --workspace --test chaos many_seeds -- --ignored --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::time::Duration;

use muster_tests::{
    Cluster, Finished, Sandbox, Signal, Train, TrainCommand, eventually, processes_of,
};
use serde_json::Value;

const STEPS: u64 = 60;
const DEADLINE: Duration = Duration::from_secs(60);

/// What may be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Rank,
    Worker,
    Coordinator,
}

impl What {
    fn is(self, line: &str) -> bool {
        match self {
            What::Rank => line.ends_with(" rank"),
            What::Worker => line.contains("muster worker "),
            What::Coordinator => line.contains("muster coordinator "),
        }
    }
}

/// One kill. The order of its fields is that in which kills happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Strike {
    /// The step that is told first; 0 for the first sign of the job.
    step: u64,
    /// So long behind it.
    after_us: u64,
    what: What,
    /// Which of them, counted round.
    index: u64,
}

/// What happens to the run of a seed.
#[derive(Debug)]
struct Plan {
    num_workers: u32,
    redundancy: &'static str,
    strikes: Vec<Strike>,
}

/// SplitMix64 (Steele, Lea and Flood 2014): every seed is a good one.
struct Dice(u64);

impl Dice {
    /// One of the numbers below.
    fn below(&mut self, num: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % num
    }
}

impl Plan {
    fn of(seed: u64) -> Self {
        let mut dice = Dice(seed);
        let num_workers = 2 + u32::try_from(dice.below(3)).unwrap();
        // Five deaths in a row at one shard would end the job, and five fast ones of a coordinator.
        let num_strikes = 1 + dice.below(4);
        let strikes = (0..num_strikes).map(|_| Strike {
            step: dice.below(STEPS - 5),
            after_us: dice.below(30_000),
            what: [What::Rank, What::Rank, What::Worker, What::Coordinator]
                [usize::try_from(dice.below(4)).unwrap()],
            index: dice.below(1 << 32),
        });
        let mut strikes: Vec<Strike> = strikes.collect();
        strikes.sort_unstable();
        let redundancy = ["full", "shadow", "none"][usize::try_from(dice.below(3)).unwrap()];
        Self {
            num_workers,
            redundancy,
            strikes,
        }
    }
}

fn job<'a>(sandbox: &'a Sandbox, num_workers: u32, redundancy: &str) -> TrainCommand<'a> {
    let steps = format!("train.steps={STEPS}");
    let redundancy = format!("workers.redundancy={redundancy}");
    let train = sandbox.train("job.toml").workers(num_workers);
    let train = train.set(&redundancy);
    let train = train.arg("--threads").arg("1");
    train.set(&steps).set("checkpoint.every_steps=10")
}

fn undisturbed() -> &'static [String; 3] {
    static BITS: OnceLock<[String; 3]> = OnceLock::new();
    BITS.get_or_init(|| {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        job(&sandbox, 2, "full").start().finish().bits()
    })
}

/// Kills what a strike says, if there is one; says which process that was.
fn strike(sandbox: &Sandbox, train: &Train<'_>, strike: Strike) -> String {
    let is_time = |event: &serde_json::Value| match strike.step {
        0 => true,
        step => event["event"] == "step" && event["step"].as_u64() >= Some(step),
    };
    train.wait_for(is_time, DEADLINE);
    // Not for something to be so: this is the moment that was drawn.
    std::thread::sleep(Duration::from_micros(strike.after_us));
    let processes = processes_of(sandbox).into_iter();
    let of_kind: Vec<_> = processes.filter(|(_, line)| strike.what.is(line)).collect();
    let Some(index) = strike.index.checked_rem(of_kind.len() as u64) else {
        return format!("{strike:?}: there is none");
    };
    let (pid, line) = &of_kind[usize::try_from(index).unwrap()];
    sandbox.kill_if_there(*pid, Signal::KILL);
    format!("{strike:?}: {pid} {line}")
}

fn run(seed: u64) -> (Vec<String>, Finished) {
    let plan = Plan::of(seed);
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let train = job(&sandbox, plan.num_workers, plan.redundancy).start();
    let strikes = plan.strikes.iter();
    let struck: Vec<String> = strikes.map(|one| strike(&sandbox, &train, *one)).collect();
    let finished = train.finish();
    let said = || {
        let Finished { events, stderr, .. } = &finished;
        format!("{plan:#?}\n{struck:#?}\n{events:#?}\n{stderr}")
    };
    assert_eq!(finished.status.code(), Some(0), "{}", said());
    assert_eq!(&finished.bits(), undisturbed(), "{}", said());
    assert_eq!(processes_of(&sandbox), [], "nothing is left behind");
    // In every history the steps follow each other, each is told once, and the last history ends.
    let mut histories: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for event in finished.of_kind("step") {
        let number = |key: &str| event[key].as_u64().unwrap();
        let steps = histories.entry(number("history")).or_default();
        steps.push(number("step"));
    }
    for steps in histories.values() {
        let follow = |pair: &[u64]| pair[1] == pair[0] + 1;
        assert!(steps.windows(2).all(follow), "{steps:?}\n{}", said());
    }
    let last = histories
        .values()
        .next_back()
        .and_then(|steps| steps.last());
    assert_eq!(last, Some(&STEPS), "{}", said());
    (struck, finished)
}

/// How a seed that fails is repeated.
fn repeat(seed: u64) -> String {
    format!(
        "seed {seed} failed; once more:\n    CHAOS_SEED={seed} cargo test --workspace --test chaos \
         one_seed -- --nocapture"
    )
}

#[test]
fn ten_seeds_end_in_the_bits_of_an_undisturbed_run() {
    for seed in 0..10 {
        if let Err(panic) = catch_unwind(|| run(seed)) {
            eprintln!("{}", repeat(seed));
            std::panic::resume_unwind(panic);
        }
    }
}

/// The command for users, where the links of a worker are cut: what it is sent is dropped at both
/// ends. Whoever is cut off is left out and comes back, in the same history.
#[test]
fn a_worker_whose_links_are_cut_is_left_out_and_comes_back() {
    const JOB: &str = "digits-mlp";
    let mut cluster = Cluster::new(env!("CARGO_BIN_EXE_muster"));
    for worker in ["a", "b"] {
        cluster.start_worker_as(worker, worker, &["--threads", "1"]);
    }
    let sets = ["workers.max=2", "train.epochs=100000"].map(|set| ["--set", set]);
    let _ = cluster.text(&[&["submit", "mlp.toml"][..], &sets.concat()[..]].concat());
    let show = || cluster.json(&["show", JOB, "--json"]);
    eventually(DEADLINE, "steps of two", || {
        let job = show();
        (job["world_size"] == 2 && job["step"].as_u64() > Some(20)).then_some(())
    });
    // The cut of this seed lasts 2.7 s, which `detect_ms` is twice in.
    let how = [
        "--partition",
        "--kill-every",
        "300ms",
        "--kills",
        "1",
        "--json",
    ];
    let output = cluster.run(&[&["chaos", JOB, "--seed", "7"][..], &how[..]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    if stderr.contains("this user may not trace it") {
        eprintln!("SKIPPED: {stderr}");
        return;
    }
    assert!(output.status.success(), "{stderr}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let told = stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let told: Vec<Value> = told.collect();
    let cuts = told.iter().filter(|event| event["event"] == "cut");
    let longest = cuts.filter_map(|event| event["for_s"].as_f64());
    let longest = longest.fold(0.0, f64::max);
    assert!(longest > 2.5, "{stdout}");
    let at = eventually(DEADLINE, "two again", || {
        let job = show();
        (job["world_size"] == 2 && job["generation"].as_u64() > Some(2)).then_some(job)
    });
    assert_eq!(at["history"], 1, "{at:#}");
    eventually(DEADLINE, "more steps", || {
        (show()["step"].as_u64() > at["step"].as_u64()).then_some(())
    });
    let _ = cluster.text(&["cancel", JOB]);
    assert_eq!(cluster.run(&["wait", JOB]).status.code(), Some(1));
    let text = cluster.text(&["ledger", JOB, "--verify"]);
    assert!(text.contains("verified up to step"), "{text}");
}

/// Shows the seed of `CHAOS_SEED`, if there is one.
#[test]
fn one_seed() {
    let Ok(seed) = std::env::var("CHAOS_SEED") else {
        return;
    };
    let (struck, finished) = run(seed.parse().unwrap());
    println!("{struck:#?}");
    for event in &finished.events {
        println!("{event}");
    }
}

/// Runs the seeds of `CHAOS_SEEDS=from..to`, and names all that fail.
#[test]
#[ignore = "for a quarter of an hour, not for a minute"]
fn many_seeds() {
    let range = std::env::var("CHAOS_SEEDS").unwrap_or_else(|_| "0..200".to_owned());
    let (from, to) = range.split_once("..").unwrap();
    let mut failed = Vec::new();
    let (mut num_runs, mut num_strikes, mut num_worlds) = (0, 0, 0);
    for seed in from.parse::<u64>().unwrap()..to.parse().unwrap() {
        match catch_unwind(AssertUnwindSafe(|| run(seed))) {
            Ok((struck, finished)) => {
                num_strikes += struck.len();
                num_worlds += finished.of_kind("generation").count();
            }
            Err(_) => {
                eprintln!("{}", repeat(seed));
                failed.push(seed);
            }
        }
        num_runs += 1;
    }
    println!("{num_runs} runs, {num_strikes} strikes, {num_worlds} worlds");
    assert_eq!(failed, [0_u64; 0], "these seeds failed");
}
