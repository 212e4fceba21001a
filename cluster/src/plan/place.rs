//! Which devices a job gets: all of its ranks at once, in one numerics class, or none and the
//! reason why it waits. Which job is served first is decided elsewhere.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::devices::{self, Devices, Kind};
use super::{Observed, Patience, Wait, Watch, shares};
use crate::command::{Command, NumericsClass};
use crate::device::Device;
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

/// The free devices of one worker in one class.
struct Lot<'a> {
    worker: &'a WorkerName,
    slots: u32,
    /// By index; a lot has these or slots, not both.
    gpus: Vec<u32>,
}

impl Lot<'_> {
    fn count(&self) -> u32 {
        let num_gpus = u32::try_from(self.gpus.len()).unwrap_or(u32::MAX);
        self.slots.saturating_add(num_gpus)
    }

    fn devices(&self) -> impl Iterator<Item = Device> {
        let slots = std::iter::repeat_n(Device::Cpu, self.slots as usize);
        slots.chain(self.gpus.iter().copied().map(Device::Cuda))
    }
}

/// The free devices of one class; within it those first whose workers lost fewest processes of the job
/// before they were of use, and then in the order of the names.
struct Offer<'a> {
    class: &'a NumericsClass,
    lots: Vec<Lot<'a>>,
    count: u32,
    /// Those of workers that rest, beside them.
    num_resting: u32,
}

impl Offer<'_> {
    /// Lets workers rest, where at least `min` devices stay.
    fn let_rest(&mut self, min: u32, rests: impl Fn(&WorkerName) -> bool) {
        let num_out = self.lots.iter().filter(|lot| rests(lot.worker));
        let num_out = num_out.fold(0u32, |sum, lot| sum.saturating_add(lot.count()));
        if self.count.saturating_sub(num_out) >= min {
            self.lots.retain(|lot| !rests(lot.worker));
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

/// Why a job waits while no device is free that it trusts; `chosen` is why it is to have this kind,
/// where it leaves that open.
pub(super) fn nothing_is_free(
    state: &ClusterState,
    job: &Job,
    kind: Kind,
    chosen: Option<&str>,
) -> Wait {
    let (min, noun, distrusted) = (job.spec.workers.min, kind.noun(), distrusted(job));
    let none = if devices::has_any(state, kind) {
        String::new()
    } else {
        "; no worker lends one".to_owned()
    };
    let chosen = behind(chosen);
    Wait {
        gathers: false,
        why: format!("waits for {noun}: 0 free, {min} needed{none}{chosen}{distrusted}"),
    }
}

/// Something more that is to be said, as the end of a sentence; empty for nothing.
fn behind(more: Option<&str>) -> String {
    more.map(|more| format!("; {more}")).unwrap_or_default()
}

/// Takes the devices of a world out of `free`, or says in one sentence why the job waits.
pub(super) fn place(
    free: &mut Devices,
    (state, observed): (&ClusterState, &Observed),
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
    let (kind, chosen) = devices::kind(state, observed, job, last_class, (patience, now_ms));
    let mut all = offers(state, free, job, kind);
    for offer in &mut all {
        let times = |worker| failures(worker).map_or(0, |failures| failures.times);
        offer.lots.sort_by_key(|lot| times(lot.worker));
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
        return Err(nothing_is_free(state, job, kind, chosen.as_deref()));
    };
    let found = best.count;
    if found < min {
        let others = behind(chosen.as_deref()) + &left_out(&all, best.class) + &distrusted(job);
        let noun = kind.noun();
        let why = format!("waits for {noun}: {found} free, {min} needed{others}");
        return Err(Wait {
            gathers: false,
            why,
        });
    }
    let hopes = found + best.num_resting < max;
    if hopes && now_ms.saturating_sub(since.unwrap_or(now_ms)) < patience.gather_ms {
        let others = left_out(&all, best.class);
        let noun = kind.noun();
        let why = format!("gathers {noun}: {found} of at most {max} are there{others}");
        return Err(Wait { gathers: true, why });
    }

    let is_fallback = job.has_world();
    let mut reason = why;
    if is_fallback {
        reason += &format!("; falls back to step {}", job.committed_step());
    }
    reason += &behind(chosen.as_deref());
    if let Some(difference) = last_class.and_then(|last| last.difference(best.class)) {
        reason += &format!("; {difference} than before, so bits may differ");
    }
    if found < max {
        reason += &left_out(&all, best.class);
    }

    let runs = tree::runs(job.spec.train.logical_shards, found.min(max))
        .expect("workers.max is checked to be at most logical_shards, and min to be at least 1");
    let places = best.lots.iter();
    let places = places.flat_map(|lot| lot.devices().map(|device| (lot.worker, device)));
    let ranks: Vec<Placement> = places
        .zip(runs)
        .zip(job.newest_process.0 + 1..)
        .map(|(((worker, device), shards), process)| Placement {
            process: ProcessId(process),
            worker: worker.clone(),
            incarnation: state.nodes[worker].incarnation,
            device,
            shards,
        })
        .collect();
    for placement in &ranks {
        free.take(&placement.worker, placement.device);
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

fn offers<'a>(state: &'a ClusterState, free: &Devices, job: &Job, kind: Kind) -> Vec<Offer<'a>> {
    let mut by_class: BTreeMap<&NumericsClass, Vec<Lot<'a>>> = BTreeMap::new();
    for worker in free.workers() {
        let Some((worker, node)) = state.nodes.get_key_value(worker) else {
            continue;
        };
        if job.distrusted.contains_key(worker) {
            continue;
        }
        let mut offer = |class, slots, gpus| {
            let lot = Lot {
                worker,
                slots,
                gpus,
            };
            if lot.count() > 0 {
                by_class.entry(class).or_default().push(lot);
            }
        };
        if kind == Kind::Slots {
            let slots = u32::try_from(free.slots(worker)).unwrap_or_default();
            offer(&node.class, slots, Vec::new());
            continue;
        }
        for (class, mut gpus) in free.gpus_by_class(worker, node) {
            gpus.retain(|index| kind.takes_gpu(*index));
            offer(class, 0, gpus);
        }
    }
    let offer = |(class, lots): (_, Vec<Lot<'a>>)| Offer {
        class,
        count: lots
            .iter()
            .fold(0u32, |sum, lot| sum.saturating_add(lot.count())),
        lots,
        num_resting: 0,
    };
    by_class.into_iter().map(offer).collect()
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
            let lots = offer.lots.iter();
            lots.map(move |lot| format!("{} ({difference})", lot.worker))
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
