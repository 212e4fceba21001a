//! How the shards are divided over the ranks of a world: a rank that computes more slowly gets fewer.
//! The bits of a step do not depend on it, only its time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::fate::Running;
use super::pace::MIN_STEPS;
use crate::ids::ProcessId;
use crate::state::Phase;
use crate::tree::{self, Run};

/// A division is worth it under which the slowest rank computes for at most so much of the time.
const WORTH_PERCENT: u64 = 90;

/// How long another division has to be worth it, in times of `detect_ms`, before a world is closed
/// for it.
const PERSISTENT: u64 = 5;

/// Contiguous runs of `0..num_shards` for processes that take `us` microseconds a shard each: equal
/// ones, or such by speed where those are worth it. `None` stands for a process that nobody has
/// measured, which is taken to be like the slowest of the others.
pub(super) fn divide(num_shards: u32, us: &[Option<u32>]) -> Vec<Run> {
    let size = u32::try_from(us.len()).unwrap_or(u32::MAX);
    let equal = tree::runs(num_shards, size)
        .expect("workers.max is checked to be at most logical_shards, and min to be at least 1");
    let slowest = us.iter().flatten().copied().max();
    let Some(slowest) = slowest.filter(|slowest| *slowest > 0) else {
        return equal;
    };
    let us: Vec<u64> = us
        .iter()
        .map(|us| u64::from(us.unwrap_or(slowest).max(1)))
        .collect();
    if !may_be_worth(num_shards, &us, time(&equal, &us)) {
        return equal;
    }
    let by_speed = by_speed(num_shards, &us);
    if is_worth(time(&by_speed, &us), time(&equal, &us)) {
        by_speed
    } else {
        equal
    }
}

/// Another division of the shards would be worth it.
pub(super) struct Uneven {
    /// Whether that is so for long enough to close a world for it.
    pub(super) is_persistent: bool,
    pub(super) reason: String,
}

/// Whether the shards of a world that lives should be divided otherwise.
pub(super) fn uneven(running: &Running<'_>) -> Option<Uneven> {
    let world = running.job.world.as_ref()?;
    let speed = &running.watch?.speed;
    if !matches!(running.job.phase, Phase::Running) || speed.num_steps < MIN_STEPS {
        return None;
    }
    let measured = speeds(running, world.ranks.iter().map(|rank| rank.process));
    let us = measured.iter().map(|us| us.map(u64::from));
    let us: Vec<u64> = us.collect::<Option<_>>()?;
    let num_shards = running.job.spec.train.logical_shards;
    let now: Vec<Run> = world.ranks.iter().map(|rank| rank.shards).collect();
    let time_now = time(&now, &us);
    if !may_be_worth(num_shards, &us, time_now) {
        return None;
    }
    let time_then = time(&divide(num_shards, &measured), &us);
    if !is_worth(time_then, time_now) {
        return None;
    }
    let since = speed.uneven_since_ms.unwrap_or(running.now_ms);
    let is_persistent =
        running.now_ms.saturating_sub(since) >= PERSISTENT * running.patience.detect_ms;
    let reason = format!(
        "shards move to the faster ranks: the contributions of a step take {time_now} us, and would \
         take {time_then}"
    );
    Some(Uneven {
        is_persistent,
        reason,
    })
}

/// What each of these processes takes for a shard, where that was measured.
pub(super) fn speeds(
    running: &Running<'_>,
    processes: impl Iterator<Item = ProcessId>,
) -> Vec<Option<u32>> {
    let paces = running.watch.map(|watch| &watch.speed.paces);
    let pace = |process| paces.and_then(|paces| paces.get(&process));
    let us = processes.map(|process| pace(process).map(|pace| pace.computing_us));
    us.map(|us| us.filter(|us| *us > 0)).collect()
}

/// How long the contributions of a step take.
fn time(runs: &[Run], us: &[u64]) -> u64 {
    let ranks = runs.iter().zip(us);
    let times = ranks.map(|(run, us)| u64::from(run.num_shards()) * us);
    times.max().unwrap_or_default()
}

fn is_worth(time_then: u64, time_now: u64) -> bool {
    time_then * 100 <= time_now * WORTH_PERCENT
}

/// Whether some division may be worth it, by the time that shards which can be cut would take.
fn may_be_worth(num_shards: u32, us: &[u64], time_now: u64) -> bool {
    // Shards a second, together; a microsecond a shard is the most that is told apart.
    let rate: u64 = us.iter().map(|us| 1_000_000_000 / us.max(&1)).sum();
    let least_time = u64::from(num_shards) * 1_000_000_000 / rate.max(1);
    is_worth(least_time, time_now)
}

/// One shard for each rank, and each further one for the rank that has computed it first.
fn by_speed(num_shards: u32, us: &[u64]) -> Vec<Run> {
    let mut counts = vec![1u32; us.len()];
    let mut next: BinaryHeap<Reverse<(u64, usize)>> = us
        .iter()
        .enumerate()
        .map(|(rank, us)| Reverse((2 * us, rank)))
        .collect();
    let num_left = num_shards.saturating_sub(u32::try_from(us.len()).unwrap_or(u32::MAX));
    for _ in 0..num_left {
        let Some(Reverse((_, rank))) = next.pop() else {
            break;
        };
        counts[rank] += 1;
        next.push(Reverse((u64::from(counts[rank] + 1) * us[rank], rank)));
    }
    let mut start = 0;
    let runs = counts.into_iter().map(|count| {
        let run = Run::new(start, start + count);
        start = run.end;
        run
    });
    runs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(num_shards: u32, us: &[Option<u32>]) -> String {
        let runs = divide(num_shards, us).into_iter();
        runs.map(|run| run.to_string())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn a_slow_rank_gets_fewer_shards_where_that_is_worth_it() {
        assert_eq!(text(8, &[Some(100), Some(100)]), "0..4 4..8");
        assert_eq!(text(8, &[Some(100), Some(300)]), "0..6 6..8");
        assert_eq!(
            text(8, &[Some(10_000), Some(1)]),
            "0..1 1..8",
            "at least one"
        );
        assert_eq!(
            text(8, &[Some(100), Some(130)]),
            "0..4 4..8",
            "nothing is won by a shard"
        );
        assert_eq!(
            text(64, &[Some(100), Some(115)]),
            "0..32 32..64",
            "less than a tenth is"
        );
        assert_eq!(text(64, &[Some(100), Some(150)]), "0..39 39..64");
    }

    #[test]
    fn whom_nobody_measured_is_taken_to_be_slow() {
        assert_eq!(text(8, &[None, None]), "0..4 4..8");
        assert_eq!(text(8, &[Some(100), None, Some(300)]), "0..6 6..7 7..8");
        assert_eq!(text(8, &[Some(0), Some(0)]), "0..4 4..8");
    }

    proptest! {
        #[test]
        fn every_division_is_complete_and_none_is_slower_than_an_equal_one(
            us in prop::collection::vec(prop::option::of(0u32..100_000), 1..20),
            more in 0u32..100,
        ) {
            let size = u32::try_from(us.len()).unwrap();
            let runs = divide(size + more, &us);
            prop_assert!(tree::is_division(size + more, &runs));
            prop_assert_eq!(runs.len(), us.len());
            let slowest = us.iter().flatten().max().copied().unwrap_or(1).max(1);
            let us: Vec<u64> = us.iter().map(|us| u64::from(us.unwrap_or(slowest).max(1))).collect();
            let equal = tree::runs(size + more, size).unwrap();
            prop_assert!(time(&runs, &us) <= time(&equal, &us));
        }

        /// Compared with every other division over two or three ranks.
        #[test]
        fn by_speed_is_as_fast_as_can_be(us in prop::collection::vec(1u64..1_000, 2..4), more in 0u32..9) {
            let size = u32::try_from(us.len()).unwrap();
            let num_shards = size + more;
            let found = time(&by_speed(num_shards, &us), &us);
            let mut best = u64::MAX;
            let most = num_shards - size + 1;
            for first in 1..=most {
                for second in 1..=most {
                    let counts: Vec<u32> = match us.len() {
                        2 if first + second == num_shards => vec![first, second],
                        3 if first + second < num_shards => vec![first, second, num_shards - first - second],
                        _ => continue,
                    };
                    let times = counts.iter().zip(&us).map(|(count, us)| u64::from(*count) * us);
                    best = best.min(times.max().unwrap());
                }
            }
            prop_assert_eq!(found, best);
        }
    }
}
