//! Writes checkpoint files beside training: one snapshot at a time, the next one waits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::{io, thread};

use muster_cluster::error_chain;
use muster_proto::v1;
use muster_trainer::Snapshot;
use muster_trainer::checkpoint::{self, Content, Meta};

use crate::halt;
use crate::shared::{Shared, Trouble};

/// The handing-over end.
#[derive(Debug)]
pub(crate) struct Writer {
    snapshots: SyncSender<(Snapshot, Vec<Content>)>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(
        shared: Arc<Shared>,
        folder: PathBuf,
        meta: Meta,
        num_files: u32,
    ) -> io::Result<Self> {
        // Nothing waits in the channel: a second snapshot would be memory for nothing.
        let (snapshots, receiver) = sync_channel(0);
        thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || run(&shared, &receiver, &folder, &meta, num_files))?;
        Ok(Self { snapshots })
    }

    /// Hands a snapshot over, of which these files are to be written; waits while
    /// the one before is being written.
    pub(crate) fn write(&self, snapshot: Snapshot, files: Vec<Content>) {
        // The thread ends only after a failure, which it reported.
        let _ = self.snapshots.send((snapshot, files));
    }
}

fn run(
    shared: &Shared,
    snapshots: &Receiver<(Snapshot, Vec<Content>)>,
    folder: &Path,
    meta: &Meta,
    num_files: u32,
) {
    while let Ok((snapshot, files)) = snapshots.recv() {
        let arena_hash = snapshot.arena_hash().unwrap_or_default();
        let optimizer = snapshot.optimizer();
        let digest = |share: &u32| Some((*share, optimizer.digest(*share)?.to_vec()));
        let share_digests: BTreeMap<u32, Vec<u8>> =
            optimizer.shares.keys().filter_map(digest).collect();
        for content in files {
            let step = snapshot.step().0;
            halt::of_checkpoint(shared, step, &format!("write {content}"));
            let bytes = checkpoint::encode(&snapshot, content, meta);
            let written = match checkpoint::publish(folder, snapshot.step(), content, &bytes) {
                Ok(written) => written,
                Err(error) => {
                    let reason = error_chain(&error);
                    return shared.fail(Trouble::Failed(format!(
                        "no checkpoint can be written: {reason}"
                    )));
                }
            };
            halt::of_checkpoint(shared, step, &format!("written {content}"));
            let part = v1::CheckpointPart {
                step,
                file: Some((&written).into()),
                num_files,
                folder: folder.display().to_string(),
                arena_hash: arena_hash.clone(),
                share_digests: share_digests.clone(),
                trace: snapshot.trace(),
            };
            shared.tell(|machine| machine.part_written(part));
        }
    }
}
