//! How fast the ranks of a world are, by what they measured of themselves, and which of them holds
//! the others up. What is done about it is decided elsewhere.

use std::collections::BTreeMap;

use super::Watch;
use crate::ids::{ProcessId, RankId};
use crate::state::World;

/// What a process takes, in microseconds: medians over its last steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// For the contribution of one shard; 0 where that is not known.
    pub computing_us: u32,
    /// So long the others wait for it in a reduction that all have begun, in the mean over them.
    pub reducing_us: u32,
    /// For the update.
    pub updating_us: u32,
}

/// What the leader learned of a world's speed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Speed {
    /// How fast each process is; what was measured in earlier worlds counts.
    pub paces: BTreeMap<ProcessId, Pace>,
    /// How long a step takes; the median over the last ones. Of the world before, until one of this
    /// world is known.
    pub step_us: u32,
    /// How many steps of this world are known.
    pub num_steps: u32,
    /// Since when another division of its shards would be worth it.
    pub uneven_since_ms: Option<u64>,
}

/// What a rank does in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It computes contributions.
    Computing,
    /// It sends, receives and sums them.
    Reducing,
    /// It applies the sum.
    Updating,
}

impl Activity {
    /// The word for people and scripts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Activity::Computing => "computing",
            Activity::Reducing => "reducing",
            Activity::Updating => "updating",
        }
    }
}

/// A rank that is slower than the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow {
    /// In what.
    pub activity: Activity,
    /// How much longer it takes than the others do: 200 is twice as long.
    pub percent: u32,
}

/// So many steps have to be known of a world before anything follows from its speed.
pub(super) const MIN_STEPS: u32 = 16;

/// A rank is slow that takes so much longer than the others in the median.
const SLOW_PERCENT: u64 = 150;

/// And what it takes more is so much of a step.
const MIN_SHARE_PERCENT: u64 = 10;

/// The ranks of a world that are slow, each with what costs most. Nobody is where too few steps are
/// known, or there is nobody to compare with.
#[must_use]
pub fn slow(world: &World, watch: &Watch, num_shards: u32) -> BTreeMap<RankId, Slow> {
    let speed = &watch.speed;
    if speed.num_steps < MIN_STEPS || watch.generation != world.generation {
        return BTreeMap::new();
    }
    let pace = |process| speed.paces.get(process).copied().unwrap_or_default();
    let paces: Vec<Pace> = world.ranks.iter().map(|rank| pace(&rank.process)).collect();
    let size = u64::try_from(paces.len()).unwrap_or(u64::MAX).max(1);
    // The shards of a rank where all had the same: a slow one stays slow when it has few.
    let shards = u64::from(num_shards).div_ceil(size);
    let activities = [
        (
            Activity::Computing,
            shards,
            of(&paces, |pace| pace.computing_us),
        ),
        (Activity::Reducing, 1, of(&paces, |pace| pace.reducing_us)),
        (Activity::Updating, 1, of(&paces, |pace| pace.updating_us)),
    ];
    let slowest = |rank: usize| {
        let costs = activities.iter().filter_map(|(activity, times, all)| {
            let (own, others) = (all[rank], median_of_others(all, rank)?);
            let cost = own.saturating_sub(others) * times;
            let is_slow = own * 100 >= others * SLOW_PERCENT
                && cost * 100 >= u64::from(speed.step_us) * MIN_SHARE_PERCENT;
            let percent = u32::try_from(own * 100 / others.max(1)).unwrap_or(u32::MAX);
            let activity = *activity;
            (is_slow && cost > 0).then_some((cost, Slow { activity, percent }))
        });
        costs.max_by_key(|(cost, _)| *cost).map(|(_, slow)| slow)
    };
    let ranks = (0u32..).map(RankId).zip(0..paces.len());
    ranks
        .filter_map(|(rank, index)| Some((rank, slowest(index)?)))
        .collect()
}

fn of(paces: &[Pace], number: fn(&Pace) -> u32) -> Vec<u64> {
    paces.iter().map(|pace| u64::from(number(pace))).collect()
}

/// The lower median of all but one, `None` where there is no other, or one of them is not known.
fn median_of_others(all: &[u64], rank: usize) -> Option<u64> {
    let others = all.iter().enumerate().filter(|(other, _)| *other != rank);
    let mut others: Vec<u64> = others.map(|(_, number)| *number).collect();
    others.sort_unstable();
    let middle = others.len().checked_sub(1)? / 2;
    others.get(middle).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Generation, History, Incarnation, Step};
    use crate::state::Placement;
    use crate::testing::worker;

    /// A world whose ranks have these paces (computing, reducing, updating), and whose steps take
    /// 10 ms.
    fn seen(paces: &[(u32, u32, u32)], num_steps: u32) -> (World, Watch) {
        let size = u32::try_from(paces.len()).unwrap();
        let runs = crate::tree::runs(8, size).unwrap();
        let processes = (1..).map(ProcessId);
        let ranks = processes
            .clone()
            .zip(runs)
            .map(|(process, shards)| Placement {
                process,
                worker: worker("w"),
                incarnation: Incarnation(1),
                device: crate::Device::Cpu,
                shards,
            });
        let world = World {
            history: History(1),
            generation: Generation(3),
            first_step: Step(0),
            ranks: ranks.collect(),
            finish: None,
            shares: Vec::new(),
        };
        let paces = paces.iter().map(|(computing, reducing, updating)| Pace {
            computing_us: *computing,
            reducing_us: *reducing,
            updating_us: *updating,
        });
        let mut watch = Watch {
            generation: Generation(3),
            ..Watch::default()
        };
        watch.speed.paces = processes.zip(paces).collect();
        (watch.speed.step_us, watch.speed.num_steps) = (10_000, num_steps);
        (world, watch)
    }

    fn named(paces: &[(u32, u32, u32)], num_steps: u32) -> Vec<(u32, &'static str, u32)> {
        let (world, watch) = seen(paces, num_steps);
        let slow = slow(&world, &watch, 8).into_iter();
        slow.map(|(rank, slow)| (rank.0, slow.activity.as_str(), slow.percent))
            .collect()
    }

    #[test]
    fn a_slow_rank_is_named_with_what_it_is_slow_in() {
        let fast = (1_000, 100, 500);
        assert_eq!(
            named(&[fast, (2_000, 100, 500), fast], 16),
            [(1, "computing", 200)]
        );
        assert_eq!(
            named(&[fast, fast, (1_100, 3_000, 500)], 16),
            [(2, "reducing", 3_000)]
        );
        assert_eq!(
            named(&[(1_000, 100, 2_000), fast, fast], 16),
            [(0, "updating", 400)]
        );
        // What costs most: 3 shards of 1.5 ms more, against 1 ms more for the update.
        let both = (2_500, 100, 1_500);
        assert_eq!(named(&[fast, both, fast], 16), [(1, "computing", 250)]);
    }

    #[test]
    fn nobody_is_slow_on_little_evidence() {
        let (fast, slow) = ((1_000, 100, 500), (3_000, 100, 500));
        assert_eq!(named(&[fast, slow, fast], 15), [], "too few steps");
        assert_eq!(named(&[slow], 16), [], "nobody to compare with");
        assert_eq!(
            named(&[fast, (1_490, 100, 500)], 16),
            [],
            "within the noise"
        );
        assert_eq!(
            named(&[fast, (1_000, 100, 1_400)], 16),
            [],
            "a small part of the step"
        );
        let (world, mut watch) = seen(&[fast, slow], 16);
        watch.generation = Generation(2);
        assert!(super::slow(&world, &watch, 8).is_empty(), "another world");
    }
}
