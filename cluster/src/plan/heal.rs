//! What becomes of a world that runs: whether it lives, closes, is healed by another one, or falls
//! back to the last checkpoint. Who is in the next world is decided elsewhere.
//!
//! ```text
//!          a rank is gone, or closed the world; or it is to have other ranks
//! Lives -----------------------------------------------------------------------> Close
//!                       every rank is gone or missed, or has said what it holds
//! Close -----------------------------------------------------------------------> Heal
//!                            nobody of them holds a state, and all others are gone
//!                                  ------------------------------------------> FallBack
//! ```

use std::collections::BTreeSet;

use super::closure::{Closure, Survivor, survivors};
use super::fate::{Fate, Running};
use super::{Closing, balance, finish, poison, shares};
use crate::command::Command;
use crate::ids::{ProcessId, Step};
use crate::state::{Phase, Poison, World};

/// What becomes of a world.
pub(super) enum Verdict {
    Lives,
    /// It is to be closed; and, once it is, why it waits.
    Close(Closing, Option<String>),
    /// It is closed, and those who have its state are too few.
    Wait {
        closing: Closing,
        why: String,
        /// Processes that do not answer, and are missed.
        stuck: BTreeSet<ProcessId>,
    },
    /// A world that goes on where it is, or the end of the job.
    Heal(Command),
    /// Why nobody can go on; and what is known of a shard that kills.
    FallBack(String, Option<Poison>),
}

/// Decides what becomes of the world of `running`.
pub(super) fn judge(running: &Running<'_>) -> Verdict {
    let Some(world) = &running.job.world else {
        return Verdict::Lives;
    };
    if let Some(reason) = running.watch.and_then(|watch| watch.broken.as_ref()) {
        return Verdict::FallBack(reason.clone(), running.job.poison.clone());
    }
    let fates = running.fates(world);
    let Some(reason) = trouble(&fates) else {
        return match change(running, world, &fates) {
            Some(reason) => Verdict::Close(Closing::BehindStep(reason), None),
            None => Verdict::Lives,
        };
    };
    let close = |why: String| Verdict::Close(closing(&fates, reason.clone()), Some(why));
    let owes = |fate: &Fate<'_>| matches!(fate, Fate::Alive | Fate::Silent);
    if let Some(rank) = fates.iter().position(owes) {
        let worker = &world.ranks[rank].worker;
        let what = format!("{reason}; waits for what rank {rank} on {worker} holds");
        return close(what);
    }
    let survivors = survivors(world, &fates);
    let Some(step) = survivors.iter().filter_map(|one| one.closed.step).max() else {
        // Silence proves no death: who is only missed may come back with the last state.
        let is_missed = |fate: &Fate<'_>| matches!(fate, Fate::Missed(_));
        if let Some(rank) = fates.iter().position(is_missed) {
            let worker = &world.ranks[rank].worker;
            return close(format!(
                "{reason}; waits for rank {rank} on {worker}, since nobody who is there has a state"
            ));
        }
        let is_given_up = running.job.abandoned == Some(world.generation);
        let reason = match is_given_up {
            true => format!(
                "{reason}; an operator said that the ranks which are missed will not come back"
            ),
            false => reason,
        };
        let poison = match last_step(running, world) {
            Some(step) => poison::next(running.job, world, &fates, step, &[]),
            None => running.job.poison.clone(),
        };
        return Verdict::FallBack(reason, poison);
    };
    if let Some(share) = lost_share(running, &survivors, step) {
        let is_missed = |fate: &Fate<'_>| matches!(fate, Fate::Missed(_));
        if let Some(rank) = fates.iter().position(is_missed) {
            let worker = &world.ranks[rank].worker;
            return close(format!(
                "{reason}; waits for rank {rank} on {worker}, since nobody who is there has share \
                 {share} of the optimizer's state"
            ));
        }
        let poison = poison::next(running.job, world, &fates, step, &[]);
        let reason = format!("{reason}; with it went share {share} of the optimizer's state");
        return Verdict::FallBack(reason, poison);
    }
    let closure = Closure {
        running,
        world,
        fates,
        survivors,
        step,
        reason,
    };
    closure.heal()
}

/// A share of the optimizer's state that nobody has who goes on from `step`.
fn lost_share(running: &Running<'_>, survivors: &[Survivor<'_>], step: Step) -> Option<u32> {
    if !running.job.spec.workers.redundancy.is_shared() {
        return None;
    }
    let closed: Vec<_> = survivors.iter().map(|one| one.closed).collect();
    let kept = finish::kept(&closed, step);
    shares::lost(kept.into_iter()).first().copied()
}

/// Why a world cannot go on, if it cannot: who is lost says more than who noticed.
fn trouble(fates: &[Fate<'_>]) -> Option<String> {
    let ranks = || fates.iter().enumerate();
    let gone = ranks().find_map(|(rank, fate)| match fate {
        Fate::Gone(how) => Some(format!("rank {rank} is gone: {how}")),
        _ => None,
    });
    let missed = || {
        ranks().find_map(|(rank, fate)| match fate {
            Fate::Missed(how) => Some(format!("rank {rank} is lost: {how}")),
            _ => None,
        })
    };
    let closed = || {
        let closed = ranks().filter_map(|(_, fate)| match fate {
            Fate::Closed(closed) => Some(closed),
            _ => None,
        });
        // Who misses a peer knows more than who was told to close.
        let first = closed.min_by_key(|closed| closed.lost.is_empty());
        first.map(|closed| closed.why.clone())
    };
    gone.or_else(missed).or_else(closed)
}

/// How the ranks that have not closed are to do so: as all the others did, if those are behind a
/// step.
pub(super) fn closing(fates: &[Fate<'_>], reason: String) -> Closing {
    let is_quiet = |fate: &Fate<'_>| match fate {
        Fate::Closed(closed) => closed.paused,
        Fate::Alive | Fate::Silent => true,
        Fate::Gone(_) | Fate::Missed(_) => false,
    };
    if fates.iter().all(is_quiet) {
        Closing::BehindStep(reason)
    } else {
        Closing::Now(reason)
    }
}

/// Why a world that lives is to have other ranks, or other shards of them, if it is.
fn change(running: &Running<'_>, world: &World, fates: &[Fate<'_>]) -> Option<String> {
    // A rank that cannot be asked what it holds would be lost by it.
    let is_silent = |fate: &Fate<'_>| matches!(fate, Fate::Silent);
    if !matches!(running.job.phase, Phase::Running) || fates.iter().any(is_silent) {
        return None;
    }
    let workers = running.job.spec.workers;
    let (min, max) = (workers.min as usize, workers.max as usize);
    let size = world.ranks.len();
    let (leaving, staying): (Vec<_>, Vec<_>) = world
        .ranks
        .iter()
        .partition(|rank| running.drains(&rank.worker));
    let ready = running.entering(&staying.iter().map(|rank| rank.process).collect());
    // With one shard there is no room for the rank that takes over beside the one that leaves.
    let can_hand_over = !staying.is_empty() || running.job.spec.train.logical_shards > 1;
    if let Some(first) = leaving.first()
        && staying.len() + ready.len() >= min
        && can_hand_over
    {
        return Some(format!("worker {} is drained", first.worker));
    }
    if size > max {
        return Some(format!("the job is scaled to {max} ranks"));
    }
    if let Some(entering) = ready.first().filter(|_| size < max) {
        let worker = &running.job.standbys[entering].worker;
        return Some(format!("a rank on {worker} enters"));
    }
    let uneven = balance::uneven(running).filter(|uneven| uneven.is_persistent);
    uneven.map(|uneven| uneven.reason)
}

/// The step at which the ranks died that nobody is left to tell of.
fn last_step(running: &Running<'_>, world: &World) -> Option<Step> {
    let watch = running.watch?;
    let applied = watch.applied.filter(|step| *step >= world.first_step);
    applied.or_else(|| (!watch.progressed).then_some(world.first_step))
}
