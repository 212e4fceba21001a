//! How files of checkpoints reach a folder, are read back, and leave it.
//!
//! ```text
//! publish:  .NAME.PID-N.tmp --write, fsync--> --link, never replacing--> NAME --fsync folder--> durable
//! ```
//! `NAME` is `step-<step>-<logical>-<first 16 hex digits of BLAKE3>.safetensors`, so equal content
//! has one name, and a name is never written twice with different content.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use muster_cluster::Step;

use super::{CheckpointError, Content, FileRef};

const SUFFIX: &str = ".safetensors";
const HEX_DIGITS: usize = 16;

/// Tells the temporary files of this process apart.
static NEXT_TEMPORARY: AtomicU64 = AtomicU64::new(0);

/// Writes a file durably under the name that its content gives it, making the folder where there
/// is none. Writing the same content again is fine.
///
/// # Errors
/// When the file system refuses, or a file of that name has other content; nothing is replaced.
pub fn publish(
    folder: &Path,
    step: Step,
    content: Content,
    bytes: &[u8],
) -> Result<FileRef, CheckpointError> {
    let hash = blake3::hash(bytes).to_hex().to_string();
    let name = format!(
        "step-{:08}-{content}-{}{SUFFIX}",
        step.0,
        &hash[..HEX_DIGITS]
    );
    let file = FileRef {
        name,
        bytes: bytes.len() as u64,
        hash,
    };
    create_durably(folder)?;
    let path = folder.join(&file.name);
    let (temporary, opened) = create_temporary(folder, &file.name)?;
    let linked = write_durably(opened, bytes)
        .map_err(io_error("write", &temporary))
        .and_then(|()| link(&temporary, &path));
    let removed = fs::remove_file(&temporary);
    if !linked? {
        read_verified(folder, &file)?;
    }
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(io_error("remove", &temporary)(error));
    }
    // The name must survive a power loss as well, not only the content.
    sync_folder(folder)?;
    Ok(file)
}

/// Makes a folder, and those above it, so that a power loss does not take them away again.
fn create_durably(folder: &Path) -> Result<(), CheckpointError> {
    let missing: Vec<&Path> = folder
        .ancestors()
        .take_while(|path| !path.exists())
        .collect();
    fs::create_dir_all(folder).map_err(io_error("create folder", folder))?;
    missing
        .into_iter()
        .filter_map(Path::parent)
        .try_for_each(sync_folder)
}

/// Makes the names in a folder durable.
fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    // The parent of a relative name is the empty path.
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync folder", folder))
}

/// A new file beside `name`. A process that had our number and was killed may have left its own,
/// which stays: on a shared folder it may be another machine's, and in use.
fn create_temporary(folder: &Path, name: &str) -> Result<(PathBuf, File), CheckpointError> {
    loop {
        let path = folder.join(temporary_name(name));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((path, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io_error("create", &path)(error)),
        }
    }
}

fn write_durably(mut file: File, bytes: &[u8]) -> io::Result<()> {
    file.write_all(bytes)?;
    file.sync_all()
}

/// Gives a file a second name; `false` where the name is taken.
fn link(from: &Path, to: &Path) -> Result<bool, CheckpointError> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(io_error("publish", to)(error)),
    }
}

/// The bytes of one file of a checkpoint that has all of these, as [`read_verified`] reads it.
///
/// # Errors
/// As there. A file that is not there while others of its checkpoint are is [`CheckpointError::Gone`]:
/// it was taken away, where a folder that is not there may only be out of reach.
pub fn read_part(
    folder: &Path,
    file: &FileRef,
    all: &[FileRef],
) -> Result<Vec<u8>, CheckpointError> {
    let is_there =
        |other: &FileRef| step_of(&other.name).is_some() && folder.join(&other.name).is_file();
    match read_verified(folder, file) {
        Err(CheckpointError::Io { path, source, .. })
            if source.kind() == io::ErrorKind::NotFound && all.iter().any(is_there) =>
        {
            Err(CheckpointError::Gone { path })
        }
        read => read,
    }
}

/// The bytes of a file, if they are those that were published.
///
/// # Errors
/// When the name is none of ours, the file cannot be read, or its size or hash is another.
pub fn read_verified(folder: &Path, file: &FileRef) -> Result<Vec<u8>, CheckpointError> {
    // The name came over a socket: only one of ours is joined to the folder.
    if step_of(&file.name).is_none() {
        return Err(CheckpointError::BadName {
            name: file.name.clone(),
        });
    }
    let path = folder.join(&file.name);
    let read = io_error("read checkpoint file", &path);
    let metadata = fs::metadata(&path).map_err(&read)?;
    let wrong_size = |found| CheckpointError::WrongSize {
        path: path.clone(),
        expected: file.bytes,
        found,
    };
    if !metadata.is_file() {
        return Err(read(io::Error::other("not a regular file")));
    }
    if metadata.len() != file.bytes {
        return Err(wrong_size(metadata.len()));
    }
    let opened = File::open(&path).map_err(&read)?;
    let mut bytes = Vec::new();
    // One byte more than expected is enough to see that the file grows.
    opened
        .take(file.bytes.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(&read)?;
    if bytes.len() as u64 != file.bytes {
        return Err(wrong_size(bytes.len() as u64));
    }
    let found = blake3::hash(&bytes).to_hex().to_string();
    if found != file.hash {
        return Err(CheckpointError::WrongHash {
            path,
            expected: file.hash.clone(),
            found,
        });
    }
    Ok(bytes)
}

/// Whether files can be written into a folder, or into the nearest one above it that exists.
/// Leaves nothing behind.
///
/// # Errors
/// With the folder that refused, and why.
pub fn check_writable(folder: &Path) -> Result<(), CheckpointError> {
    let mut existing = folder;
    while !existing.as_os_str().is_empty()
        && fs::symlink_metadata(existing)
            .is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
        && let Some(above) = existing.parent()
    {
        existing = above;
    }
    let existing = if existing.as_os_str().is_empty() {
        Path::new(".")
    } else {
        existing
    };
    let refused = io_error("write checkpoints into", folder);
    let (probe, _file) =
        create_temporary(existing, "muster-probe").map_err(|error| match error {
            CheckpointError::Io { source, .. } => refused(source),
            other => other,
        })?;
    fs::remove_file(&probe).map_err(refused)
}

/// Removes the checkpoint files that no manifest refers to any more: those with a name of ours
/// that is not in `keep`, and whose step is not above the newest step in `keep`. Files of newer
/// steps may belong to a checkpoint that is being written. Left-overs of interrupted writes go
/// once their step is below the newest. Returns the names that were removed, in order.
///
/// # Errors
/// When the folder cannot be read or a file cannot be removed.
pub fn remove_retired(folder: &Path, keep: &[String]) -> Result<Vec<String>, CheckpointError> {
    let Some(newest) = keep.iter().filter_map(|name| step_of(name)).max() else {
        return Ok(Vec::new());
    };
    let mut retired = BTreeSet::new();
    for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
        let name = entry.map_err(io_error("list", folder))?.file_name();
        // A name that is not UTF-8 is none of ours.
        let Some(name) = name.to_str() else { continue };
        let is_file = step_of(name).is_some_and(|step| step <= newest)
            && !keep.iter().any(|kept| kept == name);
        let is_left_over = step_of_temporary(name).is_some_and(|step| step < newest);
        if is_file || is_left_over {
            retired.insert(name.to_owned());
        }
    }
    for name in &retired {
        let path = folder.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove retired checkpoint file", &path)(error));
            }
            // Another rank may have been faster.
            _ => {}
        }
    }
    Ok(retired.into_iter().collect())
}

fn step_of(name: &str) -> Option<u64> {
    parse(name).map(|(step, _)| step)
}

/// The step of a file and what is in it, where the name is exactly one that [`publish`] gives.
pub(super) fn parse(name: &str) -> Option<(u64, Content)> {
    let rest = name.strip_prefix("step-")?.strip_suffix(SUFFIX)?;
    let mut parts = rest.split('-');
    let (step, logical, hash) = (parts.next()?, parts.next()?, parts.next()?);
    let content = Content::of_logical(logical)?;
    let is_ours = parts.next().is_none()
        && step.len() >= 8
        && step.bytes().all(|byte| byte.is_ascii_digit())
        && hash.len() == HEX_DIGITS
        && hash
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let step = step.parse().ok().filter(|_| is_ours)?;
    Some((step, content))
}

/// The step of a temporary file, where the name is one of [`temporary_name`].
fn step_of_temporary(name: &str) -> Option<u64> {
    let (name, _process) = name
        .strip_prefix('.')?
        .strip_suffix(".tmp")?
        .rsplit_once('.')?;
    step_of(name)
}

fn temporary_name(name: &str) -> String {
    let number = NEXT_TEMPORARY.fetch_add(1, Ordering::Relaxed);
    format!(".{name}.{}-{number}.tmp", std::process::id())
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> CheckpointError + use<> {
    let path: PathBuf = path.to_owned();
    move |source| CheckpointError::Io {
        action,
        path: path.clone(),
        source,
    }
}
