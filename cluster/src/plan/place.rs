//! Which devices a job gets: all of its ranks at once, in one numerics class, or none and the
//! reason why it waits. Which job is served first is decided elsewhere.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::{Devices, Patience, Wait, Watch, shares};
use crate::command::{Command, NumericsClass};
use crate::ids::{JobName, ProcessId, WorkerName};
use crate::state::{ClusterState, Job, Placement, Poison, World};
use crate::tree;

/// A job that wants a world.
pub(super) struct Wanting<'a> {
    pub(super) name: &'a JobName,
    pub(super) job: &'a Job,
    /// Why it wants one.
    pub(super) why: String,
    /// Since when there are enough workers.
    pub(super) since: Option<u64>,
    /// What the leader saw of its last world.
    pub(super) watch: Option<&'a Watch>,
    /// What is known of a shard that kills.
    pub(super) poison: Option<Poison>,
}

/// The free devices of one class; within it those first whose workers lost fewest processes of the job
/// before they were of use, and then in the order of the names.
struct Offer<'a> {
    class: &'a NumericsClass,
    devices: Vec<(&'a WorkerName, u32)>,
    count: u32,
    /// Those of workers that rest, beside them.
    num_resting: u32,
}

impl Offer<'_> {
    /// Lets workers rest, where at least `min` devices stay.
    fn let_rest(&mut self, min: u32, rests: impl Fn(&WorkerName) -> bool) {
        let num_out = self.devices.iter().filter(|(worker, _)| rests(worker));
        let num_out = num_out.fold(0u32, |sum, (_, free)| sum.saturating_add(*free));
        if self.count.saturating_sub(num_out) >= min {
            self.devices.retain(|(worker, _)| !rests(worker));
            self.count -= num_out;
            self.num_resting = num_out;
        }
    }
}

/// How good an offer is; the first field that differs decides.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score<'a> {
    /// The job goes on in the class of its checkpoint, with the bits it would have had.
    keeps_class: bool,
    num_ranks: u32,
    class: Reverse<&'a NumericsClass>,
}

/// Why a job waits while no device is free that it trusts.
pub(super) fn nothing_is_free(job: &Job) -> Wait {
    let (min, distrusted) = (job.spec.workers.min, distrusted(job));
    Wait {
        gathers: false,
        why: format!("waits for workers: 0 free, {min} needed{distrusted}"),
    }
}

/// Takes the devices of a world out of `free`, or says in one sentence why the job waits.
pub(super) fn place(
    free: &mut Devices,
    state: &ClusterState,
    wanting: Wanting<'_>,
    patience: Patience,
    now_ms: u64,
) -> Result<Command, Wait> {
    let Wanting {
        name,
        job,
        why,
        since,
        watch,
        poison,
    } = wanting;
    let (min, max) = (job.spec.workers.min, job.spec.workers.max);
    let last_class = class_of_checkpoint(job);
    let known = match (watch, &job.world) {
        (Some(watch), Some(world)) => watch.failures_behind(world, now_ms),
        _ => BTreeMap::new(),
    };
    let failures = |worker: &WorkerName| {
        let failures = known.get(worker);
        failures.filter(|one| one.incarnation == state.nodes[worker].incarnation)
    };
    let mut all = offers(state, free, job);
    for offer in &mut all {
        let times = |worker| failures(worker).map_or(0, |failures| failures.times);
        offer.devices.sort_by_key(|(worker, _)| times(worker));
        offer.let_rest(min, |worker| {
            failures(worker).is_some_and(|failures| failures.rests(patience, now_ms))
        });
    }
    let best = all.iter().max_by_key(|offer| Score {
        keeps_class: offer.count >= min && Some(offer.class) == last_class,
        num_ranks: offer.count.min(max),
        class: Reverse(offer.class),
    });
    let Some(best) = best else {
        return Err(nothing_is_free(job));
    };
    let found = best.count;
    if found < min {
        let others = left_out(&all, best.class) + &distrusted(job);
        let why = format!("waits for workers: {found} free, {min} needed{others}");
        return Err(Wait {
            gathers: false,
            why,
        });
    }
    let hopes = found + best.num_resting < max;
    if hopes && now_ms.saturating_sub(since.unwrap_or(now_ms)) < patience.gather_ms {
        let others = left_out(&all, best.class);
        let why = format!("gathers workers: {found} of at most {max} are there{others}");
        return Err(Wait { gathers: true, why });
    }

    let is_fallback = job.has_world();
    let mut reason = why;
    if is_fallback {
        reason += &format!("; falls back to step {}", job.committed_step());
    }
    if let Some(difference) = last_class.and_then(|last| last.difference(best.class)) {
        reason += &format!("; {difference} than before, so bits may differ");
    }
    if found < max {
        reason += &left_out(&all, best.class);
    }

    let runs = tree::runs(job.spec.train.logical_shards, found.min(max))
        .expect("workers.max is checked to be at most logical_shards, and min to be at least 1");
    let places = best
        .devices
        .iter()
        .flat_map(|(worker, free)| std::iter::repeat_n(*worker, *free as usize));
    let ranks: Vec<Placement> = places
        .zip(runs)
        .zip(job.newest_process.0 + 1..)
        .map(|((worker, shards), process)| Placement {
            process: ProcessId(process),
            worker: worker.clone(),
            incarnation: state.nodes[worker].incarnation,
            shards,
        })
        .collect();
    for placement in &ranks {
        if let Some(devices) = free.get_mut(&placement.worker) {
            *devices -= 1;
        }
    }
    Ok(Command::StartWorld {
        job: name.clone(),
        world: World {
            history: if is_fallback {
                job.history.next()
            } else {
                job.history
            },
            generation: job.generation.next(),
            first_step: job.committed_step(),
            shares: shares::initial(job.spec.workers.redundancy, ranks.len()),
            ranks,
            finish: None,
        },
        reason,
        predecessor_progressed: watch.is_some_and(|watch| watch.progressed),
        poison,
    })
}

/// The class that wrote the checkpoint which the next world starts from. A world that starts from
/// initial values is bound to no class.
fn class_of_checkpoint(job: &Job) -> Option<&NumericsClass> {
    let generation = job.latest_manifest()?.generation;
    let mut worlds = job.ledger.iter().rev();
    worlds
        .find(|entry| entry.generation == generation)?
        .class
        .as_ref()
}

fn offers<'a>(state: &'a ClusterState, free: &Devices, job: &Job) -> Vec<Offer<'a>> {
    let known: BTreeMap<&WorkerName, (&NumericsClass, u32)> = free
        .iter()
        .filter(|(worker, _)| !job.distrusted.contains_key(*worker))
        .filter_map(|(worker, free)| {
            let (worker, node) = state.nodes.get_key_value(worker)?;
            let free = u32::try_from(*free).ok().filter(|free| *free > 0)?;
            Some((worker, (&node.class, free)))
        })
        .collect();
    let classes: BTreeSet<&NumericsClass> = known.values().map(|(class, _)| *class).collect();
    let offer = |class| {
        let of_class = known.iter().filter(|(_, (of, _))| *of == class);
        let devices: Vec<_> = of_class
            .map(|(worker, (_, free))| (*worker, *free))
            .collect();
        let count = devices
            .iter()
            .fold(0u32, |sum, (_, free)| sum.saturating_add(*free));
        Offer {
            class,
            devices,
            count,
            num_resting: 0,
        }
    };
    classes.into_iter().map(offer).collect()
}

/// Names the workers that the job does not trust, as the end of a sentence; empty for none.
fn distrusted(job: &Job) -> String {
    if job.distrusted.is_empty() {
        return String::new();
    }
    let names: Vec<&str> = job.distrusted.keys().map(WorkerName::as_str).collect();
    format!(
        "; left out, since they computed wrongly: {}",
        names.join(", ")
    )
}

/// Names the workers that only their class keeps out, as the end of a sentence; empty for none.
fn left_out(all: &[Offer<'_>], class: &NumericsClass) -> String {
    const MAX_NAMED: usize = 3;
    let others: Vec<String> = all
        .iter()
        .filter_map(|offer| Some((offer, class.difference(offer.class)?)))
        .flat_map(|(offer, difference)| {
            let devices = offer.devices.iter();
            devices.map(move |(worker, _)| format!("{worker} ({difference})"))
        })
        .collect();
    if others.is_empty() {
        return String::new();
    }
    let named = others[..others.len().min(MAX_NAMED)].join(", ");
    let more = match others.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("; left out, since a job runs in one numerics class: {named}{more}")
}
