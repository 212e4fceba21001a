//! What the leader tells the workers: every order that the state calls for and that has not gone
//! over the worker's present stream.

use muster_cluster::ids::{JobName, RankId, Step};
use muster_cluster::state::{Job, Manifest, Phase, World};
use muster_proto::v1;
use v1::rank_order::Order;
use v1::to_worker::Message;

use super::{Coordinator, Output};

/// How long a rank waits for a peer that is connected and silent before it reports that its world
/// is broken, in milliseconds. A peer that ends closes its connections, which is noticed at once.
const COLLECTIVE_TIMEOUT_MS: u64 = 60_000;

impl Coordinator {
    /// Sends what is missing.
    pub(super) fn drive(&mut self, outputs: &mut Vec<Output>) {
        let jobs: Vec<&JobName> = self.state.jobs.keys().collect();
        for name in jobs {
            let job = &self.state.jobs[name];
            let Some(world) = &job.world else { continue };
            let watch = self
                .worlds
                .get(name)
                .filter(|watch| watch.watch.generation == world.generation);
            let peers = watch.and_then(|watch| watch.peers(world.ranks.len()));
            let committed = job
                .latest_manifest()
                .filter(|manifest| manifest.history == world.history);
            let is_stopping = matches!(job.phase, Phase::Stopping(_));
            for (rank, placement) in (0u32..).zip(&world.ranks) {
                let link = self.links.iter_mut().find(|(_, link)| {
                    link.worker == placement.worker
                        && link.node.incarnation == placement.incarnation
                });
                let Some((session, link)) = link else {
                    continue;
                };
                let mut send = |message| {
                    outputs.push(Output::ToWorker {
                        session: *session,
                        message,
                    });
                };
                let told = link.told(name, world.generation, RankId(rank));
                let key = key(name, world, rank);
                if !std::mem::replace(&mut told.assigned, true) {
                    send(assignment(
                        &key,
                        job,
                        world,
                        &self.cluster_id,
                        &self.checkpoints,
                    ));
                }
                if let Some(peers) = &peers
                    && !std::mem::replace(&mut told.peers, true)
                {
                    send(order(
                        &key,
                        Order::Peers(v1::Peers {
                            addresses: peers.clone(),
                        }),
                    ));
                }
                if is_stopping && !std::mem::replace(&mut told.stop, true) {
                    send(order(&key, Order::Stop(v1::StopOrder {})));
                }
                if let Some(manifest) = committed
                    && told.committed < Some(manifest.step)
                {
                    told.committed = Some(manifest.step);
                    send(order(
                        &key,
                        Order::Committed(committed_order(job, manifest)),
                    ));
                }
            }
        }
        self.end_ranks(outputs);
    }

    /// Dismisses the ranks that have done their part, and revokes those that nobody needs; nothing
    /// more is said to either.
    fn end_ranks(&mut self, outputs: &mut Vec<Output>) {
        for (session, link) in &mut self.links {
            link.told.retain(|(name, generation, rank), _| {
                let job = self.state.jobs.get(name);
                let is_current = job.is_some_and(|job| job.generation == *generation);
                if is_current && job.is_some_and(Job::has_world) {
                    return true;
                }
                let watch = self
                    .worlds
                    .get(name)
                    .filter(|watch| is_current && watch.watch.generation == *generation);
                let last = job.and_then(|job| job.ledger.last());
                let message = match (watch, last) {
                    (Some(watch), Some(last)) if watch.done.contains_key(rank) => {
                        let key = v1::RankKey {
                            job: name.to_string(),
                            history: last.history.0,
                            generation: generation.0,
                            rank: rank.0,
                        };
                        order(&key, Order::Dismiss(v1::Dismiss {}))
                    }
                    _ => Message::Revoke(v1::Revoke {
                        job: name.to_string(),
                        generation: generation.0,
                    }),
                };
                outputs.push(Output::ToWorker {
                    session: *session,
                    message,
                });
                false
            });
        }
    }
}

/// Names a rank of a world.
fn key(job: &JobName, world: &World, rank: u32) -> v1::RankKey {
    v1::RankKey {
        job: job.to_string(),
        history: world.history.0,
        generation: world.generation.0,
        rank,
    }
}

fn order(key: &v1::RankKey, order: Order) -> Message {
    Message::Order(v1::RankOrder {
        key: Some(key.clone()),
        order: Some(order),
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

fn assignment(
    key: &v1::RankKey,
    job: &Job,
    world: &World,
    cluster_id: &[u8; 16],
    checkpoints: &str,
) -> Message {
    let shards = world.ranks.iter().map(|placement| v1::Shards {
        start: placement.shards.start,
        end: placement.shards.end,
    });
    let source = job
        .manifests
        .iter()
        .find(|manifest| world.first_step != Step(0) && manifest.step == world.first_step);
    let folder = job
        .spec
        .checkpoint
        .folder
        .as_ref()
        .map(|folder| folder.display().to_string());
    // Clusters may share a folder, and each removes what its own manifests name no more: they must
    // not meet.
    let cluster = u32::from_be_bytes([cluster_id[0], cluster_id[1], cluster_id[2], cluster_id[3]]);
    let folder = format!(
        "{}/{}-{cluster:08x}",
        folder.as_deref().unwrap_or(checkpoints),
        key.job
    );
    let class = job.ledger.last().and_then(|entry| entry.class.as_ref());
    Message::Assignment(v1::Assignment {
        job: key.job.clone(),
        history: key.history,
        generation: key.generation,
        rank: key.rank,
        shards: shards.collect(),
        first_step: world.first_step.0,
        source: source.map(Into::into),
        draft: job.submission.draft.clone(),
        base_dir: job.submission.base_dir.display().to_string(),
        data_digest: job.submission.data_digest.clone(),
        identity: job.identity.digest(),
        class: class.map(Into::into),
        checkpoint_folder: folder,
        world_token: world_token(cluster_id, key),
        collective_timeout_ms: COLLECTIVE_TIMEOUT_MS,
    })
}

/// What the ranks of one world show each other: not a secret, but nothing that another world, job
/// or cluster would say by mistake.
fn world_token(cluster_id: &[u8; 16], key: &v1::RankKey) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(cluster_id);
    hasher.update(&key.generation.to_le_bytes());
    hasher.update(key.job.as_bytes());
    hasher.finalize().as_bytes()[..16].to_vec()
}
