//! Proof, as far as tests go, that a store keeps what it acknowledged: when its process is killed,
//! when the power fails, when its files are damaged, and when its disk is full.
//!
//! All of them run the same [`writer`] in a process of its own, which is this test binary told to
//! run that test, and know from the [`workload`] what it wrote.

mod damage;
mod disk;
mod kills;
mod pace;
mod power;
mod record;
mod workload;

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use muster_coordinator_core::consensus::Recovered;

use super::thread::{Batch, Report, StoreThread};
use super::{Meta, SIZES, Sizes, Store};
use workload::{Op, Workload};

const FOLDER: &str = "MUSTER_TEST_STORE_FOLDER";
const SEED: &str = "MUSTER_TEST_STORE_SEED";
const NUM_OPS: &str = "MUSTER_TEST_STORE_NUM_OPS";
/// What precedes the number of acknowledged operations in a line of the writer's output.
const DURABLE: &str = "durable ";

/// A process that will write a store.
fn writer_of(folder: &Path, seed: u64, num_ops: u64) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "store::durability::writer"])
        .args(["--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .env(SEED, seed.to_string())
        .env(NUM_OPS, num_ops.to_string());
    command
}

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Whether the writer of this seed gives its batches to a thread.
fn has_thread(seed: u64) -> bool {
    seed.is_multiple_of(4)
}

/// Files as large as those of users, or so small that a writer of this seed fills and removes many.
fn sizes(seed: u64) -> Sizes {
    match seed.is_multiple_of(3) {
        true => SIZES,
        false => Sizes {
            file: 16 << 10,
            all: 64 << 10,
        },
    }
}

fn workload_of(seed: u64, content: Recovered) -> Workload {
    let workload = Workload::new(seed, content);
    match has_thread(seed) {
        true => workload.only_batches(),
        false => workload,
    }
}

/// Writes so many operations, and tells how many are acknowledged: what was found at the beginning
/// first. It ends without closing the store.
#[test]
#[ignore = "the process that the tests of durability run and kill"]
fn writer() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let (seed, num_ops) = (number_in(SEED).unwrap(), number_in(NUM_OPS).unwrap());
    let (mut store, recovered, _) = Store::open_sized(Path::new(&folder), sizes(seed)).unwrap();
    // Not `println`, which the test harness may catch; and one call of the system for each line.
    let tell = |num: u64| {
        let line = format!("{DURABLE}{num}\n");
        std::io::stdout().write_all(line.as_bytes()).unwrap();
    };
    tell(0);
    let mut workload = workload_of(seed, recovered);
    if has_thread(seed) {
        let thread = StoreThread::spawn(store, move |report| match report {
            Report::Durable { batch } => tell(batch),
            Report::Rests { mark } => panic!("{mark:?}"),
            Report::Failed(error) => fail(&error),
        });
        let thread = thread.unwrap();
        while workload.num_ops() < num_ops {
            if let Op::Append {
                entries,
                hard_state,
                restore,
            } = workload.step()
            {
                let batch = workload.num_ops();
                let written = thread.write(Batch {
                    batch,
                    entries,
                    hard_state,
                    restore,
                });
                if written.is_err() {
                    // The report of the failure ends the process.
                    loop {
                        std::thread::park();
                    }
                }
            }
        }
    } else {
        while workload.num_ops() < num_ops {
            let op = workload.step();
            op.apply(&mut store).unwrap_or_else(|error| fail(&error));
            if matches!(op, Op::Sync) {
                tell(workload.num_ops());
            }
        }
    }
    std::process::exit(0);
}

fn fail(error: &super::StoreError) -> ! {
    println!("failed {error}");
    std::process::exit(1);
}

/// How many operations a line says are acknowledged.
fn acknowledged_in(line: &str) -> Option<u64> {
    line.strip_prefix(DURABLE)?.parse().ok()
}

/// Looks whether what was found is what a writer with this seed left behind, after at least
/// `acknowledged` and at most `num_ops` operations; says how many there are.
fn find(
    seed: u64,
    initial: &Recovered,
    acknowledged: u64,
    num_ops: u64,
    found: &Recovered,
) -> Result<u64, String> {
    let mut workload = workload_of(seed, initial.clone());
    while workload.num_ops() < acknowledged {
        workload.step();
    }
    let expected = workload.content().clone();
    loop {
        if is_same(workload.content(), found) {
            return Ok(workload.num_ops());
        }
        if workload.num_ops() >= num_ops {
            return Err(difference(&expected, found));
        }
        workload.step();
    }
}

/// Whether one content is the other. Of the entries that a snapshot covers the first may be gone: they
/// are discarded a few at a time.
fn is_same(expected: &Recovered, found: &Recovered) -> bool {
    let num_needed = |content: &Recovered| {
        let needed = content
            .entries
            .iter()
            .filter(|entry| entry.index > content.start.index);
        needed.count()
    };
    expected.hard_state == found.hard_state
        && expected.start == found.start
        && expected.entries.ends_with(&found.entries)
        && num_needed(expected) == num_needed(found)
}

/// A line about where two contents differ.
fn difference(expected: &Recovered, found: &Recovered) -> String {
    let outline = |content: &Recovered| {
        let (entries, start) = (&content.entries, &content.start);
        let ends = entries.first().zip(entries.last());
        let ends = ends.map(|(first, last)| (first.index, last.index));
        format!(
            "{:?}, start {} of {}, entries {ends:?}",
            content.hard_state, start.index, start.term
        )
    };
    let differs = expected
        .entries
        .iter()
        .find(|entry| !found.entries.contains(entry));
    let differs = differs.map(|entry| (entry.index, entry.term));
    format!(
        "acknowledged: {}; found: {}; the first entry that is not as acknowledged, and its term: {differs:?}",
        outline(expected),
        outline(found)
    )
}
