//! Kills a process that writes, again and again, and looks whether it lied.
//!
//! The process is this test binary, told to run [`child`]. A kill leaves the kernel's cache as it
//! is, so that this finds acknowledgements that come too early within the process and batches that
//! are torn; that the disk itself was told is counted in `tests`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use muster_coordinator_core::consensus::{Entry, EntryKind, HardState};

use super::thread::{Batch, Report, StoreThread};
use super::{Meta, Store};

/// Where the child finds its store.
const FOLDER: &str = "MUSTER_TEST_STORE_FOLDER";
const NUM_ROUNDS: u64 = 8;

fn entry(index: u64, term: u64) -> Entry {
    let data = format!("{index} of {term}")
        .into_bytes()
        .repeat(1 + (index % 50) as usize);
    Entry {
        index,
        term,
        kind: EntryKind::Normal,
        data,
    }
}

/// Batches of one to three entries, without end; each that is durable is a line on the output. The
/// first batch overwrites the last two entries of the life before with a term of its own.
#[test]
#[ignore = "the half of `what_was_acknowledged_survives_kills` that is killed"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let (store, recovered, _) = Store::open(Path::new(&folder)).unwrap();
    let term = recovered.hard_state.term + 1;
    let mut index = (recovered.entries.len() as u64).saturating_sub(2) + 1;
    let thread = StoreThread::spawn(store, |report| match report {
        // Not `println`, which the test harness may catch.
        Report::Durable { batch } => writeln!(std::io::stdout(), "durable {batch}").unwrap(),
        Report::Failed(error) => panic!("{error}"),
    });
    let thread = thread.unwrap();
    loop {
        let end = index + 1 + index % 3;
        let entries = (index..end).map(|index| entry(index, term)).collect();
        let hard_state = Some(HardState {
            term,
            vote: 1,
            commit: end - 1,
        });
        thread
            .write(Batch {
                batch: end - 1,
                entries,
                hard_state,
                restore: None,
            })
            .unwrap();
        index = end;
    }
}

#[test]
fn what_was_acknowledged_survives_kills() {
    let folder = tempfile::tempdir().unwrap();
    let mut first_meta: Option<Meta> = None;
    for round in 1..=NUM_ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::crash::child", "--ignored", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // After so many lines, wherever the writer is by then.
        let num_lines = 1 + round * 7919 % 97;
        let lines = BufReader::new(child.stdout.take().unwrap())
            .lines()
            .map(Result::unwrap);
        let acknowledged =
            lines.filter_map(|line| line.strip_prefix("durable ").map(str::to_owned));
        let acknowledged = acknowledged.take(num_lines as usize).last();
        child.kill().unwrap();
        child.wait().unwrap();
        let acknowledged: u64 = acknowledged
            .expect("the child said nothing")
            .parse()
            .unwrap();

        let (_, recovered, meta) = Store::open(folder.path()).unwrap();
        assert_eq!(*first_meta.get_or_insert(meta), meta);
        let last = recovered.entries.len() as u64;
        assert!(
            last >= acknowledged,
            "round {round}: {acknowledged} was acknowledged, {last} is the last"
        );
        assert_eq!(
            recovered.hard_state,
            HardState {
                term: round,
                vote: 1,
                commit: last
            },
            "a batch was torn"
        );
        let mut term_before = 1;
        for (index, found) in (1..).zip(&recovered.entries) {
            assert!(found.term >= term_before && found.term <= round);
            assert_eq!(*found, entry(index, found.term), "round {round}");
            term_before = found.term;
        }
        assert_eq!(recovered.entries[acknowledged as usize - 1].term, round);
    }
}
