//! Whether the same shard of the same step kills rank after rank. Deaths at random mostly hit ranks
//! that had other shards to compute, or shards that a survivor has computed since.

use super::fate::Fate;
use super::{MAX_POISONED_WORLDS, Watch};
use crate::command::{Outcome, OutcomeKind};
use crate::ids::Step;
use crate::state::{Job, Poison, World};
use crate::tree::{self, Run};

/// What is known of a shard that kills, once `world` has lost ranks at `step`, or none. `held` is
/// what its survivors have computed of the step, and live. A fallback to an older step proves
/// nothing in favour of a shard: the steps up to it are only run again.
pub(super) fn next(
    job: &Job,
    world: &World,
    fates: &[Fate<'_>],
    step: Step,
    held: &[Run],
) -> Option<Poison> {
    let mut known = job.poison.clone().filter(|known| known.step >= step);
    if let Some(known) = known.as_mut().filter(|known| known.step == step) {
        known.shards = tree::difference(&known.shards, held);
    }
    let known = known.filter(|known| !known.shards.is_empty());
    let shards = tree::difference(&suspects(world, fates, step), held);
    if shards.is_empty() {
        return known;
    }
    let (before, num_before) = known
        .filter(|known| known.step == step)
        .map_or((Vec::new(), 0), |known| (known.shards, known.num_worlds));
    // Ranks that die for different reasons mostly had different shards to compute.
    let common = tree::intersection(&before, &shards);
    let is_again = !common.is_empty();
    Some(Poison {
        step,
        shards: if is_again { common } else { shards },
        num_worlds: if is_again {
            num_before.saturating_add(1)
        } else {
            1
        },
    })
}

/// How a job ends that loses ranks at the same shard of the same step again and again. What is known
/// of its samples, and what the last of the dead printed, is told with it.
pub(super) fn end(
    job: &Job,
    watch: Option<&Watch>,
    poison: Option<&Poison>,
    reason: &str,
) -> Option<Outcome> {
    let poison = poison.filter(|poison| poison.num_worlds >= MAX_POISONED_WORLDS)?;
    let name = |run: &Run| match run.num_shards() {
        1 => run.start.to_string(),
        _ => run.to_string(),
    };
    let shards: Vec<String> = poison.shards.iter().map(name).collect();
    let samples = watch.map(|watch| samples(watch, poison));
    let words = watch.map(|watch| last_words(&watch.last_words));
    let reason = format!(
        "{} worlds in a row lost a rank that had shard {} of step {} to compute{}; the last: \
         {reason}{}",
        poison.num_worlds,
        shards.join(", "),
        poison.step,
        samples.unwrap_or_default(),
        words.unwrap_or_default(),
    );
    Some(job.rest(OutcomeKind::Failed, reason))
}

/// Which samples the suspected shards begin with, as a part of a sentence; empty where that is not
/// known.
fn samples(watch: &Watch, poison: &Poison) -> String {
    let suspect = watch.suspect.as_ref();
    let suspect = suspect.filter(|suspect| suspect.step == poison.step);
    let rows = suspect.into_iter().flat_map(|suspect| &suspect.rows);
    let is_suspected = |shard: u32| {
        let mut runs = poison.shards.iter();
        runs.any(|run| run.start <= shard && shard < run.end)
    };
    let rows = rows.filter(|(shard, rows)| is_suspected(**shard) && !rows.is_empty());
    let parts = rows.map(|(shard, rows)| {
        let rows: Vec<String> = rows.iter().map(ToString::to_string).collect();
        format!("shard {shard} begins with rows {}", rows.join(", "))
    });
    let parts: Vec<String> = parts.collect();
    match parts.as_slice() {
        [] => String::new(),
        parts => format!(" ({} of the data, counted from 0)", parts.join(", ")),
    }
}

/// The end of what a process printed, as the end of a sentence; empty where it printed nothing.
fn last_words(printed: &str) -> String {
    const MAX_LINES: usize = 5;
    const MAX_CHARS: usize = 200;
    let lines = printed
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let lines: Vec<String> = lines
        .map(|line| line.chars().take(MAX_CHARS).collect())
        .collect();
    match &lines[lines.len().saturating_sub(MAX_LINES)..] {
        [] => String::new(),
        lines => format!("; the last lines of its log: {}", lines.join(" | ")),
    }
}

/// What the ranks that were lost had to compute of the step.
fn suspects(world: &World, fates: &[Fate<'_>], step: Step) -> Vec<Run> {
    let finish = world
        .finish
        .as_ref()
        .filter(|_| world.first_step == step)
        .map(|finish| &finish.parts);
    let is_lost = |fate: &Fate<'_>| matches!(fate, Fate::Gone(_) | Fate::Missed(_));
    let ranks = world.ranks.iter().zip(fates).enumerate();
    let lost = ranks.filter(|(_, (_, fate))| is_lost(fate));
    let shards = lost.flat_map(|(rank, (placement, _))| {
        let part = finish.and_then(|parts| parts.get(rank));
        part.map_or_else(|| vec![placement.shards], |part| part.shards.clone())
    });
    tree::union(&shards.collect::<Vec<_>>())
}
