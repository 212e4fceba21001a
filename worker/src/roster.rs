//! A file for each process of a rank, written before it is started and kept until nobody needs to
//! hear of it: so no process exists, and none has ended, that the next daemon does not know.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use muster_proto::{convert, v1};
use muster_worker_core::agent::{Place, place};
use serde_json::{Value, json};

use crate::alive::{Handle, Identity};
use crate::home::write_whole;

/// The variable that holds a rank's token.
pub(crate) const TOKEN: &str = "MUSTER_RANK_TOKEN";

/// What is known of one process.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    /// What it was told to be last.
    pub(crate) key: v1::RankKey,
    pub(crate) token: String,
    /// Not there when the daemon ended before it could write it down.
    pub(crate) process: Option<Identity>,
    /// How it ended, once it has.
    pub(crate) exited: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exit {
    pub(crate) reason: String,
    pub(crate) log_tail: String,
}

impl Entry {
    /// Takes hold of the process; `None` when it has ended, or was never started.
    ///
    /// # Errors
    /// When the system does not say.
    pub(crate) fn take(&self) -> io::Result<Option<Handle>> {
        if self.exited.is_some() {
            return Ok(None);
        }
        let process = self.process;
        let process = process.or_else(|| Identity::with_variable(TOKEN, &self.token));
        let Some(process) = process else {
            return Ok(None);
        };
        // After a boot of the machine its id and its start time may mean another process.
        let handle = process.take()?;
        Ok(handle.filter(|_| process.has_variable(TOKEN, &self.token)))
    }

    fn encode(&self) -> Vec<u8> {
        let exited = self.exited.as_ref();
        let line = json!({
            "job": self.key.job,
            "history": self.key.history,
            "generation": self.key.generation,
            "rank": self.key.rank,
            "process": self.key.process,
            "token": self.token,
            "pid": self.process.map(|process| process.pid),
            "started": self.process.map(|process| process.started),
            "exited": exited.map(|exit| &exit.reason),
            "log_tail": exited.map(|exit| &exit.log_tail),
        });
        format!("{line}\n").into_bytes()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let line: Value = serde_json::from_slice(bytes).ok()?;
        let text = |name: &str| line[name].as_str().map(str::to_owned);
        let small = |name: &str| {
            line[name]
                .as_u64()
                .and_then(|number| number.try_into().ok())
        };
        let process = small("pid").zip(line["started"].as_u64());
        let exited = text("exited").map(|reason| Exit {
            reason,
            log_tail: text("log_tail").unwrap_or_default(),
        });
        Some(Self {
            key: v1::RankKey {
                job: text("job")?,
                history: line["history"].as_u64()?,
                generation: line["generation"].as_u64()?,
                rank: small("rank")?,
                process: line["process"].as_u64()?,
            },
            token: text("token")?,
            process: process.map(|(pid, started)| Identity { pid, started }),
            exited,
        })
    }
}

/// All files.
#[derive(Debug)]
pub(crate) struct Roster {
    folder: PathBuf,
    entries: Mutex<BTreeMap<Place, Entry>>,
}

impl Roster {
    /// Reads what an earlier daemon left. A file that says nothing of sense is removed.
    ///
    /// # Errors
    /// When the folder cannot be made or read.
    pub(crate) fn load(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let mut entries = BTreeMap::new();
        for file in fs::read_dir(folder)? {
            let path = file?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let entry = fs::read(&path).ok();
            let entry = entry.and_then(|bytes| Entry::decode(&bytes));
            let entry = entry.filter(|entry| is_name(&entry.key.job));
            match entry {
                Some(entry) => drop(entries.insert(place(&entry.key), entry)),
                None => {
                    tracing::warn!(file = %path.display(), "tells of no process; it is removed");
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(Self {
            folder: folder.to_owned(),
            entries: Mutex::new(entries),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Place, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, (job, process): &Place, extension: &str) -> PathBuf {
        self.folder.join(format!("{job}-p{process}.{extension}"))
    }

    /// The file with the place in a process's log up to which its lines were told.
    pub(crate) fn mark(&self, place: &Place) -> PathBuf {
        self.path(place, "told")
    }

    /// All processes, in the order of their places.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        self.lock().values().cloned().collect()
    }

    /// Writes a process down that is about to be started.
    ///
    /// # Errors
    /// When it cannot be written: then it must not be started.
    pub(crate) fn add(&self, key: &v1::RankKey, token: &str) -> io::Result<()> {
        // The name becomes part of a file's.
        convert::job_name(&key.job).map_err(io::Error::other)?;
        let entry = Entry {
            key: key.clone(),
            token: token.to_owned(),
            process: None,
            exited: None,
        };
        let place = place(key);
        write_whole(&self.path(&place, "json"), &entry.encode())?;
        self.lock().insert(place, entry);
        Ok(())
    }

    fn update(&self, place: &Place, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.lock();
        let Some(entry) = entries.get_mut(place) else {
            return;
        };
        let old = entry.clone();
        change(entry);
        if *entry == old {
            return;
        }
        if let Err(error) = write_whole(&self.path(place, "json"), &entry.encode()) {
            tracing::warn!(job = place.0, process = place.1, %error, "the file of a process is not up to date");
        }
    }

    /// It was started.
    pub(crate) fn started(&self, place: &Place, process: Identity) {
        self.update(place, |entry| entry.process = Some(process));
    }

    /// It was told to be this.
    pub(crate) fn told(&self, key: &v1::RankKey) {
        self.update(&place(key), |entry| entry.key = key.clone());
    }

    /// It ended.
    pub(crate) fn ended(&self, place: &Place, exit: Exit) {
        self.update(place, |entry| entry.exited = Some(exit));
    }

    /// Forgets those of whom nobody needs to hear any more.
    pub(crate) fn keep(&self, is_needed: impl Fn(&Place) -> bool) {
        self.lock().retain(|place, _| {
            let is_needed = is_needed(place);
            if !is_needed {
                for extension in ["json", "told"] {
                    // It may never have been written.
                    let _ = fs::remove_file(self.path(place, extension));
                }
            }
            is_needed
        });
    }
}

fn is_name(job: &str) -> bool {
    convert::job_name(job).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn key(job: &str, process: u64) -> v1::RankKey {
        v1::RankKey {
            job: job.to_owned(),
            history: 1,
            generation: 2,
            rank: 3,
            process,
        }
    }

    #[test]
    fn the_next_daemon_reads_what_the_last_one_wrote() {
        let folder = std::env::temp_dir().join(format!("muster-roster-{}", std::process::id()));
        let roster = Roster::load(&folder).unwrap();
        roster.add(&key("job", 7), "secret").unwrap();
        roster.add(&key("job", 8), "other").unwrap();
        assert!(roster.add(&key("../job", 9), "").is_err());
        let identity = Identity {
            pid: 77,
            started: 4711,
        };
        roster.started(&place(&key("job", 7)), identity);
        let told = v1::RankKey {
            generation: 5,
            ..key("job", 7)
        };
        roster.told(&told);
        let exit = Exit {
            reason: "signal 9".to_owned(),
            log_tail: "a\nb".to_owned(),
        };
        roster.ended(&place(&key("job", 8)), exit.clone());
        let file = folder.join("job-p7.json");
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "the token is nobody else's");

        fs::write(folder.join("torn.json"), "{\"job\":").unwrap();
        fs::write(folder.join("job-p9.new"), "").unwrap();
        let next = Roster::load(&folder).unwrap();
        let seven = Entry {
            key: told,
            token: "secret".to_owned(),
            process: Some(identity),
            exited: None,
        };
        let eight = Entry {
            key: key("job", 8),
            token: "other".to_owned(),
            process: None,
            exited: Some(exit),
        };
        assert_eq!(next.entries(), [seven.clone(), eight]);
        assert!(!folder.join("torn.json").exists());
        next.keep(|(_, process)| *process == 7);
        assert_eq!(Roster::load(&folder).unwrap().entries(), [seven]);
        fs::remove_dir_all(&folder).unwrap();
    }
}
