//! Kills a process that writes, again and again, and looks whether it lied.
//!
//! A kill leaves the kernel's cache as it is, so that this finds acknowledgements that come too
//! early within the process and batches that are torn; `power` drops the cache, too.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::workload::Random;
use super::*;

/// What came of a number of kills.
#[derive(Debug, Default)]
struct Figures {
    num_kills: u64,
    /// Before the writer had opened its store.
    num_in_open: u64,
    num_acknowledged: u64,
    /// Operations beyond the last acknowledged one that were there, too.
    num_beyond: u64,
}

/// Runs the writer, kills it at a moment that is drawn, and checks what it left.
fn kill_once(
    folder: &Path,
    random: &mut Random,
    before: Option<(Recovered, Meta)>,
    figures: &mut Figures,
) -> (Recovered, Meta) {
    let seed = random.number();
    let mut child = writer_of(folder, seed, u64::MAX)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = channel();
    let reader = std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Some(acknowledged) = acknowledged_in(&line) {
                let _ = sender.send(acknowledged);
            }
        }
    });
    let mut acknowledged = None;
    // Every fourth dies while it starts, opens or recovers, or soon after.
    let pause = if random.one_in(4) {
        random.below(60_000)
    } else {
        acknowledged = lines.recv().ok();
        random.below(150_000)
    };
    std::thread::sleep(Duration::from_micros(pause));
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap();
    acknowledged = lines.try_iter().last().or(acknowledged);

    let (store, found, meta) = Store::open(folder).unwrap();
    drop(store);
    let first = before.is_none();
    let (initial, known) = before.unwrap_or_else(|| (Recovered::default(), meta));
    assert!(
        meta == known || (first && acknowledged.is_none()),
        "another store"
    );
    // The writer cannot be further ahead of its last line than it may write unsynced.
    let at_least = acknowledged.unwrap_or(0);
    let num_ops = match find(seed, &initial, at_least, at_least + 20_000, &found) {
        Ok(num_ops) => num_ops,
        Err(difference) => panic!("seed {seed}, {acknowledged:?} acknowledged: {difference}"),
    };
    let again = Store::open(folder).unwrap().1;
    assert_eq!(
        again, found,
        "seed {seed}: the second opening finds something else"
    );
    figures.num_kills += 1;
    figures.num_in_open += u64::from(acknowledged.is_none());
    figures.num_acknowledged += at_least;
    figures.num_beyond += num_ops - at_least;
    (found, meta)
}

fn kill(num_kills: u64, seed: u64) {
    let mut random = Random(seed);
    let mut figures = Figures::default();
    while figures.num_kills < num_kills {
        let folder = tempfile::tempdir().unwrap().keep();
        let mut before = None;
        // A store that lives long has reused its files many times.
        for _ in 0..num_kills.min(50) {
            before = Some(kill_once(&folder, &mut random, before, &mut figures));
        }
        // Kept where a check fails.
        std::fs::remove_dir_all(folder).unwrap();
    }
    println!("seed {seed}: {figures:?}");
}

#[test]
fn what_was_acknowledged_survives_kills() {
    kill(30, 1);
}

#[test]
#[ignore = "long: KILLS=500 cargo test --release -p muster-coordinator -- --ignored many_kills"]
fn what_was_acknowledged_survives_many_kills() {
    kill(
        number_in("KILLS").unwrap_or(500),
        number_in("SEED").unwrap_or(2),
    );
}
