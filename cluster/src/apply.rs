//! How a command changes the state. Total and deterministic: the same commands in the same order
//! give the same state on every replica, and a refusal is an answer, not an error.

use crate::command::{
    Command, NumericsClass, Outcome, OutcomeKind, RequestId, Stamped, StopWhy, Submission,
};
use crate::ids::{Generation, History, JobName, Step};
use crate::job::{Change, Identity, JobDraft};
use crate::state::{ClusterState, Job, LedgerEntry, Manifest, Phase, World};

/// How many answers are remembered for retries.
const MAX_ANSWERED: usize = 4096;

/// What a command led to.
pub type Answer = Result<Effect, Refusal>;

/// What a command changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A job is queued; `from` is the step it goes on from.
    Queued {
        /// Which job.
        job: JobName,
        /// The step that its first world starts from.
        from: Step,
    },
    /// The job ran to its end before; nothing was changed.
    AlreadyFinished {
        /// Which job.
        job: JobName,
        /// Its last step.
        step: Step,
    },
    /// The job runs now; nothing was changed but the range of its workers, which counts from its
    /// next world on.
    AlreadyRunning {
        /// Which job.
        job: JobName,
    },
    /// The job ends at the next step boundary.
    Stopping {
        /// Which job.
        job: JobName,
        /// Whether it rests already, since it had no world.
        at_rest: bool,
    },
    /// A worker is known.
    Registered,
    /// A job has a new world.
    WorldStarted {
        /// Which job.
        job: JobName,
    },
    /// A checkpoint counts.
    ManifestCommitted {
        /// Which job.
        job: JobName,
        /// Its step.
        step: Step,
    },
    /// A damaged checkpoint counts no more.
    ManifestRejected {
        /// Which job.
        job: JobName,
        /// Its step.
        step: Step,
    },
    /// A job is over.
    Finished {
        /// Which job.
        job: JobName,
    },
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// No job has this name.
    #[error("no job is named {0:?}; `muster ps` lists the jobs")]
    UnknownJob(String),
    /// The draft is no job.
    #[error("{0}")]
    BadJob(String),
    /// The name is taken by a job with other bits.
    #[error(
        "job {job} exists and differs: {}; submit under another name, or start over with --fresh",
        list(changes)
    )]
    OtherIdentity {
        /// Which job.
        job: JobName,
        /// What differs.
        changes: Vec<Change>,
    },
    /// `--fresh` was asked for while the job runs.
    #[error("job {0} is running; cancel it before starting over with --fresh")]
    StillRunning(JobName),
    /// The job is over.
    #[error("job {job} has ended ({how}); there is nothing to stop")]
    AlreadyEnded {
        /// Which job.
        job: JobName,
        /// How.
        how: &'static str,
    },
    /// It speaks for a world that is no longer.
    #[error("{what} of generation {got} is refused: job {job} is at generation {current}")]
    Stale {
        /// Which job.
        job: JobName,
        /// What was asked for.
        what: &'static str,
        /// The generation it came from.
        got: Generation,
        /// The job's.
        current: Generation,
    },
    /// It belongs to another line of steps, or is not above the last committed step.
    #[error(
        "the manifest of step {step} in history {history} is refused: job {job} is at step {committed} of history {current}"
    )]
    StaleManifest {
        /// Which job.
        job: JobName,
        /// The manifest's history.
        history: History,
        /// The manifest's step.
        step: Step,
        /// The job's history.
        current: History,
        /// The job's last committed step.
        committed: Step,
    },
    /// An older life of a worker speaks.
    #[error(
        "worker {worker} is registered by a newer process; stop one of the two, or name them differently with --name"
    )]
    OlderIncarnation {
        /// Which worker.
        worker: String,
    },
}

fn list(changes: &[Change]) -> String {
    changes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

impl ClusterState {
    /// Applies one command. Commands that carry a request already answered give the same answer
    /// again and change nothing.
    pub fn apply(&mut self, stamped: Stamped) -> Answer {
        self.stamp_ms = self.stamp_ms.max(stamped.stamp_ms);
        if let Some(request) = stamped.request
            && let Some(answer) = self.answer_to(request)
        {
            return answer.clone();
        }
        let answer = self.change(stamped.command);
        if let Some(request) = stamped.request {
            self.answered.push_back((request, answer.clone()));
            if self.answered.len() > MAX_ANSWERED {
                self.answered.pop_front();
            }
        }
        answer
    }

    /// The answer that a request got, if it is remembered.
    #[must_use]
    pub fn answer_to(&self, request: RequestId) -> Option<&Answer> {
        self.answered
            .iter()
            .rev()
            .find(|(known, _)| *known == request)
            .map(|(_, answer)| answer)
    }

    fn change(&mut self, command: Command) -> Answer {
        match command {
            Command::Submit(submission) => self.submit(submission),
            Command::Stop { job, why } => self.stop(&job, why),
            Command::RegisterWorker { worker, node } => {
                let known = self.nodes.get(&worker);
                if known.is_some_and(|known| known.incarnation > node.incarnation) {
                    return Err(Refusal::OlderIncarnation {
                        worker: worker.to_string(),
                    });
                }
                self.nodes.insert(worker, node);
                Ok(Effect::Registered)
            }
            Command::StartWorld {
                job,
                world,
                reason,
                predecessor_progressed,
            } => self.start_world(&job, world, reason, predecessor_progressed),
            Command::CommitManifest { job, manifest } => self.commit_manifest(&job, manifest),
            Command::RejectManifest {
                job, history, step, ..
            } => {
                let known = self.job_mut(&job)?;
                known
                    .manifests
                    .retain(|manifest| (manifest.history, manifest.step) != (history, step));
                Ok(Effect::ManifestRejected { job, step })
            }
            Command::Finish {
                job,
                generation,
                outcome,
            } => self.finish(&job, generation, outcome),
        }
    }

    fn job_mut(&mut self, name: &JobName) -> Result<&mut Job, Refusal> {
        self.jobs
            .get_mut(name)
            .ok_or_else(|| Refusal::UnknownJob(name.to_string()))
    }

    fn submit(&mut self, submission: Submission) -> Answer {
        let spec = JobDraft::parse(&submission.draft, "the submitted job", "", &[])
            .and_then(|draft| draft.check(&submission.base_dir, &submission.data_digest))
            .map_err(|error| Refusal::BadJob(error.to_string()))?;
        let identity = Identity::of(&spec);
        let name = spec.name.clone();
        let submitted_ms = self.stamp_ms;
        let Some(job) = self.jobs.get_mut(&name) else {
            let job = Job {
                submission,
                spec,
                identity,
                phase: Phase::Queued,
                history: History(1),
                generation: Generation(0),
                world: None,
                manifests: Vec::new(),
                ledger: Vec::new(),
                num_fruitless_worlds: 0,
                num_submissions: 1,
                submitted_ms,
            };
            self.jobs.insert(name.clone(), job);
            return Ok(Effect::Queued {
                job: name,
                from: Step(0),
            });
        };
        let runs = !matches!(job.phase, Phase::Ended(_));
        if submission.fresh && runs {
            return Err(Refusal::StillRunning(name));
        }
        if submission.fresh {
            job.manifests.clear();
        } else {
            let changes = job.identity.changed(&identity);
            if !changes.is_empty() {
                return Err(Refusal::OtherIdentity { job: name, changes });
            }
            if runs {
                job.spec.workers = spec.workers;
                return Ok(Effect::AlreadyRunning { job: name });
            }
            if let Phase::Ended(outcome) = &job.phase
                && outcome.kind == OutcomeKind::Completed
                && job.spec.train.stop == spec.train.stop
                && !job.manifests.is_empty()
            {
                return Ok(Effect::AlreadyFinished {
                    job: name,
                    step: outcome.step,
                });
            }
        }
        // What was applied above the last checkpoint, if anything, is void from here on.
        job.history = job.history.next();
        job.submission = submission;
        job.spec = spec;
        job.identity = identity;
        job.phase = Phase::Queued;
        job.num_fruitless_worlds = 0;
        job.num_submissions += 1;
        job.submitted_ms = submitted_ms;
        Ok(Effect::Queued {
            job: name,
            from: job.committed_step(),
        })
    }

    fn stop(&mut self, name: &JobName, why: StopWhy) -> Answer {
        let job = self.job_mut(name)?;
        match &job.phase {
            Phase::Ended(outcome) => Err(Refusal::AlreadyEnded {
                job: name.clone(),
                how: outcome.kind.as_str(),
            }),
            Phase::Queued => {
                let outcome = job.rest(why.into(), "it had no world".to_owned());
                job.phase = Phase::Ended(outcome);
                job.world = None;
                Ok(Effect::Stopping {
                    job: name.clone(),
                    at_rest: true,
                })
            }
            Phase::Running | Phase::Stopping(_) => {
                job.phase = Phase::Stopping(why);
                Ok(Effect::Stopping {
                    job: name.clone(),
                    at_rest: false,
                })
            }
        }
    }

    fn start_world(
        &mut self,
        name: &JobName,
        world: World,
        reason: String,
        progressed: bool,
    ) -> Answer {
        let stamp_ms = self.stamp_ms;
        let class = self.class_of(&world).cloned();
        let job = self.job_mut(name)?;
        // A world that replaces another one falls back, so each history has at most one world.
        // The state may have moved on since the planner looked: a job that was ended and submitted
        // again is in a later history, which an older plan must not take back.
        let history = if job.has_world() {
            job.history.next()
        } else {
            job.history
        };
        if world.generation != job.generation.next()
            || world.history != history
            || world.first_step != job.committed_step()
            || matches!(job.phase, Phase::Ended(_))
        {
            return Err(Refusal::Stale {
                job: name.clone(),
                what: "a world",
                got: world.generation,
                current: job.generation,
            });
        }
        job.history = world.history;
        job.generation = world.generation;
        job.num_fruitless_worlds = if progressed || job.world.is_none() {
            0
        } else {
            job.num_fruitless_worlds + 1
        };
        if job.phase == Phase::Queued {
            job.phase = Phase::Running;
        }
        job.ledger.push(LedgerEntry {
            history: world.history,
            generation: world.generation,
            first_step: world.first_step,
            ranks: world.ranks.clone(),
            class,
            reason,
            stamp_ms,
        });
        job.world = Some(world);
        Ok(Effect::WorldStarted { job: name.clone() })
    }

    fn commit_manifest(&mut self, name: &JobName, manifest: Manifest) -> Answer {
        let job = self.job_mut(name)?;
        let committed = job.committed_step();
        let is_first = job.manifests.is_empty();
        if manifest.history != job.history || (manifest.step <= committed && !is_first) {
            return Err(Refusal::StaleManifest {
                job: name.clone(),
                history: manifest.history,
                step: manifest.step,
                current: job.history,
                committed,
            });
        }
        let step = manifest.step;
        job.manifests.push(manifest);
        let excess = job
            .manifests
            .len()
            .saturating_sub(job.spec.checkpoint.keep as usize);
        job.manifests.drain(..excess);
        Ok(Effect::ManifestCommitted {
            job: name.clone(),
            step,
        })
    }

    fn finish(&mut self, name: &JobName, generation: Generation, outcome: Outcome) -> Answer {
        let job = self.job_mut(name)?;
        // Only a world ends a job. One that was submitted again keeps its generation until it gets
        // a new world, and a second word of the last one's end must not end it.
        if generation != job.generation || !job.has_world() {
            return Err(Refusal::Stale {
                job: name.clone(),
                what: "the end",
                got: generation,
                current: job.generation,
            });
        }
        job.phase = Phase::Ended(outcome);
        job.world = None;
        Ok(Effect::Finished { job: name.clone() })
    }

    /// The devices of a worker that worlds hold now.
    #[must_use]
    pub fn num_busy_devices(&self, worker: &crate::ids::WorkerName) -> u32 {
        let placements = self
            .jobs
            .values()
            .filter_map(|job| job.world.as_ref())
            .flat_map(|world| &world.ranks);
        let busy = placements
            .filter(|placement| placement.worker == *worker)
            .count();
        u32::try_from(busy).unwrap_or(u32::MAX)
    }

    /// The class that a job's world runs in.
    #[must_use]
    pub fn class_of(&self, world: &World) -> Option<&NumericsClass> {
        let first = world.ranks.first()?;
        self.nodes.get(&first.worker).map(|node| &node.class)
    }
}

#[cfg(test)]
mod tests;
