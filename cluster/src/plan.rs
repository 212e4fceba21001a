//! What the leader decides: which job gets which world, and why a job waits. A pure function of
//! the replicated state, of what the leader observed, and of the time.

use std::collections::{BTreeMap, BTreeSet};

use crate::command::{Command, NumericsClass, Outcome, OutcomeKind, StopWhy};
use crate::ids::{Generation, Incarnation, JobName, RankId, Step, WorkerName};
use crate::state::{ClusterState, Job, Phase, Placement, World};
use crate::tree;

/// Worlds in a row that may end without having applied a step.
pub const MAX_FRUITLESS_WORLDS: u32 = 5;

/// What the leader saw and Raft does not know; rebuilt by every new leader.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The workers that have an open stream to the leader, with the incarnation they announced.
    pub connected: BTreeMap<WorkerName, Incarnation>,
    /// The workers without one, and since when the leader misses them.
    pub silent_since_ms: BTreeMap<WorkerName, u64>,
    /// What is known of the newest world of each job.
    pub worlds: BTreeMap<JobName, Watch>,
}

/// What the leader saw of one world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Which world.
    pub generation: Generation,
    /// Ranks that are gone, and how that is known. Proof: an exit that a worker saw, or a worker
    /// that came back as a new incarnation.
    pub gone: BTreeMap<RankId, String>,
    /// Ranks that a peer misses: since when, and what it says.
    pub missed: BTreeMap<RankId, (u64, String)>,
    /// Set when a world cannot go on though no rank is known to be gone.
    pub broken: Option<String>,
    /// Whether the world applied a step.
    pub progressed: bool,
    /// Since when the job could have a world, were there enough workers; for gathering.
    pub wanting_since_ms: Option<u64>,
}

/// How long the leader waits for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// A worker that is silent for so long, and whose rank a peer misses, is lost.
    pub detect_ms: u64,
    /// How long a job waits for `workers.max` when `workers.min` are there.
    pub gather_ms: u64,
    /// Silence alone ends a rank after this long.
    pub fallback_after_ms: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            detect_ms: 1_000,
            gather_ms: 2_000,
            fallback_after_ms: 600_000,
        }
    }
}

/// The leader's decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What to propose.
    pub commands: Vec<Command>,
    /// Why each job that waits does so, in one sentence.
    pub waits: BTreeMap<JobName, String>,
}

/// Decides for every job.
#[must_use]
pub fn plan(state: &ClusterState, observed: &Observed, patience: Patience, now_ms: u64) -> Plan {
    let mut plan = Plan::default();
    let mut free = free_devices(state, observed);
    // Jobs are served in the order of their submission; the name settles ties.
    let mut order: Vec<(&JobName, &Job)> = state.jobs.iter().collect();
    order.sort_by_key(|(name, job)| (job.submitted_ms, *name));
    for (name, job) in order {
        let watch = observed
            .worlds
            .get(name)
            .filter(|watch| watch.generation == job.generation);
        match &job.phase {
            Phase::Ended(_) => {}
            Phase::Queued => {
                let since = observed
                    .worlds
                    .get(name)
                    .and_then(|watch| watch.wanting_since_ms);
                let first = if job.committed_step() == Step(0) {
                    "first world".to_owned()
                } else {
                    format!("resumes from step {}", job.committed_step())
                };
                place(
                    &mut plan,
                    &mut free,
                    state,
                    name,
                    job,
                    Wanting {
                        why: first,
                        since,
                        watch,
                    },
                    patience,
                    now_ms,
                );
            }
            Phase::Running | Phase::Stopping(_) => {
                let Some(why) = why_lost(job, observed, watch, patience, now_ms) else {
                    continue;
                };
                if let Phase::Stopping(stop) = job.phase {
                    plan.commands.push(Command::Finish {
                        job: name.clone(),
                        generation: job.generation,
                        outcome: rest(job, stop, &why),
                    });
                    continue;
                }
                if job.num_fruitless_worlds + 1 >= MAX_FRUITLESS_WORLDS
                    && !watch.is_some_and(|watch| watch.progressed)
                {
                    plan.commands.push(Command::Finish {
                        job: name.clone(),
                        generation: job.generation,
                        outcome: Outcome {
                            kind: OutcomeKind::Failed,
                            reason: format!("{MAX_FRUITLESS_WORLDS} worlds in a row applied no step; the last: {why}"),
                            ..rest(job, StopWhy::Cancelled, &why)
                        },
                    });
                    continue;
                }
                give_back(&mut free, job, observed);
                let since = watch.and_then(|watch| watch.wanting_since_ms);
                place(
                    &mut plan,
                    &mut free,
                    state,
                    name,
                    job,
                    Wanting { why, since, watch },
                    patience,
                    now_ms,
                );
            }
        }
    }
    plan
}

/// What is left of a job whose world broke: the state of its last checkpoint.
fn rest(job: &Job, stop: StopWhy, why: &str) -> Outcome {
    let manifest = job.latest_manifest();
    Outcome {
        kind: match stop {
            StopWhy::Interrupted => OutcomeKind::Interrupted,
            StopWhy::Cancelled => OutcomeKind::Cancelled,
        },
        reason: format!("its world broke before it could write another checkpoint: {why}"),
        step: job.committed_step(),
        arena_hash: manifest
            .map(|manifest| manifest.arena_hash.clone())
            .unwrap_or_default(),
        optimizer_hash: manifest
            .map(|manifest| manifest.optimizer_hash.clone())
            .unwrap_or_default(),
        trace: manifest
            .map(|manifest| manifest.trace.clone())
            .unwrap_or_default(),
        metrics: BTreeMap::new(),
    }
}

/// The devices that no world holds, of the workers that are there.
fn free_devices(state: &ClusterState, observed: &Observed) -> BTreeMap<WorkerName, u32> {
    let alive = observed
        .connected
        .iter()
        .filter_map(|(worker, incarnation)| {
            let node = state
                .nodes
                .get(worker)
                .filter(|node| node.incarnation == *incarnation)?;
            let free = node
                .num_devices
                .saturating_sub(state.num_busy_devices(worker));
            Some((worker.clone(), free))
        });
    alive.collect()
}

/// A job that gets a new world gives its old devices back first.
fn give_back(free: &mut BTreeMap<WorkerName, u32>, job: &Job, observed: &Observed) {
    for placement in job.world.iter().flat_map(|world| &world.ranks) {
        let is_connected = observed.connected.contains_key(&placement.worker);
        if let Some(devices) = free.get_mut(&placement.worker)
            && is_connected
        {
            *devices += 1;
        }
    }
}

/// Why the job's world is lost, or `None` while it lives.
fn why_lost(
    job: &Job,
    observed: &Observed,
    watch: Option<&Watch>,
    patience: Patience,
    now_ms: u64,
) -> Option<String> {
    let world = job.world.as_ref()?;
    if let Some(watch) = watch {
        if let Some((rank, how)) = watch.gone.iter().next() {
            return Some(format!("rank {rank} is gone: {how}"));
        }
        if let Some(reason) = &watch.broken {
            return Some(reason.clone());
        }
    }
    for (rank, placement) in (0u32..).zip(&world.ranks) {
        match observed.connected.get(&placement.worker) {
            Some(incarnation) if *incarnation == placement.incarnation => {
                // The worker is there: it will say soon whether the rank exited. If it says
                // nothing, the link between the two ranks is at fault, and the world is, too.
                let missed = watch.and_then(|watch| watch.missed.get(&RankId(rank)));
                if let Some((since, how)) = missed
                    && now_ms.saturating_sub(*since) > patience.detect_ms
                {
                    return Some(format!("rank {rank} is missed by a peer: {how}"));
                }
            }
            Some(_) => {
                return Some(format!(
                    "rank {rank} is gone: worker {} came back as a new process",
                    placement.worker
                ));
            }
            None => {
                let since = observed
                    .silent_since_ms
                    .get(&placement.worker)
                    .copied()
                    .unwrap_or(now_ms);
                let silent_ms = now_ms.saturating_sub(since);
                let missed = watch.and_then(|watch| watch.missed.get(&RankId(rank)));
                if let Some((_, how)) = missed
                    && silent_ms > patience.detect_ms
                {
                    return Some(format!(
                        "rank {rank} is lost: worker {} is silent, and a peer says: {how}",
                        placement.worker
                    ));
                }
                if silent_ms > patience.fallback_after_ms {
                    return Some(format!(
                        "rank {rank} is lost: worker {} is silent for {} s",
                        placement.worker,
                        silent_ms / 1000
                    ));
                }
            }
        }
    }
    None
}

struct Wanting<'a> {
    why: String,
    since: Option<u64>,
    watch: Option<&'a Watch>,
}

/// Gives the job a world, all of its ranks or none, or says why it waits.
#[allow(
    clippy::too_many_arguments,
    reason = "one private step of `plan`, which holds all of these"
)]
fn place(
    plan: &mut Plan,
    free: &mut BTreeMap<WorkerName, u32>,
    state: &ClusterState,
    name: &JobName,
    job: &Job,
    wanting: Wanting<'_>,
    patience: Patience,
    now_ms: u64,
) {
    let (min, max) = (job.spec.workers.min, job.spec.workers.max);
    let offered = free.clone();
    let classes = devices_by_class(state, &offered);
    let total: u32 = classes
        .iter()
        .map(|(_, devices)| devices.iter().map(|(_, free)| free).sum::<u32>())
        .sum();
    let best = classes.iter().max_by_key(|(class, devices)| {
        let count = devices.iter().map(|(_, free)| free).sum::<u32>();
        (count.min(max), std::cmp::Reverse(*class))
    });
    let found = best.map_or(0, |(_, devices)| {
        devices.iter().map(|(_, free)| free).sum::<u32>()
    });
    let Some((class, devices)) = best.filter(|_| found >= min) else {
        let others = total - found;
        let mut text = format!("waits for workers: {found} free, {min} needed");
        if others > 0 {
            text +=
                &format!("; {others} more are left out, since a job runs in one numerics class");
        }
        plan.waits.insert(name.clone(), text);
        return;
    };
    if found < max {
        let since = wanting.since.unwrap_or(now_ms);
        if now_ms.saturating_sub(since) < patience.gather_ms {
            let text = format!("gathers workers: {found} of at most {max} are there");
            plan.waits.insert(name.clone(), text);
            return;
        }
    }
    let num_ranks = found.min(max);
    let runs = tree::runs(job.spec.train.logical_shards, num_ranks)
        .expect("workers.max is checked to be at most logical_shards, and min to be at least 1");
    let mut places = devices
        .iter()
        .flat_map(|(worker, free)| std::iter::repeat_n(worker, *free as usize));
    let ranks: Vec<Placement> = runs
        .into_iter()
        .map(|shards| {
            let worker: &WorkerName = places
                .next()
                .expect("as many devices as ranks were counted");
            let incarnation = state.nodes[worker].incarnation;
            Placement {
                worker: worker.clone(),
                incarnation,
                shards,
            }
        })
        .collect();
    for placement in &ranks {
        if let Some(devices) = free.get_mut(&placement.worker) {
            *devices -= 1;
        }
    }
    let is_fallback = job.world.is_some();
    let mut reason = wanting.why;
    if is_fallback {
        reason += &format!("; falls back to step {}", job.committed_step());
    }
    let last_class = job
        .ledger
        .last()
        .and_then(|entry| state.nodes.get(&entry.ranks.first()?.worker))
        .map(|node| &node.class);
    if let Some(difference) = last_class.and_then(|last| last.difference(class)) {
        reason += &format!("; {difference} than before, so bits may differ");
    }
    let world = World {
        history: if is_fallback {
            job.history.next()
        } else {
            job.history
        },
        generation: job.generation.next(),
        first_step: job.committed_step(),
        ranks,
    };
    let predecessor_progressed = wanting.watch.is_some_and(|watch| watch.progressed);
    plan.commands.push(Command::StartWorld {
        job: name.clone(),
        world,
        reason,
        predecessor_progressed,
    });
}

/// Free devices by class; within a class in the order of the workers' names.
fn devices_by_class<'a>(
    state: &'a ClusterState,
    free: &'a BTreeMap<WorkerName, u32>,
) -> Vec<(&'a NumericsClass, Vec<(&'a WorkerName, u32)>)> {
    let classes: BTreeSet<&NumericsClass> = free
        .keys()
        .filter_map(|worker| state.nodes.get(worker))
        .map(|node| &node.class)
        .collect();
    let devices_of = |class: &NumericsClass| {
        let of_class = free.iter().filter(|(worker, _)| {
            state
                .nodes
                .get(*worker)
                .is_some_and(|node| node.class == *class)
        });
        of_class.map(|(worker, free)| (worker, *free)).collect()
    };
    classes
        .into_iter()
        .map(|class| (class, devices_of(class)))
        .collect()
}

#[cfg(test)]
mod tests;
