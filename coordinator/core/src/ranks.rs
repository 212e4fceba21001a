//! What the leader saw of the newest world of each job: which ranks run, listen, wrote which
//! checkpoint files, and are done. Volatile: a new leader learns it again from the workers' hellos.

use std::collections::BTreeMap;

use muster_cluster::ids::{Generation, History, ProcessId, RankId, Step};
use muster_cluster::plan::{Closed, Standby, Watch};
use muster_cluster::shares::{NUM_SHARES, optimizer_hash};
use muster_cluster::state::{FileRef, Job, Manifest, World};
use muster_proto::convert::{self, BadMessage};
use muster_proto::v1;

use crate::paces::Paces;

/// One world, as seen.
#[derive(Clone, Debug, Default)]
pub struct WorldWatch {
    /// What the planner needs to know of it.
    pub watch: Watch,
    /// The operating system's number of each process.
    pub pids: BTreeMap<ProcessId, u32>,
    /// Where each process listens: for its peers of this world and of later ones, and for those that
    /// follow it.
    pub addresses: BTreeMap<ProcessId, v1::Ready>,
    /// How far the processes are that wait to enter a world.
    pub following: BTreeMap<ProcessId, v1::Following>,
    /// The files of checkpoints that are not whole yet, by step.
    pub parts: BTreeMap<Step, Vec<v1::CheckpointPart>>,
    /// What ranks that are done reported.
    pub done: BTreeMap<ProcessId, v1::Done>,
    /// Why a rank says that the job cannot go on anywhere.
    pub failed: Option<String>,
    /// The checkpoint that the world should have started from, and what is wrong with it.
    pub damaged: Option<(History, Step, String)>,
    /// How fast its ranks are.
    pub paces: Paces,
}

impl WorldWatch {
    /// A watch on a world that was just started.
    #[must_use]
    pub fn new(generation: Generation) -> Self {
        Self {
            watch: Watch {
                generation,
                ..Watch::default()
            },
            ..Self::default()
        }
    }

    /// The watch on the world that follows this one. One that heals it goes on with its processes,
    /// and with the checkpoints that they write.
    #[must_use]
    pub fn follow(mut self, last: Option<&World>, world: &World, now_ms: u64) -> Self {
        self.following.retain(|process, _| !world.has(*process));
        let watch = self.watch.follow(last, world, now_ms);
        if world.finish.is_none() {
            return Self {
                watch,
                ..Self::default()
            };
        }
        Self {
            watch,
            pids: self.pids,
            addresses: self.addresses,
            following: self.following,
            parts: self.parts,
            failed: self.failed,
            paces: self.paces.follow(world),
            ..Self::default()
        }
    }

    /// What a rank does; the state for people.
    #[must_use]
    pub fn state_of(&self, rank: RankId, process: ProcessId) -> &'static str {
        if self.watch.gone.contains_key(&rank) {
            "gone"
        } else if self.done.contains_key(&process) {
            "done"
        } else if self.watch.closed.contains_key(&rank) {
            "closed"
        } else if self.watch.progressed {
            "running"
        } else if self.addresses.contains_key(&process) {
            "ready"
        } else if self.pids.contains_key(&process) {
            "starting"
        } else {
            "assigned"
        }
    }

    /// What a process does that waits to enter a world; the state for people.
    #[must_use]
    pub fn state_of_standby(&self, process: ProcessId) -> &'static str {
        let following = self.following.get(&process);
        match self.watch.standbys.get(&process) {
            Some(Standby::Gone(_)) => "gone",
            Some(Standby::Follows { .. }) => "follows",
            _ if following.is_some_and(|following| following.bytes_total > 0) => "takes the state",
            Some(Standby::Ready) => "ready",
            None if self.pids.contains_key(&process) => "starting",
            None => "assigned",
        }
    }

    /// The addresses of a world's ranks by rank, once all listen; `None` before.
    #[must_use]
    pub fn peers(&self, world: &World) -> Option<v1::Peers> {
        let ranks = world.ranks.iter();
        let ready = ranks.map(|rank| self.addresses.get(&rank.process));
        let addresses: Option<Vec<&str>> = ready
            .map(|ready| ready.map(|ready| ready.address.as_str()))
            .collect();
        addresses.map(convert::peers)
    }

    /// Whether a rank of a world of new processes is known to run, and not to be prepared: until it
    /// is, no rank of the world is told of the others.
    #[must_use]
    pub fn cannot_have_met(&self, world: &World) -> bool {
        let mut processes = world.ranks.iter().map(|rank| rank.process);
        let is_behind = |one| self.pids.contains_key(&one) && !self.addresses.contains_key(&one);
        world.finish.is_none() && processes.any(is_behind)
    }

    /// Whom a process is to follow that waits beside a world: its ranks, and of the others that wait
    /// those that are not to call it themselves. `None` before all ranks listen.
    #[must_use]
    pub fn to_follow(&self, process: ProcessId, job: &Job, world: &World) -> Option<v1::Follow> {
        let feed = |process: &ProcessId| {
            let ready = self.addresses.get(process)?;
            Some(v1::Feed {
                process: process.0,
                address: ready.feed.clone(),
            })
        };
        let ranks = world.ranks.iter().map(|rank| feed(&rank.process));
        let others = job.standbys.keys().filter(|other| **other < process);
        Some(v1::Follow {
            ranks: ranks.collect::<Option<_>>()?,
            others: others.filter_map(feed).collect(),
        })
    }

    /// A process is prepared, and listens.
    pub fn listens(&mut self, process: ProcessId, ready: v1::Ready, is_standby: bool) {
        self.addresses.insert(process, ready);
        if is_standby {
            let standbys = &mut self.watch.standbys;
            standbys.entry(process).or_insert(Standby::Ready);
        }
    }

    /// A process that waits says how far it is.
    pub fn follows(&mut self, process: ProcessId, following: v1::Following) {
        let seen = match following.step {
            None => Standby::Ready,
            Some(_) => Standby::Follows {
                reached: following.reached.iter().copied().map(ProcessId).collect(),
            },
        };
        let known = self.watch.standbys.get(&process);
        if !matches!(known, Some(Standby::Gone(_))) {
            self.watch.standbys.insert(process, seen);
            self.following.insert(process, following);
        }
    }

    /// A rank has closed the world, and says what it holds.
    ///
    /// # Errors
    /// Where what it says makes no sense; nothing was changed then.
    pub fn closes(
        &mut self,
        rank: RankId,
        closed: v1::Closed,
        now_ms: u64,
    ) -> Result<(), BadMessage> {
        let holdings = closed.holdings.unwrap_or_default();
        let closed = Closed {
            why: format!("rank {rank}: {}", closed.reason),
            paused: closed.paused,
            lost: closed.lost.into_iter().map(RankId).collect(),
            suspects: closed.suspects.into_iter().map(RankId).collect(),
            step: holdings.step.map(Step),
            shards: convert::runs(holdings.shards)?,
            has_reduced: holdings.reduced,
            evaluated: holdings.evaluated,
            kept: convert::runs(holdings.kept)?,
            is_whole: !holdings.partial,
        };
        self.watch.closing_since_ms.get_or_insert(now_ms);
        self.watch.closed.insert(rank, closed);
        Ok(())
    }

    /// A process is no part of the job any more.
    pub fn forget(&mut self, process: ProcessId) {
        self.watch.standbys.remove(&process);
        self.addresses.remove(&process);
        self.following.remove(&process);
        self.pids.remove(&process);
    }

    /// Takes one durable file; again, if it was reported before.
    ///
    /// # Errors
    /// When ranks disagree on the state they wrote: silent corruption, or a broken class.
    pub fn take_part(&mut self, part: v1::CheckpointPart) -> Result<(), String> {
        let step = Step(part.step);
        let parts = self.parts.entry(step).or_default();
        let disagree = |what: &str, one: &str, other: &str| {
            Err(format!(
                "the ranks disagree on the state after step {step}: {what} {one} and {other}"
            ))
        };
        for known in parts.iter() {
            // Who copied no parameters says nothing of them.
            let hashes = [&known.arena_hash, &part.arena_hash];
            if hashes.iter().all(|hash| !hash.is_empty()) && hashes[0] != hashes[1] {
                return disagree("arena", hashes[0], hashes[1]);
            }
            if known.trace != part.trace {
                return disagree("trace", &known.trace, &part.trace);
            }
            for (share, digest) in &part.share_digests {
                let other = known.share_digests.get(share);
                if other.is_some_and(|other| other != digest) {
                    let what = format!("share {share} of the optimizer's state,");
                    return disagree(&what, &known.folder, &part.folder);
                }
            }
        }
        if part.file.is_some() && parts.iter().all(|known| known.file != part.file) {
            parts.push(part);
        }
        Ok(())
    }

    /// The manifest of the first step above `committed` whose files are all there. Parts of steps
    /// at or below it are forgotten.
    pub fn manifest(&mut self, history: History, committed: Option<Step>) -> Option<Manifest> {
        self.parts
            .retain(|step, _| committed.is_none_or(|committed| *step > committed));
        let is_complete = |parts: &Vec<v1::CheckpointPart>| {
            let first = parts.first();
            first.is_some_and(|first| parts.len() >= first.num_files as usize)
        };
        let mut complete = self.parts.values().filter(|parts| is_complete(parts));
        let (parts, optimizer_hash) =
            complete.find_map(|parts| Some((parts, optimizer_hash_of(parts)?)))?;
        let first = parts.first()?;
        let mut arenas = parts.iter().map(|part| &part.arena_hash);
        let arena_hash = arenas.find(|hash| !hash.is_empty())?.clone();
        let mut files: Vec<FileRef> = parts
            .iter()
            .filter_map(|part| part.file.clone())
            .map(Into::into)
            .collect();
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Some(Manifest {
            history,
            generation: self.watch.generation,
            step: Step(first.step),
            part: 0,
            folder: first.folder.clone(),
            files,
            arena_hash,
            optimizer_hash,
            trace: first.trace.clone(),
        })
    }

    /// The most memory that each rank of a world says it had, by rank; 0 for one that does not say.
    #[must_use]
    pub fn peak_memory_bytes(&self, world: &World) -> Vec<u64> {
        let peak = |process| self.done.get(process).map(|done| done.peak_memory_bytes);
        let ranks = world.ranks.iter();
        ranks
            .map(|rank| peak(&rank.process).unwrap_or_default())
            .collect()
    }

    /// The common end of a world of `size` ranks, once all are done; `None` before.
    ///
    /// # Errors
    /// When ranks ended in different states.
    pub fn end(&self, size: usize) -> Option<Result<v1::Done, String>> {
        if self.done.len() != size {
            return None;
        }
        let mut all = self.done.iter();
        let (_, first) = all.next()?;
        for (process, done) in all {
            if (
                done.step,
                &done.arena_hash,
                &done.optimizer_hash,
                &done.trace,
            ) != (
                first.step,
                &first.arena_hash,
                &first.optimizer_hash,
                &first.trace,
            ) {
                return Some(Err(format!(
                    "process {process} ended at step {} with arena {}, another one at step {} with {}",
                    done.step, done.arena_hash, first.step, first.arena_hash
                )));
            }
        }
        Some(Ok(first.clone()))
    }
}

/// The hash of the optimizer's state, of which the files' reports tell the shares; `None` where they
/// do not tell all.
fn optimizer_hash_of(parts: &[v1::CheckpointPart]) -> Option<String> {
    let digest = |share: u32| {
        let mut told = parts.iter();
        let digest = told.find_map(|part| part.share_digests.get(&share))?;
        digest.as_slice().try_into().ok()
    };
    let digests: Option<Vec<[u8; 32]>> = (0..NUM_SHARES).map(digest).collect();
    Some(optimizer_hash(&digests?))
}
