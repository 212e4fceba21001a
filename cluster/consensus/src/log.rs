//! The log as raft-rs reads it: in memory, from the entry behind its base.
//!
//! It holds what was handed to the store, durable or not; what is durable is known by raft-rs
//! itself (`on_persist_ready`). Making anything durable is the caller's.

use raft::eraftpb;
use raft::{GetEntriesContext, RaftState, Storage, StorageError};

use crate::types::{Entry, EntryKind, HardState, Mark, Membership, Recovered, ReplicaId};

/// The entries, with what raft-rs asks for beside them.
pub(crate) struct Log {
    /// The place before the first entry, and the term there.
    base: (u64, u64),
    entries: Vec<eraftpb::Entry>,
    hard_state: eraftpb::HardState,
    /// Where the newest durable snapshot ends.
    snapshot: Mark,
}

impl Log {
    /// The log of a store; it was checked.
    pub(crate) fn new(recovered: Recovered) -> Self {
        let Recovered {
            hard_state,
            start,
            mut entries,
        } = recovered;
        let mut base = (start.index, start.term);
        if entries
            .first()
            .is_some_and(|first| first.index <= start.index)
        {
            // The first of them is only known to stand where it does.
            let first = entries.remove(0);
            base = (first.index, first.term);
        }
        Self {
            base,
            entries: entries.into_iter().map(to_raft).collect(),
            hard_state: hard_state_to_raft(hard_state),
            snapshot: start,
        }
    }

    /// Where the newest snapshot ends.
    pub(crate) fn snapshot_mark(&self) -> &Mark {
        &self.snapshot
    }

    /// Puts entries at their places. What stood there or behind is gone: raft-rs hands over the end
    /// of its log, so that anything behind belonged to a leader that was overtaken.
    pub(crate) fn append(&mut self, entries: &[eraftpb::Entry]) {
        if let Some(first) = entries.first() {
            let kept = self.position(first.index);
            let kept = kept.expect("what is in a snapshot is not written again");
            assert!(kept <= self.entries.len(), "raft-rs appends without gaps");
            self.entries.truncate(kept);
            self.entries.extend_from_slice(entries);
        }
    }

    /// A snapshot was received: it is all there is.
    pub(crate) fn restore(&mut self, mark: Mark) {
        self.base = (mark.index, mark.term);
        self.entries.clear();
        self.snapshot = mark;
    }

    /// A snapshot was taken of what was applied; of the entries before its end so many are kept.
    /// Returns the last one that is not.
    pub(crate) fn compact(&mut self, mark: Mark, num_kept: u64) -> Option<u64> {
        if mark.index <= self.snapshot.index {
            return None;
        }
        let through = mark.index.saturating_sub(num_kept);
        self.snapshot = mark;
        let last = self.position(through)?;
        let term = self.entries.get(last)?.term;
        self.entries.drain(..=last);
        self.base = (through, term);
        Some(through)
    }

    /// Where the entry of an index lies; `None` for the base and what is before it.
    fn position(&self, index: u64) -> Option<usize> {
        let behind = index.checked_sub(self.base.0)?;
        usize::try_from(behind.checked_sub(1)?).ok()
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let conf_state = conf_state_of(&self.snapshot.membership);
        Ok(RaftState::new(self.hard_state.clone(), conf_state))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        if low <= self.base.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let range = self.position(low).zip(self.position(high));
        let found = range.and_then(|(low, high)| self.entries.get(low..high));
        let mut found = found
            .ok_or(raft::Error::Store(StorageError::Unavailable))?
            .to_vec();
        raft::util::limit_size(&mut found, max_size.into());
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.base.0 {
            return Ok(self.base.1);
        }
        let Some(at) = self.position(index) else {
            return Err(raft::Error::Store(StorageError::Compacted));
        };
        match self.entries.get(at) {
            Some(entry) => Ok(entry.term),
            None => Err(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.base.0 + self.entries.len() as u64)
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        if self.snapshot.index == 0 || self.snapshot.index < request_index {
            let later = StorageError::SnapshotTemporarilyUnavailable;
            return Err(raft::Error::Store(later));
        }
        // What is in it goes its own way, as a file.
        let mut snapshot = eraftpb::Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.snapshot.index;
        metadata.term = self.snapshot.term;
        metadata.set_conf_state(conf_state_of(&self.snapshot.membership));
        Ok(snapshot)
    }
}

fn conf_state_of(membership: &Membership) -> eraftpb::ConfState {
    let ids = |ids: &std::collections::BTreeSet<ReplicaId>| -> Vec<u64> {
        ids.iter().map(|id| id.0).collect()
    };
    eraftpb::ConfState::from((ids(&membership.voters), ids(&membership.learners)))
}

/// The plain value of a membership of raft-rs's, which is none of a group that changes in two steps.
pub(crate) fn membership_of(conf_state: &eraftpb::ConfState) -> Option<Membership> {
    let ids = |ids: &[u64]| ids.iter().copied().map(ReplicaId).collect();
    let is_plain = conf_state.voters_outgoing.is_empty()
        && conf_state.learners_next.is_empty()
        && !conf_state.auto_leave;
    is_plain.then(|| Membership {
        voters: ids(&conf_state.voters),
        learners: ids(&conf_state.learners),
    })
}

fn to_raft(entry: Entry) -> eraftpb::Entry {
    let kind = match entry.kind {
        EntryKind::Normal => eraftpb::EntryType::EntryNormal,
        EntryKind::Config => eraftpb::EntryType::EntryConfChange,
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
