//! Snapshots as files: `snapshot-INDEX` holds the state behind that entry of the log. A file is written
//! whole, and durable before anything relies on it.
//!
//! ```text
//! "muster snapshot 2\n" | the message | BLAKE3 of all before it, 32 bytes
//! ```
//!
//! Version 1 had no specs, and every job as one that goes on.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use muster_coordinator_core::consensus::Mark;
use muster_coordinator_core::{Snapshot, Taken};

use crate::identity::write_parts_durably;
use crate::records::Records;
use crate::store::WAY_OUT;

const MAGIC: &[u8] = b"muster snapshot 2\n";
/// How files begin that are read too.
const MAGIC_1: &[u8] = b"muster snapshot 1\n";
const HASH_BYTES: usize = 32;
const BUFFER_BYTES: usize = 1 << 16;

/// Why a snapshot cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The disk.
    #[error("{}: the snapshot cannot be read or written", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It is not as it was written.
    #[error("{}: the snapshot is damaged: {reason}; {}", .path.display(), WAY_OUT)]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

pub(crate) fn path_of(folder: &Path, index: u64) -> PathBuf {
    folder.join(format!("snapshot-{index}"))
}

/// Reads the snapshot behind an entry.
pub(crate) fn load(folder: &Path, index: u64) -> Result<Snapshot, SnapshotError> {
    let path = path_of(folder, index);
    match fs::read(&path) {
        Ok(bytes) => parse(&bytes).map_err(|reason| SnapshotError::Damaged { path, reason }),
        Err(source) => Err(SnapshotError::Io { path, source }),
    }
}

/// A snapshot from the bytes of a file.
pub(crate) fn parse(bytes: &[u8]) -> Result<Snapshot, String> {
    let end = bytes.len().saturating_sub(HASH_BYTES);
    let (content, hash) = bytes.split_at(end);
    if blake3::hash(content).as_bytes() != hash {
        return Err("its hash does not fit".to_owned());
    }
    let message = content.strip_prefix(MAGIC);
    match message.or_else(|| content.strip_prefix(MAGIC_1)) {
        Some(message) => Snapshot::decode(message),
        None => Err("another version wrote it; use that one".to_owned()),
    }
}

pub(crate) fn bytes_of(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_to(&mut bytes, snapshot).expect("a vector takes all");
    bytes
}

/// Writes the bytes of a file, part by part; returns how many they are.
fn write_to(to: &mut impl Write, snapshot: &Snapshot) -> io::Result<u64> {
    let mut hasher = blake3::Hasher::new();
    for part in std::iter::once(MAGIC.to_vec()).chain(snapshot.parts()) {
        hasher.update(&part);
        to.write_all(&part)?;
    }
    to.write_all(hasher.finalize().as_bytes())?;
    Ok(hasher.count() + HASH_BYTES as u64)
}

/// Writes the snapshot behind an entry; returns the size of its file.
pub(crate) fn write(folder: &Path, index: u64, snapshot: &Snapshot) -> Result<u64, SnapshotError> {
    let path = path_of(folder, index);
    let written = write_parts_durably(&path, |file| {
        let mut file = BufWriter::with_capacity(BUFFER_BYTES, file);
        let num_bytes = write_to(&mut file, snapshot)?;
        file.flush()?;
        Ok(num_bytes)
    });
    written.map_err(|source| SnapshotError::Io { path, source })
}

/// Removes those below the one that the log rests on, but for the newest of them, which a member may
/// be receiving.
fn remove_old(folder: &Path, index: u64) -> io::Result<()> {
    let mut found = Vec::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        let name = file.file_name();
        let name = name
            .to_str()
            .and_then(|name| name.strip_prefix("snapshot-"));
        found.extend(name.and_then(|index| index.parse::<u64>().ok()));
    }
    found.retain(|other| *other < index);
    found.sort_unstable();
    found.pop();
    for old in found {
        fs::remove_file(path_of(folder, old))?;
    }
    Ok(())
}

/// The thread that writes snapshots, and what it is given.
#[derive(Clone, Debug)]
pub(crate) struct Snapshotter(Sender<Item>);

#[derive(Debug)]
enum Item {
    Write(Box<Taken>),
    /// The log rests on this one.
    RemoveBelow(u64),
}

/// Removes what a coordinator that died had begun to write.
pub(crate) fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for file in fs::read_dir(folder)? {
        let path = file?.path();
        if path.extension().is_some_and(|end| end == "tmp") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

impl Snapshotter {
    /// Starts the thread. `done` is told each time.
    pub(crate) fn spawn(
        folder: PathBuf,
        records: Records,
        done: impl Fn(Result<(Mark, u64), SnapshotError>) + Send + 'static,
    ) -> io::Result<Self> {
        let (sender, receiver) = channel();
        thread::Builder::new()
            .name("snapshots".to_owned())
            .spawn(move || run(&folder, &records, &receiver, done))?;
        Ok(Self(sender))
    }

    /// Has a snapshot written.
    pub(crate) fn write(&self, taken: Box<Taken>) {
        // The thread ends only with the process.
        let _ = self.0.send(Item::Write(taken));
    }

    /// The log rests on this one: those before are needed no more.
    pub(crate) fn remove_below(&self, index: u64) {
        let _ = self.0.send(Item::RemoveBelow(index));
    }
}

fn run(
    folder: &Path,
    records: &Records,
    items: &Receiver<Item>,
    done: impl Fn(Result<(Mark, u64), SnapshotError>),
) {
    while let Ok(item) = items.recv() {
        let taken = match item {
            Item::Write(taken) => taken,
            Item::RemoveBelow(index) => {
                if let Err(error) = remove_old(folder, index) {
                    tracing::warn!(folder = %folder.display(), %error, "old snapshots stay");
                }
                continue;
            }
        };
        let Taken { mark, snapshot } = *taken;
        // The events that it counts are durable before it is.
        if !records.sync() {
            return;
        }
        let written = write(folder, mark.index, &snapshot);
        drop(snapshot);
        done(written.map(|num_bytes| (mark, num_bytes)));
    }
}
