//! How a command changes the state. Total and deterministic: the same commands in the same order
//! give the same state on every replica, and a refusal is an answer, not an error.

mod answer;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::command::{
    Command, NumericsClass, Outcome, OutcomeKind, RequestId, Stamped, StopWhy, Submission,
};
use crate::device::Device;
use crate::ids::{Generation, History, JobName, ProcessId, Step, WorkerName};
use crate::job::spec::WorkersSpec;
use crate::job::{Identity, JobSpec};
use crate::state::{ClusterState, Job, LedgerEntry, Manifest, Phase, Poison, Seat, World};

pub use answer::{Answer, Effect, Refusal};

impl ClusterState {
    /// Applies one command. Commands that carry a request already answered give the same answer
    /// again and change nothing.
    pub fn apply(&mut self, stamped: Stamped) -> Answer {
        self.pass(stamped.stamp_ms);
        if let Some(request) = stamped.request
            && let Some(answer) = self.answer_to(request)
        {
            return answer;
        }
        let answer = self.change(stamped.command);
        if let Some(request) = stamped.request {
            self.answered.remember(request, &answer, self.stamp_ms);
        }
        answer
    }

    /// Time goes on to the stamp of an entry, never back.
    pub fn pass(&mut self, stamp_ms: u64) {
        self.stamp_ms = self.stamp_ms.max(stamp_ms);
    }

    /// The answer that a request got, if it is remembered.
    #[must_use]
    pub fn answer_to(&self, request: RequestId) -> Option<Answer> {
        self.answered.answer_to(request)
    }

    /// The jobs that have not ended, by name.
    pub fn open_jobs(&self) -> impl Iterator<Item = (&JobName, &Arc<Job>)> {
        let open = self.open.iter();
        open.filter_map(|name| self.jobs.get_key_value(name))
    }

    /// How many jobs have not ended.
    #[must_use]
    pub fn num_open_jobs(&self) -> usize {
        self.open.len()
    }

    /// Puts a job there as it is, as a snapshot has it.
    pub fn restore_job(&mut self, name: JobName, job: Job) {
        if !job.is_over() {
            self.open.insert(name.clone());
        }
        self.jobs.insert(name, Arc::new(job));
    }

    /// Takes a job out that is over, as it is; `None` where it goes on, or is not there.
    pub fn take_ended(&mut self, name: &JobName) -> Option<Arc<Job>> {
        if self.jobs.get(name)?.is_over() {
            self.jobs.remove(name)
        } else {
            None
        }
    }

    fn change(&mut self, command: Command) -> Answer {
        match command {
            Command::Submit { submission, spec } => self.submit(submission, spec),
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
                poison,
            } => self.start_world(&job, world, reason, predecessor_progressed, poison),
            Command::StartStandby { job, process, seat } => self.start_standby(&job, process, seat),
            Command::EndStandby { job, process, .. } => {
                self.job_mut(&job)?.standbys.remove(&process);
                Ok(Effect::StandbyEnded)
            }
            Command::Scale { job, max } => self.scale(job, max),
            Command::Drain { worker, drains } => {
                if !self.nodes.contains_key(&worker) {
                    return Err(Refusal::UnknownWorker(worker));
                }
                if drains {
                    self.draining.insert(worker.clone());
                } else {
                    self.draining.remove(&worker);
                }
                Ok(Effect::Drained { worker, drains })
            }
            Command::Distrust {
                job,
                generation,
                worker,
                reason,
            } => self.distrust(job, generation, worker, reason),
            Command::AbandonState { job } => {
                let known = self.job_mut(&job)?;
                if !known.has_world() {
                    return Err(Refusal::NothingToAbandon(job));
                }
                known.abandoned = Some(known.generation);
                Ok(Effect::StateAbandoned { job })
            }
            Command::CommitManifest { job, manifest } => self.commit_manifest(&job, manifest),
            Command::RejectManifest {
                job, history, step, ..
            } => {
                let known = self.job_mut(&job)?;
                let is_it = |known: &Manifest| (known.history, known.step) == (history, step);
                // Without it the job would begin anew, which nobody has asked for.
                if matches!(&known.manifests[..], [only] if is_it(only)) {
                    return Err(Refusal::OnlyCheckpoint { job, step });
                }
                known.manifests.retain(|known| !is_it(known));
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
            .map(Arc::make_mut)
            .ok_or_else(|| Refusal::UnknownJob(name.to_string()))
    }

    fn submit(&mut self, submission: Submission, spec: Option<Box<JobSpec>>) -> Answer {
        let spec = match spec {
            Some(spec) => *spec,
            None => submission
                .check()
                .map_err(|error| Refusal::BadJob(error.to_string()))?,
        };
        let name = spec.name.clone();
        let submitted_ms = self.stamp_ms;
        let Some(job) = self.jobs.get_mut(&name).map(Arc::make_mut) else {
            let job = Job {
                submission,
                spec,
                phase: Phase::Queued,
                history: History(1),
                generation: Generation(0),
                world: None,
                standbys: BTreeMap::new(),
                newest_process: ProcessId(0),
                distrusted: BTreeMap::new(),
                poison: None,
                abandoned: None,
                manifests: Vec::new(),
                ledger: Vec::new(),
                num_fruitless_worlds: 0,
                num_submissions: 1,
                submitted_ms,
            };
            self.restore_job(name.clone(), job);
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
            let changes = match job.spec == spec {
                true => Vec::new(),
                false => job.identity().changed(&Identity::of(&spec)),
            };
            if !changes.is_empty() {
                return Err(Refusal::OtherIdentity { job: name, changes });
            }
            if runs {
                // A world that runs keeps its state and its kind of devices as it was started with.
                let WorkersSpec {
                    redundancy, device, ..
                } = job.spec.workers;
                job.spec.workers = WorkersSpec {
                    redundancy,
                    device,
                    ..spec.workers
                };
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
        job.phase = Phase::Queued;
        job.num_fruitless_worlds = 0;
        job.poison = None;
        job.distrusted.clear();
        job.num_submissions += 1;
        job.submitted_ms = submitted_ms;
        let from = job.committed_step();
        self.open.insert(name.clone());
        Ok(Effect::Queued { job: name, from })
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
                job.end(outcome);
                self.open.remove(name);
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
        poison: Option<Poison>,
    ) -> Answer {
        let stamp_ms = self.stamp_ms;
        let class = self.class_of(&world).cloned();
        let job = self.job_mut(name)?;
        // The state may have moved on since the planner looked: a job that was ended and submitted
        // again is in a later history, which an older plan must not take back.
        let follows = if world.finish.is_some() {
            job.is_healed_by(&world)
        } else {
            job.is_followed_by(&world)
        };
        if !follows || world.generation != job.generation.next() || job.is_over() {
            return Err(Refusal::Stale {
                job: name.clone(),
                what: "a world",
                got: world.generation,
                current: job.generation,
            });
        }
        // Where a rank is lost, that may be why no step was applied; it is counted as poison.
        let all_go_on = job.world.as_ref().is_some_and(|old| {
            let mut ranks = old.ranks.iter();
            world.finish.is_none() || ranks.all(|rank| world.has(rank.process))
        });
        if progressed || job.world.is_none() {
            job.num_fruitless_worlds = 0;
        } else if all_go_on {
            job.num_fruitless_worlds = job.num_fruitless_worlds.saturating_add(1);
        }
        if world.finish.is_none() {
            // A world of new processes has nothing to do with those that wait to heal the old one.
            job.standbys.clear();
        }
        job.poison = poison;
        job.history = world.history;
        job.generation = world.generation;
        for placement in &world.ranks {
            job.standbys.remove(&placement.process);
            job.newest_process = job.newest_process.max(placement.process);
        }
        if job.phase == Phase::Queued {
            job.phase = Phase::Running;
        }
        let mut entry = LedgerEntry {
            history: world.history,
            generation: world.generation,
            first_step: world.first_step,
            ranks: world.ranks.clone(),
            class,
            reason,
            stamp_ms,
            hash: String::new(),
        };
        let before = job.ledger.last().map_or("", |before| &before.hash);
        entry.hash = entry.hash_behind(before);
        job.ledger.push(entry);
        job.world = Some(world);
        Ok(Effect::WorldStarted { job: name.clone() })
    }

    fn start_standby(&mut self, name: &JobName, process: ProcessId, seat: Seat) -> Answer {
        let job = self.job_mut(name)?;
        if !job.has_world() || process != job.newest_process.next() {
            return Err(Refusal::Stale {
                job: name.clone(),
                what: "a process",
                got: job.generation,
                current: job.generation,
            });
        }
        job.newest_process = process;
        job.standbys.insert(process, seat);
        Ok(Effect::StandbyStarted)
    }

    fn scale(&mut self, name: JobName, max: u32) -> Answer {
        let job = self.job_mut(&name)?;
        let (min, shards) = (job.spec.workers.min, job.spec.train.logical_shards);
        if max < min || max > shards {
            return Err(Refusal::BadScale {
                job: name,
                max,
                min,
                shards,
            });
        }
        job.spec.workers.max = max;
        Ok(Effect::Scaled { job: name, max })
    }

    fn distrust(
        &mut self,
        name: JobName,
        generation: Generation,
        worker: WorkerName,
        reason: String,
    ) -> Answer {
        let job = self.job_mut(&name)?;
        if generation != job.generation || !job.has_world() {
            return Err(Refusal::Stale {
                job: name,
                what: "a distrust",
                got: generation,
                current: job.generation,
            });
        }
        job.distrusted.entry(worker.clone()).or_insert(reason);
        Ok(Effect::Distrusted { job: name, worker })
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
        job.end(outcome);
        self.open.remove(name);
        Ok(Effect::Finished { job: name.clone() })
    }

    /// How many processes of jobs are on the processors of each worker now.
    #[must_use]
    pub fn busy_slots(&self) -> BTreeMap<&WorkerName, u32> {
        let mut busy = BTreeMap::new();
        for (worker, device) in self.open_jobs().flat_map(|(_, job)| job.held()) {
            if device == Device::Cpu {
                *busy.entry(worker).or_default() += 1;
            }
        }
        busy
    }

    /// Which job has which GPU of which worker now.
    #[must_use]
    pub fn busy_gpus(&self) -> BTreeMap<(&WorkerName, u32), &JobName> {
        let mut busy = BTreeMap::new();
        for (name, job) in self.open_jobs() {
            let gpus = job.held();
            let gpus = gpus.filter_map(|(worker, device)| Some((worker, device.cuda()?)));
            busy.extend(gpus.map(|gpu| (gpu, name)));
        }
        busy
    }

    /// The class that a job's world runs in.
    #[must_use]
    pub fn class_of(&self, world: &World) -> Option<&NumericsClass> {
        let first = world.ranks.first()?;
        self.nodes.get(&first.worker)?.class_on(first.device)
    }
}

#[cfg(test)]
mod tests;
