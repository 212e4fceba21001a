//! What the leader saw of one world and of the processes beside it. Volatile: a new leader learns
//! it again. What follows from it is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use super::{Patience, Speed};
use crate::ids::{Generation, Incarnation, ProcessId, RankId, Step, WorkerName};
use crate::state::{Heal, Placement, Seat, World};
use crate::tree::Run;

/// What the leader saw of one world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// Which world.
    pub generation: Generation,
    /// Ranks that are gone, and how that is known. Proof: an exit that a worker saw.
    pub gone: BTreeMap<RankId, String>,
    /// Ranks that apply nothing more of this world, and what they have.
    pub closed: BTreeMap<RankId, Closed>,
    /// Since when its ranks owe a report: they are told to close at once, or one of them has
    /// closed. Not set by a close behind the step, which takes as long as the step does.
    pub closing_since_ms: Option<u64>,
    /// Set when a world cannot go on, nor be healed.
    pub broken: Option<String>,
    /// Whether the world applied a step.
    pub progressed: bool,
    /// The most steps that its records say were applied; they may come late.
    pub applied: Option<Step>,
    /// Since when there are enough workers for the job; for gathering.
    pub wanting_since_ms: Option<u64>,
    /// What is known of the processes that wait to enter a world.
    pub standbys: BTreeMap<ProcessId, Standby>,
    /// Workers where processes of the job end before they have part in a step.
    pub failures: BTreeMap<WorkerName, Failures>,
    /// How fast its ranks are.
    pub speed: Speed,
    /// The last lines that the process printed which ended last.
    pub last_words: String,
    /// Which samples the shards have that ranks died of.
    pub suspect: Option<Suspect>,
}

/// The first samples of suspected shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Suspect {
    /// Of which step.
    pub step: Step,
    /// By shard, the rows of the data.
    pub rows: BTreeMap<u32, Vec<u64>>,
}

/// What a rank reports that closed its world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Why it did.
    pub why: String,
    /// Whether it closed behind a step, as it was told, so that the others do too.
    pub paused: bool,
    /// The peers that it misses.
    pub lost: Vec<RankId>,
    /// The ranks whose results are wrong, itself perhaps among them.
    pub suspects: Vec<RankId>,
    /// How many steps it has applied; `None` while it has no state.
    pub step: Option<Step>,
    /// The shards of that step whose contributions it has, or will have in a moment.
    pub shards: Vec<Run>,
    /// Whether it still has the reduced vector of the step before.
    pub has_reduced: bool,
    /// Whether it has the evaluation that follows the steps so far.
    pub evaluated: bool,
    /// The shares of the optimizer's state that it has; none where every rank keeps all of it.
    pub kept: Vec<Run>,
    /// Whether it has all parameters that these steps made.
    pub is_whole: bool,
}

/// A process that waits to enter a world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standby {
    /// It is prepared: it needs nothing but the state.
    Ready,
    /// It has the state too, a step behind the ranks at most.
    Follows {
        /// The processes with which it has exchanged a frame.
        reached: BTreeSet<ProcessId>,
    },
    /// It is no more.
    Gone(String),
}

/// Processes in a row that a worker lost before they had part in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failures {
    /// In which life of the worker.
    pub incarnation: Incarnation,
    /// The newest of them.
    pub process: ProcessId,
    /// How many.
    pub times: u32,
    /// When the last of them was.
    pub last_ms: u64,
}

/// The longest pause between two tries on a worker is `detect_ms` doubled so often.
const MAX_DOUBLINGS: u32 = 6;

impl Failures {
    /// Whether it is too early for another try: the first one is free, each later one waits twice as
    /// long as the one before.
    pub(super) fn rests(&self, patience: Patience, now_ms: u64) -> bool {
        let Some(doublings) = self.times.checked_sub(2) else {
            return false;
        };
        let factor = 1u64 << doublings.min(MAX_DOUBLINGS);
        let pause_ms = patience.detect_ms.saturating_mul(factor);
        now_ms.saturating_sub(self.last_ms) < pause_ms
    }
}

impl Watch {
    /// A process that waited to enter a world is no more. Told twice, it counts once.
    pub fn standby_gone(&mut self, process: ProcessId, seat: &Seat, how: String, now_ms: u64) {
        let last = self.standbys.insert(process, Standby::Gone(how));
        if !matches!(last, Some(Standby::Gone(_))) {
            self.fail(process, &seat.worker, seat.incarnation, now_ms);
        }
    }

    /// The watch on the world that follows `old`, with what stays true of the processes beside it.
    #[must_use]
    pub fn follow(&self, old: Option<&World>, new: &World, now_ms: u64) -> Watch {
        let mut next = Watch {
            generation: new.generation,
            failures: self.failures.clone(),
            suspect: self.suspect.clone(),
            ..Watch::default()
        };
        // A world of new processes ends all those that waited.
        if new.finish.is_some() {
            let waiting = self.standbys.iter().filter(|(one, _)| !new.has(**one));
            next.standbys = waiting.map(|(one, seen)| (*one, seen.clone())).collect();
        }
        let paces = self.speed.paces.iter().filter(|(one, _)| new.has(**one));
        next.speed.paces = paces.map(|(one, pace)| (*one, *pace)).collect();
        next.speed.step_us = self.speed.step_us;
        let Some(old) = old else { return next };
        next.gone = self.gone_in(old, new);
        if self.progressed || new.first_step > old.first_step {
            next.failures.retain(|worker, failures| {
                let is_proof = |rank: &Placement| rank.process > failures.process;
                let mut ranks = old.ranks.iter().filter(|rank| rank.worker == *worker);
                !ranks.any(is_proof)
            });
        } else {
            next.failures = self.failures_behind(old, now_ms);
            let newcomers = old.newcomers().filter(|rank| !new.has(rank.process));
            for rank in newcomers {
                next.fail(rank.process, &rank.worker, rank.incarnation, now_ms);
            }
        }
        next
    }

    /// The failures, with those of a world of new processes that applied no step: of its ranks those
    /// that ended by themselves, since the others were ended for these.
    pub(super) fn failures_behind(
        &self,
        world: &World,
        now_ms: u64,
    ) -> BTreeMap<WorkerName, Failures> {
        let mut behind = Watch {
            failures: self.failures.clone(),
            ..Watch::default()
        };
        if world.finish.is_none() && !self.progressed {
            let ended = self
                .gone
                .keys()
                .filter_map(|rank| world.ranks.get(rank.0 as usize));
            for rank in ended {
                behind.fail(rank.process, &rank.worker, rank.incarnation, now_ms);
            }
        }
        behind.failures
    }

    /// Which ranks of `new` ended while it was being decided: nobody tells of them again.
    fn gone_in(&self, old: &World, new: &World) -> BTreeMap<RankId, String> {
        let ranks = self.gone.iter().filter_map(|(rank, how)| {
            let placement = old.ranks.get(rank.0 as usize)?;
            Some((placement.process, how))
        });
        let standbys = self
            .standbys
            .iter()
            .filter_map(|(process, seen)| match seen {
                Standby::Gone(how) => Some((*process, how)),
                Standby::Ready | Standby::Follows { .. } => None,
            });
        let gone: BTreeMap<ProcessId, &String> = ranks.chain(standbys).collect();
        let ranks = (0u32..).map(RankId).zip(&new.ranks);
        let ended = ranks.filter_map(|(rank, placement)| {
            let how = gone.get(&placement.process)?;
            Some((rank, (*how).clone()))
        });
        ended.collect()
    }

    fn fail(&mut self, process: ProcessId, worker: &WorkerName, life: Incarnation, now_ms: u64) {
        let known = self.failures.get(worker);
        let known = known.filter(|known| known.incarnation == life);
        let failures = Failures {
            incarnation: life,
            process: known.map_or(process, |known| known.process.max(process)),
            times: known.map_or(1, |known| known.times.saturating_add(1)),
            last_ms: now_ms,
        };
        self.failures.insert(worker.clone(), failures);
    }
}

impl World {
    /// The ranks that came into a world without a state.
    fn newcomers(&self) -> impl Iterator<Item = &Placement> {
        let parts = self.finish.iter().flat_map(|finish| &finish.parts);
        let pairs = self.ranks.iter().zip(parts);
        let new = pairs.filter(|(_, part)| matches!(part.heal, Some(Heal::State { .. })));
        new.map(|(rank, _)| rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::History;
    use crate::testing::worker;

    fn world(generation: u64, processes: &[u64]) -> World {
        let size = u32::try_from(processes.len()).unwrap();
        let runs = crate::tree::runs(8, size).unwrap();
        let ranks = processes
            .iter()
            .zip(runs)
            .map(|(process, shards)| Placement {
                process: ProcessId(*process),
                worker: worker("a"),
                incarnation: Incarnation(1),
                device: crate::Device::Cpu,
                shards,
            });
        World {
            history: History(1),
            generation: Generation(generation),
            first_step: Step(3),
            ranks: ranks.collect(),
            finish: Some(crate::state::Finish {
                evaluated: false,
                parts: Vec::new(),
                moves: Vec::new(),
                gather: false,
            }),
            shares: Vec::new(),
        }
    }

    #[test]
    fn who_ends_while_a_world_is_decided_is_gone_in_that_world() {
        let mut watch = Watch::default();
        // Process 1 is why there is a new world; 3, and 4 that is to enter, end behind the decision.
        for (rank, how) in [(0, "signal 9"), (2, "signal 11")] {
            watch.gone.insert(RankId(rank), how.to_owned());
        }
        let gone = Standby::Gone("exit code 1".to_owned());
        watch.standbys.insert(ProcessId(4), gone);
        watch.standbys.insert(ProcessId(5), Standby::Ready);
        let next = watch.follow(Some(&world(1, &[1, 2, 3])), &world(2, &[2, 3, 4, 5]), 0);
        let expected = [(1, "signal 11"), (2, "exit code 1")];
        let expected = expected.map(|(rank, how)| (RankId(rank), how.to_owned()));
        assert_eq!(next.gone, BTreeMap::from(expected));
    }
}
