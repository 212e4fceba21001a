//! What the leader observes of the ranks and what their records say, on its way into the jobs'
//! streams of events: through the log, so that every replica tells the same in the same place.
//!
//! One batch is under way at a time. It keeps the order, also where a batch is dropped and proposed
//! again, and what comes meanwhile shares the next one.

use std::collections::{BTreeSet, VecDeque};

use muster_cluster::ids::{JobName, RankId};
use muster_cluster::state::World;
use muster_proto::convert::LogEntry;
use muster_proto::event::{Event, What};
use muster_proto::{convert, v1};
use v1::observation::What as Seen;

use super::orders::key;
use super::{Coordinator, Output, seconds};

/// Observations that share an entry.
const MAX_BATCH: usize = 1024;
/// And their bytes, far below what consensus takes as one proposal.
const MAX_BATCH_BYTES: usize = 1 << 20;

/// What is not in the log yet.
#[derive(Debug, Default)]
pub(super) struct Unrecorded {
    waiting: VecDeque<v1::Observation>,
    /// The proposal that is under way, and what it holds.
    under_way: Option<(u64, Vec<v1::Observation>)>,
}

impl Unrecorded {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A proposal will not be applied: what was in it is proposed again.
    pub(super) fn dropped(&mut self, proposal: u64) {
        let is_it = |(known, _): &mut (u64, _)| *known == proposal;
        if let Some((_, batch)) = self.under_way.take_if(is_it) {
            for observation in batch.into_iter().rev() {
                self.waiting.push_front(observation);
            }
        }
    }

    fn applied(&mut self, proposal: u64) {
        self.under_way.take_if(|(known, _)| *known == proposal);
    }

    /// The jobs of which anything was observed that is not told yet; `with_steps`, a step included.
    fn jobs(&self, with_steps: bool) -> BTreeSet<&str> {
        let under_way = self.under_way.iter().flat_map(|(_, batch)| batch);
        let all = self.waiting.iter().chain(under_way);
        all.filter_map(|observation| match observation.what.as_ref()? {
            Seen::Record(record) if with_steps => job_of(record.key.as_ref()),
            Seen::Record(_) => None,
            Seen::Runs(runs) => job_of(runs.key.as_ref()),
            Seen::Lost(lost) => job_of(lost.key.as_ref()),
            Seen::Unwritten(unwritten) => job_of(unwritten.key.as_ref()),
        })
        .collect()
    }

    /// Takes out what one entry holds.
    fn batch(&mut self) -> Vec<v1::Observation> {
        let mut num_bytes = 0;
        let sizes = self.waiting.iter().map(v1::Observation::num_bytes);
        let fits = sizes.take(MAX_BATCH).take_while(|size| {
            num_bytes += size;
            num_bytes <= MAX_BATCH_BYTES
        });
        let num = fits.count();
        self.waiting.drain(..num).collect()
    }

    fn push(&mut self, what: Seen) {
        let observation = v1::Observation { what: Some(what) };
        // No rank of ours says so much; in the log there is no place for it.
        if observation.num_bytes() <= MAX_BATCH_BYTES {
            self.waiting.push_back(observation);
        }
    }
}

fn job_of(key: Option<&v1::RankKey>) -> Option<&str> {
    key.map(|key| key.job.as_str())
}

impl Coordinator {
    /// Proposes what waits, when nothing is under way.
    pub(super) fn record_more(&mut self, outputs: &mut Vec<Output>) {
        if self.unrecorded.under_way.is_none() && !self.unrecorded.waiting.is_empty() {
            let batch = self.unrecorded.batch();
            let proposal = self.next_proposal();
            self.unrecorded.under_way = Some((proposal, batch.clone()));
            let records = v1::Records {
                stamp_ms: self.now.wall_ms,
                observed: batch,
            };
            self.propose_entry(proposal, LogEntry::Records(records), outputs);
        }
    }

    /// The jobs whose streams lack something that was observed before what is decided now.
    pub(super) fn jobs_with_news(&self) -> BTreeSet<JobName> {
        let jobs = self.unrecorded.jobs(false).into_iter();
        jobs.filter_map(|job| JobName::new(job).ok()).collect()
    }

    /// Whether a step of a job, or anything else of it, was observed and is not told yet: behind its
    /// end, or in another history, it never would be.
    pub(super) fn is_unrecorded(&self, job: &JobName) -> bool {
        self.unrecorded.jobs(true).contains(job.as_str())
    }

    /// A process is a rank now.
    pub(super) fn observe_rank(&mut self, key: v1::RankKey, worker: String, pid: u32) {
        let runs = v1::RankRuns {
            time: seconds(self.now),
            key: Some(key),
            worker,
            pid,
        };
        self.unrecorded.push(Seen::Runs(runs));
    }

    pub(super) fn observe_loss(&mut self, key: v1::RankKey, worker: String, reason: String) {
        let lost = v1::RankLost {
            time: seconds(self.now),
            key: Some(key),
            worker,
            reason,
        };
        self.unrecorded.push(Seen::Lost(lost));
    }

    pub(super) fn observe_unwritten(
        &mut self,
        key: v1::RankKey,
        worker: String,
        unwritten: v1::CheckpointUnwritten,
    ) {
        let unwritten = v1::FilesUnwritten {
            time: seconds(self.now),
            key: Some(key),
            worker,
            step: unwritten.step,
            reason: unwritten.reason,
        };
        self.unrecorded.push(Seen::Unwritten(unwritten));
    }

    /// Which processes are the ranks of a world that heals another one: they run already.
    pub(super) fn observe_ranks(&mut self, job: &JobName, world: &World) {
        let pids = self.worlds.get(job).map(|watch| watch.pids.clone());
        let pids = pids.unwrap_or_default();
        for (rank, placement) in (0u32..).zip(&world.ranks) {
            if let Some(pid) = pids.get(&placement.process) {
                let key = key(job, world, rank, placement.process);
                self.observe_rank(key, placement.worker.to_string(), *pid);
            }
        }
    }

    /// The ranks of a job's world that are missed, and whose loss is not told yet, where another
    /// world is about to be made without them. What becomes of their processes is nobody's news any
    /// more.
    pub(super) fn observe_missed(&mut self, job: &JobName, next: &World) {
        let world = self.state.jobs.get(job).and_then(|job| job.world.clone());
        let seen = self.worlds.get(job).map(|world| &world.watch);
        let (Some(last), Some(seen)) = (world, seen) else {
            return;
        };
        let account = self.account(job);
        if seen.generation != last.generation || self.jobs_with_news().contains(job) {
            return;
        }
        let ranks = (0u32..).zip(&last.ranks);
        let missed = ranks.filter(|(rank, placement)| {
            !next.has(placement.process)
                && !seen.closed.contains_key(&RankId(*rank))
                && !account.is_some_and(|account| account.has_lost(*rank))
        });
        let missed: Vec<_> = missed
            .map(|(rank, placement)| {
                let how = seen.gone.get(&RankId(rank)).cloned();
                let how = how.unwrap_or_else(|| "nothing is heard of it any more".to_owned());
                let key = key(job, &last, rank, placement.process);
                (key, placement.worker.to_string(), how)
            })
            .collect();
        for (key, worker, how) in missed {
            self.observe_loss(key, worker, how);
        }
    }

    /// What was observed is part of the log: it is told, where it is of the job as it is now.
    pub(super) fn apply_records(
        &mut self,
        records: v1::Records,
        request: Option<u64>,
        outputs: &mut Vec<Output>,
    ) {
        self.state.pass(records.stamp_ms);
        if let Some(proposal) = request {
            self.unrecorded.applied(proposal);
            // What waited for it to be told may be decided now.
            let is_step = |one: &v1::Observation| matches!(one.what, Some(Seen::Record(_)));
            self.is_changed |= !records.observed.iter().all(is_step) || self.is_held;
        }
        for observation in records.observed {
            let Some(what) = observation.what else {
                continue;
            };
            if let Seen::Record(record) = what {
                self.apply_record(&record, outputs);
                continue;
            }
            let told = match what {
                Seen::Record(_) => None,
                Seen::Runs(v1::RankRuns {
                    key,
                    time,
                    worker,
                    pid,
                }) => key.map(|key| {
                    let (rank, generation) = (key.rank, key.generation);
                    let what = What::Rank {
                        rank,
                        worker,
                        pid,
                        generation,
                    };
                    (key, time, what)
                }),
                Seen::Lost(v1::RankLost {
                    key,
                    time,
                    worker,
                    reason,
                }) => key.map(|key| {
                    let rank = key.rank;
                    let what = What::Lost {
                        rank,
                        worker,
                        reason,
                    };
                    (key, time, what)
                }),
                Seen::Unwritten(v1::FilesUnwritten {
                    key,
                    time,
                    worker,
                    step,
                    reason,
                }) => key.map(|key| {
                    let rank = key.rank;
                    let what = What::Unwritten {
                        step,
                        rank,
                        worker,
                        reason,
                    };
                    (key, time, what)
                }),
            };
            if let Some((key, time, what)) = told
                && self.is_of_now(&key, &what)
            {
                let event = event(&key, time, what);
                self.publish(event, outputs);
            }
        }
    }

    /// Whether what was observed of a rank is of the job as it is where it is told.
    fn is_of_now(&self, key: &v1::RankKey, what: &What) -> bool {
        let job = convert::job_name(&key.job).ok();
        let job = job.and_then(|name| self.state.jobs.get(&name));
        job.is_some_and(|job| {
            let is_newest = job.generation.0 == key.generation;
            job.history.0 == key.history
                && job.has_world()
                && (is_newest || !matches!(what, What::Lost { .. }))
        })
    }

    /// Takes a record of rank 0. One that is told already, or is of a history that is no longer, is
    /// acknowledged at once: its rank must not keep it for ever.
    pub(super) fn record(&mut self, mut record: v1::StepRecord, outputs: &mut Vec<Output>) {
        let Some((job, event)) = self.told_by(&record) else {
            outputs.extend(ack_of(&record).map(Output::Ack));
            return;
        };
        if let (Some(key), Some(of)) = (record.key.clone(), &record.record) {
            self.watch(&job);
            self.note_record(&job, &key, of);
        }
        if self
            .account(&job)
            .is_some_and(|account| account.knows(&event))
        {
            outputs.extend(ack_of(&record).map(Output::Ack));
            return;
        }
        // What the ranks measured of themselves is the leader's to know.
        if let Some(v1::step_record::Record::Applied(applied)) = &mut record.record {
            applied.paces.clear();
        }
        self.unrecorded.push(Seen::Record(record));
    }

    fn apply_record(&mut self, record: &v1::StepRecord, outputs: &mut Vec<Output>) {
        if let Some((_, event)) = self.told_by(record) {
            self.publish(event, outputs);
        }
        // Nobody else has the streams that it goes to.
        if self.is_leader {
            outputs.extend(ack_of(record).map(Output::Ack));
        }
    }

    /// What a record tells of the present history of its job; of another one it tells nothing.
    fn told_by(&self, record: &v1::StepRecord) -> Option<(JobName, Event)> {
        let key = record.key.as_ref()?;
        let name = convert::job_name(&key.job).ok()?;
        let job = self.state.jobs.get(&name)?;
        // A rank of an older world in the same history speaks of steps that count.
        let is_current =
            job.history.0 == key.history && job.generation.0 >= key.generation && job.has_world();
        if !is_current {
            return None;
        }
        let what = match record.record.clone()? {
            v1::step_record::Record::Applied(applied) => step_event(key, applied),
            v1::step_record::Record::Evaluated(evaluated) => What::Evaluated {
                step: evaluated.step,
                metrics: evaluated.metrics.into_iter().collect(),
            },
        };
        Some((name, event(key, record.time, what)))
    }
}

fn ack_of(record: &v1::StepRecord) -> Option<v1::RecordAck> {
    let key = record.key.as_ref()?;
    let (step, evaluated) = match record.record.as_ref()? {
        v1::step_record::Record::Applied(applied) => (applied.step, false),
        v1::step_record::Record::Evaluated(evaluated) => (evaluated.step, true),
    };
    Some(v1::RecordAck {
        job: key.job.clone(),
        history: key.history,
        step,
        evaluated,
    })
}

fn event(key: &v1::RankKey, time: f64, what: What) -> Event {
    Event {
        time,
        job: key.job.clone(),
        history: key.history,
        what,
    }
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
        data_ms: applied.data_ms,
        checkpoint_ms: applied.checkpoint_ms,
        evaluate_ms: applied.evaluate_ms,
        skipped: Some(applied.skipped).filter(|why| !why.is_empty()),
    }
}
