//! The thread that owns a store and lets waiting batches share one sync (group commit).
//!
//! What a batch is worth, and who hears of it, is the caller's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::{io, thread};

use muster_coordinator_core::consensus::{Entry, HardState, Mark};

use super::{Store, StoreError};

/// Batches that may wait. When they do, [`StoreThread::write`] waits too: consensus must not run
/// further ahead of its disk, and nothing that waits here is acknowledged to anybody.
const MAX_WAITING_BATCHES: usize = 1024;

/// What must become durable together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its number, for the report.
    pub batch: u64,
    /// As for [`Store::append`].
    pub entries: Vec<Entry>,
    /// As for [`Store::append`].
    pub hard_state: Option<HardState>,
    /// As for [`Store::append`].
    pub restore: Option<Mark>,
}

/// What became of batches.
#[derive(Debug)]
pub enum Report {
    /// This batch is durable, and all that were written before it.
    Durable {
        /// Its number.
        batch: u64,
    },
    /// The store failed. It is reported once; nothing that was not reported durable can be relied
    /// on, and the thread has ended.
    Failed(StoreError),
}

/// The thread has ended, after a failure that it has reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has failed and takes no more batches")]
pub struct Stopped;

/// The handle of the thread. Dropping it writes what waits, ends the thread and closes the store.
#[derive(Debug)]
pub struct StoreThread {
    /// `None` once the thread is told to end.
    batches: Option<SyncSender<Batch>>,
    thread: Option<JoinHandle<()>>,
    num_syncs: Arc<AtomicU64>,
}

impl StoreThread {
    /// Gives a store to a thread of its own. `report` is called on that thread, in the order of the
    /// batches; it must not wait for whoever calls [`StoreThread::write`].
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn spawn(store: Store, report: impl FnMut(Report) + Send + 'static) -> io::Result<Self> {
        let num_syncs = Arc::clone(&store.num_syncs);
        let (sender, receiver) = sync_channel(MAX_WAITING_BATCHES);
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || run(store, receiver, report))?;
        Ok(Self {
            batches: Some(sender),
            thread: Some(thread),
            num_syncs,
        })
    }

    /// Hands over a batch. Waits while 1024 are waiting already.
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn write(&self, batch: Batch) -> Result<(), Stopped> {
        self.batches
            .as_ref()
            .ok_or(Stopped)?
            .send(batch)
            .map_err(|_| Stopped)
    }

    /// How many syncs were done since the store was opened.
    #[must_use]
    pub fn num_syncs(&self) -> u64 {
        self.num_syncs.load(Ordering::SeqCst)
    }

    /// Writes what waits, ends the thread and closes the store, so that it can be opened again.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for StoreThread {
    fn drop(&mut self) {
        self.batches = None;
        if let Some(thread) = self.thread.take() {
            // It only panics where `report` does, and that has been told already.
            let _ = thread.join();
        }
    }
}

fn run(mut store: Store, batches: Receiver<Batch>, mut report: impl FnMut(Report)) {
    while let Ok(first) = batches.recv() {
        // No more than the bound at once, so that a steady stream still gets its reports.
        let rest = batches.try_iter().take(MAX_WAITING_BATCHES);
        match write_all(&mut store, std::iter::once(first).chain(rest)) {
            Ok(durable) => durable
                .into_iter()
                .for_each(|batch| report(Report::Durable { batch })),
            Err(error) => {
                // The store is closed, and takes nothing more, before anybody can act on the report.
                drop(store);
                drop(batches);
                report(Report::Failed(error));
                return;
            }
        }
    }
}

/// Appends all batches, then syncs once; returns their numbers.
fn write_all(
    store: &mut Store,
    batches: impl Iterator<Item = Batch>,
) -> Result<Vec<u64>, StoreError> {
    let mut written = Vec::new();
    for Batch {
        batch,
        entries,
        hard_state,
        restore,
    } in batches
    {
        store.append(&entries, hard_state, restore.as_ref())?;
        written.push(batch);
    }
    store.sync()?;
    Ok(written)
}
