//! What the leader hears: from workers about themselves, and through them from ranks. A report of a
//! world that is no longer the job's newest, or from a worker that does not run the rank, changes
//! nothing and is counted.

use muster_cluster::apply::Refusal;
use muster_cluster::ids::{Generation, History, JobName, RankId, Step, WorkerName};
use muster_proto::event::{Event, What};
use muster_proto::{convert, v1};
use v1::from_worker::Message as From;
use v1::rank_report::Report;
use v1::to_worker::Message as To;

use super::{Coordinator, HEARTBEAT_MS, Now, Output, Session};
use crate::links::Link;
use crate::ranks::WorldWatch;

impl Coordinator {
    /// A worker says who it is, and which ranks it runs.
    pub(super) fn welcome(
        &mut self,
        session: Session,
        hello: v1::WorkerHello,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        let said = hello
            .worker
            .ok_or_else(|| "the hello names no worker".to_owned())
            .and_then(|said| {
                let worker =
                    convert::worker_name(&said.worker).map_err(|error| error.to_string())?;
                let node = convert::node(said).map_err(|error| error.to_string())?;
                Ok((worker, node))
            });
        let (worker, node) = match said {
            Ok(said) => said,
            Err(reason) => {
                let message = To::Refused(v1::Refused { reason });
                outputs.push(Output::ToWorker { session, message });
                return;
            }
        };
        let known = self
            .links
            .values()
            .filter(|link| link.worker == worker)
            .map(|link| link.node.incarnation);
        let registered = self.state.nodes.get(&worker).map(|node| node.incarnation);
        if known
            .chain(registered)
            .any(|known| known > node.incarnation)
        {
            let reason = Refusal::OlderIncarnation {
                worker: worker.to_string(),
            }
            .to_string();
            let message = To::Refused(v1::Refused { reason });
            outputs.push(Output::ToWorker { session, message });
            return;
        }
        let older: Vec<Session> = self
            .links
            .iter()
            .filter(|(_, link)| link.worker == worker)
            .map(|(session, _)| *session)
            .collect();
        for older in older {
            let reason = format!("worker {worker} opened a newer stream");
            self.refuse(older, reason, outputs);
        }
        self.links
            .insert(session, Link::new(worker, node, now.monotonic_ms));
        let welcome = v1::Welcome {
            cluster_id: self.cluster_id.to_vec(),
            heartbeat_ms: HEARTBEAT_MS,
        };
        outputs.push(Output::ToWorker {
            session,
            message: To::Welcome(welcome),
        });
        for running in hello.ranks {
            self.rank_runs(session, running, now, outputs);
        }
    }

    /// Ends a stream with a reason.
    pub(super) fn refuse(&mut self, session: Session, reason: String, outputs: &mut Vec<Output>) {
        if self.links.remove(&session).is_some() {
            outputs.push(Output::ToWorker {
                session,
                message: To::Refused(v1::Refused { reason }),
            });
        }
    }

    /// A worker says something.
    pub(super) fn heard(
        &mut self,
        session: Session,
        message: From,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        let Some(link) = self.links.get_mut(&session) else {
            return;
        };
        link.last_seen_ms = now.monotonic_ms;
        match message {
            // Only the first message of a stream says who is there.
            From::Hello(_) | From::Heartbeat(_) => {}
            From::Started(started) => {
                let running = v1::RunningRank {
                    key: started.key,
                    pid: started.pid,
                    address: String::new(),
                };
                self.rank_runs(session, running, now, outputs);
            }
            From::Report(report) => self.rank_reports(session, report, now),
            From::Exited(exited) => self.rank_exited(session, exited, now, outputs),
        }
    }

    fn rank_runs(
        &mut self,
        session: Session,
        running: v1::RunningRank,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        let Some(key) = running.key else { return };
        let Ok(job) = convert::job_name(&key.job) else {
            return;
        };
        if let Some(link) = self.links.get_mut(&session) {
            link.told(&job, Generation(key.generation), RankId(key.rank))
                .assigned = true;
        }
        let Some((job, worker)) = self.place_of(session, &key) else {
            return;
        };
        let rank = RankId(key.rank);
        let watch = self.watch(&job);
        watch.pids.insert(rank, running.pid);
        if !running.address.is_empty() {
            watch.addresses.insert(rank, running.address);
        }
        let what = What::Rank {
            rank: key.rank,
            worker: worker.to_string(),
            pid: running.pid,
            generation: key.generation,
        };
        self.publish(None, event(&key, seconds(now), what), outputs);
    }

    fn rank_reports(&mut self, session: Session, report: v1::RankReport, now: Now) {
        let (Some(key), Some(report)) = (report.key, report.report) else {
            return;
        };
        let Some((job, _)) = self.place_of(session, &key) else {
            return;
        };
        let rank = RankId(key.rank);
        let watch = self.watch(&job);
        match report {
            Report::Ready(ready) => {
                watch.addresses.insert(rank, ready.address);
            }
            Report::Broken(broken) if broken.lost.is_empty() => {
                let reason = format!("rank {rank}: {}", broken.reason);
                watch.unblamed.get_or_insert((now.monotonic_ms, reason));
            }
            Report::Broken(broken) => {
                for lost in broken.lost {
                    let missed = (now.monotonic_ms, broken.reason.clone());
                    watch.watch.missed.entry(RankId(lost)).or_insert(missed);
                }
            }
            Report::CheckpointPart(part) => {
                if let Err(disagreement) = watch.take_part(part) {
                    watch.failed.get_or_insert(disagreement);
                }
            }
            Report::CheckpointDamaged(damaged) => {
                let history = History(damaged.history);
                watch
                    .damaged
                    .get_or_insert((history, Step(damaged.step), damaged.reason));
            }
            Report::Done(done) => {
                watch.done.insert(rank, done);
            }
            Report::Failed(failed) => {
                watch
                    .failed
                    .get_or_insert(format!("rank {rank}: {}", failed.message));
            }
        }
    }

    fn rank_exited(
        &mut self,
        session: Session,
        exited: v1::RankExited,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        let Some(key) = exited.key else { return };
        let Some((job, worker)) = self.place_of(session, &key) else {
            return;
        };
        let last_line = exited
            .log_tail
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty());
        let reason = match last_line.filter(|_| !exited.reason.starts_with("signal")) {
            Some(line) => format!("{}; its log ends with: {line}", exited.reason),
            None => exited.reason,
        };
        let is_news = self
            .watch(&job)
            .watch
            .gone
            .insert(RankId(key.rank), reason.clone())
            .is_none();
        if is_news {
            let what = What::Lost {
                rank: key.rank,
                worker: worker.to_string(),
                reason,
            };
            self.publish(None, event(&key, seconds(now), what), outputs);
        }
    }

    /// Takes a record of rank 0, and acknowledges it behind its event, also when it came twice or
    /// from a history that is no longer: its rank must not keep it for ever.
    pub(super) fn record(&mut self, record: v1::StepRecord, outputs: &mut Vec<Output>) {
        let (Some(key), Some(record_of)) = (record.key, record.record) else {
            return;
        };
        let Ok(job) = convert::job_name(&key.job) else {
            return;
        };
        let is_current = self.state.jobs.get(&job).is_some_and(|job| {
            job.history.0 == key.history && job.generation.0 == key.generation && job.has_world()
        });
        if is_current {
            self.watch(&job).watch.progressed = true;
        }
        let is_evaluation = matches!(record_of, v1::step_record::Record::Evaluated(_));
        let (step, what) = match record_of {
            v1::step_record::Record::Applied(applied) => (applied.step, step_event(&key, applied)),
            v1::step_record::Record::Evaluated(evaluated) => {
                let metrics = evaluated.metrics.into_iter().collect();
                (
                    evaluated.step,
                    What::Evaluated {
                        step: evaluated.step,
                        metrics,
                    },
                )
            }
        };
        if is_current {
            self.publish(None, event(&key, record.time, what), outputs);
        }
        outputs.push(Output::Ack(v1::RecordAck {
            job: key.job,
            history: key.history,
            step,
            evaluated: is_evaluation,
        }));
    }

    /// The job and the worker of a rank, if its world is the job's newest and the stream is of the
    /// worker that runs it.
    fn place_of(&mut self, session: Session, key: &v1::RankKey) -> Option<(JobName, WorkerName)> {
        let place = self.find_place(session, key);
        if place.is_none() {
            self.num_stale_reports += 1;
        }
        place
    }

    fn find_place(&self, session: Session, key: &v1::RankKey) -> Option<(JobName, WorkerName)> {
        let name = convert::job_name(&key.job).ok()?;
        let world = self.state.jobs.get(&name)?.world.as_ref()?;
        let link = self.links.get(&session)?;
        let placement = world.ranks.get(key.rank as usize)?;
        let is_same_world = world.history.0 == key.history && world.generation.0 == key.generation;
        let is_same_worker =
            placement.worker == link.worker && placement.incarnation == link.node.incarnation;
        (is_same_world && is_same_worker).then(|| (name, link.worker.clone()))
    }

    /// What is known of a job's newest world; nothing yet, when this leader is new.
    fn watch(&mut self, job: &JobName) -> &mut WorldWatch {
        let generation = self
            .state
            .jobs
            .get(job)
            .map(|job| job.generation)
            .unwrap_or_default();
        let watch = self
            .worlds
            .entry(job.clone())
            .or_insert_with(|| WorldWatch::new(generation));
        if watch.watch.generation != generation {
            *watch = WorldWatch::new(generation);
        }
        watch
    }
}

fn event(key: &v1::RankKey, time: f64, what: What) -> Event {
    Event {
        time,
        job: key.job.clone(),
        history: key.history,
        what,
    }
}

fn seconds(now: Now) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "milliseconds since the epoch fit into 53 bits"
    )]
    let wall_ms = now.wall_ms as f64;
    wall_ms / 1000.0
}

fn step_event(key: &v1::RankKey, applied: v1::StepApplied) -> What {
    What::Step {
        step: applied.step,
        loss: applied.loss,
        metrics: applied.metrics.into_iter().collect(),
        samples_per_s: applied.samples_per_s,
        learning_rate: applied.learning_rate,
        grad_norm: applied.grad_norm,
        generation: key.generation,
        total_steps: applied.total_steps,
        wall_ms: applied.wall_ms,
        contribute_ms: applied.contribute_ms,
        reduce_ms: applied.reduce_ms,
        update_ms: applied.update_ms,
    }
}
