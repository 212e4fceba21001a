//! Backups: all that is true at one moment, in a folder of its own, from a group that runs; and new
//! groups that begin with one.
//!
//! ```text
//! DIR/backup.json        where in the log it was taken
//! DIR/snapshot           the state, as in a coordinator's folder
//! DIR/events/JOB.jsonl   the jobs' events
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use muster_coordinator_core::consensus::{HardState, Mark, Membership, Recovered, ReplicaId};
use muster_coordinator_core::{Snapshot, Taken};
use muster_proto::v1;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use v1::snapshot_piece::Piece;

use crate::driver::lengths_of;
use crate::founding::{FoundingError, founded};
use crate::identity::{IdentityError, write_durably};
use crate::peers::{PIECE_BYTES, Pieces};
use crate::records::{self, Lengths, Records};
use crate::serve::Group;
use crate::snapshots::{self, SnapshotError};
use crate::store::{Store, StoreError};

const FORMAT: u32 = 1;

/// Where in the log a backup was taken.
#[derive(Debug, Serialize, Deserialize)]
struct About {
    format: u32,
    index: u64,
    term: u64,
}

/// Why a backup cannot be taken or used.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The disk.
    #[error("{}: cannot be read or written", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There is something already.
    #[error("{}: it is not empty; give a folder that is, or that does not exist", .folder.display())]
    NotEmpty {
        /// The folder.
        folder: PathBuf,
    },
    /// The coordinator stopped sending.
    #[error("the coordinator sent no whole backup ({0}); remove what is there, and take it again")]
    Broken(String),
    /// It is no backup.
    #[error("{}: {reason}; expected what `muster coordinator backup` writes", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The snapshot in it.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The new store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new member.
    #[error(transparent)]
    Founding(#[from] FoundingError),
    /// The new member.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl BackupError {
    /// Whether what was asked for makes no sense, so that nothing was written.
    #[must_use]
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Self::NotEmpty { .. } | Self::Damaged { .. } | Self::Founding(_)
        )
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { path, source }
}

/// Sends what is true at one moment; the receiver sees whether all of it came.
pub(crate) async fn send(
    taken: Taken,
    records: &Records,
    sender: &mpsc::Sender<Result<v1::SnapshotPiece, Status>>,
) -> Result<(), Status> {
    let gone = || Status::cancelled("whoever asked is gone");
    let give = async |piece| {
        let piece = v1::SnapshotPiece { piece: Some(piece) };
        sender.send(Ok(piece)).await.map_err(|_| gone())
    };
    let failed = |error: io::Error| Status::internal(format!("the events cannot be read: {error}"));
    let Taken { mark, snapshot } = taken;
    let lengths = lengths_of(&snapshot);
    give(Piece::Head(v1::SnapshotHead {
        hello: None,
        index: mark.index,
        term: mark.term,
    }))
    .await?;
    let bytes = tokio::task::spawn_blocking(move || snapshots::bytes_of(&snapshot)).await;
    let bytes = bytes.map_err(|error| Status::internal(error.to_string()))?;
    for piece in bytes.chunks(PIECE_BYTES) {
        give(Piece::File(piece.to_vec())).await?;
    }
    for (job, length) in lengths {
        let path = records::path_of(records.folder(), &job);
        let mut pieces = Pieces::open(&path, 0..length).await.map_err(failed)?;
        while let Some((offset, bytes)) = pieces.next().await.map_err(failed)? {
            let job = job.clone();
            give(Piece::Events(v1::EventPiece { job, offset, bytes })).await?;
        }
    }
    give(Piece::Message(Vec::new())).await
}

/// Writes a backup that a coordinator sends into a folder, which must be empty; returns the last entry
/// that it covers. It is durable and whole, or there is none.
///
/// # Errors
/// When the disk fails, or the stream.
pub async fn receive(
    mut pieces: Streaming<v1::SnapshotPiece>,
    folder: &Path,
) -> Result<u64, BackupError> {
    must_be_empty(folder)?;
    let events = folder.join("events");
    fs::create_dir_all(&events).map_err(io_error(&events))?;
    let mut about = None;
    let mut received = Lengths::new();
    let path = folder.join("snapshot");
    let mut snapshot = File::create(&path).map_err(io_error(&path))?;
    loop {
        let piece = pieces.message().await;
        let piece = piece.map_err(|status| BackupError::Broken(status.message().to_owned()))?;
        let piece = piece.ok_or_else(|| BackupError::Broken("it ended too early".to_owned()))?;
        match piece.piece {
            Some(Piece::Head(head)) => {
                about = Some(About {
                    format: FORMAT,
                    index: head.index,
                    term: head.term,
                });
            }
            Some(Piece::File(bytes)) => snapshot.write_all(&bytes).map_err(io_error(&path))?,
            Some(Piece::Events(piece)) => {
                // The name becomes a file's.
                muster_proto::convert::job_name(&piece.job)
                    .map_err(|error| BackupError::Broken(error.to_string()))?;
                let path = records::path_of(&events, &piece.job);
                let file = OpenOptions::new().create(true).append(true).open(&path);
                let written = file.and_then(|mut file| file.write_all(&piece.bytes));
                written.map_err(io_error(&path))?;
                *received.entry(piece.job).or_default() += piece.bytes.len() as u64;
            }
            Some(Piece::Message(_)) => break,
            None => {}
        }
    }
    let about = about.ok_or_else(|| BackupError::Broken("it has no head".to_owned()))?;
    drop(snapshot);
    let (snapshot, _) = read_snapshot(folder)?;
    for (job, expected) in lengths_of(&snapshot) {
        let found = received.get(&job).copied().unwrap_or_default();
        if found != expected {
            let reason =
                format!("{found} bytes of the events of {job} came, and there are {expected}");
            return Err(BackupError::Broken(reason));
        }
    }
    let synced = File::open(folder).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
    synced.map_err(io_error(folder))?;
    // Only now is it one.
    let path = folder.join("backup.json");
    let text = serde_json::to_vec(&about).map_err(io::Error::other);
    let written = text.and_then(|text| write_durably(&path, &text));
    written.map_err(io_error(&path))?;
    Ok(about.index)
}

/// Makes the data folder of a member of a new group that begins with a backup. Every member of the
/// group is made from the same backup. Returns how many jobs there are.
///
/// # Errors
/// When the backup is damaged, the folder is not empty, or the disk fails.
pub fn restore(
    backup: &Path,
    data: &Path,
    group: &Group,
    listens: std::net::SocketAddr,
) -> Result<usize, BackupError> {
    must_be_empty(data)?;
    // Before anything is written; the log, whose id belongs there, is made only then.
    founded(group, listens, [0; 16])?;
    let (about, snapshot, hash) = read(backup)?;
    let lengths = lengths_of(&snapshot);
    for (job, expected) in &lengths {
        let path = records::path_of(&backup.join("events"), job);
        let found = fs::metadata(&path).map_err(io_error(&path))?.len();
        if found < *expected {
            let reason = format!("it has {found} bytes of {expected}");
            return Err(BackupError::Damaged { path, reason });
        }
    }
    let events = data.join("events");
    let snapshots = data.join("snapshots");
    for folder in [&events, &snapshots] {
        fs::create_dir_all(folder).map_err(io_error(folder))?;
    }
    for job in lengths.keys() {
        let from = records::path_of(&backup.join("events"), job);
        fs::copy(&from, records::path_of(&events, job)).map_err(io_error(&from))?;
    }
    let (mut store, recovered, meta) = Store::open(&data.join("log"))?;
    debug_assert_eq!(recovered, Recovered::default(), "the folder was empty");
    let mut identity = founded(group, listens, meta.cluster_id)?;
    // Not the cluster that the backup was taken of, though its members are where they were: one of
    // that which comes back late, with votes and entries of its own, must not be taken for one of this.
    identity.cluster_id = begun_with(identity.cluster_id, hash);
    let founders: Vec<ReplicaId> = identity.founders.keys().copied().collect();
    let snapshot = snapshot.in_group(identity.cluster_id, &identity.founders);
    snapshots::write(&snapshots, about.index, &snapshot)?;
    let mark = Mark {
        index: about.index,
        term: about.term,
        membership: Membership::of(founders),
    };
    let hard_state = HardState {
        term: mark.term,
        vote: 0,
        commit: mark.index,
    };
    let synced = File::open(data).and_then(|folder| Ok(rustix::fs::syncfs(folder)?));
    synced.map_err(io_error(data))?;
    store.append(&[], Some(hard_state), Some(&mark))?;
    store.sync()?;
    // Last: a folder that nobody owns is refused, and one that is owned has its state.
    identity.write(data)?;
    Ok(lengths.len())
}

/// The cluster of those that begin with the same backup.
fn begun_with(cluster_id: [u8; 16], snapshot: blake3::Hash) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&cluster_id).update(snapshot.as_bytes());
    let mut begun = [0; 16];
    hasher.finalize_xof().fill(&mut begun);
    begun
}

fn read(backup: &Path) -> Result<(About, Snapshot, blake3::Hash), BackupError> {
    let path = backup.join("backup.json");
    let text = fs::read(&path).map_err(io_error(&path))?;
    let about: About = serde_json::from_slice(&text).map_err(|error| BackupError::Damaged {
        path: path.clone(),
        reason: error.to_string(),
    })?;
    if about.format != FORMAT {
        let reason = format!(
            "it has format {}, this program reads {FORMAT}",
            about.format
        );
        return Err(BackupError::Damaged { path, reason });
    }
    let (snapshot, hash) = read_snapshot(backup)?;
    Ok((about, snapshot, hash))
}

/// The state in a backup, and the hash of its file.
fn read_snapshot(backup: &Path) -> Result<(Snapshot, blake3::Hash), BackupError> {
    let path = backup.join("snapshot");
    let bytes = fs::read(&path).map_err(io_error(&path))?;
    match snapshots::parse(&bytes) {
        Ok(snapshot) => Ok((snapshot, blake3::hash(&bytes))),
        Err(reason) => Err(BackupError::Damaged { path, reason }),
    }
}

fn must_be_empty(folder: &Path) -> Result<(), BackupError> {
    let num_files = match fs::read_dir(folder) {
        Ok(files) => files.count(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(io_error(folder)(error)),
    };
    if num_files > 0 {
        let folder = folder.to_owned();
        return Err(BackupError::NotEmpty { folder });
    }
    Ok(())
}
