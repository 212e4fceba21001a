//! What the leader hears: from workers about themselves, and through them from ranks. A report of a
//! world that is no longer the job's newest, or from a worker that does not run the rank, changes
//! nothing and is counted.

use muster_cluster::apply::Refusal;
use muster_cluster::ids::{Generation, History, JobName, ProcessId, RankId, Step, WorkerName};
use muster_cluster::plan::Suspect;
use muster_proto::{convert, v1};
use v1::from_worker::Message as From;
use v1::rank_report::Report;
use v1::to_worker::Message as To;

use super::orders::end_of;
use super::{Coordinator, Now, Output, Session};
use crate::links::Link;
use crate::ranks::WorldWatch;

/// A longer reason for a death is cut: its end is what a rank printed last.
const MAX_REASON_BYTES: usize = 4 << 10;

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
                let message = refused(reason);
                outputs.push(Output::ToWorker { session, message });
                return;
            }
        };
        let older = self.links.of(&worker);
        let known = older.map(|(_, link)| link.node.incarnation);
        let older = older.map(|(session, _)| session);
        let registered = self.state.nodes.get(&worker).map(|node| node.incarnation);
        let mut known = known.into_iter().chain(registered);
        if known.any(|known| known > node.incarnation) {
            let reason = Refusal::OlderIncarnation {
                worker: worker.to_string(),
            }
            .to_string();
            let message = refused(reason);
            outputs.push(Output::ToWorker { session, message });
            return;
        }
        if let Some(older) = older {
            self.links.remove(older);
            // Hellos of two streams may come in either order, so that this may be the newer one.
            let message = To::Refused(v1::Refused {
                reason: format!("worker {worker} opened another stream"),
                superseded: true,
            });
            outputs.push(Output::ToWorker {
                session: older,
                message,
            });
        }
        self.links
            .insert(session, Link::new(worker, node, now.monotonic_ms));
        let welcome = v1::Welcome {
            cluster_id: self.options.cluster_id.to_vec(),
            heartbeat_ms: self.patience.heartbeat_ms(),
        };
        outputs.push(Output::ToWorker {
            session,
            message: To::Welcome(welcome),
        });
        for running in hello.ranks {
            self.process_runs(session, running);
        }
    }

    /// Ends a stream with a reason.
    pub(super) fn refuse(&mut self, session: Session, reason: String, outputs: &mut Vec<Output>) {
        if self.links.remove(session).is_some() {
            let message = refused(reason);
            outputs.push(Output::ToWorker { session, message });
        }
    }

    /// A worker says something; whether it is more than that it is there.
    pub(super) fn heard(
        &mut self,
        session: Session,
        message: From,
        now: Now,
        outputs: &mut Vec<Output>,
    ) -> bool {
        let Some(link) = self.links.get_mut(session) else {
            return false;
        };
        link.last_seen_ms = now.monotonic_ms;
        match message {
            // Only the first message of a stream says who is there.
            From::Hello(_) | From::Heartbeat(_) => return false,
            From::Started(started) => {
                let running = v1::RunningRank {
                    key: started.key,
                    pid: started.pid,
                    ..v1::RunningRank::default()
                };
                self.process_runs(session, running);
            }
            From::Report(report) => self.process_reports(session, report, now),
            From::Exited(exited) => self.process_exited(session, exited, now, outputs),
        }
        true
    }

    fn process_runs(&mut self, session: Session, running: v1::RunningRank) {
        let Some(key) = running.key else { return };
        let Ok(job) = convert::job_name(&key.job) else {
            return;
        };
        let process = ProcessId(key.process);
        if let Some(link) = self.links.get_mut(session) {
            link.told(&job, process).assigned = Some(Generation(key.generation));
        }
        let Some((job, worker, member)) = self.member(session, &key) else {
            return;
        };
        let watch = self.watch(&job);
        watch.pids.insert(process, running.pid);
        if !running.address.is_empty() {
            let ready = v1::Ready {
                address: running.address,
                feed: running.feed,
            };
            watch.listens(process, ready, member == Member::Standby);
        }
        if let Member::Rank(rank) = member {
            let key = v1::RankKey {
                rank: rank.0,
                ..key
            };
            self.observe_rank(key, worker.to_string(), running.pid);
        }
    }

    fn process_reports(&mut self, session: Session, report: v1::RankReport, now: Now) {
        let (Some(key), Some(report)) = (report.key, report.report) else {
            return;
        };
        let Some((job, worker, member)) = self.member(session, &key) else {
            return;
        };
        if let (Member::Rank(rank), Report::CheckpointUnwritten(unwritten)) = (member, &report) {
            let key = v1::RankKey {
                rank: rank.0,
                ..key
            };
            return self.observe_unwritten(key, worker.to_string(), unwritten.clone());
        }
        let process = ProcessId(key.process);
        let is_current = Generation(key.generation) == self.state.jobs[&job].generation;
        let seats = match &report {
            Report::Failed(failed) => self.seats(&job, &failed.ranks),
            _ => String::new(),
        };
        let watch = self.watch(&job);
        let rank = match member {
            Member::Rank(rank) => rank,
            Member::Standby => {
                match report {
                    Report::Ready(ready) => watch.listens(process, ready, true),
                    Report::Following(following) => watch.follows(process, following),
                    Report::Failed(failed) => {
                        self.standby_gone(&job, process, failed.message, now);
                    }
                    _ => self.num_stale_reports += 1,
                }
                return;
            }
        };
        match report {
            Report::Ready(ready) => watch.listens(process, ready, false),
            // Files count by their history and step, whatever world their rank was in.
            Report::CheckpointPart(part) => {
                if let Err(disagreement) = watch.take_part(part) {
                    watch.failed.get_or_insert(disagreement);
                }
            }
            // The process takes part in no later world of the history either.
            Report::Failed(failed) => {
                watch
                    .failed
                    .get_or_insert(format!("rank {rank}: {}{seats}", failed.message));
            }
            _ if !is_current => self.num_stale_reports += 1,
            Report::SuspectSamples(samples) => {
                let shards = samples.shards.into_iter();
                watch.watch.suspect = Some(Suspect {
                    step: Step(samples.step),
                    rows: shards.map(|shard| (shard.shard, shard.rows)).collect(),
                });
            }
            Report::Closed(closed) => {
                if watch.closes(rank, closed, now.monotonic_ms).is_err() {
                    self.num_stale_reports += 1;
                }
            }
            Report::CheckpointDamaged(damaged) => {
                let history = History(damaged.history);
                watch
                    .damaged
                    .get_or_insert((history, Step(damaged.step), damaged.reason));
            }
            Report::Done(done) => {
                watch.done.insert(process, done);
            }
            // It was said before it was told that it is a rank.
            Report::Following(_) | Report::CheckpointUnwritten(_) => self.num_stale_reports += 1,
        }
    }

    /// Where ranks of a job's world run, as the end of a message that names them; empty for none.
    fn seats(&self, job: &JobName, ranks: &[u32]) -> String {
        let world = self.state.jobs.get(job).and_then(|job| job.world.as_ref());
        let seat = |rank: &u32| {
            let placement = world?.ranks.get(*rank as usize)?;
            Some(format!("rank {rank} on {}", placement.worker))
        };
        let seats: Vec<String> = ranks.iter().filter_map(seat).collect();
        if seats.is_empty() {
            return String::new();
        }
        format!(" ({})", seats.join(", "))
    }

    fn process_exited(
        &mut self,
        session: Session,
        exited: v1::RankExited,
        now: Now,
        outputs: &mut Vec<Output>,
    ) {
        let Some(key) = exited.key else { return };
        let Some((job, worker, member)) = self.member(session, &key) else {
            return self.forget_process(session, &key, outputs);
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
        let reason = reason[..reason.floor_char_boundary(MAX_REASON_BYTES)].to_owned();
        let watch = &mut self.watch(&job).watch;
        if !exited.log_tail.trim().is_empty() {
            watch.last_words = exited.log_tail;
        }
        let rank = match member {
            Member::Rank(rank) => rank,
            Member::Standby => {
                return self.standby_gone(&job, ProcessId(key.process), reason, now);
            }
        };
        // What it said before it died is no longer there.
        watch.closed.remove(&rank);
        let is_news = watch.gone.insert(rank, reason.clone()).is_none();
        if is_news && let Some(job) = self.state.jobs.get(&job) {
            let key = v1::RankKey {
                rank: rank.0,
                generation: job.generation.0,
                ..key
            };
            self.observe_loss(key, worker.to_string(), reason);
        }
    }

    /// A process that no job has any more need not be told of again.
    fn forget_process(&mut self, session: Session, key: &v1::RankKey, outputs: &mut Vec<Output>) {
        let Ok(name) = convert::job_name(&key.job) else {
            return;
        };
        let job = self.state.jobs.get(&name);
        if job.is_none_or(|job| !job.has_process(ProcessId(key.process))) {
            let message = end_of(&name, ProcessId(key.process), false);
            outputs.push(Output::ToWorker { session, message });
        }
    }

    /// A process that waited to enter a world of the job is no more.
    fn standby_gone(&mut self, job: &JobName, process: ProcessId, how: String, now: Now) {
        let seats = self.state.jobs.get(job).map(|job| &job.standbys);
        if let Some(seat) = seats.and_then(|seats| seats.get(&process)).cloned() {
            let watch = &mut self.watch(job).watch;
            watch.standby_gone(process, &seat, how, now.monotonic_ms);
        }
    }

    /// What a record of the present history tells of the newest world.
    pub(super) fn note_record(
        &mut self,
        job: &JobName,
        key: &v1::RankKey,
        record: &v1::step_record::Record,
    ) {
        let world = self.state.jobs.get(job).and_then(|job| job.world.as_ref());
        let (Some(world), Some(WorldWatch { watch, paces, .. })) =
            (world, self.worlds.get_mut(job))
        else {
            return;
        };
        let is_newest = watch.generation.0 == key.generation;
        watch.progressed |= is_newest;
        if let v1::step_record::Record::Applied(applied) = record {
            watch.applied = watch.applied.max(Some(Step(applied.step)));
            if is_newest {
                paces.take(world, applied, &mut watch.speed);
            }
        }
    }

    /// The job and the worker of a process that is part of the job now, if the stream is of the
    /// worker that runs it; and what it is there.
    fn member(
        &mut self,
        session: Session,
        key: &v1::RankKey,
    ) -> Option<(JobName, WorkerName, Member)> {
        let member = self.find_member(session, key);
        if member.is_none() {
            self.num_stale_reports += 1;
        }
        member
    }

    fn find_member(
        &self,
        session: Session,
        key: &v1::RankKey,
    ) -> Option<(JobName, WorkerName, Member)> {
        let name = convert::job_name(&key.job).ok()?;
        let job = self.state.jobs.get(&name)?;
        let world = job.world.as_ref()?;
        let link = self.links.get(session)?;
        let process = ProcessId(key.process);
        let ranks = (0u32..).map(RankId).zip(&world.ranks);
        let mut ranks = ranks.filter(|(_, placement)| placement.process == process);
        let (member, worker, incarnation) = match (ranks.next(), job.standbys.get(&process)) {
            (Some((rank, placement)), _) => {
                (Member::Rank(rank), &placement.worker, placement.incarnation)
            }
            (None, Some(seat)) => (Member::Standby, &seat.worker, seat.incarnation),
            (None, None) => return None,
        };
        let is_here = *worker == link.worker && incarnation == link.node.incarnation;
        (is_here && key.history == job.history.0).then(|| (name, link.worker.clone(), member))
    }

    /// What is known of a job's newest world; nothing yet, when this leader is new.
    pub(super) fn watch(&mut self, job: &JobName) -> &mut WorldWatch {
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

/// What a process is to its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    /// A rank of the newest world.
    Rank(RankId),
    /// It waits to enter one.
    Standby,
}

/// Tells a worker that it is not wanted.
fn refused(reason: String) -> To {
    To::Refused(v1::Refused {
        reason,
        superseded: false,
    })
}
