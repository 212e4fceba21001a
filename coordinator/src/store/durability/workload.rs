//! What is written to a store: a sequence that a seed and the content at its beginning determine, so
//! that the writer and whoever checks it need not talk about anything but how far it came.

use muster_coordinator_core::consensus::{
    Entry, EntryKind, HardState, Mark, Membership, Recovered, ReplicaId,
};

use crate::store::{Store, StoreError};

/// Pseudo-random numbers (SplitMix64, Steele et al. 2014).
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below the bound.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.number() % bound
    }

    /// True once in so many times.
    pub(super) fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn bytes(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < length {
            bytes.extend(self.number().to_le_bytes());
        }
        bytes.truncate(length as usize);
        bytes
    }
}

/// One call of a store.
#[derive(Debug)]
pub(super) enum Op {
    Append {
        entries: Vec<Entry>,
        hard_state: Option<HardState>,
        restore: Option<Mark>,
    },
    RestOn(Mark),
    Discard(u64),
    Sync,
}

impl Op {
    pub(super) fn apply(&self, store: &mut Store) -> Result<(), StoreError> {
        match self {
            Self::Append {
                entries,
                hard_state,
                restore,
            } => store.append(entries, *hard_state, restore.as_ref()),
            Self::RestOn(mark) => {
                store.rest_on(mark);
                Ok(())
            }
            Self::Discard(through) => {
                store.discard(*through);
                Ok(())
            }
            Self::Sync => store.sync(),
        }
    }
}

/// The sequence; it has no end.
#[derive(Debug)]
pub(super) struct Workload {
    random: Random,
    /// Only batches and syncs, as they come from [`crate::store::thread`].
    only_batches: bool,
    /// What the store contains after the operations that were taken.
    content: Recovered,
    /// How many were taken.
    num_ops: u64,
    /// Operations until a sync while many are written without one.
    burst: u64,
}

impl Workload {
    pub(super) fn new(seed: u64, content: Recovered) -> Self {
        let random = Random(seed);
        Self {
            only_batches: false,
            random,
            content,
            num_ops: 0,
            burst: 0,
        }
    }

    pub(super) fn only_batches(mut self) -> Self {
        self.only_batches = true;
        self
    }

    pub(super) fn content(&self) -> &Recovered {
        &self.content
    }

    pub(super) fn num_ops(&self) -> u64 {
        self.num_ops
    }

    /// The next operation, as if it were done.
    pub(super) fn step(&mut self) -> Op {
        self.num_ops += 1;
        let (start, last) = (self.content.start.index, self.last());
        if self.burst > 0 {
            self.burst -= 1;
        } else if self.random.one_in(3) {
            return Op::Sync;
        } else if self.random.one_in(200) {
            self.burst = 20 + self.random.below(200);
        }
        if !self.only_batches && last > start && self.random.one_in(40) {
            let index = start + 1 + self.random.below(last - start);
            let mark = self.mark(index);
            self.content.start = mark.clone();
            return Op::RestOn(mark);
        }
        if !self.only_batches && self.random.one_in(40) {
            let through = start.saturating_sub(self.random.below(4));
            self.content.entries.retain(|entry| entry.index > through);
            return Op::Discard(through);
        }
        self.append()
    }

    fn append(&mut self) -> Op {
        let last = self.last();
        // A log that only grows would make a long run slow.
        let is_long = self.content.entries.len() > 600;
        let restore = (is_long || self.random.one_in(150)).then(|| {
            let index = last + self.random.below(20);
            self.mark(index)
        });
        if let Some(mark) = &restore {
            self.content.entries.clear();
            self.content.start = mark.clone();
        }
        let (start, last) = (self.content.start.index, self.last());
        let mut first = last + 1;
        if self.random.one_in(10) {
            first = first.saturating_sub(self.random.below(30)).max(start + 1);
            let oldest = self
                .content
                .entries
                .first()
                .map_or(first, |entry| entry.index);
            first = first.max(oldest);
        }
        let num_entries = match self.random.below(40) {
            0..5 => 0,
            39 => self.random.below(300),
            _ => 1 + self.random.below(4),
        };
        let entries: Vec<_> = (first..first + num_entries)
            .map(|index| self.entry(index))
            .collect();
        if let Some(first) = entries.first() {
            let first = first.index;
            self.content.entries.retain(|entry| entry.index < first);
            self.content.entries.extend(entries.iter().cloned());
        }
        let hard_state = (entries.is_empty() || !self.random.one_in(3)).then(|| HardState {
            term: self.num_ops,
            vote: self.random.below(4),
            commit: self.last(),
        });
        self.content.hard_state = hard_state.unwrap_or(self.content.hard_state);
        Op::Append {
            entries,
            hard_state,
            restore,
        }
    }

    fn entry(&mut self, index: u64) -> Entry {
        let length = match self.random.below(100) {
            0 => (100 << 10) + self.random.below(200 << 10),
            1..3 => self.random.below(16 << 10),
            _ => self.random.below(600),
        };
        Entry {
            index,
            term: self.num_ops,
            kind: [EntryKind::Normal, EntryKind::Config][self.random.one_in(9) as usize],
            data: self.random.bytes(length),
        }
    }

    fn mark(&mut self, index: u64) -> Mark {
        let mut ids = |bound| (0..self.random.below(bound)).map(ReplicaId).collect();
        Mark {
            index,
            term: 1,
            membership: Membership {
                voters: ids(6),
                learners: ids(3),
            },
        }
    }

    fn last(&self) -> u64 {
        let last = self.content.entries.last().map_or(0, |entry| entry.index);
        last.max(self.content.start.index)
    }
}
