//! The devices that no process holds, of the workers that are there, and what kind of them a job is to
//! have. Which of them it gets is decided elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use super::{Observed, Patience};
use crate::command::{Node, NumericsClass};
use crate::device::{Device, DeviceSpec};
use crate::ids::WorkerName;
use crate::state::{ClusterState, Job};

/// Free devices by worker.
#[derive(Clone, Debug, Default)]
pub(super) struct Devices {
    /// Slots of processors. Below zero where a worker came back with fewer than worlds still hold, so
    /// that giving one back does not make one up.
    slots: BTreeMap<WorkerName, i64>,
    /// The indices of GPUs, of those workers that have any.
    gpus: BTreeMap<WorkerName, BTreeSet<u32>>,
}

impl Devices {
    /// The devices that no process holds, of the workers that are there.
    pub(super) fn free(state: &ClusterState, observed: &Observed) -> Self {
        let (busy_slots, busy_gpus) = (state.busy_slots(), state.busy_gpus());
        let mut free = Self::default();
        for (worker, incarnation) in &observed.connected {
            let node = state.nodes.get(worker);
            let node = node.filter(|node| node.incarnation == *incarnation);
            let Some(node) = node.filter(|_| !state.draining.contains(worker)) else {
                continue;
            };
            let busy = busy_slots.get(worker).copied().unwrap_or_default();
            let slots = i64::from(node.num_devices) - i64::from(busy);
            free.slots.insert(worker.clone(), slots);
            if !node.gpus.is_empty() {
                let gpus = node.gpus.iter().map(|gpu| gpu.index);
                let gpus = gpus.filter(|index| !busy_gpus.contains_key(&(worker, *index)));
                free.gpus.insert(worker.clone(), gpus.collect());
            }
        }
        free
    }

    /// Whether anything is free that a job of this kind may have.
    pub(super) fn serve(&self, spec: DeviceSpec) -> bool {
        let slots = || self.slots.values().any(|slots| *slots > 0);
        let gpus = || self.gpus.values().any(|gpus| !gpus.is_empty());
        match spec {
            DeviceSpec::Cpu => slots(),
            DeviceSpec::Cuda(_) => gpus(),
            DeviceSpec::Auto => slots() || gpus(),
        }
    }

    /// The workers that are there.
    pub(super) fn workers(&self) -> impl Iterator<Item = &WorkerName> {
        self.slots.keys()
    }

    /// The free slots of a worker.
    pub(super) fn slots(&self, worker: &WorkerName) -> i64 {
        self.slots.get(worker).copied().unwrap_or_default()
    }

    /// The free GPUs of a worker that is `node`, those of one class by index.
    pub(super) fn gpus_by_class<'a>(
        &self,
        worker: &WorkerName,
        node: &'a Node,
    ) -> BTreeMap<&'a NumericsClass, Vec<u32>> {
        let mut by_class: BTreeMap<_, Vec<u32>> = BTreeMap::new();
        let Some(free) = self.gpus.get(worker) else {
            return by_class;
        };
        for gpu in node.gpus.iter().filter(|gpu| free.contains(&gpu.index)) {
            by_class.entry(&gpu.class).or_default().push(gpu.index);
        }
        by_class
    }

    /// A process gets a device.
    pub(super) fn take(&mut self, worker: &WorkerName, device: Device) {
        match device {
            Device::Cpu => {
                if let Some(slots) = self.slots.get_mut(worker) {
                    *slots -= 1;
                }
            }
            Device::Cuda(index) => {
                if let Some(gpus) = self.gpus.get_mut(worker) {
                    gpus.remove(&index);
                }
            }
        }
    }

    /// A job that gets a world of new processes gives its old devices back first; those that their
    /// workers still have.
    pub(super) fn give_back(&mut self, state: &ClusterState, job: &Job) {
        for (worker, device) in job.held() {
            match device {
                Device::Cpu => {
                    if let Some(slots) = self.slots.get_mut(worker) {
                        *slots += 1;
                    }
                }
                Device::Cuda(index) => {
                    let node = state.nodes.get(worker);
                    if let Some(gpus) = self.gpus.get_mut(worker)
                        && node.is_some_and(|node| node.class_on(device).is_some())
                    {
                        gpus.insert(index);
                    }
                }
            }
        }
    }
}

/// What kind of devices a world is to have. One world never mixes kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Slots of processors.
    Slots,
    /// GPUs; on each worker only the one of this index, if there is one.
    Gpus(Option<u32>),
}

impl Kind {
    /// The plural for sentences.
    pub(super) fn noun(self) -> String {
        match self {
            Kind::Slots => "workers".to_owned(),
            Kind::Gpus(None) => "GPUs".to_owned(),
            Kind::Gpus(Some(index)) => format!("GPUs of index {index}, one a worker"),
        }
    }

    /// Whether a world of this kind may have a GPU of this index.
    pub(super) fn takes_gpu(self, index: u32) -> bool {
        match self {
            Kind::Slots => false,
            Kind::Gpus(only) => only.is_none_or(|only| only == index),
        }
    }
}

/// The kind of devices that a job's next world is to have, and where the job leaves that open, why.
pub(super) fn kind(
    state: &ClusterState,
    observed: &Observed,
    job: &Job,
    last_class: Option<&NumericsClass>,
    (patience, now_ms): (Patience, u64),
) -> (Kind, Option<String>) {
    match job.spec.workers.device {
        DeviceSpec::Cpu => return (Kind::Slots, None),
        DeviceSpec::Cuda(index) => return (Kind::Gpus(index), None),
        DeviceSpec::Auto => {}
    }
    // By what the cluster has, not by what is free just now: a job must not end up on processors
    // because another one is about to give its GPUs back. Who is away for a moment counts.
    let is_there = |worker: &WorkerName, node: &Node| match observed.connected.get(worker) {
        Some(life) => *life == node.incarnation,
        None => {
            let since = observed.silent_since_ms.get(worker).copied();
            let silent_ms = now_ms.saturating_sub(since.unwrap_or(now_ms));
            silent_ms <= patience.fallback_after_ms
        }
    };
    let mut slots: BTreeMap<&NumericsClass, u32> = BTreeMap::new();
    let mut gpus: BTreeMap<&NumericsClass, u32> = BTreeMap::new();
    for (worker, node) in &state.nodes {
        let is_left_out = state.draining.contains(worker) || job.distrusted.contains_key(worker);
        if is_left_out || !is_there(worker, node) {
            continue;
        }
        let known = slots.entry(&node.class).or_default();
        *known = known.saturating_add(node.num_devices);
        for gpu in &node.gpus {
            *gpus.entry(&gpu.class).or_default() += 1;
        }
    }
    let most = |counts: &BTreeMap<&NumericsClass, u32>| counts.values().copied().max().unwrap_or(0);
    let min = job.spec.workers.min;
    // Where a checkpoint is to be gone on from, its class gives the bits that the job would have had.
    let stays = last_class.is_some_and(|class| class.gpu.is_empty() && most(&slots) >= min);
    let num_gpus = most(&gpus);
    if num_gpus >= min && !stays {
        return (
            Kind::Gpus(None),
            Some(format!(
                "on GPUs, of which the cluster has {num_gpus} of one class"
            )),
        );
    }
    let why = if stays {
        "on processors, as its checkpoint".to_owned()
    } else {
        let of = if num_gpus == 1 { "GPU" } else { "GPUs" };
        let are = if min == 1 { "is" } else { "are" };
        format!(
            "on processors, since the cluster has {num_gpus} {of} of one class, and {min} {are} needed"
        )
    };
    (Kind::Slots, Some(why))
}

/// Whether any worker has registered a GPU that a world of this kind may have.
pub(super) fn has_any(state: &ClusterState, kind: Kind) -> bool {
    let gpus = state.nodes.values().flat_map(|node| &node.gpus);
    let mut gpus = gpus.filter(|gpu| kind.takes_gpu(gpu.index));
    kind == Kind::Slots || gpus.next().is_some()
}
