//! One machine of a simulated group: its disk, and what crosses the network.

use std::collections::{BTreeMap, VecDeque};

use super::super::Replica;
use crate::{Entry, HardState, Mark, Recovered};

/// What was applied: index, term and data.
pub(super) type Applied = (u64, u64, Vec<u8>);

/// What is handed over to be made durable.
pub(super) type Batch = (u64, Vec<Entry>, Option<HardState>, Option<Mark>);

/// One machine: what survives a crash, and what does not.
#[derive(Default)]
pub(super) struct Machine {
    pub(super) disk: Recovered,
    /// The files of snapshots, by where they end.
    pub(super) snapshots: BTreeMap<u64, Vec<Applied>>,
    /// Batches that were handed over and are not synced.
    pub(super) unsynced: VecDeque<Batch>,
    pub(super) replica: Option<Replica>,
    pub(super) applied: Vec<Applied>,
}

impl Machine {
    pub(super) fn sync(&mut self, num_batches: usize) -> Option<u64> {
        let mut last = None;
        for (batch, entries, hard_state, restore) in self.unsynced.drain(..num_batches) {
            if let Some(mark) = restore {
                self.disk.entries.clear();
                self.disk.start = mark;
            }
            if let Some(first) = entries.first().map(|first| first.index) {
                self.disk.entries.retain(|entry| entry.index < first);
                self.disk.entries.extend(entries);
            }
            self.disk.hard_state = hard_state.unwrap_or(self.disk.hard_state);
            last = Some(batch);
        }
        last
    }

    pub(super) fn has_on_disk(&self, (index, term, data): &Applied) -> bool {
        let mut entries = self.disk.entries.iter();
        entries.any(|entry| (entry.index, entry.term) == (*index, *term) && entry.data == *data)
    }
}

/// What crosses the network.
#[derive(Clone)]
pub(super) enum Packet {
    Message(Vec<u8>),
    Snapshot {
        index: u64,
        content: Vec<Applied>,
        bytes: Vec<u8>,
    },
}
