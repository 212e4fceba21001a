//! A whole cluster on one thread, one clock and one seed: ranks, workers and one, three or five
//! coordinators, made of the product's machines and of models of their shells, on a network and disks
//! that fail.
//!
//! 1. [`cluster`]: the run of a seed. [`faults`]: what goes wrong in it. [`oracle`]: what must hold.
//!    [`clients`]: what people ask for.
//! 2. [`control`]: the group of coordinators, what goes wrong with it, and its operator.
//! 3. [`coordinator`], [`worker`], [`rank`], [`group`]: the shells' models around the machines.
//! 4. [`net`], [`model`], [`rng`]: time, what is trained, chance.
//! 5. [`shares`]: another, smaller simulation, of ranks that share the optimizer's state.
//!
//! ```text
//! SIM_SEED=7 cargo test -p muster-tests --test sim one_seed -- --nocapture          one seed, with its log
//! SIM_GROUP=5 SIM_SEED=7 cargo test -p muster-tests --test sim one_seed -- --nocapture   with five coordinators
//! SIM_SEEDS=0..2000 cargo test -p muster-tests --test sim many_seeds -- --ignored --nocapture
//! ```

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails, and says where"
)]

mod clients;
mod cluster;
mod control;
mod coordinator;
mod env;
mod faults;
mod group;
mod model;
mod net;
mod note;
mod oracle;
mod rank;
mod rng;
mod shares;
mod worker;

use cluster::{Report, run};
use env::Plant;

/// Seeds that found something with one coordinator, or would find it again.
const STORIES: [u64; 6] = [
    // A process ended while the world that was to go on with it was on its way through the log. The
    // leader forgot the exit with the old world, and waited for it for ever.
    349,
    // A coordinator was restarted after ranks had entered a second world. Their worker had forgotten
    // where they listen, and a leader that does not know lets no further world begin.
    84,
    // The hello of a torn stream came after that of the one that replaced it. The worker was told
    // that its stream was refused, and ended with all of its ranks.
    1930,
    // A rank that had entered late became the only one, while records of the steps before its time
    // were under way through another worker. Its own came first, and those were never told.
    1847, 2786,
    // A rank was closed while it took a state over. It reported that it had none, and the job fell
    // back although the state was there.
    1803,
];

/// Seeds that found something with a group. That a member which joins knew nobody whom it could answer,
/// and was offered a snapshot that did not count it in, many of the first fifty would find.
const GROUP_STORIES: [u64; 3] = [
    // The only other member was removed. The one that was left had not kept that it was alone when
    // its process ended, and asked for the other one's vote for ever.
    58,
    // A member was cut off while another one was replaced. The new one led, and the one that was
    // behind had nowhere to answer it: the entry that told of it was among those that it lacked.
    384,
    // A member came while the leader was about to hand over, and what it said of its disk was
    // dropped. The hand-over failed, and the log never learned the disk.
    2435,
];

/// Fails with the one command that shows what happened.
fn check(seed: u64, size: Option<u64>) -> Report {
    let report = run(seed, size, Plant::Nothing, false);
    if let Some(violation) = &report.violation {
        panic!(
            "seed {seed}: {violation}\nto see it:\n    {group}SIM_SEED={seed} cargo test -p muster-tests \
             --test sim one_seed -- --nocapture",
            group = size
                .map(|size| format!("SIM_GROUP={size} "))
                .unwrap_or_default(),
        );
    }
    report
}

#[test]
fn whatever_happens_the_job_ends_in_the_same_state() {
    for seed in (0..50).chain(GROUP_STORIES) {
        check(seed, None);
    }
    for seed in STORIES {
        check(seed, Some(1));
    }
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in 0..3 {
        let [first, second] = [(); 2].map(|()| run(seed, None, Plant::Nothing, true));
        assert!(first.log == second.log, "seed {seed} differs from itself");
        assert!(first.log.len() > 100, "seed {seed} tells something");
    }
}

/// A model that cannot find a bug proves nothing.
#[test]
fn planted_bugs_are_noticed() {
    for (plant, words) in [
        (Plant::ApplyWhenClosed, ""),
        (Plant::AnyGeneration, ""),
        (Plant::CountTheDead, "another state"),
        (Plant::ReportEarly, "the records of history"),
        (Plant::AnswerBeforeSync, ""),
        (Plant::ComeBackEmpty, ""),
        (Plant::AnyHistory, "the records of history"),
    ] {
        let found = (0..400).find_map(|seed| {
            let violation = run(seed, None, plant, false).violation?;
            violation.contains(words).then_some((seed, violation))
        });
        println!("{plant:?}: {found:?}");
        assert!(found.is_some(), "{plant:?} was not noticed");
    }
}

/// How many coordinators `SIM_GROUP` asks for; the seed draws it where that is not given.
fn group() -> Option<u64> {
    let size = std::env::var("SIM_GROUP").ok()?;
    Some(size.parse().unwrap())
}

/// Shows the seed of `SIM_SEED`, if there is one.
#[test]
fn one_seed() {
    let Ok(seed) = std::env::var("SIM_SEED") else {
        return;
    };
    let report = run(seed.parse().unwrap(), group(), Plant::Nothing, true);
    for line in &report.log {
        println!("{line}");
    }
    println!(
        "{} ms, {} events, {:?}",
        report.took / 1000,
        report.num_events,
        report.counts
    );
    assert_eq!(report.violation, None);
}

/// Runs the seeds of `SIM_SEEDS=from..to`, and names all that fail.
#[test]
#[ignore = "for hours, not for minutes"]
fn many_seeds() {
    let range = std::env::var("SIM_SEEDS").unwrap_or_else(|_| "0..1000".to_owned());
    let (from, to) = range.split_once("..").unwrap();
    let mut num_failed = 0;
    let mut total = oracle::Counts::default();
    for seed in from.parse::<u64>().unwrap()..to.parse().unwrap() {
        let report = run(seed, group(), Plant::Nothing, false);
        total += report.counts;
        if let Some(violation) = report.violation {
            num_failed += 1;
            println!("seed {seed}: {violation}");
        }
    }
    println!("{total:?}");
    assert_eq!(num_failed, 0, "seeds failed; SIM_SEED shows each");
}
