//! How fast ranks are, from the last steps that rank 0 recorded: medians, since one slow step says
//! nothing. What they mean is the planner's to say.

use std::collections::{BTreeMap, VecDeque};

use muster_cluster::ids::ProcessId;
use muster_cluster::plan::{Pace, Speed};
use muster_cluster::state::World;
use muster_proto::v1;

/// How many of the last steps count.
const NUM_STEPS: usize = 16;

/// The last numbers of one kind.
#[derive(Clone, Debug, Default)]
struct Window(VecDeque<u32>);

impl Window {
    fn push(&mut self, number: u32) {
        self.0.push_back(number);
        if self.0.len() > NUM_STEPS {
            self.0.pop_front();
        }
    }

    /// The lower median; 0 where there is none.
    fn median(&self) -> u32 {
        let mut numbers: Vec<u32> = self.0.iter().copied().collect();
        numbers.sort_unstable();
        let middle = numbers.len().saturating_sub(1) / 2;
        numbers.get(middle).copied().unwrap_or_default()
    }
}

/// What one process measured.
#[derive(Clone, Debug, Default)]
struct Measured {
    computing: Window,
    reducing: Window,
    updating: Window,
}

/// The last steps of a job's ranks.
#[derive(Clone, Debug, Default)]
pub struct Paces {
    of: BTreeMap<ProcessId, Measured>,
    steps: Window,
}

impl Paces {
    /// Takes a step of `world`, and says what is known of its speed then.
    pub(crate) fn take(&mut self, world: &World, applied: &v1::StepApplied, speed: &mut Speed) {
        if applied.paces.len() != world.ranks.len() {
            return;
        }
        self.steps.push(micros(applied.wall_ms));
        speed.step_us = self.steps.median();
        speed.num_steps = speed.num_steps.saturating_add(1);
        let ranks = (0u32..).zip(&world.ranks).zip(&applied.paces);
        for ((rank, placement), pace) in ranks {
            let measured = self.of.entry(placement.process).or_default();
            // 0 stands for what was not measured.
            if pace.shard_us > 0 {
                measured.computing.push(pace.shard_us);
            }
            if pace.update_us > 0 {
                measured.updating.push(pace.update_us);
            }
            measured.reducing.push(awaited_us(rank, &applied.paces));
            let pace = Pace {
                computing_us: measured.computing.median(),
                reducing_us: measured.reducing.median(),
                updating_us: measured.updating.median(),
            };
            speed.paces.insert(placement.process, pace);
        }
    }

    /// Those of the processes that are in the next world.
    pub(crate) fn follow(mut self, world: &World) -> Self {
        self.of.retain(|process, _| world.has(*process));
        Self {
            of: self.of,
            steps: Window::default(),
        }
    }
}

/// How long the others waited for a rank while they reduced, in the mean over them.
fn awaited_us(rank: u32, paces: &[v1::RankPace]) -> u32 {
    let others = (0u32..).zip(paces).filter(|(other, _)| *other != rank);
    let (mut sum, mut count) = (0u64, 0u64);
    for (_, pace) in others {
        count += 1;
        if pace.awaited == rank {
            sum += u64::from(pace.awaited_us);
        }
    }
    let mean = sum.checked_div(count).unwrap_or_default();
    u32::try_from(mean).unwrap_or(u32::MAX)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast from f64 saturates, and a time that is longer than an hour is long"
)]
fn micros(ms: f64) -> u32 {
    (ms * 1000.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_cluster::ids::{Generation, History, Incarnation, Step, WorkerName};
    use muster_cluster::state::Placement;
    use muster_cluster::tree;

    fn world(processes: &[u64]) -> World {
        let size = u32::try_from(processes.len()).unwrap();
        let runs = tree::runs(8, size).unwrap();
        let ranks = processes
            .iter()
            .zip(runs)
            .map(|(process, shards)| Placement {
                process: ProcessId(*process),
                worker: WorkerName::new("w").unwrap(),
                incarnation: Incarnation(1),
                device: muster_cluster::Device::Cpu,
                shards,
            });
        World {
            history: History(1),
            generation: Generation(1),
            first_step: Step(0),
            ranks: ranks.collect(),
            finish: None,
            shares: Vec::new(),
        }
    }

    /// A step in which each rank took so long for a shard, and waited so long for so whom.
    fn step(ranks: &[(u32, u32, u32)]) -> v1::StepApplied {
        let paces = ranks
            .iter()
            .map(|(shard_us, awaited, awaited_us)| v1::RankPace {
                shard_us: *shard_us,
                update_us: 50,
                awaited: *awaited,
                awaited_us: *awaited_us,
            });
        v1::StepApplied {
            wall_ms: 2.0,
            paces: paces.collect(),
            ..v1::StepApplied::default()
        }
    }

    #[test]
    fn one_slow_step_changes_no_median_and_a_lasting_change_does() {
        let (world, mut paces, mut speed) = (world(&[1, 2, 3]), Paces::default(), Speed::default());
        for number in 0..20 {
            let second = if number == 10 { 90_000 } else { 200 };
            let step = step(&[(100, 1, 40), (second, 0, 0), (100, 1, 20)]);
            paces.take(&world, &step, &mut speed);
        }
        assert_eq!((speed.step_us, speed.num_steps), (2_000, 20));
        let expected = Pace {
            computing_us: 200,
            reducing_us: 30,
            updating_us: 50,
        };
        assert_eq!(speed.paces[&ProcessId(2)], expected);
        assert_eq!(speed.paces[&ProcessId(1)].reducing_us, 0);
        for _ in 0..9 {
            paces.take(
                &world,
                &step(&[(100, 0, 0), (900, 0, 0), (100, 0, 0)]),
                &mut speed,
            );
        }
        assert_eq!(speed.paces[&ProcessId(2)].computing_us, 900);
    }

    #[test]
    fn what_was_not_measured_counts_for_nothing() {
        let (world, mut paces, mut speed) = (world(&[1, 2]), Paces::default(), Speed::default());
        paces.take(&world, &step(&[(100, 1, 1), (0, 0, 1)]), &mut speed);
        paces.take(&world, &step(&[(100, 1, 1)]), &mut speed);
        assert_eq!(speed.num_steps, 1, "a record that does not fit its world");
        assert_eq!(speed.paces[&ProcessId(2)].computing_us, 0);
        paces.take(&world, &step(&[(0, 1, 1), (300, 0, 1)]), &mut speed);
        assert_eq!(speed.paces[&ProcessId(1)].computing_us, 100);
        assert_eq!(speed.paces[&ProcessId(2)].computing_us, 300);
    }
}
