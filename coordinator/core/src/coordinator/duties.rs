//! What the leader proposes: worlds, checkpoints, ends and registrations, each derived from state
//! and observation and proposed once at a time. Which world a job gets is the planner's to say.

use std::collections::BTreeMap;
use std::sync::Arc;

use muster_cluster::apply::{Answer, Refusal};
use muster_cluster::command::{Command, Outcome, OutcomeKind, StopWhy};
use muster_cluster::ids::{Incarnation, JobName, Step, WorkerName};
use muster_cluster::plan;
use muster_cluster::state::{Job, Manifest, Phase, World};
use muster_consensus::ReplicaId;
use muster_proto::v1;

use super::{Coordinator, Now, Output};
use crate::links::Session;
use crate::ranks::WorldWatch;

/// What a proposal of the leader's own is for; no two of the same are under way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Duty {
    /// What the planner decided for a job.
    Plan(JobName),
    /// A checkpoint is whole.
    Commit(JobName),
    /// A checkpoint is damaged.
    Reject(JobName),
    /// A job is over.
    End(JobName),
    /// A worker is there.
    Register(Session),
    /// A member of the group has caught up.
    Promote,
    /// A member of the group is not as the log says.
    Seen(ReplicaId),
}

impl Coordinator {
    /// Proposes what the state lacks. A new round of planning begins when the last one is applied,
    /// since one decision may take the devices of another.
    pub(super) fn decide(&mut self, now: Now, outputs: &mut Vec<Output>) {
        self.tend_group(outputs);
        self.observe(now);
        self.register_workers(outputs);
        self.settle_worlds(outputs);
        if self
            .in_flight
            .keys()
            .any(|duty| matches!(duty, Duty::Plan(_) | Duty::End(_)))
        {
            return;
        }
        let plan = plan::plan(&self.state, &self.observed, self.patience, now.monotonic_ms);
        // What was seen before is told before. What is decided of such a job is decided again then.
        for command in &plan.commands {
            if let Command::StartWorld { job, world, .. } = command {
                self.observe_missed(job, world);
            }
        }
        let mut held = self.jobs_with_news();
        for command in &plan.commands {
            if let Command::Finish { job, .. } | Command::StartWorld { job, .. } = command
                && !matches!(command, Command::StartWorld { world, .. } if world.finish.is_some())
                && self.is_unrecorded(job)
            {
                held.insert(job.clone());
                self.is_held = true;
            }
        }
        let free = self.state.open_jobs().map(|(name, _)| name);
        for name in free.filter(|name| !held.contains(*name)) {
            // Only a job that gathers is watched before its first world.
            let gathers = plan.waits.get(name).is_some_and(|wait| wait.gathers);
            if gathers || self.worlds.contains_key(name) {
                let world = self.worlds.entry(name.clone()).or_default();
                plan.note_in(&mut world.watch, name, now.monotonic_ms);
            }
        }
        self.waits = plan.waits;
        self.stuck = plan.stuck;
        self.closing.clear();
        for (name, closing) in plan.closing {
            if let Some(world) = self.worlds.get(&name) {
                self.closing.insert(name, (world.watch.generation, closing));
            }
        }
        for command in plan.commands {
            if let Command::StartWorld { job, .. }
            | Command::StartStandby { job, .. }
            | Command::EndStandby { job, .. }
            | Command::Distrust { job, .. }
            | Command::Finish { job, .. } = &command
                && !held.contains(job)
            {
                self.propose_duty(Duty::Plan(job.clone()), command, outputs);
            }
        }
    }

    /// Why a command makes no sense by what the leader observes, which the state does not know; or why a
    /// job makes none, which the leader understands for all.
    pub(super) fn refusal_of(&mut self, command: &mut Command, now: Now) -> Option<Refusal> {
        let job = match command {
            Command::AbandonState { job } => job,
            Command::Submit { spec: Some(_), .. } => return None,
            Command::Submit { submission, spec } => match submission.check() {
                Ok(understood) => {
                    *spec = Some(Box::new(understood));
                    return None;
                }
                Err(error) => return Some(Refusal::BadJob(error.to_string())),
            },
            _ => return None,
        };
        let mut given_up = self.state.clone();
        let known = given_up.jobs.get_mut(job).map(Arc::make_mut)?;
        known.abandoned = Some(known.generation);
        self.observe(now);
        let plan = |state| plan::plan(state, &self.observed, self.patience, now.monotonic_ms);
        let is_same = plan(&self.state) == plan(&given_up);
        is_same.then(|| Refusal::NothingToAbandon(job.clone()))
    }

    /// A proposal is applied: what it was for may be proposed again, if it is still needed.
    pub(super) fn settle(&mut self, proposal: u64, answer: &Answer, outputs: &mut Vec<Output>) {
        let duty = self
            .in_flight
            .iter()
            .find(|(_, known)| **known == proposal)
            .map(|(duty, _)| duty.clone());
        let Some(duty) = duty else { return };
        self.in_flight.remove(&duty);
        let Err(refusal) = answer else { return };
        match duty {
            Duty::Register(session) => self.refuse(session, refusal.to_string(), outputs),
            // A checkpoint that came too late must not be offered for ever.
            Duty::Commit(job) => {
                if let Some(world) = self.worlds.get_mut(&job) {
                    world.parts.clear();
                }
            }
            _ => {}
        }
    }

    /// When this process was held up itself, the silence of others proves nothing: everybody gets a
    /// full timeout again.
    pub(super) fn forgive_a_late_tick(&mut self, now: Now) {
        let last = self.last_tick_ms.replace(now.monotonic_ms);
        let late_ms = last.map_or(0, |last| now.monotonic_ms.saturating_sub(last));
        if late_ms <= self.patience.detect_ms / 2 {
            return;
        }
        for (_, link) in self.links.iter_mut() {
            link.last_seen_ms = now.monotonic_ms;
        }
        for since in self.observed.silent_since_ms.values_mut() {
            *since = now.monotonic_ms;
        }
        for world in self.worlds.values_mut() {
            if let Some(since) = &mut world.watch.closing_since_ms {
                *since = now.monotonic_ms;
            }
        }
    }

    /// Who is there, and what is known of the worlds, as the planner wants it.
    fn observe(&mut self, now: Now) {
        let is_heard = |last_seen_ms: u64| {
            now.monotonic_ms.saturating_sub(last_seen_ms) <= self.patience.detect_ms
        };
        let links = self.links.iter().map(|(_, link)| link);
        let heard = links.filter(|link| is_heard(link.last_seen_ms));
        let connected: BTreeMap<WorkerName, Incarnation> = heard
            .map(|link| (link.worker.clone(), link.node.incarnation))
            .collect();
        for worker in self.state.nodes.keys() {
            if connected.contains_key(worker) {
                self.observed.silent_since_ms.remove(worker);
            } else {
                let link = self.links.of(worker).map(|(_, link)| link);
                let since = link.map_or(now.monotonic_ms, |link| link.last_seen_ms);
                self.observed
                    .silent_since_ms
                    .entry(worker.clone())
                    .or_insert(since);
            }
        }
        self.observed.connected = connected;
        let open = self.state.open_jobs();
        let watched = open.filter_map(|(job, _)| self.worlds.get_key_value(job));
        let watched = watched.map(|(job, world)| (job.clone(), world.watch.clone()));
        self.observed.worlds = watched.collect();
    }

    fn register_workers(&mut self, outputs: &mut Vec<Output>) {
        let strangers: Vec<(Session, Command)> = self
            .links
            .iter()
            .filter(|(_, link)| self.state.nodes.get(&link.worker) != Some(&link.node))
            .map(|(session, link)| {
                (
                    session,
                    Command::RegisterWorker {
                        worker: link.worker.clone(),
                        node: link.node.clone(),
                    },
                )
            })
            .collect();
        for (session, command) in strangers {
            self.propose_duty(Duty::Register(session), command, outputs);
        }
    }

    /// Proposes what the reports of the ranks amount to: a checkpoint, a damage, an end.
    fn settle_worlds(&mut self, outputs: &mut Vec<Output>) {
        let mut proposals = Vec::new();
        for (name, job) in self.state.open_jobs() {
            let Some(world) = job.world.as_ref() else {
                continue;
            };
            let Some(watch) = self
                .worlds
                .get_mut(name)
                .filter(|watch| watch.watch.generation == job.generation)
            else {
                continue;
            };
            let committed = job.latest_manifest().map(|manifest| manifest.step);
            if let Some(manifest) = watch.manifest(job.history, committed) {
                let command = Command::CommitManifest {
                    job: name.clone(),
                    manifest,
                };
                proposals.push((Duty::Commit(name.clone()), command));
            }
            if let Some((history, step, reason)) = &watch.damaged {
                let is_it = |known: &Manifest| (known.history, known.step) == (*history, *step);
                if !job.manifests.iter().any(is_it) {
                    watch.watch.broken = Some(format!("its checkpoint of step {step} is damaged"));
                } else if job.manifests.len() == 1 {
                    let failed = only_checkpoint_damaged(*step, reason);
                    watch.failed.get_or_insert(failed);
                } else {
                    let command = Command::RejectManifest {
                        job: name.clone(),
                        history: *history,
                        step: *step,
                        reason: reason.clone(),
                    };
                    proposals.push((Duty::Reject(name.clone()), command));
                }
            }
            if let Some(outcome) = end_of(job, watch, world) {
                let command = Command::Finish {
                    job: name.clone(),
                    generation: job.generation,
                    outcome,
                };
                proposals.push((Duty::End(name.clone()), command));
            }
        }
        // What was seen before a job's end is told before it.
        let num_proposals = proposals.len();
        proposals.retain(|(duty, _)| match duty {
            Duty::End(job) => !self.is_unrecorded(job),
            _ => true,
        });
        self.is_held = proposals.len() < num_proposals;
        for (duty, command) in proposals {
            self.propose_duty(duty, command, outputs);
        }
    }

    fn propose_duty(&mut self, duty: Duty, command: Command, outputs: &mut Vec<Output>) {
        if self.in_flight.contains_key(&duty) {
            return;
        }
        let proposal = self.next_proposal();
        self.in_flight.insert(duty, proposal);
        self.propose(proposal, None, command, outputs);
    }
}

/// Why a job ends whose last checkpoint is damaged: without it, it would begin anew.
fn only_checkpoint_damaged(step: Step, reason: &str) -> String {
    format!(
        "its only checkpoint, of step {step}, is damaged: {reason}; put the file back as it was \
         written and run the job again, or start over with --fresh"
    )
}

/// How a job ends by what its ranks report, or `None` while it goes on.
fn end_of(job: &Job, watch: &WorldWatch, world: &World) -> Option<Outcome> {
    let reason = match (&watch.failed, watch.end(world.ranks.len())) {
        (Some(message), _) => message.clone(),
        (None, Some(Err(disagreement))) => disagreement,
        (None, Some(Ok(done))) => {
            let outcome = done_outcome(job, done, watch.peak_memory_bytes(world));
            return Some(outcome);
        }
        (None, None) => {
            // Nobody of it comes to a step boundary, where it would end.
            let Phase::Stopping(why) = job.phase else {
                return None;
            };
            return watch.cannot_have_met(world).then(|| {
                let reason = "it was stopped before all of its ranks were prepared";
                job.rest(why.into(), reason.to_owned())
            });
        }
    };
    Some(job.rest(OutcomeKind::Failed, reason))
}

fn done_outcome(job: &Job, done: v1::Done, peak_memory_bytes: Vec<u64>) -> Outcome {
    let kind = match (done.stopped, &job.phase) {
        (false, _) => OutcomeKind::Completed,
        (true, Phase::Stopping(StopWhy::Cancelled)) => OutcomeKind::Cancelled,
        (true, _) => OutcomeKind::Interrupted,
    };
    Outcome {
        kind,
        reason: String::new(),
        step: Step(done.step),
        arena_hash: done.arena_hash,
        optimizer_hash: done.optimizer_hash,
        trace: done.trace,
        metrics: done.metrics.into_iter().collect(),
        peak_memory_bytes,
    }
}
