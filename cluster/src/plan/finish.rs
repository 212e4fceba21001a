//! How a world gets through the step that the world before it began: who brings which shards into
//! it, and who is given what before. Who is in that world is decided elsewhere.

use super::Closed;
use crate::ids::{RankId, Step};
use crate::job::JobSpec;
use crate::state::{Finish, Heal, Part};
use crate::tree::{self, Run};

/// The most ranks that a state is fetched from at once.
const MAX_SOURCES: usize = 4;

/// The parts of a world of `survivors` and, behind them, `num_joining` ranks without a state.
/// Nothing that is held is computed again, and what is missing is divided evenly.
pub(super) fn finish(
    survivors: &[&Closed],
    num_joining: usize,
    step: Step,
    spec: &JobSpec,
) -> Finish {
    let num_shards = spec.train.logical_shards;
    let is_shared = spec.workers.redundancy.is_shared();
    let size = survivors.len() + num_joining;
    let mut parts = held(survivors, step, num_shards);
    parts.resize(size, Part::default());
    compute_missing(&mut parts, num_shards);
    // Of a shared state a rank has no more to give than how far it is.
    let max_sources = if is_shared { 1 } else { MAX_SOURCES };
    bring_to(&mut parts, survivors, step, max_sources);
    let is_evaluated = |closed: &&Closed| closed.step == Some(step) && closed.evaluated;
    Finish {
        evaluated: num_joining == 0 && survivors.iter().all(is_evaluated),
        gather: is_shared
            && (parts.iter().any(|part| part.heal.is_some())
                || survivors.iter().any(|closed| !closed.is_whole)),
        moves: Vec::new(),
        parts,
    }
}

/// The shares of the optimizer's state that ranks which go on have at `step`, by rank: one that is
/// behind has its shares where it can be given what moves them on.
pub(super) fn kept<'a>(survivors: &[&'a Closed], step: Step) -> Vec<&'a [Run]> {
    let has_vector = |closed: &&Closed| closed.step == Some(step) && closed.has_reduced;
    let is_given = survivors.iter().any(has_vector);
    let kept = |closed: &&'a Closed| {
        let num_behind = closed.step.and_then(|at| step.0.checked_sub(at.0));
        match num_behind {
            Some(0) => closed.kept.as_slice(),
            Some(1) if is_given => closed.kept.as_slice(),
            _ => &[],
        }
    };
    survivors.iter().map(kept).collect()
}

/// Every shard of `step` that survivors hold, once: the lowest rank that has it brings it.
fn held(survivors: &[&Closed], step: Step, num_shards: u32) -> Vec<Part> {
    let mut taken: Vec<Run> = Vec::new();
    let parts = survivors.iter().map(|closed| {
        let shards = tree::difference(&holdings(closed, step, num_shards), &taken);
        taken.extend(&shards);
        Part { shards, heal: None }
    });
    parts.collect()
}

/// The contributions to `step` that a rank has, of the shards that there are.
pub(super) fn holdings(closed: &Closed, step: Step, num_shards: u32) -> Vec<Run> {
    if closed.step == Some(step) {
        tree::intersection(&closed.shards, &[Run::new(0, num_shards)])
    } else {
        Vec::new()
    }
}

/// Divides the shards that nobody brings.
fn compute_missing(parts: &mut [Part], num_shards: u32) {
    let taken: Vec<Run> = parts.iter().flat_map(|part| part.shards.clone()).collect();
    let missing: Vec<u32> = tree::difference(&[Run::new(0, num_shards)], &taken)
        .into_iter()
        .flat_map(Run::shards)
        .collect();
    let (base, longer) = (missing.len() / parts.len(), missing.len() % parts.len());
    let count = |part: &Part| part.shards.iter().map(|run| run.num_shards()).sum::<u32>();
    // The emptiest hands first: they get the longer runs.
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|rank| (count(&parts[*rank]), *rank));
    let mut rest = missing.as_slice();
    for (place, rank) in order.into_iter().enumerate() {
        let (mine, others) = rest.split_at(base + usize::from(place < longer));
        rest = others;
        let shards = &mut parts[rank].shards;
        shards.extend(mine.iter().map(|shard| Run::new(*shard, shard + 1)));
        *shards = tree::union(shards);
    }
}

/// Says what brings each rank to `step` that is not there: the reduced vector of the step before,
/// where it lacks only that and somebody still has it; else the whole state.
fn bring_to(parts: &mut [Part], survivors: &[&Closed], step: Step, max_sources: usize) {
    let there = || {
        let ranks = (0u32..).map(RankId).zip(survivors);
        ranks.filter(|(_, closed)| closed.step == Some(step))
    };
    let states: Vec<RankId> = there().map(|(rank, _)| rank).collect();
    let reduced = there().filter(|(_, closed)| closed.has_reduced);
    let reduced: Vec<RankId> = reduced.map(|(rank, _)| rank).collect();
    // Those who ask take turns at those who give.
    let mut next_reduced = reduced.iter().cycle();
    let mut num_asking = 0;
    for (rank, part) in parts.iter_mut().enumerate() {
        let at = survivors.get(rank).and_then(|closed| closed.step);
        let num_behind = at.and_then(|at| step.0.checked_sub(at.0));
        let from = if num_behind == Some(1) {
            next_reduced.next()
        } else {
            None
        };
        part.heal = match (num_behind, from) {
            (Some(0), _) => None,
            (_, Some(from)) => Some(Heal::Reduced { from: *from }),
            (_, None) => {
                let first = num_asking * max_sources % states.len().max(1);
                num_asking += 1;
                let from = states.iter().cycle().skip(first);
                let from = from.take(states.len().min(max_sources));
                Some(Heal::State {
                    from: from.copied().collect(),
                })
            }
        };
    }
}
