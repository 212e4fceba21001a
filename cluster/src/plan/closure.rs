//! The world that heals one that is closed: who is in it, and why it may have to wait. What each of
//! its ranks does first is decided elsewhere.

use std::collections::BTreeSet;

use super::fate::{Fate, Running};
use super::finish::{finish, holdings, kept};
use super::heal::{Verdict, closing};
use super::shares::{self, Keeper};
use super::{Closed, balance, poison};
use crate::command::Command;
use crate::device::Device;
use crate::ids::{Incarnation, ProcessId, RankId, Step, WorkerName};
use crate::state::{Phase, Placement, World};
use crate::tree::Run;

/// A state of this size crosses between machines in some tenths of a second.
const SMALL_STATE_BYTES: u64 = 256 << 20;

/// A world that is closed: all that can be known of it is known.
pub(super) struct Closure<'a> {
    pub(super) running: &'a Running<'a>,
    pub(super) world: &'a World,
    pub(super) fates: Vec<Fate<'a>>,
    /// By rank; at least one has a state.
    pub(super) survivors: Vec<Survivor<'a>>,
    /// The newest step that any of them is at.
    pub(super) step: Step,
    pub(super) reason: String,
}

/// A rank that may go on in the next world.
#[derive(Clone, Copy)]
pub(super) struct Survivor<'a> {
    rank: RankId,
    placement: &'a Placement,
    pub(super) closed: &'a Closed,
}

/// Who is in the next world.
struct Choice<'a> {
    /// Those without a state behind the others.
    survivors: Vec<Survivor<'a>>,
    /// The processes that enter it.
    ready: Vec<ProcessId>,
    /// Survivors that are left out for their links.
    cut: Vec<Survivor<'a>>,
    /// Survivors that are there for one more world, to hand over what only they have.
    leaving: Vec<RankId>,
}

/// The ranks that said what they hold.
pub(super) fn survivors<'a>(world: &'a World, fates: &[Fate<'a>]) -> Vec<Survivor<'a>> {
    let ranks = (0u32..).map(RankId).zip(&world.ranks).zip(fates);
    let survivors = ranks.filter_map(|((rank, placement), fate)| match fate {
        Fate::Closed(closed) => Some(Survivor {
            rank,
            placement,
            closed,
        }),
        _ => None,
    });
    survivors.collect()
}

impl<'a> Closure<'a> {
    /// The world that goes on with what the survivors hold, the end of a job that cannot, or why
    /// both have to wait.
    pub(super) fn heal(self) -> Verdict {
        let running = self.running;
        let num_fruitless = self.num_fruitless();
        if let Some(wait) = self.back_off(num_fruitless) {
            return wait;
        }
        let Choice {
            survivors,
            ready,
            cut,
            leaving,
        } = match self.choose(num_fruitless) {
            Ok(choice) => choice,
            Err(wait) => return self.wait(wait),
        };
        let num_shards = running.job.spec.train.logical_shards;
        let held = self.survivors.iter();
        let held = held.flat_map(|one| holdings(one.closed, self.step, num_shards));
        let held: Vec<Run> = held.collect();
        let poison = poison::next(running.job, self.world, &self.fates, self.step, &held);
        if let Some(outcome) =
            poison::end(running.job, running.watch, poison.as_ref(), &self.reason)
        {
            return Verdict::Heal(Command::Finish {
                job: running.name.clone(),
                generation: running.job.generation,
                outcome,
            });
        }
        let mut reason = format!("{}; goes on at step {}", self.reason, self.step);
        for one in cut {
            let (rank, worker) = (one.rank, &one.placement.worker);
            reason += &format!("; without rank {rank} on {worker}, which not all others reach");
        }
        for process in &ready {
            reason += &format!("; {} enters", running.job.standbys[process].worker);
        }
        Verdict::Heal(Command::StartWorld {
            job: running.name.clone(),
            world: self.next_world(&survivors, &ready, &leaving),
            reason,
            predecessor_progressed: self.progressed() || self.is_planned(),
            poison,
        })
    }

    fn next_world(
        &self,
        survivors: &[Survivor<'_>],
        ready: &[ProcessId],
        leaving: &[RankId],
    ) -> World {
        let job = self.running.job;
        let num_shards = job.spec.train.logical_shards;
        let seats = survivors.iter().map(|survivor| {
            let placement = survivor.placement;
            let device = placement.device;
            (
                placement.process,
                &placement.worker,
                placement.incarnation,
                device,
            )
        });
        let joining = ready.iter().map(|process| {
            let seat = &job.standbys[process];
            (*process, &seat.worker, seat.incarnation, seat.device)
        });
        let seats: Vec<(ProcessId, &WorkerName, Incarnation, Device)> =
            seats.chain(joining).collect();
        let processes = seats.iter().map(|(process, ..)| *process);
        let runs = balance::divide(num_shards, &balance::speeds(self.running, processes));
        let ranks = seats.into_iter().zip(runs);
        let ranks = ranks.map(
            |((process, worker, incarnation, device), shards)| Placement {
                process,
                worker: worker.clone(),
                incarnation,
                device,
                shards,
            },
        );
        let closed: Vec<&Closed> = survivors.iter().map(|one| one.closed).collect();
        let mut finish = finish(&closed, ready.len(), self.step, &job.spec);
        let redundancy = job.spec.workers.redundancy;
        let mut holders = Vec::new();
        if redundancy.is_shared() {
            let has = kept(&closed, self.step).into_iter().zip(survivors);
            let mut keepers: Vec<Keeper> = has
                .map(|(has, one)| Keeper {
                    has: has.to_vec(),
                    leaves: leaving.contains(&one.rank),
                })
                .collect();
            keepers.resize(finish.parts.len(), Keeper::default());
            let division = shares::divide(redundancy, &keepers);
            holders = division.holders;
            finish.moves = division.moves;
        }
        World {
            history: self.world.history,
            generation: self.world.generation.next(),
            first_step: self.step,
            ranks: ranks.collect(),
            finish: Some(finish),
            shares: holders,
        }
    }

    /// Who is in the next world, or why there is none yet.
    fn choose(&self, num_fruitless: u32) -> Result<Choice<'a>, String> {
        let (min, max) = self.bounds();
        let mut survivors = self.survivors.clone();
        let mut ready = self.ready(min);
        let cut = if num_fruitless > 0 {
            self.cut_bad_links(&mut survivors, min.saturating_sub(ready.len()))
        } else {
            Vec::new()
        };
        let max = max.max(self.let_drain(&mut survivors, min.saturating_sub(ready.len())));
        // Who is at the step is the last to leave. Among those who go on the order of ranks stays:
        // the lowest one has records that nobody acknowledged yet.
        let drains = |one: &Survivor<'_>| self.running.drains(&one.placement.worker);
        survivors.sort_by_key(|one| (!self.is_there(one), drains(one)));
        survivors.truncate(max);
        let leaving = self.hand_over(&mut survivors);
        survivors.sort_by_key(|one| (one.closed.step.is_none(), one.rank));
        let num_shards = self.running.job.spec.train.logical_shards as usize;
        let room = (max + leaving.len()).min(num_shards);
        ready.truncate(room.saturating_sub(survivors.len()));
        let size = survivors.len() + ready.len();
        if size < min {
            return Err(format!(
                "{}; waits for workers: {size} of at least {min} are there, and keep their state",
                self.reason
            ));
        }
        Ok(Choice {
            survivors,
            ready,
            cut,
            leaving,
        })
    }

    /// Keeps those for one more world who alone have a share of the optimizer's state; and says who
    /// is in it only to hand shares over.
    fn hand_over(&self, chosen: &mut Vec<Survivor<'a>>) -> Vec<RankId> {
        if !self.running.job.spec.workers.redundancy.is_shared() {
            return Vec::new();
        }
        let drains = |one: &Survivor<'_>| self.running.drains(&one.placement.worker);
        let stays = |one: &Survivor<'_>| !drains(one) && self.is_there(one);
        let mut leaving: Vec<RankId> = Vec::new();
        if chosen.iter().any(stays) {
            leaving.extend(chosen.iter().filter(|one| drains(one)).map(|one| one.rank));
        }
        let num_lost = |ranks: &[Survivor<'_>]| {
            let closed: Vec<&Closed> = ranks.iter().map(|one| one.closed).collect();
            shares::lost(kept(&closed, self.step).into_iter()).len()
        };
        let mut lost = num_lost(chosen);
        let others = self.survivors.iter();
        let mut others: Vec<Survivor<'a>> = others
            .filter(|one| chosen.iter().all(|other| other.rank != one.rank))
            .copied()
            .collect();
        // First who is at the step, since with it may come what moves others on.
        others.sort_by_key(|one| (!self.is_there(one), one.rank));
        for one in others {
            chosen.push(one);
            let left = num_lost(chosen);
            if left < lost || (lost > 0 && self.is_there(&one)) {
                lost = left;
                leaving.push(one.rank);
            } else {
                chosen.pop();
            }
        }
        leaving
    }

    /// The processes that may enter: those that follow; and where these are too few for a world, or
    /// a small state is missed by a death, those that have the state to take yet, which the others
    /// wait for. Where deaths come faster than a process can begin to follow, a world would wane.
    fn ready(&self, min: usize) -> Vec<ProcessId> {
        if !matches!(self.running.job.phase, Phase::Running) {
            return Vec::new();
        }
        let staying = self.survivors.iter();
        let staying = staying.filter(|one| !self.running.drains(&one.placement.worker));
        let staying: BTreeSet<ProcessId> = staying.map(|one| one.placement.process).collect();
        let mut ready = self.running.entering(&staying);
        if self.is_death() && self.has_small_state() {
            let mut others = self.running.beginning();
            others.retain(|process| !ready.contains(process));
            ready.extend(others);
        }
        // Whoever misses a link is the last choice.
        let num_missing = min.saturating_sub(staying.len() + ready.len());
        let mut others = self.running.prepared();
        others.retain(|process| !ready.contains(process));
        ready.extend(others.into_iter().take(num_missing));
        ready
    }

    /// Whether the world ends for another reason than that somebody is to enter or to leave.
    fn is_death(&self) -> bool {
        !self.is_planned() && self.survivors.len() < self.world.ranks.len()
    }

    /// Whether a state is taken in less time than a death costs anyway. Before there is a checkpoint
    /// nobody knows, and little can be lost by it.
    fn has_small_state(&self) -> bool {
        let newest = self.running.job.latest_manifest();
        newest.is_none_or(|manifest| manifest.bytes() <= SMALL_STATE_BYTES)
    }

    /// Lets those go whose workers an operator wants free, where at least `min` stay; and says how
    /// many ranks the next world needs room for.
    fn let_drain(&self, survivors: &mut Vec<Survivor<'a>>, min: usize) -> usize {
        let stays = |one: &Survivor<'_>| !self.running.drains(&one.placement.worker);
        if survivors.iter().filter(|one| stays(one)).count() < min {
            return 0;
        }
        if survivors.iter().any(|one| stays(one) && self.is_there(one)) {
            survivors.retain(stays);
            return 0;
        }
        // All who are at the step are to leave: one stays for another world, to give its state.
        let last = survivors.iter().find(|one| self.is_there(one));
        let last = last.map(|one| one.rank);
        survivors.retain(|one| stays(one) || Some(one.rank) == last);
        2.min(self.running.job.spec.train.logical_shards as usize)
    }

    /// The fewest and the most ranks of the next world. A job that stops needs one to do so.
    fn bounds(&self) -> (usize, usize) {
        let job = self.running.job;
        let min = match job.phase {
            // A user may ask for more than there are while a world runs; it does not stop for that.
            Phase::Running => (job.spec.workers.min as usize).min(self.world.ranks.len()),
            _ => 1,
        };
        (min, job.spec.workers.max as usize)
    }

    /// Takes those out that miss most of the others, or are missed by them, until all can reach each
    /// other, or only `min` are left.
    fn cut_bad_links(&self, survivors: &mut Vec<Survivor<'a>>, min: usize) -> Vec<Survivor<'a>> {
        let mut cut = Vec::new();
        while survivors.len() > min
            && let Some(worst) = self.worst_connected(survivors)
        {
            cut.push(survivors.remove(worst));
        }
        cut
    }

    /// Whom to leave out first of those with a bad link; the only one at the step never is.
    fn worst_connected(&self, survivors: &[Survivor<'_>]) -> Option<usize> {
        let misses =
            |one: &Survivor<'_>, other: &Survivor<'_>| one.closed.lost.contains(&other.rank);
        let num_bad = |one: &Survivor<'_>| {
            let others = survivors.iter().filter(|other| other.rank != one.rank);
            let bad = others.filter(|other| misses(one, other) || misses(other, one));
            bad.count()
        };
        let num_there = survivors.iter().filter(|one| self.is_there(one)).count();
        let is_spared = |one: &Survivor<'_>| num_there == 1 && self.is_there(one);
        let candidates = survivors.iter().enumerate();
        let candidates = candidates.filter(|(_, one)| num_bad(one) > 0 && !is_spared(one));
        let worst =
            candidates.max_by_key(|(_, one)| (num_bad(one), one.closed.step.is_none(), one.rank));
        worst.map(|(index, _)| index)
    }

    fn is_there(&self, one: &Survivor<'_>) -> bool {
        one.closed.step == Some(self.step)
    }

    fn progressed(&self) -> bool {
        self.running.watch.is_some_and(|watch| watch.progressed)
            || self.step > self.world.first_step
    }

    fn is_planned(&self) -> bool {
        self.survivors.iter().all(|one| one.closed.paused)
    }

    /// How many worlds in a row, this one included, ended without a step and without a loss that
    /// would explain it.
    fn num_fruitless(&self) -> u32 {
        let all_are_there = self.survivors.len() == self.world.ranks.len();
        if self.progressed() || self.is_planned() || !all_are_there {
            0
        } else {
            self.running.job.num_fruitless_worlds + 1
        }
    }

    /// Why a world that ended as the ones before it is not followed at once: its ranks would only
    /// close again. Each time it takes twice as long, until the job is given up.
    fn back_off(&self, num_fruitless: u32) -> Option<Verdict> {
        let running = self.running;
        let doublings = num_fruitless.checked_sub(2)?;
        let pause_ms = running
            .patience
            .detect_ms
            .saturating_mul(1u64.checked_shl(doublings).unwrap_or(u64::MAX));
        if pause_ms > running.patience.fallback_after_ms {
            let poison = running.job.poison.clone();
            return Some(Verdict::FallBack(self.reason.clone(), poison));
        }
        let since = running.watch.and_then(|watch| watch.closing_since_ms);
        let waited_ms = running
            .now_ms
            .saturating_sub(since.unwrap_or(running.now_ms));
        (waited_ms < pause_ms).then(|| {
            self.wait(format!(
                "{}; waits for {pause_ms} ms before it tries again: {num_fruitless} worlds in a row \
                 applied no step",
                self.reason
            ))
        })
    }

    fn wait(&self, why: String) -> Verdict {
        // Whoever is in reach of its worker can be made to be gone, and its device free.
        let ranks = self.world.ranks.iter().zip(&self.fates);
        let stuck = ranks.filter(|(placement, fate)| {
            matches!(fate, Fate::Missed(_)) && self.running.is_in_reach(placement)
        });
        Verdict::Wait {
            closing: closing(&self.fates, self.reason.clone()),
            why,
            stuck: stuck.map(|(placement, _)| placement.process).collect(),
        }
    }
}
