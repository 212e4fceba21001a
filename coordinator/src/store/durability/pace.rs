//! How fast a store is, beside the least that any log on a disk must do.

use std::fs::File;
use std::io::Write as _;
use std::time::{Duration, Instant};

use muster_coordinator_core::consensus::{Entry, EntryKind};

use super::*;

const NUM_BYTES: usize = 300;

fn entry(index: u64) -> Entry {
    Entry {
        index,
        term: 1,
        kind: EntryKind::Normal,
        data: vec![index as u8; NUM_BYTES],
    }
}

/// Times of so many rounds: the median, the 99th percentile and the sum.
fn times(num: u64, mut round: impl FnMut(u64)) -> (Duration, Duration, Duration) {
    let mut times: Vec<_> = (0..num)
        .map(|number| {
            let begin = Instant::now();
            round(number);
            begin.elapsed()
        })
        .collect();
    times.sort();
    let at = |percent: usize| times[times.len() * percent / 100];
    (at(50), at(99), times.iter().sum())
}

#[test]
#[ignore = "a measurement: cargo test --release -p muster-coordinator -- --ignored --nocapture pace"]
fn pace() {
    for per_sync in [1, 16, 64, 256] {
        let num_rounds = number_in("ROUNDS").unwrap_or(1500);
        let folder = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
        let mut store = Store::open(&folder.path().join("store")).unwrap().0;
        let ours = times(num_rounds, |round| {
            for index in round * per_sync + 1..=(round + 1) * per_sync {
                store.append(&[entry(index)], None, None).unwrap();
            }
            store.sync().unwrap();
        });
        drop(store);
        let mut file = File::create(folder.path().join("plain")).unwrap();
        let plain = times(num_rounds, |_| {
            for _ in 0..per_sync {
                file.write_all(&[7; NUM_BYTES + 22]).unwrap();
            }
            file.sync_data().unwrap();
        });
        for (name, (median, tail, sum)) in [("store", ours), ("plain file", plain)] {
            let per_s = (num_rounds * per_sync) as f64 / sum.as_secs_f64();
            println!(
                "{per_sync:>4} entries per sync, {name:>10}: p50 {median:?}, p99 {tail:?}, {per_s:.0} entries/s"
            );
        }
    }
}
