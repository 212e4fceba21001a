//! What the leader decides: which job gets which world, and why a job waits. A pure function of
//! the replicated state, of what the leader observed, and of the time.

use std::collections::BTreeMap;

use crate::command::{Command, Outcome, OutcomeKind};
use crate::ids::{Generation, Incarnation, JobName, RankId, Step, WorkerName};
use crate::state::{ClusterState, Job, Phase};

mod place;

use place::{Wanting, place};

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
    /// Since when there are enough workers for the job; for gathering.
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
    /// Why each job that waits does so.
    pub waits: BTreeMap<JobName, Wait>,
}

/// Why a job has no world yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Whether there are enough workers, and it only hopes for more.
    pub gathers: bool,
    /// In one sentence.
    pub why: String,
}

impl std::fmt::Display for Wait {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
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
        let (why, since) = match &job.phase {
            Phase::Ended(_) => continue,
            Phase::Queued => {
                let why = match job.committed_step() {
                    Step(0) => "first world".to_owned(),
                    step => format!("resumes from step {step}"),
                };
                // It has no world yet whose number a watch could carry.
                let watch = observed.worlds.get(name);
                (why, watch.and_then(|watch| watch.wanting_since_ms))
            }
            Phase::Running | Phase::Stopping(_) => {
                let Some(why) = why_lost(job, observed, watch, patience, now_ms) else {
                    continue;
                };
                if let Some(outcome) = end_of(job, watch, &why) {
                    plan.commands.push(Command::Finish {
                        job: name.clone(),
                        generation: job.generation,
                        outcome,
                    });
                    continue;
                }
                (why, watch.and_then(|watch| watch.wanting_since_ms))
            }
        };
        // Until the state gives it a new world, a lost one holds its devices: a job further down
        // the line must not get them.
        let mut offered = free.clone();
        give_back(&mut offered, job);
        let wanting = Wanting {
            name,
            job,
            why,
            since,
            watch,
        };
        match place(&mut offered, state, wanting, patience, now_ms) {
            Ok(command) => {
                plan.commands.push(command);
                free = offered;
            }
            Err(wait) => {
                plan.waits.insert(name.clone(), wait);
            }
        }
    }
    plan
}

/// How a job ends whose world is lost, or `None` when it is to get another one.
fn end_of(job: &Job, watch: Option<&Watch>, why: &str) -> Option<Outcome> {
    if let Phase::Stopping(stop) = job.phase {
        let reason = format!("its world broke before it could write another checkpoint: {why}");
        return Some(job.rest(stop.into(), reason));
    }
    let progressed = watch.is_some_and(|watch| watch.progressed);
    let is_fruitless = !progressed && job.num_fruitless_worlds + 1 >= MAX_FRUITLESS_WORLDS;
    is_fruitless.then(|| {
        let reason =
            format!("{MAX_FRUITLESS_WORLDS} worlds in a row applied no step; the last: {why}");
        job.rest(OutcomeKind::Failed, reason)
    })
}

/// Devices by worker. Below zero where a worker came back with fewer devices than worlds still
/// hold, so that giving one back does not make one up.
type Devices = BTreeMap<WorkerName, i64>;

/// The devices that no world holds, of the workers that are there.
fn free_devices(state: &ClusterState, observed: &Observed) -> Devices {
    let alive = observed
        .connected
        .iter()
        .filter_map(|(worker, incarnation)| {
            let node = state
                .nodes
                .get(worker)
                .filter(|node| node.incarnation == *incarnation)?;
            let free = i64::from(node.num_devices) - i64::from(state.num_busy_devices(worker));
            Some((worker.clone(), free))
        });
    alive.collect()
}

/// A job that gets a new world gives its old devices back first.
fn give_back(free: &mut Devices, job: &Job) {
    for placement in job.world.iter().flat_map(|world| &world.ranks) {
        if let Some(devices) = free.get_mut(&placement.worker) {
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

#[cfg(test)]
mod tests;
