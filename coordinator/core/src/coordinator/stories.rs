//! What applied commands mean to those who watch: the events of a job.

use muster_cluster::apply::{Answer, Effect};
use muster_cluster::command::{Command, Outcome};
use muster_cluster::ids::JobName;
use muster_cluster::state::{Job, Phase};
use muster_proto::event::{Event, What};

use super::{Coordinator, Output, seconds_of};
use crate::goodput::Standing;

impl Coordinator {
    /// Tells of a command that was applied; of a submission only what came of it is looked at.
    pub(super) fn tell(
        &mut self,
        command: Option<&Command>,
        answer: &Answer,
        outputs: &mut Vec<Output>,
    ) {
        let Ok(effect) = answer else { return };
        let Some(name) = job_of(effect) else { return };
        let Some(job) = self.state.jobs.get(name) else {
            return;
        };
        let what = match (effect, command) {
            (Effect::Queued { from, .. }, _) => {
                self.worlds.remove(name);
                What::Submitted {
                    from_step: from.0,
                    workers: Some(job.spec.workers.max),
                }
            }
            (Effect::WorldStarted { .. }, Some(Command::StartWorld { world, reason, .. })) => {
                What::Generation {
                    generation: world.generation.0,
                    world_size: u32::try_from(world.ranks.len()).unwrap_or(u32::MAX),
                    from_step: world.first_step.0,
                    reason: reason.clone(),
                    ledger_hash: job
                        .ledger
                        .last()
                        .map_or_else(String::new, |last| last.hash.clone()),
                }
            }
            (Effect::Distrusted { .. }, Some(Command::Distrust { worker, reason, .. })) => {
                What::Distrusted {
                    worker: worker.to_string(),
                    reason: reason.clone(),
                }
            }
            (Effect::ManifestCommitted { .. }, Some(Command::CommitManifest { manifest, .. })) => {
                What::Checkpoint {
                    step: manifest.step.0,
                    path: manifest.folder.clone(),
                    bytes: manifest.bytes(),
                    manifest_hash: manifest.hash(),
                }
            }
            (
                Effect::ManifestRejected { step, .. },
                Some(Command::RejectManifest { reason, .. }),
            ) => What::Damaged {
                step: step.0,
                reason: reason.clone(),
            },
            (Effect::Finished { .. }, _) | (Effect::Stopping { at_rest: true, .. }, _) => {
                match &job.phase {
                    Phase::Ended(outcome) => self.finished(name, job, outcome),
                    _ => return,
                }
            }
            _ => return,
        };
        let event = Event {
            time: self.time_s(),
            job: name.to_string(),
            history: job.history.0,
            what,
        };
        self.publish(event, outputs);
    }

    /// The time of the newest entry, in seconds since the epoch.
    fn time_s(&self) -> f64 {
        seconds_of(self.state.stamp_ms)
    }

    fn finished(&self, name: &JobName, job: &Job, outcome: &Outcome) -> What {
        let account = self.account(name).cloned();
        let mut account = account.unwrap_or_default();
        let (now_s, state) = (self.time_s(), outcome.kind.as_str());
        account.goodput.finish(now_s, state, outcome.step.0);
        let rank_time = account.goodput.rank_time(Standing {
            wanted: job.spec.workers.min,
            ..Standing::default()
        });
        What::Finished {
            state: state.to_owned(),
            step: outcome.step.0,
            steps_run: account.steps_run,
            steps_skipped: account.num_skipped(outcome.step.0),
            arena_hash: outcome.arena_hash.clone(),
            optimizer_hash: outcome.optimizer_hash.clone(),
            trace: outcome.trace.clone(),
            metrics: outcome.metrics.clone(),
            peak_memory_bytes: outcome.peak_memory_bytes.clone(),
            goodput: rank_time.goodput(),
            rank_time,
            wall_s: account.wall_s(now_s),
            reason: outcome.reason.clone(),
            path: job
                .latest_manifest()
                .map(|manifest| manifest.folder.clone())
                .unwrap_or_default(),
        }
    }
}

fn job_of(effect: &Effect) -> Option<&JobName> {
    match effect {
        Effect::Queued { job, .. }
        | Effect::Stopping { job, .. }
        | Effect::WorldStarted { job }
        | Effect::Distrusted { job, .. }
        | Effect::ManifestCommitted { job, .. }
        | Effect::ManifestRejected { job, .. }
        | Effect::Finished { job } => Some(job),
        Effect::AlreadyFinished { .. }
        | Effect::AlreadyRunning { .. }
        | Effect::Registered
        | Effect::StandbyStarted
        | Effect::StandbyEnded
        | Effect::Scaled { .. }
        | Effect::StateAbandoned { .. }
        | Effect::Drained { .. } => None,
    }
}
