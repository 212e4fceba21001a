//! The log as raft-rs reads it: in memory, whole, from index 1.
//!
//! It holds what was handed to the store, durable or not; what is durable is known by raft-rs
//! itself (`on_persist_ready`). Making anything durable is the caller's.

use raft::eraftpb;
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::types::{Entry, EntryKind, HardState, Recovered, ReplicaId};

/// All entries, with what raft-rs asks for when it starts.
pub(crate) struct Log {
    entries: Vec<eraftpb::Entry>,
    hard_state: eraftpb::HardState,
    voters: Vec<u64>,
}

impl Log {
    pub(crate) fn new(recovered: Recovered, voters: &[ReplicaId]) -> Self {
        Self {
            entries: recovered.entries.into_iter().map(to_raft).collect(),
            hard_state: hard_state_to_raft(recovered.hard_state),
            voters: voters.iter().map(|id| id.0).collect(),
        }
    }

    /// Puts entries at their places. What stood there or behind is gone: raft-rs hands over the end
    /// of its log, so that anything behind belonged to a leader that was overtaken.
    pub(crate) fn append(&mut self, entries: &[eraftpb::Entry]) {
        if let Some(first) = entries.first() {
            let kept = position(first.index).expect("a log's index is at least 1");
            assert!(kept <= self.entries.len(), "raft-rs appends without gaps");
            self.entries.truncate(kept);
            self.entries.extend_from_slice(entries);
        }
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = eraftpb::ConfState::from((self.voters.iter().copied(), []));
        Ok(RaftState::new(self.hard_state.clone(), conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        let range = position(low)
            .zip(position(high))
            .map(|(low, high)| low..high);
        let found = range.and_then(|range| self.entries.get(range));
        let mut found = found
            .ok_or(raft::Error::Store(StorageError::Unavailable))?
            .to_vec();
        raft::util::limit_size(&mut found, max_size.into());
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        match position(index) {
            None => Ok(0),
            Some(at) => match self.entries.get(at) {
                Some(entry) => Ok(entry.term),
                None => Err(raft::Error::Store(StorageError::Unavailable)),
            },
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.entries.len() as u64)
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        // The log is never compacted, so that no replica can be too far behind for its entries.
        Err(raft::Error::Store(
            StorageError::SnapshotTemporarilyUnavailable,
        ))
    }
}

/// Where the entry of an index lies; `None` for index 0, which stands before the first.
fn position(index: u64) -> Option<usize> {
    usize::try_from(index.checked_sub(1)?).ok()
}

fn to_raft(entry: Entry) -> eraftpb::Entry {
    let kind = match entry.kind {
        EntryKind::Normal => eraftpb::EntryType::EntryNormal,
        EntryKind::Config => eraftpb::EntryType::EntryConfChangeV2,
    };
    eraftpb::Entry {
        entry_type: kind,
        index: entry.index,
        term: entry.term,
        data: entry.data.into(),
        ..Default::default()
    }
}

/// The plain value of an entry of raft-rs's.
pub(crate) fn from_raft(entry: &eraftpb::Entry) -> Entry {
    let kind = match entry.entry_type {
        eraftpb::EntryType::EntryNormal => EntryKind::Normal,
        eraftpb::EntryType::EntryConfChange | eraftpb::EntryType::EntryConfChangeV2 => {
            EntryKind::Config
        }
    };
    Entry {
        index: entry.index,
        term: entry.term,
        kind,
        data: entry.data.to_vec(),
    }
}

fn hard_state_to_raft(hard_state: HardState) -> eraftpb::HardState {
    eraftpb::HardState {
        term: hard_state.term,
        vote: hard_state.vote,
        commit: hard_state.commit,
        ..Default::default()
    }
}

/// The plain value of a hard state of raft-rs's.
pub(crate) fn hard_state_from_raft(hard_state: &eraftpb::HardState) -> HardState {
    HardState {
        term: hard_state.term,
        vote: hard_state.vote,
        commit: hard_state.commit,
    }
}
