//! Writes checkpoint files beside training: one snapshot at a time, the next one waits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::{io, thread};

use muster_cluster::error_chain;
use muster_proto::v1;
use muster_trainer::Snapshot;
use muster_trainer::checkpoint::{self, FILES, Meta};

use crate::shared::{Shared, Trouble};

/// The handing-over end.
#[derive(Debug)]
pub(crate) struct Writer {
    snapshots: SyncSender<(Snapshot, Vec<u32>)>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(shared: Arc<Shared>, folder: PathBuf, meta: Meta) -> io::Result<Self> {
        // Nothing waits in the channel: a second snapshot would be memory for nothing.
        let (snapshots, receiver) = sync_channel(0);
        thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || run(&shared, &receiver, &folder, &meta))?;
        Ok(Self { snapshots })
    }

    /// Hands a snapshot over, of which the files with these numbers are to be written; waits while
    /// the one before is being written.
    pub(crate) fn write(&self, snapshot: Snapshot, files: Vec<u32>) {
        // The thread ends only after a failure, which it reported.
        let _ = self.snapshots.send((snapshot, files));
    }
}

fn run(shared: &Shared, snapshots: &Receiver<(Snapshot, Vec<u32>)>, folder: &Path, meta: &Meta) {
    while let Ok((snapshot, files)) = snapshots.recv() {
        let (arena_hash, optimizer_hash) = (snapshot.arena_hash(), snapshot.optimizer_hash());
        for file in files {
            let Some(name) = FILES.get(file as usize) else {
                continue;
            };
            let bytes = checkpoint::encode(&snapshot, name, meta);
            let written = match checkpoint::publish(folder, snapshot.step(), name, &bytes) {
                Ok(written) => written,
                Err(error) => {
                    let reason = error_chain(&error);
                    return shared.fail(Trouble::Failed(format!(
                        "no checkpoint can be written: {reason}"
                    )));
                }
            };
            let part = v1::CheckpointPart {
                step: snapshot.step().0,
                file: Some((&written).into()),
                num_files: u32::try_from(FILES.len()).unwrap_or(u32::MAX),
                folder: folder.display().to_string(),
                arena_hash: arena_hash.clone(),
                optimizer_hash: optimizer_hash.clone(),
                trace: snapshot.trace(),
            };
            shared.tell(|machine| machine.part_written(part));
        }
    }
}
