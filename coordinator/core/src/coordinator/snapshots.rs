//! When a snapshot of the state is taken, what becomes of one that came from another member, and who
//! is sent one. Its bytes are `snapshot`'s, its file the shell's.

use std::collections::BTreeSet;

use muster_consensus::{Mark, ReplicaId};

use super::{Coordinator, Output};
use crate::snapshot::{Snapshot, Taken};

/// How much log there is before a snapshot takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// A snapshot is taken when the entries since the last one are as large as this, or as the last
    /// one was: what is written for snapshots is at most what is written for entries, but for the limit
    /// on entries below.
    pub min_log_bytes: u64,
    /// Or when there are so many of them, or, where that is more, one for every 4096 bytes of
    /// the last snapshot: each costs time to apply again.
    pub max_log_entries: u64,
    /// So many entries before a snapshot are kept, for members that are a little behind.
    pub num_kept: u64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            min_log_bytes: 16 << 20,
            max_log_entries: 20_000,
            num_kept: 5_000,
        }
    }
}

/// So many bytes of a snapshot are read in the time that it takes to apply an entry again, or more: at
/// most half of a start is spent on entries, however large the state is.
const BYTES_PER_ENTRY: u64 = 4096;

/// The snapshots of one coordinator.
#[derive(Debug)]
pub(super) struct Snapshots {
    thresholds: Thresholds,
    /// Where the newest one ends, and the size of its file.
    mark: Mark,
    num_bytes: u64,
    /// What was applied since.
    log_bytes: u64,
    is_under_way: bool,
    /// The members that need a newer one than there is.
    wanted_by: BTreeSet<ReplicaId>,
    /// One that came from another member, and is to become the state.
    received: Option<Box<Snapshot>>,
}

impl Snapshots {
    pub(super) fn behind(mark: Mark, num_bytes: u64) -> Self {
        Self {
            thresholds: Thresholds::default(),
            mark,
            num_bytes,
            log_bytes: 0,
            is_under_way: false,
            wanted_by: BTreeSet::new(),
            received: None,
        }
    }

    pub(super) fn applied(&mut self, num_bytes: usize) {
        self.log_bytes += num_bytes as u64;
    }

    /// Consensus has no use for the one that was received.
    pub(super) fn forget_received(&mut self) {
        self.received = None;
    }

    pub(super) fn receive(&mut self, snapshot: Box<Snapshot>) {
        self.received = Some(snapshot);
    }
}

impl Coordinator {
    /// How much log it lets grow; the default's answers are those of [`Thresholds::default`].
    #[must_use]
    pub fn with_thresholds(mut self, thresholds: Thresholds) -> Self {
        self.snapshots.thresholds = thresholds;
        self
    }

    /// A member needs a snapshot. One that was taken before the member belonged to the group is of no
    /// use to it: raft-rs refuses what does not count it in.
    pub(super) fn send_snapshot(
        &mut self,
        to: ReplicaId,
        index: u64,
        bytes: Vec<u8>,
        outputs: &mut Vec<Output>,
    ) {
        let newest = &self.snapshots.mark;
        if newest.index == index && newest.membership.has(to) {
            outputs.push(Output::SendSnapshot { to, index, bytes });
        } else {
            self.snapshots.wanted_by.insert(to);
        }
    }

    /// Has a snapshot taken when the log has grown enough, or somebody needs one.
    pub(super) fn take_snapshot(&mut self, outputs: &mut Vec<Output>) {
        let wanted_by = std::mem::take(&mut self.snapshots.wanted_by);
        let is_wanted = !wanted_by.is_empty();
        for to in wanted_by {
            // Consensus asks again a little later.
            let is_there = false;
            let sent = muster_consensus::Input::SnapshotSent { to, is_there };
            self.step_replica(sent, outputs);
        }
        let mark = self.replica.mark();
        let snapshots = &mut self.snapshots;
        let num_entries = mark.index.saturating_sub(snapshots.mark.index);
        let thresholds = snapshots.thresholds;
        let max_entries = snapshots.num_bytes / BYTES_PER_ENTRY;
        let is_due = snapshots.log_bytes >= thresholds.min_log_bytes.max(snapshots.num_bytes)
            || num_entries >= thresholds.max_log_entries.max(max_entries)
            || is_wanted && num_entries > 0;
        if !is_due || snapshots.is_under_way {
            return;
        }
        snapshots.is_under_way = true;
        snapshots.log_bytes = 0;
        outputs.push(Output::Snapshot(Box::new(self.taken())));
    }

    /// The state as applied so far, and where that is.
    #[must_use]
    pub fn taken(&self) -> Taken {
        let (mark, snapshot) = (self.replica.mark().clone(), self.snapshot());
        Taken { mark, snapshot }
    }

    /// The state as applied so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            cluster_id: self.options.cluster_id,
            members: self.members.clone(),
            state: self.state.clone(),
            archive: self.archive.clone(),
            accounts: self.accounts.clone(),
            num_bytes: 0,
        }
    }

    pub(super) fn snapshotted(&mut self, mark: Mark, num_bytes: u64, outputs: &mut Vec<Output>) {
        self.snapshots.is_under_way = false;
        // One that was received meanwhile may cover more.
        if mark.index > self.snapshots.mark.index {
            (self.snapshots.mark, self.snapshots.num_bytes) = (mark.clone(), num_bytes);
            let snapshotted = muster_consensus::Input::Snapshotted {
                mark,
                num_kept: self.snapshots.thresholds.num_kept,
            };
            self.step_replica(snapshotted, outputs);
        }
    }

    pub(super) fn restore(&mut self, mark: Mark, outputs: &mut Vec<Output>) {
        let Some(snapshot) = self.snapshots.received.take() else {
            let reason = format!("the snapshot of entry {} did not come", mark.index);
            outputs.push(Output::Broken { reason });
            return;
        };
        let Snapshot {
            cluster_id: _,
            members,
            state,
            archive,
            accounts,
            num_bytes,
        } = *snapshot;
        (self.state, self.archive) = (state, archive);
        (self.accounts, self.members) = (accounts, members);
        (self.snapshots.mark, self.snapshots.num_bytes) = (mark.clone(), num_bytes);
        self.snapshots.log_bytes = 0;
        outputs.push(Output::Restored { mark });
        self.say_members(outputs);
    }
}
