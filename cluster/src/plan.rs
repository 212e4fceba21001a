//! What the leader decides: which job gets which world, and why a job waits. A pure function of
//! the replicated state, of what the leader observed, and of the time.

use std::collections::{BTreeMap, BTreeSet};

use crate::command::{Command, Outcome, OutcomeKind};
use crate::ids::{Incarnation, JobName, ProcessId, Step, WorkerName};
use crate::state::{ClusterState, Job, Phase};

mod balance;
mod closure;
mod devices;
mod distrust;
mod fate;
mod finish;
mod heal;
mod pace;
mod place;
mod poison;
mod shares;
mod standby;
mod watch;

pub use pace::{Activity, Pace, Slow, Speed, slow};
pub use watch::{Closed, Failures, Standby, Suspect, Watch};

use devices::Devices;
use fate::Running;
use heal::Verdict;
use place::{Wanting, place};

/// Worlds in a row that may end without having applied a step.
pub const MAX_FRUITLESS_WORLDS: u32 = 5;

/// A job ends when so many worlds in a row lost ranks with the same shard of the same step to compute.
pub const MAX_POISONED_WORLDS: u32 = 5;

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

impl Patience {
    /// How often a worker shows that it is there: a few times before it is missed.
    #[must_use]
    pub fn heartbeat_ms(self) -> u64 {
        (self.detect_ms / 4).max(1)
    }

    /// How long a rank waits for a peer that is there and sends nothing of the step, as one that
    /// computes does, where a step takes `step_us` microseconds. A peer that is silent or gone is
    /// noticed otherwise.
    #[must_use]
    pub fn collective_timeout_ms(self, step_us: u32) -> u64 {
        let steps_ms = u64::from(step_us) / 1000 * 20;
        self.detect_ms.saturating_mul(600).max(steps_ms)
    }

    /// How long a rank that is there may take to say what it holds of a world that is closed: it
    /// ends an update first, which takes it `updating_us` microseconds.
    #[must_use]
    pub fn answer_ms(self, updating_us: u32) -> u64 {
        let updates_ms = u64::from(updating_us) / 1000 * 4;
        self.detect_ms.saturating_mul(2).saturating_add(updates_ms)
    }
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
    /// Worlds to be closed, and how soon.
    pub closing: BTreeMap<JobName, Closing>,
    /// Processes that do not answer and that a job cannot go on without: their workers are to end
    /// them, so that others can take their places.
    pub stuck: BTreeMap<JobName, BTreeSet<ProcessId>>,
    /// The jobs whose shards should be divided otherwise, if that stays so.
    pub uneven: BTreeSet<JobName>,
}

/// A world is to be closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Closing {
    /// At once: it cannot go on.
    Now(String),
    /// Behind the step that runs: its ranks are to be others.
    BehindStep(String),
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
    let mut free = Devices::free(state, observed);
    // Jobs are served in the order of their submission; the name settles ties.
    let open = state.open_jobs().map(|(name, job)| (name, job.as_ref()));
    let mut order: Vec<(&JobName, &Job)> = open.collect();
    order.sort_by_key(|(name, job)| (job.submitted_ms, *name));
    for (name, job) in order {
        let watch = observed
            .worlds
            .get(name)
            .filter(|watch| watch.generation == job.generation);
        let (why, since, poison) = match &job.phase {
            Phase::Ended(_) => continue,
            Phase::Queued if !free.serve(job.spec.workers.device) => {
                // Nobody has to look where there is nothing.
                let (kind, why) = devices::kind(state, observed, job, None, (patience, now_ms));
                let wait = place::nothing_is_free(state, job, kind, why.as_deref());
                plan.waits.insert(name.clone(), wait);
                continue;
            }
            Phase::Queued => {
                let why = match job.committed_step() {
                    Step(0) => "first world".to_owned(),
                    step => format!("resumes from step {step}"),
                };
                // It has no world yet whose number a watch could carry.
                let watch = observed.worlds.get(name);
                (why, watch.and_then(|watch| watch.wanting_since_ms), None)
            }
            Phase::Running | Phase::Stopping(_) => {
                let running = Running {
                    name,
                    job,
                    watch,
                    state,
                    observed,
                    patience,
                    now_ms,
                };
                if let Some(command) = distrust::next(&running) {
                    // What becomes of its world is judged when the state says so.
                    plan.commands.push(command);
                    continue;
                }
                let verdict = heal::judge(&running);
                let Verdict::FallBack(why, poison) = verdict else {
                    plan.keep_running(&running, verdict, &mut free);
                    continue;
                };
                let end = end_of(job, watch, &why);
                if let Some(outcome) =
                    end.or_else(|| poison::end(job, watch, poison.as_ref(), &why))
                {
                    plan.commands.push(Command::Finish {
                        job: name.clone(),
                        generation: job.generation,
                        outcome,
                    });
                    continue;
                }
                // A step behind the checkpoint is not run again.
                let poison = poison.filter(|poison| poison.step >= job.committed_step());
                (why, watch.and_then(|watch| watch.wanting_since_ms), poison)
            }
        };
        // Until the state gives it a new world, a lost one holds its devices: a job further down
        // the line must not get them.
        let mut offered = free.clone();
        offered.give_back(state, job);
        let wanting = Wanting {
            name,
            job,
            why,
            since,
            watch,
            poison,
        };
        match place(&mut offered, (state, observed), wanting, patience, now_ms) {
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

impl Plan {
    /// Notes in the watch on a job since when what is decided for it holds.
    pub fn note_in(&self, watch: &mut Watch, job: &JobName, now_ms: u64) {
        if let Some(Closing::Now(_)) = self.closing.get(job) {
            watch.closing_since_ms.get_or_insert(now_ms);
        }
        let keep = |holds: bool, since: &mut Option<u64>| {
            *since = holds.then(|| since.unwrap_or(now_ms));
        };
        let gathers = self.waits.get(job).is_some_and(|wait| wait.gathers);
        keep(gathers, &mut watch.wanting_since_ms);
        keep(self.uneven.contains(job), &mut watch.speed.uneven_since_ms);
    }

    /// What comes of a world whose ranks go on, or may.
    fn keep_running(&mut self, running: &Running<'_>, verdict: Verdict, free: &mut Devices) {
        let is_quiet = matches!(
            verdict,
            Verdict::Lives | Verdict::Close(Closing::BehindStep(_), None)
        );
        if is_quiet && balance::uneven(running).is_some() {
            self.uneven.insert(running.name.clone());
        }
        match verdict {
            Verdict::Heal(command) => {
                // Who enters and who is wanted beside it is judged anew when it is there.
                self.commands.push(command);
                return;
            }
            Verdict::Close(closing, why) => {
                self.closing.insert(running.name.clone(), closing);
                if let Some(why) = why {
                    let gathers = false;
                    self.waits
                        .insert(running.name.clone(), Wait { gathers, why });
                }
            }
            Verdict::Wait {
                closing,
                why,
                stuck,
            } => {
                let (name, gathers) = (running.name, false);
                self.closing.insert(name.clone(), closing);
                self.waits.insert(name.clone(), Wait { gathers, why });
                if !stuck.is_empty() {
                    self.stuck.insert(name.clone(), stuck);
                }
            }
            Verdict::Lives | Verdict::FallBack(..) => {}
        }
        self.commands.extend(standby::next(running, free));
    }
}

/// How a job ends whose world is lost, or `None` when it is to get another one.
fn end_of(job: &Job, watch: Option<&Watch>, why: &str) -> Option<Outcome> {
    if let Phase::Stopping(stop) = job.phase {
        let reason = format!("its world broke before it could write another checkpoint: {why}");
        return Some(job.rest(stop.into(), reason));
    }
    let progressed = watch.is_some_and(|watch| watch.progressed);
    let num_fruitless = job.num_fruitless_worlds.saturating_add(1);
    let is_fruitless = !progressed && num_fruitless >= MAX_FRUITLESS_WORLDS;
    is_fruitless.then(|| {
        let reason = format!("{num_fruitless} worlds in a row applied no step; the last: {why}");
        job.rest(OutcomeKind::Failed, reason)
    })
}

#[cfg(test)]
mod tests;
