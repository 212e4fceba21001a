//! What the ranks of a machine know of their device's kernels, kept in files: so that a rank does not
//! compile and tune anew what an earlier one has, and so that all of them choose the same kernels, whose
//! bits may differ from others that are about as fast.
//!
//! ```text
//! <root>/<build and kind of device>/lock          held while one rank finds out
//!                                  /known.db      what all ranks begin with
//!                                  /known.jobs    the hash of that, and of a contribution of each job
//!                                  /run-<name>.*  what one process goes on with, and a lock of its life
//! ```
//!
//! Every rank first computes a few steps, and throws them away: the tensor library computes a thing for
//! the first time in other ways than later. The first rank of a job on a machine chooses its kernels
//! meanwhile, and the others wait for it. What ranks of several machines chose is compared by the hash of a
//! contribution when they meet ([`odd_ones`]).

mod folder;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use muster_cluster::command::NumericsClass;
use muster_cluster::ids::ShardId;
use muster_cluster::job::JobSpec;
use muster_proto::v1;
use muster_trainer::{ShardNote, Trainer, Vector};
use muster_worker_core::audit::Hash;

use crate::audit;
use crate::prepare::{Build, fresh, understood};
use crate::shared::Trouble;
use crate::work::failed;
use folder::Folder;

/// Where files of the kind are kept, instead of the user's cache folder.
const ROOT: &str = "MUSTER_KERNELS";

/// What a process knows before it computes.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    /// The hash of a contribution of the job.
    pub(crate) hash: Hash,
    /// Where it is kept, if anywhere.
    pub(crate) folder: Option<PathBuf>,
}

/// Opens what is known, and finds out what is not.
///
/// # Errors
/// Where the job cannot be computed.
pub(crate) fn learn(
    assignment: &v1::Assignment,
    build: Build,
    class: &NumericsClass,
) -> Result<Known, Trouble> {
    let spec = understood(assignment, class)?;
    // What is computed again is computed by kernels of another making.
    let job = format!("{} {}", assignment.identity, spec.train.recompute.name());
    let try_out = || hash_of(&spec, fresh(&spec, assignment, build)?);
    let mut folder = match root().map(|root| Folder::open(of(&root, assignment, class))) {
        Some(Ok(folder)) => folder,
        kept => {
            let why = kept.and_then(Result::err).map_or_else(
                || "this user has no cache folder".to_owned(),
                |error| error.to_string(),
            );
            tracing::warn!(why, "what is known of kernels is not kept");
            folder::open_nowhere();
            let hash = try_out()?;
            return Ok(Known { hash, folder: None });
        }
    };
    let path = folder.path().to_owned();
    folder::remove_unused(&path, SystemTime::now());
    let hash = match folder.hash_of(&job) {
        Some(expected) => {
            // Nothing is found out: others need not wait.
            drop(folder);
            let hash = try_out()?;
            if hash != expected {
                let path = path.display();
                tracing::warn!(%path, "a contribution has other bits than when its kernels were chosen");
            }
            hash
        }
        None => {
            tracing::info!("compiles and tunes kernels for this job on this machine, once");
            let hash = try_out()?;
            if let Err(error) = folder.keep(&job, hash) {
                let path = path.display();
                tracing::warn!(%error, %path, "what is known of kernels is not kept");
            }
            hash
        }
    };
    Ok(Known {
        hash,
        folder: Some(path),
    })
}

/// The user's cache folder, or what the environment says.
fn root() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|folder| !folder.is_empty());
    let cache = || {
        let home = || folder("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = folder("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
        cache.map(|cache| cache.join("muster/kernels"))
    };
    folder(ROOT).map(PathBuf::from).or_else(cache)
}

/// The folder of everything that decides which kernels there are, and which are fast.
fn of(root: &Path, assignment: &v1::Assignment, class: &NumericsClass) -> PathBuf {
    let assigned = assignment.class.clone().unwrap_or_default();
    let mut hasher = blake3::Hasher::new();
    for text in [&class.build, &assigned.gpu, &assigned.cpu] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    root.join(&hasher.finalize().to_hex()[..16])
}

/// How many steps are tried: what comes for the first time is behind the process then.
const NUM_TRIES: u32 = 3;

/// Computes a few steps of the job, and throws them away but for the hash of the last one's contribution.
fn hash_of(spec: &JobSpec, mut trainer: Trainer) -> Result<Hash, Trouble> {
    if spec.workers.redundancy.is_shared() {
        // All of the state may be more than there is room for.
        trainer.keep(&BTreeSet::new());
    }
    let mut last = None;
    for _ in 0..NUM_TRIES {
        let (values, note) = contribution(&mut trainer, ShardId(0))?;
        last = Some(audit::hash(&values, &note).map_err(|error| failed(&error))?);
        let sum = match spec.train.logical_shards {
            1 => values,
            _ => Vector::sum(values, contribution(&mut trainer, ShardId(1))?.0),
        };
        let notes: Vec<ShardNote> = (0..spec.train.logical_shards)
            .map(|shard| ShardNote {
                shard: ShardId(shard),
                ..note.clone()
            })
            .collect();
        // A gradient that is no number is the job's own business, when it comes to it.
        let _ = trainer.apply(&sum, &notes);
        let num_chunks = trainer.num_eval_chunks();
        for chunk in [0, num_chunks.saturating_sub(1)] {
            if chunk < num_chunks {
                let evaluated = trainer.evaluate_chunk(chunk);
                evaluated.map_err(|error| failed(&error))?;
            }
        }
    }
    last.ok_or_else(|| Trouble::Failed("no step was tried".to_owned()))
}

fn contribution(trainer: &mut Trainer, shard: ShardId) -> Result<(Vector, ShardNote), Trouble> {
    // A learner may compute on the host, whatever its process was given.
    let len = match trainer.is_on_device() {
        true => 0,
        false => trainer.num_elements(),
    };
    let mut values = Vector::Host(vec![0.0; len]);
    let note = trainer.contribute(shard, &mut values);
    Ok((values, note.map_err(|error| failed(&error))?))
}

/// What a rank tells of its kernels: the hash of a contribution, and whether it has the state
/// that its world goes on with.
pub(crate) fn told(hash: Hash, has_state: bool) -> Vec<u8> {
    [&[u8::from(has_state)], &hash[..]].concat()
}

/// Which ranks told another hash than most of those that have the state do, or where no hash is told most
/// often, than the lowest rank of them. Nobody who has the state alone is odd beside those who enter.
pub(crate) fn odd_ones(told: &[Vec<u8>]) -> Vec<usize> {
    let parts = |told: &Vec<u8>| match told.split_first() {
        Some((has_state, hash)) => (*has_state != 0, hash.to_vec()),
        None => (false, Vec::new()),
    };
    let told: Vec<(bool, Vec<u8>)> = told.iter().map(parts).collect();
    let has_any = told.iter().any(|(has_state, _)| *has_state);
    let electors: Vec<&Vec<u8>> = told
        .iter()
        .filter(|(has_state, _)| *has_state == has_any)
        .map(|(_, hash)| hash)
        .collect();
    let mut counts: BTreeMap<&Vec<u8>, usize> = BTreeMap::new();
    for hash in &electors {
        *counts.entry(hash).or_default() += 1;
    }
    let most = counts.values().max().copied().unwrap_or(0);
    let Some(right) = electors.into_iter().find(|hash| counts[hash] == most) else {
        return Vec::new();
    };
    let ranks = told.iter().enumerate();
    ranks
        .filter_map(|(rank, (_, hash))| (hash != right).then_some(rank))
        .collect()
}

/// Why a rank ends that is among them.
pub(crate) fn is_odd(num_odd: usize, size: usize, known: &Known) -> Trouble {
    let folder = known.folder.as_ref().map_or_else(
        || "is kept nowhere".to_owned(),
        |folder| format!("is in {}", folder.display()),
    );
    Trouble::Fault(format!(
        "this rank's contributions have other bits than those of {} of {size} ranks, on the same kind \
         of device: other kernels were the fastest when it was tuned. What its machine chose {folder}: stop \
         the ranks there and put that folder of one of the other machines into its place, as a whole; or \
         write train.reduction = \"fast\", which promises no bits",
        size - num_odd
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_few_are_odd_and_of_equally_many_the_later_ones() {
        let all = |hashes: &[u8]| -> Vec<Vec<u8>> {
            hashes.iter().map(|hash| told([*hash; 32], true)).collect()
        };
        assert_eq!(odd_ones(&all(&[])), [0; 0]);
        assert_eq!(odd_ones(&all(&[7, 7, 7])), [0; 0]);
        assert_eq!(odd_ones(&all(&[1, 7, 7])), [0]);
        assert_eq!(odd_ones(&all(&[7, 1])), [1]);
        assert_eq!(odd_ones(&all(&[7, 1, 2, 7, 1])), [1, 2, 4]);
    }

    #[test]
    fn those_who_have_the_state_decide() {
        let one = |has_state, hash: u8| told([hash; 32], has_state);
        let world = [one(true, 7), one(false, 1), one(false, 1)];
        assert_eq!(odd_ones(&world), [1, 2]);
        let world = [one(false, 1), one(true, 7), one(true, 7), one(false, 7)];
        assert_eq!(odd_ones(&world), [0]);
        let nobody = [one(false, 1), one(false, 7), one(false, 7)];
        assert_eq!(odd_ones(&nobody), [0]);
    }
}
