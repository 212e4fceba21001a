//! What the leader saw of the newest world of each job: which ranks run, listen, wrote which
//! checkpoint files, and are done. Volatile: a new leader learns it again from the workers' hellos.

use std::collections::{BTreeMap, BTreeSet};

use muster_cluster::ids::{Generation, History, RankId, Step};
use muster_cluster::plan::Watch;
use muster_cluster::state::{FileRef, Manifest};
use muster_proto::v1;

/// One world, as seen.
#[derive(Clone, Debug, Default)]
pub struct WorldWatch {
    /// What the planner needs to know of it.
    pub watch: Watch,
    /// Process ids by rank.
    pub pids: BTreeMap<RankId, u32>,
    /// The addresses of the ranks that listen.
    pub addresses: BTreeMap<RankId, String>,
    /// Whether every rank was told its peers.
    pub peers_sent: bool,
    /// Ranks that were told to stop.
    pub stop_sent: bool,
    /// The files of checkpoints that are not whole yet, by step.
    pub parts: BTreeMap<Step, Vec<v1::CheckpointPart>>,
    /// Steps whose manifest was proposed.
    pub proposed: BTreeSet<Step>,
    /// What ranks that are done reported.
    pub done: BTreeMap<RankId, v1::Done>,
    /// Whether the end was proposed.
    pub finish_proposed: bool,
    /// Whether the next world was proposed.
    pub successor_proposed: bool,
    /// Losses that were told as events.
    pub told: BTreeSet<RankId>,
}

impl WorldWatch {
    /// A watch on a world that was just started.
    #[must_use]
    pub fn new(generation: Generation) -> Self {
        Self { watch: Watch { generation, ..Watch::default() }, ..Self::default() }
    }

    /// A rank runs; the state for people.
    #[must_use]
    pub fn state_of(&self, rank: RankId) -> &'static str {
        if self.watch.gone.contains_key(&rank) {
            "gone"
        } else if self.done.contains_key(&rank) {
            "done"
        } else if self.peers_sent {
            "running"
        } else if self.addresses.contains_key(&rank) {
            "ready"
        } else if self.pids.contains_key(&rank) {
            "starting"
        } else {
            "assigned"
        }
    }

    /// The peers of a world of `size` ranks, once all listen; `None` before, or when it was told.
    pub fn peers(&mut self, size: u32) -> Option<Vec<String>> {
        if self.peers_sent || self.addresses.len() != size as usize {
            return None;
        }
        self.peers_sent = true;
        Some(self.addresses.values().cloned().collect())
    }

    /// Takes one durable file. Returns the manifest when all of its step are there.
    ///
    /// # Errors
    /// When ranks disagree on the state they wrote: silent corruption, or a broken class.
    pub fn take_part(
        &mut self,
        history: History,
        generation: Generation,
        part: v1::CheckpointPart,
    ) -> Result<Option<Manifest>, String> {
        let step = Step(part.step);
        if self.proposed.contains(&step) || part.file.is_none() {
            return Ok(None);
        }
        let parts = self.parts.entry(step).or_default();
        if let Some(first) = parts.first()
            && (&first.arena_hash, &first.optimizer_hash, &first.trace)
                != (&part.arena_hash, &part.optimizer_hash, &part.trace)
        {
            return Err(format!(
                "the ranks disagree on the state after step {step}: arena {} and {}",
                first.arena_hash, part.arena_hash
            ));
        }
        let is_new = parts.iter().all(|known| known.file != part.file);
        if is_new {
            parts.push(part);
        }
        if parts.is_empty() || parts.len() < parts[0].num_files as usize {
            return Ok(None);
        }
        let parts = self.parts.remove(&step).expect("it was filled above");
        self.proposed.insert(step);
        let first = &parts[0];
        let mut files: Vec<FileRef> = parts.iter().filter_map(|part| part.file.clone()).map(Into::into).collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Some(Manifest {
            history,
            generation,
            step,
            part: 0,
            folder: first.folder.clone(),
            files,
            arena_hash: first.arena_hash.clone(),
            optimizer_hash: first.optimizer_hash.clone(),
            trace: first.trace.clone(),
        }))
    }

    /// The common end of a world of `size` ranks, once all are done; `None` before.
    ///
    /// # Errors
    /// When ranks ended in different states.
    pub fn end(&self, size: u32) -> Option<Result<v1::Done, String>> {
        if self.done.len() != size as usize {
            return None;
        }
        let mut all = self.done.iter();
        let (_, first) = all.next()?;
        for (rank, done) in all {
            if (done.step, &done.arena_hash, &done.optimizer_hash, &done.trace)
                != (first.step, &first.arena_hash, &first.optimizer_hash, &first.trace)
            {
                return Some(Err(format!(
                    "rank {rank} ended at step {} with arena {}, rank 0 at step {} with {}",
                    done.step, done.arena_hash, first.step, first.arena_hash
                )));
            }
        }
        Some(Ok(first.clone()))
    }
}
