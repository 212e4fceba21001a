//! Writes checkpoint files beside training: one snapshot at a time, the next one waits.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::{io, thread};

use muster_cluster::error_chain;
use muster_proto::v1;
use muster_trainer::checkpoint::{self, CheckpointError, Content, Meta};
use muster_trainer::{DeviceError, Snapshot};
use v1::rank_report::Report;

use crate::halt;
use crate::shared::{Shared, Trouble};
use crate::work::failed;

/// The handing-over end.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    tasks: SyncSender<Task>,
}

/// A snapshot, and which files of it are to be written.
#[derive(Debug)]
struct Task {
    snapshot: Snapshot,
    files: Vec<Content>,
    /// The work ends behind it: without it the job cannot say that it is done.
    is_last: bool,
}

/// What is the same for all snapshots.
struct Place {
    folder: PathBuf,
    meta: Meta,
    num_files: u32,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(
        shared: Arc<Shared>,
        folder: PathBuf,
        meta: Meta,
        num_files: u32,
    ) -> io::Result<Self> {
        // Room for the one that `wait_for_writer` lets in, so that to hand it over takes no time.
        let (tasks, receiver) = sync_channel(1);
        let place = Place {
            folder,
            meta,
            num_files,
        };
        let of_thread = Arc::clone(&shared);
        thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || run(&of_thread, &receiver, &place))?;
        Ok(Self { shared, tasks })
    }

    /// Has these files of a snapshot written. It is taken when the one before is written: two at a
    /// time would be memory for nothing.
    ///
    /// # Errors
    /// When the world is closed meanwhile, however long a disk may take; when the device that has
    /// the state cannot be read.
    pub(crate) fn write(
        &self,
        snapshot: impl FnOnce() -> Result<Snapshot, DeviceError>,
        files: Vec<Content>,
        is_last: bool,
    ) -> Result<(), Trouble> {
        halt::at(&self.shared, "snapshot");
        self.shared.wait_for_writer()?;
        let snapshot = snapshot().map_err(|error| failed(&error))?;
        // The thread ends only after a failure, which it reported.
        let _ = self.tasks.send(Task {
            snapshot,
            files,
            is_last,
        });
        Ok(())
    }
}

fn run(shared: &Shared, tasks: &Receiver<Task>, place: &Place) {
    while let Ok(task) = tasks.recv() {
        let step = task.snapshot.step().0;
        if let Err(error) = write(shared, &task, place) {
            let reason = error_chain(&error);
            if task.is_last {
                return shared.fail(Trouble::Failed(format!(
                    "the last checkpoint, of step {step}, cannot be written: {reason}; mend that and \
                     run the job again: it goes on from the checkpoint before"
                )));
            }
            tracing::warn!(
                step,
                reason,
                "a checkpoint cannot be written and is left out"
            );
            let unwritten = v1::CheckpointUnwritten { step, reason };
            shared.mention(Report::CheckpointUnwritten(unwritten));
        }
        shared.writer_waits();
    }
}

/// Writes the files of a snapshot, and reports each.
fn write(shared: &Shared, task: &Task, place: &Place) -> Result<(), CheckpointError> {
    let snapshot = &task.snapshot;
    let step = snapshot.step().0;
    let arena_hash = snapshot.arena_hash().unwrap_or_default();
    let optimizer = snapshot.optimizer();
    let digest = |share: &u32| Some((*share, optimizer.digest(*share)?.to_vec()));
    let share_digests: BTreeMap<u32, Vec<u8>> =
        optimizer.shares.keys().filter_map(digest).collect();
    for content in &task.files {
        halt::of_checkpoint(shared, step, &format!("write {content}"));
        let bytes = checkpoint::encode(snapshot, *content, &place.meta);
        let written = checkpoint::publish(&place.folder, snapshot.step(), *content, &bytes)?;
        halt::of_checkpoint(shared, step, &format!("written {content}"));
        let part = v1::CheckpointPart {
            step,
            file: Some((&written).into()),
            num_files: place.num_files,
            folder: place.folder.display().to_string(),
            arena_hash: arena_hash.clone(),
            share_digests: share_digests.clone(),
            trace: snapshot.trace(),
        };
        shared.tell(|machine| machine.part_written(part));
    }
    Ok(())
}
