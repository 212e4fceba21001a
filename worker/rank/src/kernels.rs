//! What the ranks of a machine know of their device's kernels, kept in files: so that a rank does not
//! compile and tune anew what an earlier one has, and so that all of them choose the same kernels, whose
//! bits may differ from others that are about as fast.
//!
//! ```text
//! <root>/<build and kind of device>/lock            held while one rank finds out
//!                                  /known.db        what all ranks begin with
//!                                  /<job>           the hash of a contribution, once a job is in it
//!                                  /run-<pid>.db    what one process goes on with
//! ```
//!
//! The first rank of a job on a machine computes a contribution, an update and an evaluation; the others
//! wait for it. What ranks of several machines chose is compared by that hash when they meet
//! ([`odd_ones`]).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use muster_cluster::command::NumericsClass;
use muster_cluster::ids::ShardId;
use muster_proto::v1;
use muster_trainer::device::store;
use muster_trainer::{ShardNote, Vector};
use muster_worker_core::audit::Hash;

use crate::audit;
use crate::prepare::{Build, fresh};
use crate::shared::Trouble;
use crate::work::failed;

/// Where files of the kind are kept, instead of the user's cache folder.
const ROOT: &str = "MUSTER_KERNELS";

/// Opens what is known, and finds out what is not; the hash of the job's first contribution.
///
/// # Errors
/// Where the job cannot be computed.
pub(crate) fn learn(
    assignment: &v1::Assignment,
    build: Build,
    class: &NumericsClass,
) -> Result<Hash, Trouble> {
    let kept = root().map(|root| folder(&root, assignment, class));
    let opened = kept.map(|folder| (open(&folder), folder));
    let (lock, folder) = match opened {
        Some((Ok(lock), folder)) => (Some(lock), folder),
        Some((Err(error), folder)) => {
            let folder = folder.display();
            tracing::warn!(%error, %folder, "what is known of kernels cannot be kept");
            return try_out(assignment, build, class);
        }
        None => return try_out(assignment, build, class),
    };
    let mark = blake3::hash(assignment.identity.as_bytes()).to_hex();
    let mark = folder.join(&mark[..32]);
    // A file that cannot be read holds nothing, whatever is marked.
    let marked = fs::read_to_string(&mark)
        .ok()
        .filter(|_| !store::is_empty());
    if let Some(hash) = marked.and_then(|text| read(&text)) {
        return Ok(hash);
    }
    tracing::info!("compiles and tunes kernels for this job on this machine, once");
    let hash = try_out(assignment, build, class)?;
    let kept = store::save(&folder.join("known.db")).map_err(io::Error::other);
    // What is marked is known.
    let kept = kept.and_then(|()| fs::write(&mark, blake3::Hash::from(hash).to_hex().as_str()));
    if let Err(error) = kept {
        let folder = folder.display();
        tracing::warn!(%error, %folder, "what is known of kernels cannot be kept");
    }
    drop(lock);
    Ok(hash)
}

/// The user's cache folder, or what the environment says.
fn root() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|folder| !folder.is_empty());
    let cache = || {
        let cache = folder("XDG_CACHE_HOME").map(PathBuf::from);
        let cache = cache.or_else(|| folder("HOME").map(|home| Path::new(&home).join(".cache")));
        cache.map(|cache| cache.join("muster/kernels"))
    };
    folder(ROOT).map(PathBuf::from).or_else(cache)
}

/// The folder of everything that decides which kernels there are, and which are fast.
fn folder(root: &Path, assignment: &v1::Assignment, class: &NumericsClass) -> PathBuf {
    let assigned = assignment.class.clone().unwrap_or_default();
    let mut hasher = blake3::Hasher::new();
    for text in [&class.build, &assigned.gpu, &assigned.cpu] {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    root.join(&hasher.finalize().to_hex()[..16])
}

/// Locks the folder, and opens what is known in a file of this process's own. The lock is held until the
/// file is dropped.
fn open(folder: &Path) -> io::Result<File> {
    fs::create_dir_all(folder)?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if let Some(process) = process_of(&path)
            && !Path::new("/proc").join(process).exists()
        {
            fs::remove_file(&path)?;
        }
    }
    let own = folder.join(format!("run-{}.db", std::process::id()));
    match fs::copy(folder.join("known.db"), &own) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        copied => drop(copied?),
    }
    store::open(&own);
    Ok(lock)
}

/// The number of the process whose own file this is, or a companion of it.
fn process_of(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (number, _) = name.strip_prefix("run-")?.split_once(".db")?;
    Some(number.to_owned())
}

fn read(text: &str) -> Option<Hash> {
    Some(blake3::Hash::from_hex(text.trim()).ok()?.into())
}

/// Computes what a step of the job computes, and throws it away but for the hash of its contribution.
fn try_out(
    assignment: &v1::Assignment,
    build: Build,
    class: &NumericsClass,
) -> Result<Hash, Trouble> {
    let (spec, mut trainer) = fresh(assignment, build, class)?;
    // A learner may compute on the host, whatever its process was given.
    let len = match trainer.is_on_device() {
        true => 0,
        false => trainer.num_elements(),
    };
    let mut values = Vector::Host(vec![0.0; len]);
    let note = trainer.contribute(ShardId(0), &mut values);
    let note = note.map_err(|error| failed(&error))?;
    let hash = audit::hash(&values, &note).map_err(|error| failed(&error))?;
    let notes: Vec<ShardNote> = (0..spec.train.logical_shards)
        .map(|shard| ShardNote {
            shard: ShardId(shard),
            ..note.clone()
        })
        .collect();
    // A gradient that is no number is the job's own business, when it comes to it.
    let _ = trainer.apply(&values, &notes);
    let num_chunks = trainer.num_eval_chunks();
    for chunk in [0, num_chunks.saturating_sub(1)] {
        if chunk < num_chunks {
            let evaluated = trainer.evaluate_chunk(chunk);
            evaluated.map_err(|error| failed(&error))?;
        }
    }
    Ok(hash)
}

/// Which ranks told another hash than most, or where no hash is told most often than the lowest rank.
pub(crate) fn odd_ones(told: &[Vec<u8>]) -> Vec<usize> {
    let mut counts: BTreeMap<&[u8], usize> = BTreeMap::new();
    for hash in told {
        *counts.entry(hash).or_default() += 1;
    }
    let most = counts.values().max().copied().unwrap_or(0);
    let Some(right) = told.iter().find(|hash| counts[hash.as_slice()] == most) else {
        return Vec::new();
    };
    let ranks = told.iter().enumerate();
    ranks
        .filter_map(|(rank, hash)| (hash != right).then_some(rank))
        .collect()
}

/// What a rank is told that is among them.
pub(crate) fn is_odd(num_odd: usize, size: usize) -> Trouble {
    let folder = root().map_or_else(
        || "its cache of kernels".to_owned(),
        |root| root.display().to_string(),
    );
    Trouble::Failed(format!(
        "this rank's first contribution has other bits than those of {} of {size} ranks, on the same kind \
         of device: other kernels were the fastest when it was tuned. Remove {folder} on its machine, or \
         copy that of another one there; or write train.reduction = \"fast\", which promises no bits",
        size - num_odd
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_few_are_odd_and_of_equally_many_the_later_ones() {
        let told =
            |hashes: &[u8]| -> Vec<Vec<u8>> { hashes.iter().map(|hash| vec![*hash]).collect() };
        assert_eq!(odd_ones(&told(&[])), [0; 0]);
        assert_eq!(odd_ones(&told(&[7, 7, 7])), [0; 0]);
        assert_eq!(odd_ones(&told(&[1, 7, 7])), [0]);
        assert_eq!(odd_ones(&told(&[7, 1])), [1]);
        assert_eq!(odd_ones(&told(&[7, 1, 2, 7, 1])), [1, 2, 4]);
    }

    #[test]
    fn a_file_of_a_process_is_known_by_its_name() {
        let process = |name: &str| process_of(Path::new(name));
        assert_eq!(process("/a/run-12.db").as_deref(), Some("12"));
        assert_eq!(process("/a/run-12.db-wal").as_deref(), Some("12"));
        assert_eq!(process("/a/known.db"), None);
        assert_eq!(process("/a/lock"), None);
    }
}
