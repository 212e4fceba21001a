//! What outlives a coordinator's process: its log, its snapshots, its streams of events; see
//! `coordinator/src/{store,snapshots,records}.rs`. Writes reach it in their order. A crash leaves all
//! of a write or nothing: the store's transactions see to that.

use std::collections::{BTreeMap, VecDeque};

use muster_coordinator_core::Snapshot;
use muster_coordinator_core::consensus::{Entry, HardState, Mark, Recovered, ReplicaId};
use muster_proto::event::Event as Told;

/// Files of snapshots that are kept beside the one that the log rests on.
const NUM_SNAPSHOTS: usize = 2;

/// An event, and the line that tells it.
pub(crate) type Line = (Told, String);

/// A write that may not be durable yet.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Batch {
        batch: u64,
        entries: Vec<Entry>,
        hard_state: Option<HardState>,
        restore: Option<Mark>,
    },
    /// The log rests on a snapshot that ends here.
    Rest(Mark),
    Discard(u64),
}

#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) store_id: [u8; 16],
    /// Those that found the group with it, or nobody.
    pub(crate) founders: Vec<u64>,
    hard_state: HardState,
    start: Mark,
    log: Vec<Entry>,
    snapshots: BTreeMap<u64, Vec<u8>>,
    /// The lines that are there; those that a crash leaves for certain.
    pub(crate) events: Vec<Line>,
    pub(crate) num_durable: usize,
    /// Lines that came with a snapshot, and how many lines they follow.
    staged: BTreeMap<u64, (usize, Vec<Line>)>,
}

impl Disk {
    /// A disk on its first day.
    pub(crate) fn new(store_id: [u8; 16], founders: Vec<u64>) -> Self {
        let genesis = if founders.is_empty() {
            Recovered::default()
        } else {
            Recovered::genesis(founders.iter().copied().map(ReplicaId))
        };
        Self {
            store_id,
            founders,
            hard_state: genesis.hard_state,
            start: genesis.start,
            log: Vec::new(),
            snapshots: BTreeMap::new(),
            events: Vec::new(),
            num_durable: 0,
            staged: BTreeMap::new(),
        }
    }

    pub(crate) fn write(&mut self, item: Item) {
        match item {
            Item::Batch {
                batch: _,
                entries,
                hard_state,
                restore,
            } => {
                if let Some(mark) = restore {
                    self.log.clear();
                    self.start = mark;
                }
                if let Some(first) = entries.first().map(|first| first.index) {
                    self.log.retain(|entry| entry.index < first);
                }
                self.log.extend(entries);
                self.hard_state = hard_state.unwrap_or(self.hard_state);
            }
            // One that was received meanwhile may cover more, and the log begins behind it.
            Item::Rest(mark) if mark.index <= self.start.index => {}
            Item::Rest(mark) => self.start = mark,
            Item::Discard(through) => {
                let through = through.min(self.start.index);
                self.log.retain(|entry| entry.index > through);
            }
        }
    }

    /// What is there when a process begins.
    pub(crate) fn recover(&self) -> Recovered {
        Recovered {
            hard_state: self.hard_state,
            start: self.start.clone(),
            entries: self.log.clone(),
        }
    }

    /// The snapshot that the log rests on; `None` where it has its beginning.
    pub(crate) fn snapshot(&self) -> Result<Option<Snapshot>, String> {
        let index = self.start.index;
        if index <= Mark::genesis([]).index {
            return Ok(None);
        }
        let file = self.file(index);
        let file = file.ok_or_else(|| format!("there is no file of the snapshot of {index}"))?;
        Snapshot::decode(file).map(Some)
    }

    /// The file of a snapshot.
    pub(crate) fn file(&self, index: u64) -> Option<&Vec<u8>> {
        self.snapshots.get(&index)
    }

    /// A snapshot was taken here and written.
    pub(crate) fn keep_taken(&mut self, index: u64, file: Vec<u8>) {
        self.snapshots.insert(index, file);
        while self.snapshots.len() > NUM_SNAPSHOTS {
            self.snapshots.pop_first();
        }
    }

    /// A snapshot was received.
    pub(crate) fn keep_received(&mut self, index: u64, file: Vec<u8>) {
        self.snapshots.insert(index, file);
    }

    /// Events came with a snapshot; they follow so many lines.
    pub(crate) fn stage(&mut self, index: u64, lines: (usize, Vec<Line>)) {
        self.staged.insert(index, lines);
    }

    /// Makes the events those that a snapshot counts.
    pub(crate) fn install(&mut self, index: u64, num_bytes: u64) -> Result<(), String> {
        if let Some((num, lines)) = self.staged.remove(&index) {
            if self.events.len() < num {
                return Err(format!("there are less than {num} events to continue"));
            }
            self.events.truncate(num);
            self.events.extend(lines);
        }
        self.staged.clear();
        let num = num_lines(&self.events, num_bytes)?;
        self.events.truncate(num);
        self.num_durable = num;
        Ok(())
    }

    /// A crash: so many of the writes that were under way are there, and so many lines.
    pub(crate) fn crash(&mut self, items: VecDeque<Item>, num_items: usize, num_lines: usize) {
        for item in items.into_iter().take(num_items) {
            self.write(item);
        }
        self.events.truncate(num_lines);
    }
}

/// How many lines so many bytes are.
pub(crate) fn num_lines(lines: &[Line], num_bytes: u64) -> Result<usize, String> {
    let mut left = num_bytes;
    for (num, (_, line)) in lines.iter().enumerate() {
        if left == 0 {
            return Ok(num);
        }
        let rest = left.checked_sub(line.len() as u64);
        left =
            rest.ok_or_else(|| format!("byte {num_bytes} of the events is within line {num}"))?;
    }
    match left {
        0 => Ok(lines.len()),
        left => Err(format!(
            "{left} bytes of events that a snapshot counts are missing"
        )),
    }
}
