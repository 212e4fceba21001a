//! That every device has one process at most, and that a job gets devices of the kind it asks for.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::Cluster;
use crate::command::Command;
use crate::device::{Device, DeviceSpec};
use crate::ids::{Incarnation, RankId, WorkerName};
use crate::plan::Watch;
use crate::state::{Job, Seat, World};

impl Cluster {
    /// Holds behind a decision that gave devices away.
    pub(super) fn check_devices(&self, command: &Command) -> Result<(), TestCaseError> {
        if !matches!(
            command,
            Command::StartWorld { .. } | Command::StartStandby { .. }
        ) {
            return Ok(());
        }
        for (worker, node) in &self.state.nodes {
            let jobs = self.state.jobs.iter();
            let alive = jobs.flat_map(|(name, job)| {
                let watch = self.observed.worlds.get(name);
                alive(job, watch, worker, node.incarnation)
            });
            let mut num_slots = 0;
            let mut gpus = BTreeSet::new();
            for device in alive {
                match device {
                    Device::Cpu => num_slots += 1,
                    Device::Cuda(index) => {
                        prop_assert!(gpus.insert(index), "{worker} has two processes on {device}");
                        prop_assert!(node.class_on(device).is_some(), "{worker} has no {device}");
                    }
                }
            }
            let num_devices = node.num_devices as usize;
            prop_assert!(num_slots <= num_devices, "{worker} holds {num_slots}");
        }
        Ok(())
    }

    /// A world of new processes is of the kind that the job asks for, and never mixed.
    pub(super) fn check_kind(&self, known: &Job, world: &World) -> Result<(), TestCaseError> {
        let is_gpu = |device: Device| device.cuda().is_some();
        let first = world.ranks[0].device;
        for rank in &world.ranks {
            prop_assert_eq!(is_gpu(rank.device), is_gpu(first));
            if world.finish.is_some() {
                continue;
            }
            let fits = match known.spec.workers.device {
                DeviceSpec::Cpu => rank.device == Device::Cpu,
                DeviceSpec::Cuda(None) => is_gpu(rank.device),
                DeviceSpec::Cuda(Some(index)) => rank.device == Device::Cuda(index),
                DeviceSpec::Auto => true,
            };
            prop_assert!(fits, "{} for a job of another kind", rank.device);
        }
        Ok(())
    }

    /// A process beside a world is on the same kind of device as its ranks.
    pub(super) fn check_seat(&self, known: &Job, seat: &Seat) -> Result<(), TestCaseError> {
        let node = &self.state.nodes[&seat.worker];
        let class = known.ledger.last().and_then(|entry| entry.class.as_ref());
        prop_assert_eq!(node.class_on(seat.device), class);
        Ok(())
    }
}

/// The devices of a worker in its present life that processes of a job have, but for ranks that are gone.
fn alive(job: &Job, watch: Option<&Watch>, worker: &WorkerName, life: Incarnation) -> Vec<Device> {
    let watch = watch.filter(|watch| watch.generation == job.generation);
    let is_gone = |rank| watch.is_some_and(|watch| watch.gone.contains_key(&RankId(rank)));
    let ranks = (0u32..).zip(job.world.iter().flat_map(|world| &world.ranks));
    let ranks = ranks.filter(|(rank, _)| !is_gone(*rank));
    let ranks = ranks.map(|(_, rank)| (&rank.worker, rank.incarnation, rank.device));
    let standbys = job.standbys.values();
    let standbys = standbys.map(|seat| (&seat.worker, seat.incarnation, seat.device));
    let all = ranks.chain(standbys);
    all.filter(|(on, in_life, _)| (*on, *in_life) == (worker, life))
        .map(|(.., device)| device)
        .collect()
}
