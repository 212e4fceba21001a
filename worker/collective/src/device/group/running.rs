//! One all-reduce over device memory while it runs, bucket after bucket.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use muster_cluster::RankId;

use super::DeviceGroup;
use crate::device::schedule::{Cargo, Move, NUM_UNDER_WAY};
use crate::device::{
    DeviceOperation, DeviceSubtree, Kernels, Leg, Mode, Region, Schedule, Ticket, Transfer,
};
use crate::error::Error;
use crate::group::Revoker;
use crate::world::World;

/// An operation that was checked, with what follows from it.
#[derive(Debug)]
pub(super) struct Plan {
    world: World,
    operation: DeviceOperation,
    schedule: Schedule,
    /// By leaf: where this rank has its sum.
    mine: Vec<Option<Region>>,
}

impl Plan {
    pub(super) fn new(world: World, operation: DeviceOperation) -> Result<Self, Error> {
        let invalid = |what: String| Error::Invalid { what };
        let schedule = Schedule::new(
            world.size,
            operation.num_shards,
            operation.num_elements,
            operation.bucket_elements,
            &operation.holdings,
        );
        let schedule = schedule.map_err(invalid)?;
        let mine = place(&world, &operation, &schedule).map_err(invalid)?;
        check_regions(&world, &operation, &schedule).map_err(invalid)?;
        Ok(Self {
            world,
            operation,
            schedule,
            mine,
        })
    }

    pub(super) fn world(&self) -> World {
        self.world
    }

    pub(super) fn operation(&self) -> &DeviceOperation {
        &self.operation
    }

    pub(super) fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    /// The scratch memory of a bucket; empty where none is needed.
    fn slot(&self, bucket: usize) -> Region {
        let schedule = &self.schedule;
        let len = schedule.slot_elements(self.world.rank, self.operation.mode);
        let start = bucket % NUM_UNDER_WAY * len;
        self.operation.scratch.slice(start..start + len)
    }

    /// Where the leaves' parts of a chunk of this rank's are: its own where they lie, the others'
    /// one after the other in the bucket's slot.
    fn parts(&self, bucket: usize) -> Vec<Region> {
        let chunk = self.schedule.chunk(bucket, self.world.rank);
        let room = self.schedule.part_elements(self.world.rank);
        let slot = self.slot(bucket);
        let mut num_received = 0;
        let part = |mine: &Option<Region>| match mine {
            Some(values) => values.slice(chunk.clone()),
            None => {
                let start = num_received * room;
                num_received += 1;
                slot.slice(start..start + chunk.len())
            }
        };
        self.mine.iter().map(part).collect()
    }

    fn legs(&self, bucket: usize, moves: Vec<Move>) -> Transfer {
        let parts = self.parts(bucket);
        let leg = |one: Move| {
            let Move {
                from,
                to,
                cargo,
                range,
            } = one;
            let is_sent = from == self.world.rank;
            let values = match cargo {
                Cargo::Total => self.operation.output.slice(range),
                Cargo::Leaf(leaf) => match self.mine.get(leaf).copied().flatten() {
                    Some(values) if is_sent => values.slice(range),
                    _ => parts[leaf],
                },
            };
            if is_sent {
                Leg::Send { to, values }
            } else {
                Leg::Receive { from, into: values }
            }
        };
        Transfer::Exchange(moves.into_iter().map(leg).collect())
    }

    /// This rank's own sums of a range.
    fn own(&self, range: &Range<usize>) -> Vec<Region> {
        let own = self.mine.iter().flatten();
        own.map(|values| values.slice(range.clone())).collect()
    }
}

/// By leaf, where this rank has its sum.
fn place(
    world: &World,
    operation: &DeviceOperation,
    schedule: &Schedule,
) -> Result<Vec<Option<Region>>, String> {
    let mut mine: Vec<Option<Region>> = vec![None; schedule.leaves().len()];
    for DeviceSubtree { run, values } in &operation.mine {
        let leaf = schedule.leaves().binary_search(&(*run, world.rank));
        let leaf = leaf.map_err(|_| {
            format!("this rank brings the sum of {run}, which is none of its holdings")
        })?;
        if mine[leaf].replace(*values).is_some() {
            return Err(format!("this rank brings the sum of {run} twice"));
        }
        let (len, expected) = (values.num_elements, operation.num_elements);
        if len != expected {
            return Err(format!(
                "the sum of {run} has {len} elements: expected {expected}"
            ));
        }
    }
    match schedule
        .leaves_of(world.rank)
        .find(|leaf| mine[*leaf].is_none())
    {
        Some(leaf) => {
            let run = schedule.leaves()[leaf].0;
            Err(format!(
                "this rank does not bring the sum of {run}, which it holds"
            ))
        }
        None => Ok(mine),
    }
}

/// Lengths, alignment, and that nothing that is written overlaps anything else.
fn check_regions(
    world: &World,
    operation: &DeviceOperation,
    schedule: &Schedule,
) -> Result<(), String> {
    let (output, scratch) = (operation.output, operation.scratch);
    if output.num_elements != operation.num_elements {
        let (len, expected) = (output.num_elements, operation.num_elements);
        return Err(format!(
            "the output has {len} elements: expected {expected}"
        ));
    }
    let needed = schedule.scratch_elements(world.rank, operation.mode);
    if scratch.num_elements < needed {
        let len = scratch.num_elements;
        return Err(format!(
            "the scratch memory has {len} elements: expected at least {needed}"
        ));
    }
    let sums = operation.mine.iter().map(|subtree| subtree.values);
    let regions: Vec<Region> = [output, scratch].into_iter().chain(sums).collect();
    for region in &regions {
        let bytes = region.num_elements.checked_mul(size_of::<f32>());
        let end = bytes.and_then(|bytes| region.address.checked_add(bytes as u64));
        if end.is_none() || !region.address.is_multiple_of(align_of::<f32>() as u64) {
            return Err(format!("{region:?} is no place for f32"));
        }
    }
    for (at, written) in regions.iter().take(2).enumerate() {
        if let Some(other) = regions[at + 1..]
            .iter()
            .find(|other| written.overlaps(**other))
        {
            return Err(format!("{written:?}, which is written, overlaps {other:?}"));
        }
    }
    Ok(())
}

/// An all-reduce that has begun on every rank.
///
/// Every rank starts the same buckets, in their order; how it divides them between
/// [`Self::start_next`] and [`Self::finish`] is its own matter. Dropped before its end it fails,
/// and with it the group.
#[derive(Debug)]
pub struct Running<'a> {
    group: &'a mut DeviceGroup,
    plan: Plan,
    until: Option<Instant>,
    /// Buckets whose first transfer has begun, oldest first.
    under_way: VecDeque<(usize, Option<Ticket>)>,
    next: usize,
    /// The last transfer that has begun and that nobody has waited for.
    last: Option<Ticket>,
    is_over: bool,
}

impl<'a> Running<'a> {
    pub(super) fn new(group: &'a mut DeviceGroup, plan: Plan, until: Option<Instant>) -> Self {
        Self {
            group,
            plan,
            until,
            under_way: VecDeque::new(),
            next: 0,
            last: None,
            is_over: false,
        }
    }

    /// The schedule of this operation: which elements each bucket has.
    #[must_use]
    pub fn schedule(&self) -> &Schedule {
        &self.plan.schedule
    }

    /// How many buckets have been started.
    #[must_use]
    pub fn num_started(&self) -> usize {
        self.next
    }

    /// Closes this operation's generation from another thread.
    #[must_use]
    pub fn revoker(&self) -> Revoker {
        self.group.group.revoker()
    }

    /// Starts the next bucket, whose contributions are queued on the device; `false` where there
    /// is none. Waits for an earlier one when too many are under way.
    ///
    /// # Errors
    /// As [`DeviceGroup::all_reduce`]; nothing goes on after one.
    pub fn start_next(&mut self, kernels: &mut dyn Kernels) -> Result<bool, Error> {
        self.group.group.check_usable()?;
        if self.next >= self.plan.schedule.num_buckets() {
            return Ok(false);
        }
        let started = self.start(kernels);
        started.map_err(|error| self.fail(error))?;
        Ok(true)
    }

    /// Starts what is left, waits for all of it, and tells everyone's note to everyone.
    ///
    /// # Errors
    /// As [`DeviceGroup::all_reduce`].
    pub fn finish(
        mut self,
        note: Vec<u8>,
        kernels: &mut dyn Kernels,
    ) -> Result<Vec<Vec<u8>>, Error> {
        while self.start_next(kernels)? {}
        let notes = self.end(note, kernels);
        let notes = notes.map_err(|error| self.fail(error))?;
        self.is_over = true;
        Ok(notes)
    }

    fn end(&mut self, note: Vec<u8>, kernels: &mut dyn Kernels) -> Result<Vec<Vec<u8>>, Error> {
        while !self.under_way.is_empty() {
            self.drive(kernels)?;
        }
        if let Some(last) = self.last {
            self.group.complete(last, self.until)?;
        }
        let left = self.until.map_or(Duration::MAX, |until| {
            until.saturating_duration_since(Instant::now())
        });
        self.group.group.all_gather(note, left)
    }

    fn start(&mut self, kernels: &mut dyn Kernels) -> Result<(), Error> {
        self.group.group.watch(Duration::ZERO)?;
        while self.under_way.len() >= NUM_UNDER_WAY {
            self.drive(kernels)?;
        }
        let bucket = self.next;
        let (rank, schedule) = (self.plan.world.rank, &self.plan.schedule);
        let range = schedule.bucket(bucket);
        let output = self.plan.operation.output.slice(range.clone());
        let transfer = match self.plan.operation.mode {
            _ if self.plan.world.size == 1 => {
                let own = self.plan.own(&range);
                summed(kernels.sum(&own, schedule.adds(), output))?;
                None
            }
            Mode::Canonical => Some(self.plan.legs(bucket, schedule.scatter(bucket, rank))),
            Mode::Fast => {
                let own = self.plan.own(&range);
                let input = match own.as_slice() {
                    [only] => *only,
                    own => {
                        let sum = self.plan.slot(bucket).slice(0..range.len());
                        summed(kernels.sum(own, &schedule.adds_of(rank), sum))?;
                        sum
                    }
                };
                Some(Transfer::AllReduce { input, output })
            }
        };
        let ticket = match transfer {
            Some(transfer) => Some(self.transfer(transfer, kernels)?),
            None => None,
        };
        self.under_way.push_back((bucket, ticket));
        self.next += 1;
        Ok(())
    }

    /// Takes the oldest bucket a step further: its parts are here, so they are summed, and the
    /// total goes out.
    fn drive(&mut self, kernels: &mut dyn Kernels) -> Result<(), Error> {
        let Some((bucket, Some(ticket))) = self.under_way.pop_front() else {
            return Ok(());
        };
        self.group.complete(ticket, self.until)?;
        if self.plan.operation.mode == Mode::Fast {
            return Ok(());
        }
        let (rank, schedule) = (self.plan.world.rank, &self.plan.schedule);
        let chunk = schedule.chunk(bucket, rank);
        if !chunk.is_empty() {
            let output = self.plan.operation.output.slice(chunk);
            let parts = self.plan.parts(bucket);
            summed(kernels.sum(&parts, schedule.adds(), output))?;
        }
        let gather = self.plan.legs(bucket, schedule.gather(bucket, rank));
        self.last = Some(self.transfer(gather, kernels)?);
        Ok(())
    }

    fn transfer(&mut self, transfer: Transfer, kernels: &mut dyn Kernels) -> Result<Ticket, Error> {
        summed(kernels.flush())?;
        let Some(bulk) = &mut self.group.bulk else {
            let what = "nothing moves the vectors of this world".to_owned();
            return Err(Error::Invalid { what });
        };
        let begun = bulk.begin(transfer);
        begun.map_err(|failure| self.group.explain(&failure, self.until))
    }

    /// Sends a message to another rank, beside the transfers.
    pub(crate) fn tell(&mut self, to: RankId, deadline: Duration) -> Result<(), Error> {
        self.group.group.send(to, Vec::new(), deadline)
    }

    /// Takes no further step and fails nothing, for a rank that is about to die.
    pub(crate) fn forget(mut self) {
        self.is_over = true;
    }

    fn fail(&mut self, error: Error) -> Error {
        self.is_over = true;
        self.group.fail(error)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.is_over && self.group.group.check_usable().is_ok() {
            let what = "a reduction was given up before its end".to_owned();
            self.group.fail(Error::Invalid { what });
        }
    }
}

/// A failure of the kernels is one of the device.
fn summed(result: Result<(), String>) -> Result<(), Error> {
    result.map_err(|what| Error::Device { what })
}
