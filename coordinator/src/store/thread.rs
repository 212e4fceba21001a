//! The thread that owns a store and lets waiting batches share one sync (group commit).
//!
//! What a batch is worth, and who hears of it, is the caller's.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;
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

/// What the thread is given, in order.
#[derive(Debug)]
enum Item {
    Batch(Batch),
    /// The log rests on a snapshot that ends here.
    Rest(Mark),
    /// Entries through this one are needed no more.
    Discard(u64),
}

/// What became of batches.
#[derive(Debug)]
pub enum Report {
    /// This batch is durable, and all that were written before it.
    Durable {
        /// Its number.
        batch: u64,
    },
    /// The log rests on the snapshot that ends here, also after a loss of power.
    Rests {
        /// Where.
        mark: Mark,
    },
    /// The store failed. It is reported once; nothing that was not reported durable can be relied
    /// on, and the thread has ended.
    Failed(StoreError),
}

/// The thread has ended, after a failure that it has reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has failed and takes no more batches")]
pub struct Stopped;

/// The handle of the thread. Dropping it writes the batches that wait, ends the thread and closes the
/// store.
#[derive(Debug)]
pub struct StoreThread {
    /// `None` once the thread is told to end.
    items: Option<SyncSender<Item>>,
    thread: Option<JoinHandle<()>>,
    syncs: Arc<Syncs>,
}

/// How often a store was synced, and how long that took.
#[derive(Debug, Default)]
pub struct Syncs {
    num: AtomicU64,
    total_us: AtomicU64,
}

impl Syncs {
    /// How often, since the store was opened.
    #[must_use]
    pub fn num(&self) -> u64 {
        self.num.load(Ordering::Relaxed)
    }

    /// How long a sync took with the writes before it, in the mean, in microseconds.
    #[must_use]
    pub fn mean_us(&self) -> u64 {
        let total_us = self.total_us.load(Ordering::Relaxed);
        total_us.checked_div(self.num()).unwrap_or_default()
    }
}

impl StoreThread {
    /// Gives a store to a thread of its own. `report` is called on that thread, in the order of the
    /// batches; it must not wait for whoever calls [`StoreThread::write`].
    ///
    /// # Errors
    /// When the system has no thread left.
    pub fn spawn(store: Store, report: impl FnMut(Report) + Send + 'static) -> io::Result<Self> {
        let syncs = Arc::new(Syncs::default());
        syncs.num.store(store.num_syncs(), Ordering::Relaxed);
        let counted = Arc::clone(&syncs);
        let (sender, receiver) = sync_channel(MAX_WAITING_BATCHES);
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || run(store, receiver, report, &counted))?;
        Ok(Self {
            items: Some(sender),
            thread: Some(thread),
            syncs,
        })
    }

    /// Hands over a batch. Waits while 1024 are waiting already.
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn write(&self, batch: Batch) -> Result<(), Stopped> {
        self.give(Item::Batch(batch))
    }

    /// Has the log rest on a snapshot, which is durable; see [`Store::rest_on`].
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn rest_on(&self, mark: Mark) -> Result<(), Stopped> {
        self.give(Item::Rest(mark))
    }

    /// Has entries removed that a snapshot covers; see [`Store::discard`].
    ///
    /// # Errors
    /// When the thread has ended.
    pub fn discard(&self, through: u64) -> Result<(), Stopped> {
        self.give(Item::Discard(through))
    }

    fn give(&self, item: Item) -> Result<(), Stopped> {
        let items = self.items.as_ref().ok_or(Stopped)?;
        items.send(item).map_err(|_| Stopped)
    }

    /// How often it was synced, and how long that took.
    #[must_use]
    pub fn syncs(&self) -> Arc<Syncs> {
        Arc::clone(&self.syncs)
    }

    /// Writes what waits, ends the thread and closes the store, so that it can be opened again.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for StoreThread {
    fn drop(&mut self) {
        self.items = None;
        if let Some(thread) = self.thread.take() {
            // It only panics where `report` does, and that has been told already.
            let _ = thread.join();
        }
    }
}

fn run(mut store: Store, items: Receiver<Item>, mut report: impl FnMut(Report), syncs: &Syncs) {
    while let Ok(first) = items.recv() {
        let began = Instant::now();
        // No more than the bound at once, so that a steady stream still gets its reports.
        let rest = items.try_iter().take(MAX_WAITING_BATCHES);
        let written = write_all(&mut store, std::iter::once(first).chain(rest));
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        syncs.num.store(store.num_syncs(), Ordering::Relaxed);
        syncs.total_us.fetch_add(took_us, Ordering::Relaxed);
        match written {
            Ok(reports) => reports.into_iter().for_each(&mut report),
            Err(error) => {
                // The store is closed, and takes nothing more, before anybody can act on the report.
                // An engine that panics as it closes must not take the report along.
                let _ = catch_unwind(AssertUnwindSafe(|| drop(store)));
                drop(items);
                report(Report::Failed(error));
                return;
            }
        }
    }
}

/// Takes all items, then syncs once, where somebody waits for that; returns what is to be reported.
fn write_all(
    store: &mut Store,
    items: impl Iterator<Item = Item>,
) -> Result<Vec<Report>, StoreError> {
    let mut reports = Vec::new();
    for item in items {
        match item {
            Item::Batch(Batch {
                batch,
                entries,
                hard_state,
                restore,
            }) => {
                store.append(&entries, hard_state, restore.as_ref())?;
                reports.push(Report::Durable { batch });
            }
            Item::Rest(mark) => {
                store.rest_on(&mark);
                reports.push(Report::Rests { mark });
            }
            Item::Discard(through) => store.discard(through),
        }
    }
    if !reports.is_empty() {
        store.sync()?;
    }
    Ok(reports)
}
