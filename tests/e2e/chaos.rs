//! A short job under kills of random processes at random moments, all drawn from one seed: whatever
//! was struck, it ends with the bits of an undisturbed run. Even seeds strike at steps of the job, and
//! odd ones have `muster chaos` do it, as users do, at times of its own.
//!
//! ```text
//! CHAOS_SEED=7 cargo test --workspace --test chaos one_seed -- --nocapture      one seed, told
//! CHAOS_SEEDS=0..200 cargo test --workspace --test chaos many_seeds -- --ignored --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use muster_tests::{
    Cluster, Finished, Halts, Held, Sandbox, Signal, Train, TrainCommand, eventually, processes_of,
};
use serde_json::Value;

const STEPS: u64 = 60;
const DEADLINE: Duration = Duration::from_secs(60);

/// How long a rank may be silent where processes are paused.
const DETECT: Duration = Duration::from_secs(1);

/// How often links are cut at most: a coordinator that does not run meanwhile misses nobody.
const ATTEMPTS: usize = 5;

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
    blows: Blows,
}

/// Who strikes.
#[derive(Debug)]
enum Blows {
    Ours(Vec<Strike>),
    /// `muster chaos` with these arguments, from this step on.
    OfChaos {
        step: u64,
        num: u64,
        arguments: Vec<String>,
    },
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
        let blows = match seed % 2 {
            0 => Blows::Ours(strikes(&mut dice, num_strikes)),
            _ => of_chaos(&mut dice, seed, num_strikes),
        };
        let redundancy = ["full", "shadow", "none"][usize::try_from(dice.below(3)).unwrap()];
        Self {
            num_workers,
            redundancy,
            blows,
        }
    }
}

fn strikes(dice: &mut Dice, num: u64) -> Vec<Strike> {
    let kinds = [What::Rank, What::Rank, What::Worker, What::Coordinator];
    let strikes = (0..num).map(|_| Strike {
        step: dice.below(STEPS - 5),
        after_us: dice.below(30_000),
        what: kinds[usize::try_from(dice.below(4)).unwrap()],
        index: dice.below(1 << 32),
    });
    let mut strikes: Vec<Strike> = strikes.collect();
    strikes.sort_unstable();
    strikes
}

fn of_chaos(dice: &mut Dice, seed: u64, num: u64) -> Blows {
    let step = dice.below(STEPS / 2);
    let every_ms = 20 + dice.below(150);
    let words = format!(
        "--seed {seed} --what rank,worker,coordinator --kill-every {every_ms}ms --kills {num} --json"
    );
    let pause = (dice.below(3) == 0).then_some("--pause");
    let arguments = words.split(' ').chain(pause).map(str::to_owned).collect();
    Blows::OfChaos {
        step,
        num,
        arguments,
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

/// Waits until a step is told; 0 for the first sign of the job.
fn wait_for_step(train: &Train<'_>, step: u64) {
    let is_it = |event: &Value| match step {
        0 => true,
        step => event["event"] == "step" && event["step"].as_u64() >= Some(step),
    };
    train.wait_for(is_it, DEADLINE);
}

/// Kills what a strike says, if there is one; says which process that was.
fn strike(sandbox: &Sandbox, train: &Train<'_>, strike: Strike) -> String {
    wait_for_step(train, strike.step);
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

/// Where the coordinator of a run is, as its workers are told.
fn address_of(sandbox: &Sandbox) -> String {
    eventually(DEADLINE, "a worker", || {
        let mut processes = processes_of(sandbox).into_iter();
        let (_, line) = processes.find(|(_, line)| What::Worker.is(line))?;
        let (_, behind) = line.split_once("--join ")?;
        behind.split(' ').next().map(str::to_owned)
    })
}

/// Has `muster chaos` do what it is told to, unless the job ends before that: it waits until the command
/// has found it. Returns what the command says of each act.
fn chaos(sandbox: &Sandbox, held: Held, arguments: &[String], num: u64) -> Vec<Value> {
    let mut command = sandbox.muster();
    command.args(["chaos", "digits", "--coordinator", &address_of(sandbox)]);
    let command = command.args(arguments).stdin(Stdio::null());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // What it is about to do it says first, and once it has seen the job.
    let (mut says, mut stderr) = (BufReader::new(child.stderr.take().unwrap()), String::new());
    says.read_line(&mut stderr).unwrap();
    drop(held);
    says.read_to_string(&mut stderr).unwrap();
    let output = child.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let told = stdout.lines().map(serde_json::from_str);
    let mut told = told.collect::<Result<Vec<Value>, _>>().unwrap();
    let said = || format!("{arguments:?}\n{stdout}\n{stderr}");
    let end = told.pop().unwrap_or_else(|| panic!("{}", said()));
    let reason = end["reason"].as_str().unwrap();
    let is_right = match reason {
        "it was enough" => output.status.success() && told.len() as u64 == num,
        "the job has ended (completed)" => output.status.success(),
        // The coordinator goes with the job, perhaps before it has told its end.
        reason => reason.contains("did not answer"),
    };
    assert!(is_right, "{}", said());
    assert_eq!(end["acts"], told.len(), "{}", said());
    for act in &told {
        let pid = u32::try_from(act["pid"].as_u64().unwrap()).unwrap();
        let what = act["event"].as_str().unwrap();
        assert!(["killed", "missed", "paused"].contains(&what), "{}", said());
        eventually(DEADLINE, &format!("what is said: {act}"), || {
            let has_ended = processes_of(sandbox).iter().all(|(one, _)| *one != pid);
            (has_ended || what == "paused" && !is_stopped(pid)).then_some(())
        });
    }
    told
}

/// Whether a process is stopped by a signal.
fn is_stopped(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"));
    status.is_ok_and(|status| status.contains("State:\tT"))
}

fn run(seed: u64) -> (Vec<String>, Finished) {
    let plan = Plan::of(seed);
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let job = job(&sandbox, plan.num_workers, plan.redundancy);
    let (train, struck) = match &plan.blows {
        Blows::Ours(strikes) => {
            let train = job.start();
            let struck = strikes.iter().map(|one| strike(&sandbox, &train, *one));
            let struck: Vec<String> = struck.collect();
            (train, struck)
        }
        Blows::OfChaos {
            step,
            num,
            arguments,
        } => {
            let halts = Halts::new();
            let hold = halts.hold_at(0, *step);
            // A pause is longer than that.
            let pauses = arguments.iter().any(|argument| argument == "--pause");
            let job = if pauses { job.detect(DETECT) } else { job };
            let train = job.halted_by(&halts).start();
            let held = hold.wait("the step that was drawn", DEADLINE);
            let told = chaos(&sandbox, held, arguments, *num);
            (train, told.iter().map(Value::to_string).collect())
        }
    };
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
    let mut num_struck = [0; 2];
    for seed in 0..10 {
        match catch_unwind(|| run(seed)) {
            Ok((struck, _)) => num_struck[usize::try_from(seed % 2).unwrap()] += struck.len(),
            Err(panic) => {
                eprintln!("{}", repeat(seed));
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(num_struck.iter().all(|num| *num > 0), "{num_struck:?}");
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
    let generation_of = |job: &Value| job["generation"].as_u64().unwrap();
    let mut before = eventually(DEADLINE, "steps of two", || {
        let job = show();
        let is_it = job["world_size"] == 2 && job["step"].as_u64() > Some(20);
        is_it.then(|| generation_of(&job))
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
    let mut left_out = None;
    for _ in 0..ATTEMPTS {
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
        let job = show();
        let worlds = job["worlds"].as_array().unwrap().iter();
        let new = worlds.filter(|world| generation_of(world) > before);
        let mut of_one = new.filter(|world| world["world_size"] == 1);
        left_out = of_one.next().map(generation_of);
        if left_out.is_some() {
            break;
        }
        before = generation_of(&job);
    }
    let left_out = left_out.expect("a world without the one that is cut off");
    let at = eventually(DEADLINE, "two again", || {
        let job = show();
        (job["world_size"] == 2 && generation_of(&job) > left_out).then_some(job)
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
