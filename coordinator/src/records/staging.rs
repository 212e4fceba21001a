//! Events that came with a snapshot, on their way into the jobs' files: `incoming-INDEX/JOB@OFFSET`
//! holds what follows the first OFFSET bytes of the job's file. They are durable before the snapshot
//! counts; putting them in their places may be done again and again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::{Lengths, RecordsError, io_error, path_of};

/// What the names of such folders begin with.
const STAGING: &str = "incoming-";

/// Where what comes with the snapshot of an entry waits.
pub(crate) fn staging_folder(events: &Path, index: u64) -> PathBuf {
    events.join(format!("{STAGING}{index}"))
}

/// What follows the beginning of a job's file.
pub(crate) struct Staged;

impl Staged {
    pub(crate) fn name(job: &str, offset: u64) -> String {
        format!("{job}@{offset}")
    }

    fn parse(name: &str) -> Option<(String, u64)> {
        let (job, offset) = name.rsplit_once('@')?;
        Some((job.to_owned(), offset.parse().ok()?))
    }
}

/// Makes the files at least as long as they are to be behind an entry, with what came with its snapshot,
/// and removes what other snapshots came with. What a file has beyond is written over when the log is
/// applied again: to cut thousands of files takes seconds.
pub(super) fn install(folder: &Path, index: u64, lengths: &Lengths) -> Result<(), RecordsError> {
    let staging = staging_folder(folder, index);
    let staged = list(&staging).map_err(|source| io_error(&staging, source))?;
    for (job, offset) in &staged {
        let path = path_of(folder, job);
        append_behind(&path, *offset, &staging.join(Staged::name(job, *offset)))
            .map_err(|source| io_error(&path, source))?;
    }
    let files = fs::read_dir(folder).map_err(|source| io_error(folder, source))?;
    let mut found: BTreeMap<String, u64> = BTreeMap::new();
    let mut old = Vec::new();
    for file in files {
        let path = file.map_err(|source| io_error(folder, source))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.unwrap_or_default();
        if let Some(job) = name.strip_suffix(".jsonl") {
            let length = fs::metadata(&path).map_err(|source| io_error(&path, source))?;
            found.insert(job.to_owned(), length.len());
        } else if let Some(other) = name.strip_prefix(STAGING) {
            // One that is newer may be arriving.
            let other = other.parse().unwrap_or(index);
            if other <= index && path != staging {
                old.push(path);
            }
        }
    }
    for (job, expected) in lengths {
        let found = found.get(job).copied().unwrap_or_default();
        if found < *expected {
            return Err(RecordsError::Short {
                path: path_of(folder, job),
                found,
                expected: *expected,
            });
        }
    }
    if !staged.is_empty() {
        sync(folder).map_err(|source| io_error(folder, source))?;
        old.push(staging);
    }
    for path in old {
        fs::remove_dir_all(&path).map_err(|source| io_error(&path, source))?;
    }
    Ok(())
}

fn list(staging: &Path) -> io::Result<Vec<(String, u64)>> {
    let files = match fs::read_dir(staging) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut staged = Vec::new();
    for file in files {
        let name = file?.file_name();
        staged.extend(name.to_str().and_then(Staged::parse));
    }
    Ok(staged)
}

fn append_behind(path: &Path, offset: u64, staged: &Path) -> io::Result<()> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    if file.metadata()?.len() < offset {
        return Err(io::Error::other(format!(
            "it has less than the {offset} bytes that are to be continued"
        )));
    }
    file.set_len(offset)?;
    io::copy(&mut File::open(staged)?, &mut &file)?;
    Ok(())
}

fn sync(folder: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}
