//! Cuts the power at any moment: what was not synced is gone, or there in part.
//!
//! A writer runs with `record.c` preloaded. At moments that are drawn, the folder is made as the
//! disk may have it after a loss of power, opened, and compared with what was acknowledged before
//! that moment. One of these folders is the beginning of the next round.

use std::process::Output;

use super::record::{Disk, Event, Forgets, Image, Rest, compile, image_of, lay_out, preload, read};
use super::workload::Random;
use super::*;

#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    num_rounds: u64,
    /// About so many for each life of the writer.
    num_crashes: u64,
    forgets: Forgets,
}

#[derive(Debug, Default)]
struct Figures {
    num_crashes: u64,
    num_events: usize,
    num_acknowledged: u64,
    /// Operations beyond the last acknowledged one that were there, too.
    num_beyond: u64,
    /// Crashes while the store was first made, after which it must be removed by hand.
    num_unborn: u64,
}

/// One process that writes.
#[derive(Debug)]
struct Life {
    seed: u64,
    initial: Recovered,
    num_ops: u64,
    events: Vec<Event>,
}

/// Opens a folder like this one.
fn found_in(image: &Image) -> Result<Recovered, String> {
    let copy = tempfile::tempdir().unwrap();
    lay_out(image, copy.path());
    let opened = Store::open(copy.path());
    opened
        .map(|(_, found, _)| found)
        .map_err(|error| error.to_string())
}

fn live(library: &Path, folder: &Path, initial: Recovered, random: &mut Random) -> Life {
    let (seed, num_ops) = (random.number(), 20 + random.below(500));
    let to = folder.with_extension("record");
    let mut writer = writer_of(folder, seed, num_ops);
    preload(&mut writer, library, folder, &to);
    let Output {
        status,
        stdout,
        stderr,
    } = writer.output().unwrap();
    let output = || {
        [&stdout, &stderr]
            .map(|bytes| String::from_utf8_lossy(bytes))
            .concat()
    };
    assert!(status.success(), "seed {seed}: {}", output());
    let events = read(&to);
    std::fs::remove_file(to).unwrap();
    Life {
        seed,
        initial,
        num_ops,
        events,
    }
}

/// Whether there is what this life acknowledged.
fn check(life: &Life, acknowledged: u64, image: &Image) -> Result<(Recovered, u64), String> {
    let found = found_in(image)?;
    let num_ops = find(life.seed, &life.initial, acknowledged, life.num_ops, &found)?;
    Ok((found, num_ops))
}

/// Says which loss of power lost something, or what came of all of them.
fn cut(plan: Plan, library: &Path) -> Result<Figures, String> {
    let mut random = Random(plan.seed);
    let mut figures = Figures::default();
    let mut begin = (Image::new(), Recovered::default());
    for round in 0..plan.num_rounds {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().canonicalize().unwrap().join("store");
        lay_out(&begin.0, &folder);
        let mut disk = Disk::of(&folder, plan.forgets);
        let first = live(library, &folder, begin.1.clone(), &mut random);
        let between = found_in(&image_of(&folder))?;
        let second = live(library, &folder, between, &mut random);
        let lives = [first, second];

        // The life whose acknowledgement was the last, and of how many operations.
        let mut acknowledged = (0, 0);
        let mut is_born = !begin.0.is_empty();
        for (number, life) in lives.iter().enumerate() {
            let odds = (life.events.len() as u64 / plan.num_crashes).max(1);
            for (at, event) in life.events.iter().enumerate() {
                disk.apply(event);
                if let Event::Said(text) = event
                    && let Some(num) = text.lines().rev().find_map(acknowledged_in)
                {
                    acknowledged = (number, num);
                    is_born = true;
                }
                if !random.one_in(odds) {
                    continue;
                }
                let rest = [Rest::Gone, Rest::Until, Rest::SomeWrites, Rest::SomeSectors];
                let rest = rest[random.below(4) as usize];
                let image = disk.after_power_loss(rest, &mut random);
                let (of, num) = acknowledged;
                figures.num_crashes += 1;
                match check(&lives[of], num, &image) {
                    Ok((found, num_ops)) => {
                        figures.num_beyond += num_ops - num;
                        if is_born && random.one_in(plan.num_crashes) {
                            begin = (image, found);
                        }
                    }
                    Err(_) if !is_born => figures.num_unborn += 1,
                    Err(reason) => {
                        let kept = tempfile::tempdir().unwrap().keep();
                        lay_out(&image, &kept);
                        return Err(format!(
                            "seed {}, round {round}, life {number}, event {at} of {} ({}), {rest:?}: \
                             after {num} operations of life {of}: {reason}; the files are in {}",
                            plan.seed,
                            life.events.len(),
                            outline(event),
                            kept.display()
                        ));
                    }
                }
            }
            figures.num_events += life.events.len();
            figures.num_acknowledged += acknowledged.1;
        }
        let (replayed, real) = (disk.now(), image_of(&folder));
        assert!(
            replayed == real,
            "round {round}: the record has not all that was done"
        );
    }
    Ok(figures)
}

fn outline(event: &Event) -> String {
    match event {
        Event::Write { at, data, .. } => format!("write of {} bytes at {at}", data.len()),
        other => format!("{other:?}"),
    }
}

/// The recorder, unless this machine cannot make it.
fn recorder() -> Option<(tempfile::TempDir, std::path::PathBuf)> {
    let place = tempfile::tempdir().unwrap();
    match compile(place.path()) {
        Ok(library) => Some((place, library)),
        Err(reason) => {
            println!("SKIPPED: no C compiler makes the recorder of writes: {reason}");
            None
        }
    }
}

fn plan() -> Plan {
    Plan {
        seed: number_in("SEED").unwrap_or(1),
        num_rounds: number_in("ROUNDS").unwrap_or(4),
        num_crashes: 20,
        forgets: Forgets::Nothing,
    }
}

/// The variables `ROUNDS` and `SEED` make it longer, and another one.
#[test]
fn what_was_acknowledged_survives_losses_of_power() {
    let Some((_place, library)) = recorder() else {
        return;
    };
    println!("{:?}", cut(plan(), &library).unwrap());
}

#[test]
fn a_sync_that_is_left_out_is_noticed() {
    let Some((_place, library)) = recorder() else {
        return;
    };
    for forgets in [Forgets::Fdatasync, Forgets::FsyncOfFolders] {
        let plan = Plan {
            seed: 3,
            num_rounds: 8,
            num_crashes: 20,
            forgets,
        };
        let lost = cut(plan, &library).expect_err(&format!("{forgets:?} is not noticed"));
        println!("{forgets:?}: {lost}");
    }
}

/// A disk that cannot be written any more says so when it is synced. What was acknowledged before is
/// there, and nothing is acknowledged behind.
#[test]
fn a_sync_that_fails_stops_the_replica_and_loses_nothing() {
    let Some((place, library)) = recorder() else {
        return;
    };
    for seed in [4, 5, 8, 9] {
        let folder = place.path().join(format!("store-{seed}"));
        // How many operations share a sync is the thread's to say: it goes on until one fails.
        let mut writer = writer_of(&folder, seed, u64::MAX);
        preload(&mut writer, &library, &folder, &place.path().join("record"));
        let output = writer.env("MUSTER_RECORD_EIO", "12").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "{text}");
        let failed = text.lines().find(|line| line.starts_with("failed "));
        let errors = String::from_utf8_lossy(&output.stderr);
        let failed = failed.unwrap_or_else(|| panic!("seed {seed}: no report: {text}{errors}"));
        let has = |part: &str| failed.contains(part);
        assert!(
            has(folder.to_str().unwrap()) && has("cannot be read or written"),
            "{failed}"
        );
        let acknowledged = text.lines().rev().find_map(acknowledged_in).unwrap();
        assert!(acknowledged > 0, "{text}");
        let found = Store::open(&folder).unwrap().1;
        let at_most = acknowledged + 20_000;
        find(seed, &Recovered::default(), acknowledged, at_most, &found).unwrap();
    }
}
