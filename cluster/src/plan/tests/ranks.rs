//! A little model of a job's ranks: the step each is at and what it holds of it. Ranks of a world
//! differ by at most one step, and hold nothing that they were not to compute.

use std::collections::BTreeMap;

use crate::ids::{JobName, ProcessId, RankId, Step};
use crate::plan::Closed;
use crate::state::{Job, World};
use crate::tree::{self, Run};

/// What the ranks of all jobs have.
#[derive(Default)]
pub(super) struct Ranks {
    jobs: BTreeMap<JobName, BTreeMap<ProcessId, Holder>>,
}

/// What one process has.
#[derive(Clone, Default)]
struct Holder {
    step: Option<Step>,
    shards: Vec<Run>,
    has_reduced: bool,
    evaluated: bool,
    /// Of the optimizer's state, where it is shared.
    kept: Vec<Run>,
    /// It lacks parameters of its step.
    is_partial: bool,
}

impl Ranks {
    /// A world begins. Those that go on have what they had; what they lack, they get when it runs.
    pub(super) fn enter(&mut self, name: &JobName, world: &World) {
        let old = self.jobs.entry(name.clone()).or_default();
        let holder = |rank: RankId, process| {
            let assigned = kept_by(world, rank);
            let Some(finish) = &world.finish else {
                return Holder {
                    step: Some(world.first_step),
                    kept: assigned,
                    ..Holder::default()
                };
            };
            let mut holder: Holder = old.get(&process).cloned().unwrap_or_default();
            let given = finish.moves.iter().filter(|one| one.from == rank);
            let given = given.map(|one| Run::new(one.share, one.share + 1));
            let stays = tree::union(&assigned.into_iter().chain(given).collect::<Vec<_>>());
            holder.kept = tree::intersection(&holder.kept, &stays);
            holder
        };
        let ranks = (0u32..).map(RankId).zip(&world.ranks);
        *old = ranks
            .map(|(rank, placement)| (placement.process, holder(rank, placement.process)))
            .collect();
    }

    /// A world of which no rank is gone or closed goes on: it heals one rank, or if all are healed
    /// it completes the step on some ranks or on all. Whether a step was applied.
    pub(super) fn run(&mut self, name: &JobName, job: &Job, dice: u32) -> bool {
        let Some(world) = &job.world else {
            return false;
        };
        let Some(holders) = self.jobs.get_mut(name) else {
            return false;
        };
        let newest = holders.values().filter_map(|holder| holder.step).max();
        let newest = newest.max(Some(world.first_step));
        let late = holders.values_mut().find(|holder| holder.step < newest);
        let is_shared = !world.shares.is_empty();
        if let Some(late) = late {
            let is_behind_by_one = late.step.map(Step::next) == newest;
            *late = Holder {
                step: newest,
                is_partial: is_shared,
                kept: if is_behind_by_one {
                    std::mem::take(&mut late.kept)
                } else {
                    Vec::new()
                },
                ..Holder::default()
            };
            return false;
        }
        let moves = world.finish.iter().flat_map(|finish| &finish.moves);
        for one in moves {
            let process = world.ranks[one.to.0 as usize].process;
            let getting = holders.entry(process).or_default();
            let share = Run::new(one.share, one.share + 1);
            if tree::intersection(&getting.kept, &[share]).is_empty() {
                getting.kept = tree::union(&[getting.kept.clone(), vec![share]].concat());
                return false;
            }
        }
        // A gathering ends for some ranks before it does for others.
        if let Some(partial) = holders.values_mut().find(|holder| holder.is_partial) {
            partial.is_partial = false;
            return false;
        }
        for (rank, placement) in world.ranks.iter().enumerate() {
            let shards = assigned(world, rank, newest);
            let holder = holders.entry(placement.process).or_default();
            if dice.is_multiple_of(3) || dice >> rank & 4 == 4 {
                *holder = Holder {
                    step: newest.map(Step::next),
                    shards: Vec::new(),
                    has_reduced: true,
                    evaluated: dice.is_multiple_of(2),
                    kept: std::mem::take(&mut holder.kept),
                    is_partial: is_shared,
                };
            } else {
                // It gave all it had to the sum, and waits for the result.
                holder.shards = shards;
                holder.has_reduced = false;
            }
        }
        true
    }

    /// A rank computes some of its shards.
    pub(super) fn compute(&mut self, name: &JobName, job: &Job, rank: RankId, dice: u32) {
        let (Some(world), Some(holders)) = (&job.world, self.jobs.get_mut(name)) else {
            return;
        };
        let index = rank.0 as usize;
        let process = world.ranks[index].process;
        let Some(holder) = holders.get_mut(&process) else {
            return;
        };
        if holder.step.is_some_and(|step| step >= world.first_step) && !holder.is_partial {
            let drawn = (0..8).filter(|shard| dice >> shard & 1 == 1);
            let drawn: Vec<Run> = drawn.map(|shard| Run::new(shard, shard + 1)).collect();
            let computed = tree::intersection(&assigned(world, index, holder.step), &drawn);
            holder.shards = tree::union(&[holder.shards.clone(), computed].concat());
        }
    }

    /// What a rank reports that closes its world.
    pub(super) fn closed(&self, name: &JobName, job: &Job, rank: RankId) -> Closed {
        let world = job.world.as_ref().expect("a world runs");
        let process = world.ranks[rank.0 as usize].process;
        let holder = self.jobs[name][&process].clone();
        Closed {
            why: "told to close".to_owned(),
            paused: false,
            lost: Vec::new(),
            suspects: Vec::new(),
            step: holder.step,
            shards: holder.shards,
            has_reduced: holder.has_reduced,
            evaluated: holder.evaluated,
            kept: holder.kept,
            is_whole: !holder.is_partial,
        }
    }
}

/// The shares of the optimizer's state that a world gives a rank to keep.
pub(super) fn kept_by(world: &World, rank: RankId) -> Vec<Run> {
    let shares = (0u32..).zip(&world.shares);
    let kept = shares.filter(|(_, holders)| holders.has(rank));
    let kept: Vec<Run> = kept.map(|(share, _)| Run::new(share, share + 1)).collect();
    tree::union(&kept)
}

/// The shards that a rank has to bring into a step.
fn assigned(world: &World, rank: usize, step: Option<Step>) -> Vec<Run> {
    match &world.finish {
        Some(finish) if step == Some(world.first_step) => finish.parts[rank].shards.clone(),
        _ => vec![world.ranks[rank].shards],
    }
}
