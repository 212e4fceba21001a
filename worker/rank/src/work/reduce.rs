//! The sum over all shards of a step: on the host, or where the ranks' devices are connected, there.

#[cfg(feature = "devices")]
use muster_cluster::job::spec::Reduction;
use muster_cluster::tree::{self, Run};
#[cfg(feature = "devices")]
use muster_collective::Error as CollectiveError;
use muster_collective::Operation;
#[cfg(feature = "devices")]
use muster_collective::device::{
    Add, DeviceGroup, DeviceOperation, DeviceSubtree, Kernels, Mode, Region, Schedule,
};
#[cfg(feature = "devices")]
use muster_trainer::device::memory::{self, Memory, Part};
#[cfg(feature = "devices")]
use muster_trainer::{DeviceError, Vector};

use super::{Work, World, failed};
use crate::held::Reduced;
use crate::links::Links;
use crate::shared::Trouble;

/// Elements that travel between devices at a time, while those before them are summed: 32 MiB.
#[cfg(feature = "devices")]
const BUCKET_ELEMENTS: usize = 8 << 20;

impl Work<'_> {
    /// The sum over all shards of the step that comes next, and everyone's notes.
    pub(super) fn reduce(
        &mut self,
        links: &mut Links,
        world: &World,
        note: Vec<u8>,
    ) -> Result<(Reduced, Vec<Vec<u8>>), Trouble> {
        let num_shards = self.spec.train.logical_shards;
        if world.plan.size == 1
            && let Some(whole) = self.held.whole_on_device(num_shards)
        {
            let notes = links.group().all_gather(note, world.timeout);
            let notes = notes.map_err(|error| self.closed_by(world.plan.generation, &error))?;
            return Ok((Reduced::Device(whole), notes));
        }
        let brings = world.brings(self.trainer.step().0);
        let holdings = brings.iter().map(|runs| tree::cover(num_shards, runs));
        let holdings: Vec<Vec<Run>> = holdings.collect();
        #[cfg(feature = "devices")]
        if let Links::Devices(devices) = links
            && let Some(mine) = self.held.sums_on_device()
        {
            return self.reduce_on_devices(devices, world, holdings, &mine, note);
        }
        let operation = Operation {
            step: self.trainer.step(),
            num_shards,
            num_elements: self.trainer.num_elements(),
            holdings,
            mine: self.held.subtrees().map_err(|error| failed(&error))?,
            note,
        };
        let reduced = links
            .group()
            .all_reduce(operation, world.timeout)
            .map_err(|error| self.closed_by(world.plan.generation, &error))?;
        Ok((Reduced::Host(reduced.vector), reduced.notes))
    }

    #[cfg(feature = "devices")]
    fn reduce_on_devices(
        &self,
        devices: &mut DeviceGroup,
        world: &World,
        holdings: Vec<Vec<Run>>,
        mine: &[(Run, Vector)],
        note: Vec<u8>,
    ) -> Result<(Reduced, Vec<Vec<u8>>), Trouble> {
        let train = &self.spec.train;
        let num_elements = self.trainer.num_elements();
        let mode = match train.reduction {
            Reduction::Canonical => Mode::Canonical,
            Reduction::Fast => Mode::Fast,
        };
        let schedule = Schedule::new(
            world.plan.size,
            train.logical_shards,
            num_elements,
            BUCKET_ELEMENTS,
            &holdings,
        );
        let schedule = schedule.map_err(Trouble::Failed)?;
        let rank = devices.world().rank;
        let scratch_elements = schedule.scratch_elements(rank, mode);
        let rooms = Rooms::new(self, mine, num_elements, scratch_elements);
        // Over the host there may be room enough, and nothing has begun yet.
        let rooms = rooms.map_err(|error| self.closed_by_device(world, &error))?;
        let subtrees = mine.iter().zip(&rooms.mine);
        let operation = DeviceOperation {
            step: self.trainer.step(),
            mode,
            num_shards: train.logical_shards,
            num_elements,
            bucket_elements: BUCKET_ELEMENTS,
            holdings,
            mine: subtrees
                .map(|((run, _), memory)| DeviceSubtree {
                    run: *run,
                    values: region(memory),
                })
                .collect(),
            output: region(&rooms.output),
            scratch: region(&rooms.scratch),
        };
        let reduced = devices.all_reduce(operation, note, &mut Sums(&rooms), world.timeout);
        match reduced {
            Ok(notes) => Ok((Reduced::Device(rooms.sum), notes)),
            Err(error) => {
                if let CollectiveError::Stuck { .. } = error {
                    // Nobody else may be given this memory before the process ends.
                    std::mem::forget(rooms);
                }
                Err(self.closed_by(world.plan.generation, &error))
            }
        }
    }

    #[cfg(feature = "devices")]
    fn closed_by_device(&self, world: &World, error: &DeviceError) -> Trouble {
        let what = error.to_string();
        self.closed_by(world.plan.generation, &CollectiveError::Device { what })
    }
}

/// The memory of one reduction, which stays where it is as long as this lives.
#[cfg(feature = "devices")]
struct Rooms {
    /// By subtree of this rank's.
    mine: Vec<Memory>,
    sum: Vector,
    output: Memory,
    scratch: Memory,
}

#[cfg(feature = "devices")]
impl Rooms {
    fn new(
        work: &Work<'_>,
        mine: &[(Run, Vector)],
        num_elements: usize,
        scratch_elements: usize,
    ) -> Result<Self, DeviceError> {
        let device = work.trainer.tensor_device();
        let device = device.ok_or_else(|| DeviceError("the state is on the host".to_owned()))?;
        let mine = mine.iter().map(|(_, vector)| match vector {
            Vector::Device(tensor) => Memory::of(tensor),
            Vector::Host(_) => Err(DeviceError("a sum is on the host".to_owned())),
        });
        let mine = mine.collect::<Result<_, _>>()?;
        let (sum, output) = Memory::empty(num_elements, &device)?;
        // A tensor of nothing has no memory.
        let (_, scratch) = Memory::empty(scratch_elements.max(1), &device)?;
        Ok(Self {
            mine,
            sum: Vector::Device(sum),
            output,
            scratch,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Memory> {
        self.mine.iter().chain([&self.output, &self.scratch])
    }

    /// The part of one of them that a region is.
    fn part(&self, region: Region) -> Result<Part<'_>, String> {
        let size = size_of::<f32>() as u64;
        let within = |memory: &Memory| {
            let start = region.address.checked_sub(memory.address())? / size;
            let start = usize::try_from(start).ok()?;
            let end = start.checked_add(region.num_elements)?;
            (end <= memory.num_elements()).then_some(start..end)
        };
        let part = self
            .all()
            .find_map(|memory| within(memory).map(|range| Part { memory, range }));
        part.ok_or_else(|| format!("{region:?} is no memory of this reduction"))
    }
}

#[cfg(feature = "devices")]
fn region(memory: &Memory) -> Region {
    Region {
        address: memory.address(),
        num_elements: memory.num_elements(),
    }
}

/// Sums on the device, by the tensor library's kernels.
#[cfg(feature = "devices")]
struct Sums<'a>(&'a Rooms);

#[cfg(feature = "devices")]
impl Kernels for Sums<'_> {
    fn sum(&mut self, parts: &[Region], adds: &[Add], output: Region) -> Result<(), String> {
        if output.num_elements == 0 {
            return Ok(());
        }
        let parts = parts.iter().map(|part| self.0.part(*part));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        let adds: Vec<(usize, usize)> = adds.iter().map(|add| (add.into, add.from)).collect();
        let output = self.0.part(output)?;
        let summed = memory::sum(&parts, &adds, &output);
        summed.map_err(|error| error.to_string())?;
        self.flush()
    }

    fn flush(&mut self) -> Result<(), String> {
        let mut all = self.0.all();
        let flushed = all.try_for_each(Memory::flush);
        flushed.map_err(|error| error.to_string())
    }
}
