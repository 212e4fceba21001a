//! The check itself, over the double of devices: it ends well where all is well, and says what is
//! wrong where it is not.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Mutex;
use std::thread;

use super::*;
use crate::device::memory::{self, Device, MemoryBulk};

/// Of each generation, each rank's part in its fabric.
type Fabrics = [Mutex<Vec<Option<MemoryBulk>>>; 2];

struct Double<'a> {
    device: Device,
    fabrics: &'a Fabrics,
    /// Whether its sums are wrong in one element.
    is_wrong: bool,
}

impl Kernels for Double<'_> {
    fn sum(
        &mut self,
        parts: &[Region],
        adds: &[crate::device::Add],
        output: Region,
    ) -> Result<(), String> {
        self.device.sum(parts, adds, output)?;
        if self.is_wrong && output.num_elements > 0 {
            let last = output.slice(output.num_elements - 1..output.num_elements);
            let written = self.device.write(last, &[0.123]);
            written.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        Ok(())
    }
}

impl Rig for Double<'_> {
    fn alloc(&mut self, num_elements: usize) -> Result<Region, BulkError> {
        Ok(self.device.alloc(num_elements))
    }

    fn write(&mut self, region: Region, values: &[f32]) -> Result<(), BulkError> {
        self.device.write(region, values)
    }

    fn read(&mut self, region: Region) -> Result<Vec<f32>, BulkError> {
        self.device.read(region)
    }

    fn kernels(&mut self) -> &mut dyn Kernels {
        self
    }

    fn connect(&mut self, group: &mut Group, _: Duration) -> Result<Option<Box<dyn Bulk>>, Error> {
        let world = group.world();
        if world.size == 1 {
            return Ok(None);
        }
        let generation = usize::try_from(world.generation.0).expect("a small number");
        let mut fabric = self.fabrics[generation - 1].lock().expect("no panic");
        let bulk = fabric[World::index(world.rank)].take();
        Ok(Some(Box::new(bulk.expect("each rank connects once"))))
    }

    fn name(&self) -> String {
        "host buffers".to_owned()
    }

    fn die(&mut self, group: DeviceGroup) {
        group.sever();
    }
}

fn check(size: u32, wrong: Option<u32>) -> Vec<Result<Report, CheckError>> {
    let devices: Vec<Device> = (0..size).map(|_| Device::new()).collect();
    let fabric = |devices: &[Device]| {
        let (_, bulks) = memory::bulks(devices);
        Mutex::new(bulks.into_iter().map(Some).collect::<Vec<_>>())
    };
    let fabrics = [fabric(&devices), fabric(&devices[..devices.len() - 1])];
    let options = CheckOptions {
        sizes: vec![1000, 300_000],
        num_repeats: 3,
        bucket_elements: 1 << 17,
        // A machine that is busy with other tests.
        most_loss: Duration::from_secs(10),
        detect: Duration::from_secs(30),
        ..CheckOptions::default()
    };
    let devices = Mutex::new(devices.into_iter().map(Some).collect::<Vec<_>>());
    check_all(size, &options, |rank| Double {
        device: devices.lock().expect("no panic")[World::index(rank)]
            .take()
            .expect("each rank has one"),
        fabrics: &fabrics,
        is_wrong: wrong == Some(rank.0),
    })
}

/// Checks all ranks of a world, each with a rig of its own in a thread of its own.
pub(in crate::device) fn check_all<R: Rig>(
    size: u32,
    options: &CheckOptions,
    rig: impl Fn(RankId) -> R + Sync,
) -> Vec<Result<Report, CheckError>> {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let listeners: Vec<Listener> = (0..size)
        .map(|_| Listener::bind(local).expect("a free port"))
        .collect();
    let peers: Vec<SocketAddr> = listeners.iter().map(Listener::addr).collect();
    thread::scope(|scope| {
        let (peers, rig) = (&peers, &rig);
        let threads: Vec<_> = (0..size)
            .map(RankId)
            .zip(listeners)
            .map(|(rank, listener)| {
                scope.spawn(move || run(&mut rig(rank), &listener, rank, peers, options))
            })
            .collect();
        let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
        joined.map(|result| result.expect("no panic")).collect()
    })
}

#[test]
fn a_world_without_faults_passes_and_survives_its_loss() {
    for size in [2, 3] {
        let reports = check(size, None);
        for (rank, report) in (0..size).zip(reports) {
            let report = report.expect("all is well");
            assert_eq!(report.timings.len(), 4);
            assert!(report.timings.iter().all(|timing| timing.median.is_some()));
            let is_victim = rank == size - 1;
            assert_eq!(report.loss.is_none(), is_victim);
            assert_eq!(report.connecting_again.is_none(), is_victim);
            let text = report.to_string();
            assert!(
                text.starts_with(&format!("rank {rank} of {size}: host buffers\n")),
                "{text}"
            );
            assert!(text.contains("canonical     300000 elements"), "{text}");
            assert_eq!(text.contains("whose peer died"), !is_victim, "{text}");
        }
    }
}

#[test]
fn a_sum_that_is_wrong_is_found_with_its_place() {
    let results = check(2, Some(1));
    let wrong: Vec<String> = results
        .into_iter()
        .filter_map(|result| match result {
            Err(CheckError::Wrong { what }) => Some(what),
            _ => None,
        })
        .collect();
    // Rank 1 owns the last chunk, whose last element is wrong at both ranks.
    assert!(!wrong.is_empty());
    for what in wrong {
        assert!(
            what.starts_with("element 999 of 1000 (Canonical) is 0.123"),
            "{what}"
        );
    }
}
