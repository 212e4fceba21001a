//! What the leader tells the workers: every order that the state calls for and that has not gone
//! over the worker's present stream.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use muster_cluster::ids::{Generation, JobName, ProcessId, RankId, Step};
use muster_cluster::plan::Closing;
use muster_cluster::state::{Job, Manifest, Phase, Placement, World};
use muster_proto::{convert, v1};
use v1::rank_order::Order;
use v1::to_worker::Message;

use super::{Allowance, Coordinator, Output, Session};
use crate::links::Told;
use crate::ranks::WorldWatch;

impl Coordinator {
    /// Sends what is missing. What is as long as a world is large goes to a part of a large world's
    /// ranks, and to others with each tick.
    pub(super) fn drive(&mut self, outputs: &mut Vec<Output>) {
        let allowance = &mut self.allowance;
        allowance.is_short = false;
        for (name, job) in self.state.open_jobs() {
            let Some(world) = &job.world else { continue };
            let watch = self
                .worlds
                .get(name)
                .filter(|watch| watch.watch.generation == world.generation);
            let sight = Sight {
                name,
                job,
                world,
                watch,
                peers: OnceCell::new(),
                assignment: OnceCell::new(),
                closing: self
                    .closing
                    .get(name)
                    .filter(|(generation, _)| *generation == world.generation)
                    .map(|(_, closing)| closing),
                stuck: self.stuck.get(name).cloned().unwrap_or_default(),
                gone: watch
                    .map(|watch| watch.watch.gone.keys().copied().collect())
                    .unwrap_or_default(),
                cluster_id: &self.options.cluster_id,
                checkpoints: &self.options.checkpoints,
                collective_timeout_ms: self
                    .patience
                    .collective_timeout_ms(watch.map_or(0, |watch| watch.watch.speed.step_us)),
                detect_ms: self.patience.detect_ms,
            };
            for (rank, placement) in (0u32..).zip(&world.ranks) {
                let life = placement.incarnation;
                if let Some((session, link)) = self.links.in_life(&placement.worker, life) {
                    let told = link.told(name, placement.process);
                    let mut messages = Vec::new();
                    sight.tell_rank(rank, placement, told, allowance, &mut messages);
                    send(session, messages, outputs);
                }
            }
            for (process, seat) in &job.standbys {
                let life = seat.incarnation;
                if let Some((session, link)) = self.links.in_life(&seat.worker, life) {
                    let told = link.told(name, *process);
                    let follow = watch.and_then(|watch| watch.to_follow(*process, job, world));
                    let mut messages = Vec::new();
                    sight.tell_standby(*process, follow, told, &mut messages);
                    send(session, messages, outputs);
                }
            }
        }
        self.end_processes(outputs);
    }

    /// Dismisses the ranks that have done their part, and ends the processes that no job has;
    /// nothing more is said to either.
    fn end_processes(&mut self, outputs: &mut Vec<Output>) {
        let mut processes = BTreeMap::new();
        // Of jobs with processes that are done. Most of these are over, and decoded once for all.
        let mut last: BTreeMap<JobName, BTreeMap<ProcessId, v1::RankKey>> = BTreeMap::new();
        for (session, link) in self.links.iter_mut() {
            link.told.retain(|(name, process), _| {
                let job = self.state.jobs.get(name);
                if !processes.contains_key(name) {
                    processes.insert(name.clone(), job.map(|job| processes_of(job)));
                }
                let of_job = processes.get(name).and_then(Option::as_ref);
                if of_job.is_some_and(|of_job| of_job.contains(process)) {
                    return true;
                }
                let done = self
                    .worlds
                    .get(name)
                    .is_some_and(|watch| watch.done.contains_key(process));
                if done && !last.contains_key(name) {
                    let ended = || self.archive.get(name).ok().flatten();
                    let job = job.cloned().or_else(|| ended().map(|(job, _)| job));
                    let keys = job.map(|job| last_keys(name, &job)).unwrap_or_default();
                    last.insert(name.clone(), keys);
                }
                let keys = last.get(name).filter(|_| done);
                let message = match keys.and_then(|keys| keys.get(process)) {
                    Some(key) => order(key, Order::Dismiss(v1::Dismiss {})),
                    None => end_of(name, *process, false),
                };
                send(session, vec![message], outputs);
                false
            });
        }
        self.forget_worlds();
    }

    /// Forgets what was seen of jobs that have ended and that no worker has to be told of any more.
    fn forget_worlds(&mut self) {
        if self.worlds.len() > self.state.num_open_jobs() {
            let told = self.links.iter().flat_map(|(_, link)| link.told.keys());
            let told: BTreeSet<&JobName> = told.map(|(job, _)| job).collect();
            let jobs = &self.state.jobs;
            self.worlds.retain(|name, _| {
                told.contains(name) || jobs.get(name).is_some_and(|job| !job.is_over())
            });
        }
    }
}

/// The processes that are part of a job's world, or wait to be.
fn processes_of(job: &Job) -> BTreeSet<ProcessId> {
    let ranks = job.world.iter().flat_map(|world| &world.ranks);
    let ranks = ranks.map(|rank| rank.process);
    ranks.chain(job.standbys.keys().copied()).collect()
}

fn send(session: Session, messages: Vec<Message>, outputs: &mut Vec<Output>) {
    let to_worker = |message| Output::ToWorker { session, message };
    outputs.extend(messages.into_iter().map(to_worker));
}

/// The ranks that processes were in the last world of a job.
fn last_keys(name: &JobName, job: &Job) -> BTreeMap<ProcessId, v1::RankKey> {
    let Some(last) = job.ledger.last() else {
        return BTreeMap::new();
    };
    let key = |(rank, placement): (u32, &Placement)| {
        let key = v1::RankKey {
            job: name.to_string(),
            history: last.history.0,
            generation: last.generation.0,
            rank,
            process: placement.process.0,
        };
        (placement.process, key)
    };
    (0..).zip(&last.ranks).map(key).collect()
}

/// What the orders to the processes of one job follow from.
struct Sight<'a> {
    name: &'a JobName,
    job: &'a Job,
    world: &'a World,
    watch: Option<&'a WorldWatch>,
    /// Where the ranks listen, once all do; looked for when the first one is to be told.
    peers: OnceCell<Option<v1::Peers>>,
    /// What the assignments of all ranks say, and in how many bytes; made for the first one.
    assignment: OnceCell<(v1::Assignment, usize)>,
    closing: Option<&'a Closing>,
    /// Processes that do not answer.
    stuck: BTreeSet<ProcessId>,
    /// Ranks that hear nothing any more.
    gone: Vec<RankId>,
    cluster_id: &'a [u8; 16],
    checkpoints: &'a str,
    collective_timeout_ms: u64,
    detect_ms: u64,
}

impl Sight<'_> {
    /// What a rank was not told yet.
    fn tell_rank(
        &self,
        rank: u32,
        placement: &Placement,
        told: &mut Told,
        allowance: &mut Allowance,
        messages: &mut Vec<Message>,
    ) {
        let generation = self.world.generation;
        let key = key(self.name, self.world, rank, placement.process);
        let is_new = |told: &mut Option<Generation>| told.replace(generation) != Some(generation);
        if told.assigned != Some(generation) {
            let (assignment, num_bytes) = self.assignment.get_or_init(|| {
                let assignment = self.assignment(true);
                let num_bytes = assignment.num_bytes();
                (assignment, num_bytes)
            });
            if !allowance.takes(*num_bytes) {
                // A process takes no order of a world that it was not told of.
                return;
            }
            told.assigned = Some(generation);
            let (rank, process) = (key.rank, key.process);
            messages.push(Message::Assignment(v1::Assignment {
                rank,
                process,
                cuda: placement.device.cuda(),
                ..assignment.clone()
            }));
        }
        if told.peers != Some(generation)
            && let Some(peers) = self.peers.get_or_init(|| self.watch?.peers(self.world))
            && allowance.takes(peers.addresses.len())
        {
            told.peers = Some(generation);
            messages.push(order(&key, Order::Peers(peers.clone())));
        }
        if matches!(self.job.phase, Phase::Stopping(_)) && is_new(&mut told.stop) {
            messages.push(order(&key, Order::Stop(v1::StopOrder {})));
        }
        match self.closing.filter(|_| !self.gone.contains(&RankId(rank))) {
            Some(Closing::Now(reason)) if is_new(&mut told.close) => {
                let reason = reason.clone();
                messages.push(order(&key, Order::Close(v1::Close { reason })));
            }
            Some(Closing::BehindStep(reason)) if is_new(&mut told.pause) => {
                let reason = reason.clone();
                messages.push(order(&key, Order::Pause(v1::Pause { reason })));
            }
            _ => {}
        }
        if self.stuck.contains(&placement.process) && is_new(&mut told.kill) {
            messages.push(end_of(self.name, placement.process, true));
        }
        let committed = self.job.latest_manifest();
        let committed = committed.filter(|manifest| manifest.history == self.world.history);
        if let Some(manifest) = committed
            && told.committed < Some(manifest.step)
        {
            told.committed = Some(manifest.step);
            let committed = committed_order(self.job, manifest);
            messages.push(order(&key, Order::Committed(committed)));
        }
    }

    /// What a process was not told yet that waits to enter a world.
    fn tell_standby(
        &self,
        process: ProcessId,
        follow: Option<v1::Follow>,
        told: &mut Told,
        messages: &mut Vec<Message>,
    ) {
        let key = v1::RankKey {
            job: self.name.to_string(),
            history: self.job.history.0,
            generation: 0,
            rank: 0,
            process: process.0,
        };
        if told.assigned.replace(Generation(0)).is_none() {
            let seat = self.job.standbys.get(&process);
            messages.push(Message::Assignment(v1::Assignment {
                process: process.0,
                cuda: seat.and_then(|seat| seat.device.cuda()),
                ..self.assignment(false)
            }));
        }
        let follow = follow.filter(|_| self.job.spec.standbys_follow());
        if let Some(follow) = follow
            && told.follow.as_ref() != Some(&follow)
        {
            told.follow = Some(follow.clone());
            messages.push(order(&key, Order::Follow(follow)));
        }
    }

    /// The assignment of rank 0, or that of a process that waits to enter a world, as if its number
    /// were 0; those of others differ in nothing else.
    fn assignment(&self, is_rank: bool) -> v1::Assignment {
        let Self {
            job,
            world,
            cluster_id,
            checkpoints,
            ..
        } = self;
        let runs: Vec<_> = world.ranks.iter().map(|rank| rank.shards).collect();
        let source = job.manifests.iter().find(|manifest| {
            world.finish.is_none()
                && world.first_step != Step(0)
                && manifest.step == world.first_step
        });
        let folder = job
            .spec
            .checkpoint
            .folder
            .as_ref()
            .map(|folder| folder.display().to_string());
        // Clusters may share a folder, and each removes what its own manifests name no more: they
        // must not meet.
        let cluster =
            u32::from_be_bytes([cluster_id[0], cluster_id[1], cluster_id[2], cluster_id[3]]);
        let folder = format!(
            "{}/{}-{cluster:08x}",
            folder.as_deref().unwrap_or(checkpoints),
            self.name
        );
        let class = job.ledger.last().and_then(|entry| entry.class.as_ref());
        let history = if is_rank { world.history } else { job.history };
        let generation = if is_rank {
            world.generation
        } else {
            Generation(0)
        };
        let name = self.name.as_str();
        v1::Assignment {
            job: name.to_owned(),
            history: history.0,
            generation: generation.0,
            rank: 0,
            process: 0,
            cuda: None,
            layout: convert::layout(if is_rank { &runs } else { &[] }),
            first_step: world.first_step.0,
            finish: world.finish.as_ref().filter(|_| is_rank).map(Into::into),
            source: source.filter(|_| is_rank).map(Into::into),
            committed_step: job.committed_step().0,
            draft: job.submission.draft.clone(),
            base_dir: job.submission.base_dir.display().to_string(),
            data_digest: job.submission.data_digest.clone(),
            identity: job.identity().digest(),
            class: class.map(Into::into),
            checkpoint_folder: folder,
            world_token: token(cluster_id, &generation.0.to_le_bytes(), name),
            feed_token: token(cluster_id, b"feed", name),
            collective_timeout_ms: self.collective_timeout_ms,
            detect_ms: self.detect_ms,
            state_shares: if is_rank {
                world.shares.iter().map(Into::into).collect()
            } else {
                Vec::new()
            },
            suspect: job
                .poison
                .as_ref()
                .filter(|poison| is_rank && poison.num_worlds > 1)
                .map(Into::into),
        }
    }
}

/// Names a rank of a world.
pub(super) fn key(job: &JobName, world: &World, rank: u32, process: ProcessId) -> v1::RankKey {
    v1::RankKey {
        job: job.to_string(),
        history: world.history.0,
        generation: world.generation.0,
        rank,
        process: process.0,
    }
}

fn order(key: &v1::RankKey, order: Order) -> Message {
    Message::Order(v1::RankOrder {
        key: Some(key.clone()),
        order: Some(order),
    })
}

/// Has a process ended; one that is awaited is part of a world, and its end is told.
pub(super) fn end_of(job: &JobName, process: ProcessId, is_awaited: bool) -> Message {
    Message::End(v1::EndProcess {
        job: job.to_string(),
        process: process.0,
        is_awaited,
    })
}

/// Says that a checkpoint counts, and which files may not be removed.
fn committed_order(job: &Job, manifest: &Manifest) -> v1::CheckpointCommitted {
    let files = job.manifests.iter().flat_map(|manifest| &manifest.files);
    v1::CheckpointCommitted {
        step: manifest.step.0,
        keep: files.map(|file| file.name.clone()).collect(),
    }
}

/// What processes of one job show each other, for one purpose: not a secret, but nothing that another
/// world, job or cluster would say by mistake.
fn token(cluster_id: &[u8; 16], purpose: &[u8], job: &str) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(cluster_id);
    hasher.update(purpose);
    hasher.update(job.as_bytes());
    hasher.finalize().as_bytes()[..16].to_vec()
}
