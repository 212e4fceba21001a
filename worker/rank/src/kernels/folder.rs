//! The files of what is known of kernels: whose they are, and that what is said of them is true.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, SystemTime};

use muster_trainer::device::store;
use muster_worker_core::audit::Hash;

/// How long another rank may find out; then this one does it for itself.
const LONGEST: Duration = Duration::from_mins(30);

/// How long a folder stays that no process opens: those of builds and devices of the past add up.
const UNUSED: Duration = Duration::from_hours(60 * 24);

/// A folder that this process has locked.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// The hash of a contribution of each job, by the job.
    jobs: BTreeMap<String, Hash>,
    _lock: File,
}

impl Folder {
    /// Waits for the lock, and opens what is known in a file of this process's own.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&path)?;
        let lock = locked(&path.join("lock"))?;
        sweep(&path);
        let own = path.join(own_name()?);
        // Held as long as the process lives: whoever can lock it knows that its files are left behind.
        let life = File::create(own.with_extension("lock"))?;
        life.lock()?;
        std::mem::forget(life);
        let own = own.with_extension("db");
        let mut jobs = known_jobs(&path).unwrap_or_default();
        if !jobs.is_empty() && fs::copy(path.join("known.db"), &own).is_err() {
            jobs.clear();
        }
        store::open(&own);
        if store::is_empty() {
            // Nothing is known of it, whatever is said.
            jobs.clear();
        }
        Ok(Self {
            path,
            jobs,
            _lock: lock,
        })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The hash of a job's contribution, if its kernels are known.
    pub(super) fn hash_of(&self, job: &str) -> Option<Hash> {
        self.jobs.get(job).copied()
    }

    /// Keeps what this process knows by now, which are the kernels of one more job.
    pub(super) fn keep(&mut self, job: &str, hash: Hash) -> io::Result<()> {
        if store::is_empty() {
            return Err(io::Error::other("nothing came of it"));
        }
        let next = |name: &str| self.path.join(format!("next.{name}"));
        let [db, jobs] = ["known.db", "known.jobs"].map(next);
        remove_if_there(&db)?;
        store::save(&db).map_err(io::Error::other)?;
        self.jobs.insert(job.to_owned(), hash);
        let mut text = format!("{}\n", digest(&db)?);
        for (job, hash) in &self.jobs {
            text += &format!("{} {job}\n", blake3::Hash::from(*hash));
        }
        fs::write(&jobs, text)?;
        // Between the two the one does not fit the other, and nothing is known.
        fs::rename(&db, self.path.join("known.db"))?;
        fs::rename(&jobs, self.path.join("known.jobs"))
    }
}

/// Has this process keep what it finds out where nobody else looks.
pub(super) fn open_nowhere() {
    let name = own_name().unwrap_or_else(|_| format!("run-{}", std::process::id()));
    let file = std::env::temp_dir().join(format!("muster-kernels-{name}.db"));
    store::open(&file);
}

/// Locks a file, until what is given is dropped.
fn locked(path: &Path) -> io::Result<File> {
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    if lock.try_lock().is_ok() {
        return Ok(lock);
    }
    tracing::info!("another rank of this machine compiles and tunes kernels");
    let (sender, receiver) = channel();
    thread::Builder::new()
        .name("kernels".to_owned())
        .spawn(move || {
            // Where nobody waits any more the lock is given back at once.
            let _ = sender.send(lock.lock().map(|()| lock));
        })?;
    receiver.recv_timeout(LONGEST).unwrap_or_else(|_| {
        let minutes = LONGEST.as_secs() / 60;
        let what = format!("another rank has not found out within {minutes} minutes");
        Err(io::Error::new(io::ErrorKind::TimedOut, what))
    })
}

/// A name that no other process has.
fn own_name() -> io::Result<String> {
    let mut random = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let random = u64::from_le_bytes(random);
    Ok(format!("run-{}-{random:016x}", std::process::id()))
}

/// Removes the files of processes that have ended; says whether none lives. What cannot be removed is
/// another user's, or another machine's that is not heard of, and harms nobody.
fn sweep(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    let mut have_all_ended = true;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let names: Vec<String> = names.filter(|name| name.starts_with("run-")).collect();
    for name in &names {
        let Some(stem) = name.strip_suffix(".lock") else {
            continue;
        };
        let life = folder.join(name);
        let has_ended = File::open(&life).is_ok_and(|life| life.try_lock().is_ok());
        if has_ended {
            let files = names.iter().filter(|name| name.starts_with(stem));
            for file in files.filter(|file| *file != name).chain([name]) {
                let _ = fs::remove_file(folder.join(file));
            }
        }
        have_all_ended &= has_ended;
    }
    have_all_ended
}

/// Removes folders beside this one that no process has opened for long, and none that lives is in.
pub(super) fn remove_unused(beside: &Path, now: SystemTime) {
    let Some(entries) = beside.parent().and_then(|root| fs::read_dir(root).ok()) else {
        return;
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path != beside && is_unused(&path, now).unwrap_or(false) {
            let removed = fs::remove_dir_all(&path);
            let path = path.display();
            match removed {
                Ok(()) => tracing::info!(%path, "removed kernels that nobody has used for long"),
                Err(error) => {
                    tracing::warn!(%path, %error, "kernels that nobody has used for long stay");
                }
            }
        }
    }
}

/// Whether it is such a folder, and nobody has opened it for long: each process that does so makes files.
fn is_unused(path: &Path, now: SystemTime) -> io::Result<bool> {
    let opened = fs::metadata(path)?.modified()?;
    let is_old = now.duration_since(opened).is_ok_and(|age| age > UNUSED);
    if !is_old || !path.join("known.jobs").is_file() {
        return Ok(false);
    }
    let lock = File::open(path.join("lock"))?;
    Ok(lock.try_lock().is_ok() && sweep(path))
}

/// The jobs of which `known.db` holds the kernels; `None` where it is not the file that they were said of.
fn known_jobs(folder: &Path) -> Option<BTreeMap<String, Hash>> {
    let text = fs::read_to_string(folder.join("known.jobs")).ok()?;
    let mut lines = text.lines();
    if lines.next()? != digest(&folder.join("known.db")).ok()? {
        return None;
    }
    let job = |line: &str| {
        let (hash, job) = line.split_once(' ')?;
        Some((job.to_owned(), blake3::Hash::from_hex(hash).ok()?.into()))
    };
    lines.map(job).collect()
}

fn digest(file: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut File::open(file)?, &mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn remove_if_there(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
