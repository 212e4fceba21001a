//! Which processes a running job has beside its ranks: those that are to enter its next world, and
//! hot spares. When they enter is decided elsewhere.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::devices::{Devices, Kind};
use super::fate::{Fate, Running};
use super::{Standby, distrust};
use crate::command::{Command, Node, NumericsClass};
use crate::device::{Device, DeviceSpec};
use crate::ids::{ProcessId, RankId, WorkerName};
use crate::state::{Phase, Seat, World};

/// How good a worker is for one more process; the first field that differs decides.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Score<'a> {
    num_failures: Reverse<u32>,
    num_free: i64,
    worker: Reverse<&'a WorkerName>,
}

/// One process to start or to end, if any; what it takes of `free` is taken.
pub(super) fn next(running: &Running<'_>, free: &mut Devices) -> Option<Command> {
    let job = running.job;
    let world = job.world.as_ref()?;
    let end = |process: ProcessId, reason: String| Command::EndStandby {
        job: running.name.clone(),
        process,
        reason,
    };
    for (process, seat) in &job.standbys {
        if let Some(reason) = useless(running, *process, seat) {
            return Some(end(*process, reason));
        }
    }
    if !matches!(job.phase, Phase::Running) {
        return None;
    }
    let wanted = num_wanted(running, world);
    if job.standbys.len() > wanted {
        // A rank that is silent or has closed may turn out to be gone, and then nobody is too many.
        let is_alive = |fate: &Fate<'_>| matches!(fate, Fate::Alive);
        if !running.fates(world).iter().all(is_alive) {
            return None;
        }
        // Those that could enter stay longest, and of the others the oldest.
        let entering = running.entering(&world.ranks.iter().map(|rank| rank.process).collect());
        let prepared = running.prepared();
        let all = job.standbys.keys().copied();
        let last = all.max_by_key(|process| {
            let is_fit = entering.contains(process);
            (!is_fit, !prepared.contains(process), *process)
        })?;
        return Some(end(last, "the job wants fewer processes".to_owned()));
    }
    if job.standbys.len() == wanted {
        return None;
    }
    let (worker, device) = best_seat(running, world, free)?;
    let incarnation = running.state.nodes[&worker].incarnation;
    free.take(&worker, device);
    Some(Command::StartStandby {
        job: running.name.clone(),
        process: job.newest_process.next(),
        seat: Seat {
            worker,
            incarnation,
            device,
        },
    })
}

/// Why a process that waits will never enter a world.
fn useless(running: &Running<'_>, process: ProcessId, seat: &Seat) -> Option<String> {
    let seen = running.watch.and_then(|watch| watch.standbys.get(&process));
    if let Some(Standby::Gone(how)) = seen {
        return Some(how.clone());
    }
    let drained = || {
        let worker = &seat.worker;
        let drained = || format!("worker {worker} is drained");
        let why = distrust::left_out(running.job, worker);
        running.drains(worker).then(|| why.unwrap_or_else(drained))
    };
    running
        .away(&seat.worker, seat.incarnation)
        .or_else(drained)
}

/// How many processes are wanted beside the ranks that stay.
fn num_wanted(running: &Running<'_>, world: &World) -> usize {
    let workers = running.job.spec.workers;
    let fates = running.fates(world);
    let staying = world.ranks.iter().zip(fates).filter(|(placement, fate)| {
        let is_lost = matches!(fate, Fate::Missed(_) | Fate::Gone(_));
        let away = running.away(&placement.worker, placement.incarnation);
        !is_lost && away.is_none() && !running.drains(&placement.worker)
    });
    let most = workers.max as usize + workers.spares as usize;
    most.saturating_sub(staying.count())
}

/// The worker and the device for one more process, of those in the class that the job runs in. A worker
/// where processes of the job end before they are of use is left alone for a while.
fn best_seat(running: &Running<'_>, world: &World, free: &Devices) -> Option<(WorkerName, Device)> {
    let class = running.job.ledger.last()?.class.as_ref()?;
    let kind = match world.ranks.first()?.device {
        Device::Cpu => Kind::Slots,
        Device::Cuda(_) => Kind::Gpus(match running.job.spec.workers.device {
            DeviceSpec::Cuda(index) => index,
            DeviceSpec::Cpu | DeviceSpec::Auto => None,
        }),
    };
    let ended = Ended::of(running, world);
    let scores = free.workers().filter_map(|worker| {
        let node = running.state.nodes.get(worker)?;
        let (num_free, device) = ended.with_free(free, worker, node, class, kind)?;
        let failures = running
            .watch
            .and_then(|watch| watch.failures.get(worker))
            .filter(|failures| failures.incarnation == node.incarnation);
        let rests = failures.is_some_and(|one| one.rests(running.patience, running.now_ms));
        let is_usable = !rests && !running.drains(worker);
        let score = Score {
            num_failures: Reverse(failures.map_or(0, |failures| failures.times)),
            num_free,
            worker: Reverse(worker),
        };
        is_usable.then_some((score, device))
    });
    let best = scores.max_by(|(one, _), (other, _)| one.cmp(other));
    best.map(|(best, device)| (best.worker.0.clone(), device))
}

/// By worker, the devices that ranks of the world had which have ended. They are the job's until its
/// next world, so only it may use them again.
struct Ended<'a> {
    num_slots: BTreeMap<&'a WorkerName, i64>,
    /// Of those, the GPUs that no process which waits has by now.
    gpus: BTreeSet<(&'a WorkerName, u32)>,
}

impl<'a> Ended<'a> {
    fn of(running: &Running<'a>, world: &'a World) -> Self {
        let ranks = (0u32..).map(RankId).zip(&world.ranks);
        let ended = ranks.filter(|(rank, placement)| running.has_ended(*rank, placement));
        let mut num_slots = BTreeMap::new();
        let mut gpus = BTreeSet::new();
        for (_, placement) in ended {
            match placement.device {
                Device::Cpu => *num_slots.entry(&placement.worker).or_default() += 1,
                Device::Cuda(index) => {
                    gpus.insert((&placement.worker, index));
                }
            }
        }
        for seat in running.job.standbys.values() {
            if let Device::Cuda(index) = seat.device {
                gpus.remove(&(&seat.worker, index));
            }
        }
        Self { num_slots, gpus }
    }

    /// How many devices of a class and kind a worker has for the job, and the first of them.
    fn with_free(
        &self,
        free: &Devices,
        worker: &WorkerName,
        node: &Node,
        class: &NumericsClass,
        kind: Kind,
    ) -> Option<(i64, Device)> {
        if kind == Kind::Slots {
            let ended = self.num_slots.get(worker).copied().unwrap_or_default();
            let num_free = free.slots(worker) + ended;
            return (num_free > 0 && node.class == *class).then_some((num_free, Device::Cpu));
        }
        let mut gpus: BTreeSet<u32> = BTreeSet::new();
        gpus.extend(
            free.gpus_by_class(worker, node)
                .remove(class)
                .into_iter()
                .flatten(),
        );
        let of_class = node.gpus.iter().filter(|gpu| gpu.class == *class);
        gpus.extend(
            of_class
                .map(|gpu| gpu.index)
                .filter(|index| self.gpus.contains(&(worker, *index))),
        );
        gpus.retain(|index| kind.takes_gpu(*index));
        let first = *gpus.first()?;
        let num_free = i64::try_from(gpus.len()).unwrap_or(i64::MAX);
        Some((num_free, Device::Cuda(first)))
    }
}
