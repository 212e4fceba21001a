//! Where each rank of a running world is, as far as the leader can tell: death is proof, silence is
//! not. What becomes of the world is decided elsewhere.

use std::collections::BTreeSet;

use super::{Closed, Observed, Patience, Standby, Watch, distrust};
use crate::ids::{Incarnation, JobName, ProcessId, RankId, WorkerName};
use crate::state::{ClusterState, Job, Placement, World};

/// A job that has a world, and what is known of it.
pub(super) struct Running<'a> {
    pub(super) name: &'a JobName,
    pub(super) job: &'a Job,
    pub(super) watch: Option<&'a Watch>,
    pub(super) state: &'a ClusterState,
    pub(super) observed: &'a Observed,
    pub(super) patience: Patience,
    pub(super) now_ms: u64,
}

/// Where one rank of a world is.
pub(super) enum Fate<'a> {
    /// Nothing is known against it, and it has not closed.
    Alive,
    Closed(&'a Closed),
    /// Its worker is not there, which proves nothing yet.
    Silent,
    /// Nobody has to wait for it who holds a state without it; but it may come back with what it
    /// holds.
    Missed(String),
    /// It is known to be no more, or is given up.
    Gone(String),
}

/// Whether a worker is there, in the life that a process was started in.
enum Presence {
    There,
    Reborn,
    SilentForMs(u64),
}

impl<'a> Running<'a> {
    /// Where each rank of the world is, by rank.
    pub(super) fn fates(&self, world: &World) -> Vec<Fate<'a>> {
        let ranks = (0u32..).map(RankId).zip(&world.ranks);
        let is_given_up = self.job.abandoned == Some(world.generation);
        ranks
            .map(|(rank, placement)| match self.fate(rank, placement) {
                Fate::Silent | Fate::Missed(_) if is_given_up => {
                    Fate::Gone("an operator said that it will not come back".to_owned())
                }
                fate => fate,
            })
            .collect()
    }

    fn fate(&self, rank: RankId, placement: &Placement) -> Fate<'a> {
        let (worker, watch) = (&placement.worker, self.watch);
        if let Some(how) = watch.and_then(|watch| watch.gone.get(&rank)) {
            return Fate::Gone(how.clone());
        }
        if let Some(why) = distrust::left_out(self.job, worker) {
            return Fate::Gone(why);
        }
        let anyone_closed = watch.is_some_and(|watch| !watch.closed.is_empty());
        let closed = watch.and_then(|watch| watch.closed.get(&rank));
        match (self.presence(worker, placement.incarnation), closed) {
            (Presence::Reborn, _) => {
                Fate::Gone(format!("worker {worker} came back as a new process"))
            }
            (Presence::SilentForMs(ms), _) if ms > self.patience.fallback_after_ms => {
                Fate::Gone(format!("worker {worker} is silent for {} s", ms / 1000))
            }
            // A rank of a world that others have closed can complete nothing in it, and is fenced
            // when it comes back.
            (Presence::SilentForMs(ms), _)
                if anyone_closed && self.counted_ms(rank, ms) > self.patience.detect_ms =>
            {
                Fate::Missed(format!(
                    "worker {worker} is silent, and the world is closed"
                ))
            }
            (_, Some(closed)) => Fate::Closed(closed),
            (Presence::SilentForMs(_), None) => Fate::Silent,
            (Presence::There, None) => self.unanswered(placement.process, anyone_closed),
        }
    }

    /// How much of a silence of `ms` counts against a rank of a world that others have closed: all of
    /// it where one of them misses the rank, too. Else it worked with them until then, and only its
    /// worker was silent, which may be back in a moment.
    fn counted_ms(&self, rank: RankId, ms: u64) -> u64 {
        let Some(watch) = self.watch else { return ms };
        let mut closed = watch.closed.values();
        if closed.any(|closed| closed.lost.contains(&rank)) {
            return ms;
        }
        let since = watch.closing_since_ms;
        since.map_or(ms, |since| ms.min(self.now_ms.saturating_sub(since)))
    }

    /// The fate of a rank whose worker is there, and that does not say what it holds.
    fn unanswered(&self, process: ProcessId, anyone_closed: bool) -> Fate<'a> {
        let since = self.watch.and_then(|watch| watch.closing_since_ms);
        let waited_ms = since.map_or(0, |since| self.now_ms.saturating_sub(since));
        let pace = self.watch.and_then(|watch| watch.speed.paces.get(&process));
        let pace = pace.copied().unwrap_or_default();
        if waited_ms > self.patience.fallback_after_ms {
            Fate::Gone(format!("it does not answer for {} s", waited_ms / 1000))
        } else if anyone_closed && waited_ms > self.patience.answer_ms(pace.updating_us) {
            Fate::Missed("it does not answer".to_owned())
        } else {
            Fate::Alive
        }
    }

    fn presence(&self, worker: &WorkerName, incarnation: Incarnation) -> Presence {
        match self.observed.connected.get(worker) {
            Some(life) if *life == incarnation => Presence::There,
            Some(_) => Presence::Reborn,
            None => {
                let since = self.observed.silent_since_ms.get(worker).copied();
                let since = since.unwrap_or(self.now_ms);
                Presence::SilentForMs(self.now_ms.saturating_sub(since))
            }
        }
    }

    /// Whether a process is held by a worker that is there, so that it could end it.
    pub(super) fn is_in_reach(&self, placement: &Placement) -> bool {
        let presence = self.presence(&placement.worker, placement.incarnation);
        matches!(presence, Presence::There)
    }

    /// Why a process cannot be counted on, whatever it does: its worker is not there.
    pub(super) fn away(&self, worker: &WorkerName, incarnation: Incarnation) -> Option<String> {
        match self.presence(worker, incarnation) {
            Presence::Reborn => Some(format!("worker {worker} came back as a new process")),
            Presence::SilentForMs(ms) if ms > self.patience.detect_ms => {
                Some(format!("worker {worker} is silent"))
            }
            Presence::There | Presence::SilentForMs(_) => None,
        }
    }

    /// Whether the process of a rank is proved to have ended, so that its device is free again.
    pub(super) fn has_ended(&self, rank: RankId, placement: &Placement) -> bool {
        let is_gone = |watch: &Watch| watch.gone.contains_key(&rank);
        self.watch.is_some_and(is_gone)
            || matches!(
                self.presence(&placement.worker, placement.incarnation),
                Presence::Reborn
            )
    }

    /// The processes that are prepared to enter a world, oldest first.
    pub(super) fn prepared(&self) -> Vec<ProcessId> {
        let waiting = self.waiting();
        waiting.map(|(process, _)| process).collect()
    }

    /// Those that do not follow yet, so that nothing is known of whom they reach.
    pub(super) fn beginning(&self) -> Vec<ProcessId> {
        let waiting = self.waiting();
        let beginning = waiting.filter(|(_, seen)| **seen == Standby::Ready);
        beginning.map(|(process, _)| process).collect()
    }

    /// The processes that may enter a world beside those that stay, without being waited for: they
    /// follow, and all of them reach each other. Oldest first.
    pub(super) fn entering(&self, staying: &BTreeSet<ProcessId>) -> Vec<ProcessId> {
        if !self.job.spec.standbys_follow() {
            return self.prepared();
        }
        let mut entering: Vec<(ProcessId, &BTreeSet<ProcessId>)> = Vec::new();
        for (process, seen) in self.waiting() {
            let Standby::Follows { reached } = seen else {
                continue;
            };
            // Of two that wait, one has called the other.
            let reaches = |(other, theirs): &(ProcessId, &BTreeSet<ProcessId>)| {
                reached.contains(other) || theirs.contains(&process)
            };
            if staying.is_subset(reached) && entering.iter().all(reaches) {
                entering.push((process, reached));
            }
        }
        entering.into_iter().map(|(process, _)| process).collect()
    }

    /// The processes that can be counted on, and how far they are, oldest first.
    fn waiting(&self) -> impl Iterator<Item = (ProcessId, &'a Standby)> {
        let usable = self.job.standbys.iter().filter(|(_, seat)| {
            let presence = self.presence(&seat.worker, seat.incarnation);
            matches!(presence, Presence::There) && !self.drains(&seat.worker)
        });
        usable.filter_map(|(process, _)| {
            let seen = self.watch?.standbys.get(process)?;
            (!matches!(seen, Standby::Gone(_))).then_some((*process, seen))
        })
    }

    /// Whether the job is to leave a worker: an operator wants it free, or it is not trusted.
    pub(super) fn drains(&self, worker: &WorkerName) -> bool {
        self.state.draining.contains(worker) || self.job.distrusted.contains_key(worker)
    }
}
