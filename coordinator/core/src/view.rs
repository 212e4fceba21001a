//! What people are shown of jobs and nodes: the replicated truth with what the leader observed.

use std::collections::{BTreeMap, BTreeSet};

use muster_cluster::device::Gpu;
use muster_cluster::ids::{JobName, ProcessId, RankId, WorkerName};
use muster_cluster::plan;
use muster_cluster::state::{Job, LedgerEntry, Phase};
use muster_proto::{convert, v1};

use crate::coordinator::{Account, Coordinator, Now};
use crate::links::Link;

impl Coordinator {
    /// One job, or `None` where no job has this name.
    #[must_use]
    pub fn job_view(&self, name: &str) -> Option<v1::JobView> {
        let name = JobName::new(name).ok()?;
        let (job, account) = self.known(&name)?;
        Some(self.view(&name, &job, &account))
    }

    /// Which worlds of a job ran which steps, and what it takes to prove it; `None` where no job has
    /// this name.
    #[must_use]
    pub fn ledger(&self, name: &str) -> Option<v1::LedgerReply> {
        let name = JobName::new(name).ok()?;
        let (job, account) = self.known(&name)?;
        let outcome = match &job.phase {
            Phase::Ended(outcome) => Some(convert::finish(&name, job.generation, outcome)),
            _ => None,
        };
        let world = |entry: &LedgerEntry| v1::WorldRecord {
            history: entry.history.0,
            generation: entry.generation.0,
            first_step: entry.first_step.0,
            last_step: account.reached.get(&entry.generation.0).copied(),
            ranks: convert::placements(&entry.ranks),
            reason: entry.reason.clone(),
            stamp_ms: entry.stamp_ms,
            class: entry.class.as_ref().map(Into::into),
            told_hash: account
                .worlds
                .get(&entry.generation.0)
                .cloned()
                .unwrap_or_default(),
        };
        let committed =
            account
                .committed
                .iter()
                .map(|((history, step), hash)| v1::CommittedCheckpoint {
                    history: *history,
                    step: *step,
                    manifest_hash: hash.clone(),
                });
        Some(v1::LedgerReply {
            worlds: job.ledger.iter().map(world).collect(),
            manifests: job.manifests.iter().map(Into::into).collect(),
            submission: Some((&job.submission).into()),
            identity: job.identity().digest(),
            history: job.history.0,
            step: step_of(&job, &account),
            outcome,
            committed: committed.collect(),
        })
    }

    /// Every worker that ever registered, by name; without the sentences.
    #[must_use]
    pub fn node_views(&self, now: Now) -> Vec<v1::NodeView> {
        let nodes = self.state().nodes.iter();
        let (busy, busy_gpus) = (self.state().busy_slots(), self.state().busy_gpus());
        let mut jobs = self.jobs_by_worker();
        nodes
            .map(|(worker, node)| {
                let link: Option<&Link> = self.link_of(worker);
                let last_seen_ms = link
                    .map(|link| link.last_seen_ms)
                    .or_else(|| self.silent_since_ms(worker));
                v1::NodeView {
                    worker: worker.to_string(),
                    connected: link.is_some() && self.silent_since_ms(worker).is_none(),
                    num_devices: node.num_devices,
                    num_busy: busy.get(worker).copied().unwrap_or_default(),
                    host: node.host.clone(),
                    class: Some((&node.class).into()),
                    incarnation: node.incarnation.0,
                    last_seen_ms_ago: last_seen_ms
                        .map_or(0, |seen| now.monotonic_ms.saturating_sub(seen)),
                    draining: self.state().draining.contains(worker),
                    jobs: jobs.remove(worker).unwrap_or_default(),
                    drains: String::new(),
                    gpus: node
                        .gpus
                        .iter()
                        .map(|gpu| gpu_view(gpu, busy_gpus.get(&(worker, gpu.index)).copied()))
                        .collect(),
                }
            })
            .collect()
    }

    /// The jobs that have a process on a worker, by name.
    #[must_use]
    pub fn jobs_on(&self, worker: &WorkerName) -> Vec<String> {
        self.jobs_by_worker().remove(worker).unwrap_or_default()
    }

    fn jobs_by_worker(&self) -> BTreeMap<&WorkerName, Vec<String>> {
        let mut jobs: BTreeMap<&WorkerName, Vec<String>> = BTreeMap::new();
        for (name, job) in self.state().open_jobs() {
            let workers: BTreeSet<&WorkerName> = job.held().map(|(worker, _)| worker).collect();
            for worker in workers {
                jobs.entry(worker).or_default().push(name.to_string());
            }
        }
        jobs
    }

    fn view(&self, name: &JobName, job: &Job, account: &Account) -> v1::JobView {
        let progress = account.progress();
        let reason = match &job.phase {
            Phase::Ended(outcome) => outcome.reason.clone(),
            _ => self.wait_of(name).unwrap_or_default(),
        };
        let outcome = match &job.phase {
            Phase::Ended(outcome) => Some(convert::finish(name, job.generation, outcome)),
            _ => None,
        };
        v1::JobView {
            job: name.to_string(),
            state: job.phase.as_str().to_owned(),
            reason,
            history: job.history.0,
            generation: job.generation.0,
            step: step_of(job, account),
            total_steps: progress.total_steps,
            world_size: job
                .world
                .as_ref()
                .map_or(0, |world| size(world.ranks.len())),
            workers_min: job.spec.workers.min,
            workers_max: job.spec.workers.max,
            submitted_ms: job.submitted_ms,
            loss: progress.loss,
            identity: job.identity().digest(),
            ranks: self.ranks(name, job),
            manifests: job.manifests.iter().map(Into::into).collect(),
            ledger: job.ledger.iter().map(ledger).collect(),
            outcome,
            draft: job.submission.draft.clone(),
            rank_time: Some(self.rank_time(name, job, account).into()),
            distrusted: distrusted(job),
            standbys: self.standbys(name, job),
        }
    }

    fn standbys(&self, name: &JobName, job: &Job) -> Vec<v1::StandbyView> {
        let watch = self
            .world_watch(name)
            .filter(|watch| watch.watch.generation == job.generation);
        let standbys = job.standbys.iter().map(|(process, seat)| {
            let following = watch.and_then(|watch| watch.following.get(process));
            let following = following.cloned().unwrap_or_default();
            v1::StandbyView {
                process: process.0,
                worker: seat.worker.to_string(),
                pid: watch
                    .and_then(|watch| watch.pids.get(process))
                    .copied()
                    .unwrap_or_default(),
                state: watch
                    .map_or("assigned", |watch| watch.state_of_standby(*process))
                    .to_owned(),
                reason: unreached(job, &following),
                bytes_taken: following.bytes_taken,
                bytes_total: following.bytes_total,
                device: seat.device.to_string(),
            }
        });
        standbys.collect()
    }

    fn ranks(&self, name: &JobName, job: &Job) -> Vec<v1::RankView> {
        let watch = self
            .world_watch(name)
            .filter(|watch| watch.watch.generation == job.generation);
        let placements = job.world.iter().flat_map(|world| &world.ranks);
        let slow =
            job.world.as_ref().zip(watch).map(|(world, watch)| {
                plan::slow(world, &watch.watch, job.spec.train.logical_shards)
            });
        let slow = |rank| slow.as_ref().and_then(|slow| slow.get(&RankId(rank)));
        (0u32..)
            .zip(placements)
            .map(|(rank, placement)| v1::RankView {
                slow_in: slow(rank)
                    .map(|slow| slow.activity.as_str().to_owned())
                    .unwrap_or_default(),
                slow_percent: slow(rank).map_or(0, |slow| slow.percent),
                shard_us: watch
                    .and_then(|watch| watch.watch.speed.paces.get(&placement.process))
                    .map_or(0, |pace| pace.computing_us),
                rank,
                worker: placement.worker.to_string(),
                pid: watch
                    .and_then(|watch| watch.pids.get(&placement.process))
                    .copied()
                    .unwrap_or_default(),
                state: watch
                    .map_or("assigned", |watch| {
                        watch.state_of(RankId(rank), placement.process)
                    })
                    .to_owned(),
                shards_start: placement.shards.start,
                shards_end: placement.shards.end,
                device: placement.device.to_string(),
            })
            .collect()
    }
}

fn gpu_view(gpu: &Gpu, job: Option<&JobName>) -> v1::GpuView {
    v1::GpuView {
        gpu: Some(gpu.into()),
        job: job.map(JobName::to_string).unwrap_or_default(),
    }
}

/// How many steps of a job are applied, as far as is known.
fn step_of(job: &Job, account: &Account) -> u64 {
    match &job.phase {
        Phase::Ended(outcome) => outcome.step.0,
        _ => account.progress().step.max(job.committed_step().0),
    }
}

fn distrusted(job: &Job) -> Vec<v1::DistrustedView> {
    let view = |(worker, reason): (&WorkerName, &String)| v1::DistrustedView {
        worker: worker.to_string(),
        reason: reason.clone(),
    };
    job.distrusted.iter().map(view).collect()
}

/// Whom a process does not reach, as a sentence; empty where it reaches all.
fn unreached(job: &Job, following: &v1::Following) -> String {
    let places = job.world.iter().flat_map(|world| &world.ranks);
    let ranks = places.map(|rank| (rank.process, &rank.worker));
    let standbys = job.standbys.iter();
    let standbys = standbys.map(|(process, seat)| (*process, &seat.worker));
    let workers: BTreeMap<ProcessId, &WorkerName> = ranks.chain(standbys).collect();
    let unreached = following.unreached.iter().filter_map(|unreached| {
        let worker = workers.get(&ProcessId(unreached.process))?;
        Some(format!("does not reach {worker}: {}", unreached.reason))
    });
    unreached.collect::<Vec<_>>().join("; ")
}

fn ledger(entry: &LedgerEntry) -> v1::LedgerView {
    v1::LedgerView {
        history: entry.history.0,
        generation: entry.generation.0,
        first_step: entry.first_step.0,
        world_size: size(entry.ranks.len()),
        reason: entry.reason.clone(),
        stamp_ms: entry.stamp_ms,
    }
}

fn size(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
