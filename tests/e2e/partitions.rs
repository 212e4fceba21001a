//! Machines that cannot reach each other, in network namespaces: a world that nobody leads for a
//! while, two ranks that miss each other, and a world that was given up and comes back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use muster_tests::{Cluster, Halts, Network, Sandbox, eventually, processes_of};
use serde_json::Value;

const JOB: &str = "digits";
const STEPS: u64 = 300;
const DEADLINE: Duration = Duration::from_secs(90);

/// `detect_ms` where silence is no proof. A pause of a process, as on a machine that does other things,
/// is mostly shorter.
const DETECT: Duration = Duration::from_secs(5);

/// The step behind which machines are cut off from each other, and the one behind which a job waits
/// until all has been seen that it is to run for.
const CUT: u64 = 40;
const LAST: u64 = 250;

fn steps() -> String {
    format!("train.steps={STEPS}")
}

fn undisturbed(num_shards: u32) -> [String; 3] {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let train = sandbox.train("job.toml").workers(2).set(&steps());
    let train = train.set("workers.max=2").set(&shards(num_shards));
    train.arg("--threads").arg("1").start().finish().bits()
}

fn shards(num_shards: u32) -> String {
    format!("train.logical_shards={num_shards}")
}

/// A committed checkpoint, with the bytes of its files.
#[derive(PartialEq, Eq)]
struct Checkpoint {
    history: u64,
    step: u64,
    files: Vec<(String, Vec<u8>)>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step {} of history {}", self.step, self.history)
    }
}

struct Site {
    cluster: Cluster,
    halts: Halts,
    num_shards: u32,
}

impl Site {
    /// A coordinator and these workers, with a machine each.
    fn new(network: Network, workers: &[&str], coordinator: &[&str]) -> Self {
        let names = [&["coordinator"], workers].concat();
        let mut cluster = Cluster::on_machines(env!("CARGO_BIN_EXE_muster"), network, &names);
        let halts = Halts::at(Network::HOST);
        let (name, value) = halts.variable();
        cluster.environment = vec![(name.to_owned(), value)];
        cluster.start_coordinator_with(coordinator);
        for worker in workers {
            cluster.start_worker_as(worker, worker, &["--threads", "1"]);
        }
        Self {
            cluster,
            halts,
            num_shards: 8,
        }
    }

    fn submit(&self, min: u32, max: u32) {
        let (min, max) = (format!("workers.min={min}"), format!("workers.max={max}"));
        let sets = ["--set", &steps(), "--set", &min, "--set", &max];
        let shards = shards(self.num_shards);
        let others = ["--set", "checkpoint.every_steps=50", "--set", &shards];
        let arguments = [&["submit", "job.toml"][..], &sets[..], &others[..]].concat();
        let _ = self.cluster.text(&arguments);
    }

    fn show(&self) -> Value {
        self.cluster.json(&["show", JOB, "--json"])
    }

    fn of_kind(&self, kind: &str) -> Vec<Value> {
        let mut events = self.cluster.events(JOB);
        events.retain(|event| event["event"] == kind);
        events
    }

    /// The steps that are told of a history.
    fn steps(&self, history: u64) -> Vec<u64> {
        let mut events = self.of_kind("step");
        events.retain(|event| event["history"] == history);
        let steps = events.iter().filter_map(|event| event["step"].as_u64());
        steps.collect()
    }

    /// The newest step that a process has made the update of, as it says itself.
    fn updated(&self, process: u64) -> u64 {
        let passed = self.halts.passed().into_iter();
        let updated = passed.filter(|point| point.process == process && point.place == "updated");
        updated.map(|point| point.step + 1).max().unwrap_or(0)
    }

    fn newest_checkpoint(&self) -> Option<Checkpoint> {
        let job = self.show();
        let newest = job["checkpoints"].as_array()?.last()?.clone();
        let folder = PathBuf::from(newest["folder"].as_str()?);
        let files = newest["files"].as_array()?.iter();
        let files = files.map(|file| {
            let name = file["name"].as_str().unwrap();
            (name.to_owned(), std::fs::read(folder.join(name)).unwrap())
        });
        Some(Checkpoint {
            history: newest["history"].as_u64()?,
            step: newest["step"].as_u64()?,
            files: files.collect(),
        })
    }

    fn pids_of(&self, processes: [u64; 2]) -> Vec<u32> {
        let passed = self.halts.passed().into_iter();
        let of_them = passed.filter(|point| processes.contains(&point.process));
        of_them.map(|point| point.pid).collect()
    }

    fn finish(&self) {
        assert!(self.cluster.text(&["wait", JOB]).contains("completed"));
        let end = self.of_kind("finished").remove(0);
        let bits = ["arena_hash", "optimizer_hash", "trace"];
        let bits = bits.map(|name| end[name].as_str().unwrap().to_owned());
        assert_eq!(bits, undisturbed(self.num_shards));
        let ledger = self.cluster.text(&["ledger", JOB, "--verify"]);
        assert!(
            ledger.contains(&format!("verified up to step {STEPS}")),
            "{ledger}"
        );
    }
}

#[test]
fn ranks_that_are_cut_off_from_the_coordinator_go_on_and_it_learns_what_they_did() {
    let name = "ranks_that_are_cut_off_from_the_coordinator_go_on_and_it_learns_what_they_did";
    let Some(network) = Network::enter(name) else {
        return;
    };
    let detect_ms = DETECT.as_millis().to_string();
    let mut site = Site::new(network, &["a", "b"], &["--detect-ms", &detect_ms]);
    // One a rank: none moves while one of them stands.
    site.num_shards = 2;
    let [held, last] = [CUT, LAST].map(|step| site.halts.hold_at(0, step));
    site.submit(2, 2);
    let held = held.wait("a job that runs", DEADLINE);
    let coordinator = site.cluster.machine("coordinator");
    site.cluster.network().cut(coordinator);
    let (cut, at) = (Instant::now(), site.updated(1));
    drop(held);
    // Until it would have taken them for lost, were silence a proof.
    eventually(DEADLINE, "steps that nobody leads", || {
        (site.updated(1) >= at + 50 && cut.elapsed() > 3 * DETECT).then_some(())
    });
    let meanwhile = site.updated(1) - at;
    println!("{meanwhile} steps in {:?}", cut.elapsed());
    site.cluster.network().mend(coordinator);
    drop(last);
    site.finish();
    assert_eq!(site.of_kind("generation").len(), 1, "one world");
    assert_eq!(site.of_kind("lost").len(), 0);
    assert_eq!(site.steps(1), (1..=STEPS).collect::<Vec<_>>());
}

/// Three machines in one world, some of which do not reach each other any more, though all reach the
/// coordinator: those that two of them go on with.
fn left_of_three(network: Network, cuts: &[(&str, &str)]) -> BTreeSet<String> {
    let site = Site::new(network, &["a", "b", "c"], &[]);
    site.cluster.wait_for_workers(3);
    // All are at one step: who alone is past it is never left out. Only a world of three has this rank.
    let held = site
        .halts
        .hold(|point| point.rank == 2 && point.step >= CUT && point.place == "reduce");
    site.submit(1, 3);
    let held = held.wait("a world of three", DEADLINE);
    let at = held.point.clone();
    for rank in 0..3 {
        site.halts.wait_for("all at its step", DEADLINE, |point| {
            let is_there = (point.generation, point.step) == (at.generation, at.step);
            is_there && point.rank == rank && point.place == "reduce"
        });
    }
    for (one, other) in cuts {
        let (one, other) = (site.cluster.machine(one), site.cluster.machine(other));
        site.cluster.network().cut_between(one, other);
    }
    let (cut, mut held) = (Instant::now(), Some(held));
    let what = "steps without one of them";
    let job = site.halts.slowly(what, DEADLINE, || {
        drop(held.take());
        let job = site.show();
        (job["world_size"] == 2 && job["step"].as_u64() > Some(at.step)).then_some(job)
    });
    println!("{:?} from the cut to a step without one", cut.elapsed());
    site.finish();
    // Each try to take the one in again that is left out comes later than the one before.
    let worlds = site.of_kind("generation");
    assert!(worlds.len() < 20, "{worlds:#?}");
    assert_eq!(site.show()["history"], 1, "nothing fell back");
    assert_eq!(site.steps(1), (1..=STEPS).collect::<Vec<_>>());
    let ranks = job["ranks"].as_array().unwrap().iter();
    let workers = ranks.map(|rank| rank["worker"].as_str().unwrap().to_owned());
    workers.collect()
}

#[test]
fn of_two_ranks_that_do_not_reach_each_other_one_is_left_out() {
    let name = "of_two_ranks_that_do_not_reach_each_other_one_is_left_out";
    let Some(network) = Network::enter(name) else {
        return;
    };
    let left = left_of_three(network, &[("b", "c")]);
    assert!(left.contains("a"), "{left:?}: a reaches both");
}

#[test]
fn of_three_ranks_the_one_that_no_other_reaches_is_left_out() {
    let name = "of_three_ranks_the_one_that_no_other_reaches_is_left_out";
    let Some(network) = Network::enter(name) else {
        return;
    };
    // The lowest rank: of two ranks that miss each other the higher one is left out.
    let left = left_of_three(network, &[("a", "b"), ("a", "c")]);
    assert_eq!(left, ["b", "c"].map(str::to_owned).into());
}

#[test]
fn a_world_that_was_given_up_and_comes_back_with_a_checkpoint_replaces_nothing() {
    let name = "a_world_that_was_given_up_and_comes_back_with_a_checkpoint_replaces_nothing";
    let Some(network) = Network::enter(name) else {
        return;
    };
    let site = Site::new(network, &["a", "b", "c"], &["--fallback-after-ms", "2000"]);
    site.cluster.wait_for_workers(3);
    let _ = site.cluster.text(&["drain", "c"]);
    let writer = site
        .halts
        .hold(|point| (point.process, point.step) == (1, 200) && point.place == "write params");
    let next = site
        .halts
        .hold(|point| point.process > 2 && point.step == 120 && point.place == "reduce");
    let rank = site
        .halts
        .hold(|point| point.step == 60 && point.place == "reduce");
    site.submit(1, 2);
    let rank = rank.wait("a step behind the first checkpoint", DEADLINE);
    let first = eventually(DEADLINE, "a checkpoint", || site.newest_checkpoint());
    let away = ["a", "b"].map(|name| site.cluster.machine(name));
    let coordinator = site.cluster.machine("coordinator");
    for machine in away {
        site.cluster.network().cut_between(coordinator, machine);
    }
    drop(rank);
    let _ = site.cluster.text(&["drain", "c", "--undo"]);
    // The old world is in the middle of a checkpoint, and the new one is not that far.
    let (writer, next) = (
        writer.wait("the old world's checkpoint", DEADLINE),
        next.wait("a step of the new world", DEADLINE),
    );
    let job = site.show();
    assert_eq!(job["history"], 2, "{job:#}");
    let committed = eventually(DEADLINE, "a checkpoint of the new world", || {
        site.newest_checkpoint().filter(|newest| newest.step == 100)
    });
    assert!(committed.step > first.step && committed.history == 2);
    drop(writer);
    for (process, place) in [(1, "written params"), (2, "written optimizer")] {
        site.halts
            .wait_for("the rest of a checkpoint", DEADLINE, move |point| {
                (point.process, point.step) == (process, 200) && point.place == place
            });
    }
    let old = site.pids_of([1, 2]);
    for machine in away {
        site.cluster.network().mend_between(coordinator, machine);
    }
    eventually(DEADLINE, "the end of the old world", || {
        let left = processes_of(&site.cluster.sandbox);
        left.iter().all(|(pid, _)| !old.contains(pid)).then_some(())
    });
    assert_eq!(
        site.newest_checkpoint().as_ref(),
        Some(&committed),
        "it is refused"
    );
    drop(next);
    site.finish();
    // What was written twice is as it was, and what the job rests on is of the new history.
    let newest = site.newest_checkpoint().unwrap();
    assert_eq!((newest.history, newest.step), (2, STEPS));
    let from = first.step + 1;
    assert_eq!(site.steps(2), (from..=STEPS).collect::<Vec<_>>());
}
