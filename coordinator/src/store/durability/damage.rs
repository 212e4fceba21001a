//! Cuts a store's files and flips their bits: what is opened then is what was acknowledged, or it is
//! refused with the folder's name and what to do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::record::{Image, image_of, lay_out};
use super::workload::Random;
use super::*;

/// How long an opening may take; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A store as its writer left it.
#[derive(Debug)]
struct Left {
    seed: u64,
    image: Image,
    acknowledged: u64,
    num_ops: u64,
}

/// Lets a writer write, then closes the store or leaves it as a kill does.
fn leave(seed: u64, num_ops: u64, is_closed: bool) -> Left {
    let folder = tempfile::tempdir().unwrap();
    let output = writer_of(folder.path(), seed, num_ops).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let output = String::from_utf8(output.stdout).unwrap();
    let mut acknowledged = output.lines().rev().find_map(acknowledged_in).unwrap();
    let mut num_ops = num_ops;
    if is_closed {
        let (_, found, _) = Store::open(folder.path()).unwrap();
        acknowledged = find(seed, &Recovered::default(), acknowledged, num_ops, &found).unwrap();
        num_ops = acknowledged;
    }
    let image = image_of(folder.path());
    Left {
        seed,
        image,
        acknowledged,
        num_ops,
    }
}

/// What came of one damage; the text says more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Same,
    Refused,
    /// Opened with something else than was acknowledged.
    Altered,
    /// Refused without the folder's name or what to do.
    Unhelpful,
    Panicked,
    Hung,
}

fn open_damaged(
    left: &Left,
    name: &PathBuf,
    change: impl FnOnce(&mut Vec<u8>),
) -> (Outcome, String) {
    let mut image = left.image.clone();
    change(image.get_mut(name).unwrap());
    let copy = tempfile::tempdir().unwrap();
    lay_out(&image, copy.path());
    let folder = copy.path().to_owned();
    let (sender, opened) = channel();
    std::thread::spawn(move || {
        let opened = Store::open(&folder);
        let _ = sender.send(opened.map(|(_, found, _)| found));
    });
    match opened.recv_timeout(PATIENCE) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => (Outcome::Hung, String::new()),
        Err(_) => (Outcome::Panicked, String::new()),
        Ok(Ok(found)) => {
            let initial = Recovered::default();
            match find(left.seed, &initial, left.acknowledged, left.num_ops, &found) {
                Ok(_) => (Outcome::Same, String::new()),
                Err(difference) => (Outcome::Altered, difference),
            }
        }
        Ok(Err(error)) => {
            let text = error.to_string();
            let is_helpful = text.contains(copy.path().to_str().unwrap()) && text.contains("; ");
            (
                [Outcome::Unhelpful, Outcome::Refused][usize::from(is_helpful)],
                text,
            )
        }
    }
}

/// Damages each file so many times, and counts what came of it.
fn damage(left: &Left, per_file: u64, random: &mut Random) -> BTreeMap<Outcome, u64> {
    let mut counts = BTreeMap::new();
    for (name, bytes) in &left.image {
        if bytes.is_empty() {
            continue;
        }
        // All that matters is in the engine's log.
        let is_log = name.extension().is_some_and(|end| end == "raftlog");
        let times = if is_log { 10 * per_file } else { per_file };
        for _ in 0..times {
            let at = random.below(bytes.len() as u64) as usize;
            let is_cut = random.one_in(3);
            let bit = 1 << random.below(8);
            let (outcome, text) = open_damaged(left, name, |bytes| {
                if is_cut {
                    bytes.truncate(at);
                } else {
                    bytes[at] ^= bit;
                }
            });
            *counts.entry(outcome).or_insert(0) += 1;
            if outcome > Outcome::Refused {
                let what = if is_cut {
                    "cut".to_owned()
                } else {
                    format!("bit {bit:#x} flipped")
                };
                println!(
                    "{outcome:?}: {} {what} at {at} of {}: {text}",
                    name.display(),
                    bytes.len()
                );
            }
        }
    }
    counts
}

fn damage_stores(per_file: u64, seed: u64) -> BTreeMap<Outcome, u64> {
    let mut random = Random(seed);
    let mut counts = BTreeMap::new();
    for (num_ops, is_closed) in [(300, true), (300, false)] {
        let left = leave(random.number(), num_ops, is_closed);
        for (outcome, num) in damage(&left, per_file, &mut random) {
            *counts.entry(outcome).or_insert(0) += num;
        }
    }
    println!("seed {seed}: {counts:?}");
    counts
}

#[test]
fn damage_is_refused_or_does_not_matter() {
    let counts = damage_stores(
        number_in("PER_FILE").unwrap_or(3),
        number_in("SEED").unwrap_or(1),
    );
    assert!(
        counts.keys().all(|outcome| *outcome <= Outcome::Refused),
        "{counts:?}"
    );
}
