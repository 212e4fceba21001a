//! Does a device path work on this machine, and how fast is it: the phases of a self-check, over
//! any devices.
//!
//! 1. The ranks connect, their groups first, then their devices.
//! 2. They reduce vectors of growing length in both modes, compare with sums on the host, and time
//!    it.
//! 3. The last rank dies in the middle of a reduction; the others must come out of it and name it.
//! 4. They connect anew, without it, and finish the step with its shards.
//!
//! What a device is, and how a rank dies, is the business of a [`Rig`].

mod report;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use muster_cluster::tree::{self, Run};
use muster_cluster::{Generation, History, RankId, Step};

use super::bulk::{Bulk, BulkError, Kernels};
use super::schedule::Schedule;
use super::{DeviceGroup, DeviceOperation, DeviceSubtree, Mode, Region};
use crate::error::Error;
use crate::group::{Group, Revoker};
use crate::tcp::{self, Listener, Token};
use crate::world::World;

pub use report::{Report, Timing};

/// A rank's device, as the check needs it.
pub trait Rig {
    /// Memory of the device, of which nothing is known.
    ///
    /// # Errors
    /// [`BulkError`] where there is not as much.
    fn alloc(&mut self, num_elements: usize) -> Result<Region, BulkError>;

    /// Copies values into a region of their length.
    ///
    /// # Errors
    /// [`BulkError`] where the device refuses.
    fn write(&mut self, region: Region, values: &[f32]) -> Result<(), BulkError>;

    /// The values of a region, when all work of the device is done.
    ///
    /// # Errors
    /// [`BulkError`] where the device refuses.
    fn read(&mut self, region: Region) -> Result<Vec<f32>, BulkError>;

    /// What sums on the device.
    fn kernels(&mut self) -> &mut dyn Kernels;

    /// Connects the devices of a group's ranks; nothing in a world of one.
    ///
    /// # Errors
    /// Whatever ends it.
    fn connect(
        &mut self,
        group: &mut Group,
        deadline: Duration,
    ) -> Result<Option<Box<dyn Bulk>>, Error>;

    /// What moves the vectors, in a few words for the report.
    fn name(&self) -> String;

    /// Ends this rank as a death would, in the middle of what it does. A process does not return.
    fn die(&mut self, group: DeviceGroup);
}

/// What is checked.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// The lengths of the vectors, in elements.
    pub sizes: Vec<usize>,
    /// How often each is reduced; the median counts.
    pub num_repeats: usize,
    /// How many elements are reduced at a time.
    pub bucket_elements: usize,
    /// Whether the last rank dies in the middle of a reduction.
    pub kills: bool,
    /// How long any one step may take, connecting among them.
    pub deadline: Duration,
    /// How long a rank may take to come out of a reduction whose peer died.
    pub most_loss: Duration,
    /// A silence of this length counts as a loss. A rank that is killed is silent at once, but its
    /// connections may end late: the system first takes its device's memory apart.
    pub detect: Duration,
    /// What the ranks know and strangers do not.
    pub token: Token,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            sizes: vec![1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 26],
            num_repeats: 10,
            bucket_elements: 1 << 24,
            kills: true,
            deadline: Duration::from_secs(60),
            most_loss: Duration::from_secs(1),
            detect: Duration::from_millis(500),
            token: Token(*b"muster selfcheck"),
        }
    }
}

/// Why a check did not end well.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CheckError {
    /// An operation failed.
    #[error("could not {doing}")]
    Failed {
        /// What was tried.
        doing: String,
        /// How it ended.
        #[source]
        source: Error,
    },
    /// The device failed.
    #[error("could not {doing}")]
    Device {
        /// What was tried.
        doing: String,
        /// What it said.
        #[source]
        source: BulkError,
    },
    /// Something is other than it must be.
    #[error("{what}")]
    Wrong {
        /// What, where, and what was expected.
        what: String,
    },
}

fn failed(doing: impl Into<String>) -> impl FnOnce(Error) -> CheckError {
    let doing = doing.into();
    move |source| CheckError::Failed { doing, source }
}

fn refused(doing: impl Into<String>) -> impl FnOnce(BulkError) -> CheckError {
    let doing = doing.into();
    move |source| CheckError::Device { doing, source }
}

/// Longer vectors are reduced and timed, but their sums are not made again on the host, which would
/// take longer than everything else.
const MOST_COMPARED: usize = 1 << 22;

/// The vectors of one rank, as long as the longest one.
struct Vectors {
    /// By run: this rank's sums.
    sums: Vec<(Run, Region)>,
    output: Region,
    scratch: Region,
}

/// Who holds what: two shards for each rank of the first world, also when one of them is gone.
struct Division {
    num_shards: u32,
    holdings: Vec<Vec<Run>>,
}

impl Division {
    fn first(size: u32) -> Self {
        let num_shards = size * 2;
        let runs = tree::runs(num_shards, size).unwrap_or_default();
        let holdings = runs.into_iter().map(|run| tree::subtrees(num_shards, run));
        Self {
            num_shards,
            holdings: holdings.collect(),
        }
    }

    /// The shards of the last rank go to the one before it; the others keep what they hold.
    fn without_last(mut self) -> Self {
        let orphaned = self.holdings.pop().unwrap_or_default();
        if let Some(heir) = self.holdings.last_mut() {
            heir.extend(orphaned);
        }
        self
    }
}

/// Checks one rank of a world whose listeners are at `peers`, by rank.
///
/// # Errors
/// [`CheckError`], which says at what it ended.
pub fn run(
    rig: &mut dyn Rig,
    listener: &Listener,
    rank: RankId,
    peers: &[SocketAddr],
    options: &CheckOptions,
) -> Result<Report, CheckError> {
    let size = u32::try_from(peers.len()).unwrap_or(u32::MAX);
    let division = Division::first(size);
    let world = World {
        history: History(1),
        generation: Generation(1),
        rank,
        size,
    };
    let (mut group, connecting) = connect(rig, listener, world, peers, options)?;
    let mut report = Report::new(rig.name(), world, connecting);
    let vectors = allocate(rig, &world, &division, options)?;
    for num_elements in &options.sizes {
        for mode in [Mode::Canonical, Mode::Fast] {
            let reducing = Reducing {
                division: &division,
                vectors: &vectors,
                mode,
                num_elements: *num_elements,
            };
            let timing = reducing.time(rig, &mut group, options)?;
            report.timings.push(timing);
        }
    }
    if !options.kills || size < 2 {
        return Ok(report);
    }

    let num_elements = options.sizes.iter().copied().min().unwrap_or_default();
    let reducing = Reducing {
        division: &division,
        vectors: &vectors,
        mode: Mode::Fast,
        num_elements,
    };
    let victim = RankId(size - 1);
    if rank == victim {
        reducing.die(rig, group, options)?;
        return Ok(report);
    }
    report.loss = Some(reducing.lose(rig, &mut group, victim, options)?);
    drop(group);

    let division = division.without_last();
    let world = World {
        generation: Generation(2),
        size: size - 1,
        ..world
    };
    let peers = &peers[..peers.len() - 1];
    let (mut group, connecting) = connect(rig, listener, world, peers, options)?;
    let vectors = allocate(rig, &world, &division, options)?;
    let reducing = Reducing {
        division: &division,
        vectors: &vectors,
        mode: Mode::Canonical,
        num_elements,
    };
    reducing.time(rig, &mut group, options)?;
    report.connecting_again = Some(connecting);
    Ok(report)
}

/// Connects a group and its devices; how long the devices took.
fn connect(
    rig: &mut dyn Rig,
    listener: &Listener,
    world: World,
    peers: &[SocketAddr],
    options: &CheckOptions,
) -> Result<(DeviceGroup, Duration), CheckError> {
    let (revoker, deadline, detect) = (Revoker::default(), options.deadline, options.detect);
    let group = tcp::connect(
        listener,
        world,
        peers,
        options.token,
        detect,
        &revoker,
        deadline,
    );
    let mut group = group.map_err(failed("connect to the other ranks over TCP"))?;
    let begun = Instant::now();
    let bulk = rig.connect(&mut group, deadline);
    let bulk = bulk.map_err(failed("connect the devices of the ranks"))?;
    let connecting = begun.elapsed();
    let group = DeviceGroup::new(group, bulk);
    Ok((
        group.map_err(failed("join the group and its devices"))?,
        connecting,
    ))
}

fn allocate(
    rig: &mut dyn Rig,
    world: &World,
    division: &Division,
    options: &CheckOptions,
) -> Result<Vectors, CheckError> {
    let longest = options.sizes.iter().copied().max().unwrap_or_default();
    let mut scratch = 0;
    for num_elements in &options.sizes {
        let schedule = Schedule::new(
            world.size,
            division.num_shards,
            *num_elements,
            options.bucket_elements,
            &division.holdings,
        );
        let schedule = schedule.map_err(|what| CheckError::Wrong { what })?;
        for mode in [Mode::Canonical, Mode::Fast] {
            scratch = scratch.max(schedule.scratch_elements(world.rank, mode));
        }
    }
    let mut alloc = |num_elements| {
        let region = rig.alloc(num_elements);
        region.map_err(refused(format!("allocate {num_elements} elements")))
    };
    let output = alloc(longest)?;
    let scratch = alloc(scratch)?;
    let mut sums = Vec::new();
    for run in &division.holdings[World::index(world.rank)] {
        sums.push((*run, alloc(longest)?));
    }
    for (run, region) in &sums {
        let values = host_sum(*run, longest);
        let written = rig.write(*region, &values);
        written.map_err(refused("write the contributions"))?;
    }
    Ok(Vectors {
        sums,
        output,
        scratch,
    })
}

/// One length in one mode.
struct Reducing<'a> {
    division: &'a Division,
    vectors: &'a Vectors,
    mode: Mode,
    num_elements: usize,
}

impl Reducing<'_> {
    fn operation(&self, options: &CheckOptions) -> DeviceOperation {
        let part = |region: &Region| region.slice(0..self.num_elements);
        let mine = self.vectors.sums.iter().map(|(run, region)| DeviceSubtree {
            run: *run,
            values: part(region),
        });
        DeviceOperation {
            step: Step(0),
            mode: self.mode,
            num_shards: self.division.num_shards,
            num_elements: self.num_elements,
            bucket_elements: options.bucket_elements,
            holdings: self.division.holdings.clone(),
            mine: mine.collect(),
            output: part(&self.vectors.output),
            scratch: self.vectors.scratch,
        }
    }

    /// Reduces it some times, compares, and gives the median.
    fn time(
        &self,
        rig: &mut dyn Rig,
        group: &mut DeviceGroup,
        options: &CheckOptions,
    ) -> Result<Timing, CheckError> {
        let (mode, num_elements) = (self.mode, self.num_elements);
        let doing = || format!("reduce {num_elements} elements ({mode:?})");
        let mut times = Vec::new();
        // The first one connects what NCCL connects late, and is compared instead of timed.
        for repeat in 0..=options.num_repeats {
            let operation = self.operation(options);
            let begun = Instant::now();
            let reduced = group.all_reduce(operation, Vec::new(), rig.kernels(), options.deadline);
            reduced.map_err(failed(doing()))?;
            let time = begun.elapsed();
            if repeat == 0 {
                self.compare(rig)?;
                // Nobody is timed while another rank still compares.
                let barrier = group.group().barrier(options.deadline);
                barrier.map_err(failed(doing()))?;
            } else {
                times.push(time);
            }
        }
        times.sort();
        Ok(Timing {
            mode,
            num_elements,
            median: times.get(times.len() / 2).copied(),
        })
    }

    /// Compares the sum with the host's: bit by bit, or, of the fast one, closely.
    fn compare(&self, rig: &mut dyn Rig) -> Result<(), CheckError> {
        let num_compared = self.num_elements.min(MOST_COMPARED);
        let region = self.vectors.output.slice(0..num_compared);
        let sum = rig.read(region).map_err(refused("read the sum"))?;
        let num_shards = self.division.num_shards;
        let expected = host_sum(Run::new(0, num_shards), num_compared);
        // Values are below one in size: the sum of that many, in any order, is off by at most half
        // a unit in the last place of the largest partial sum for each addition.
        let most = match self.mode {
            Mode::Canonical => 0.0,
            Mode::Fast => f32::EPSILON * (num_shards * num_shards) as f32,
        };
        for (at, (sum, expected)) in sum.iter().zip(&expected).enumerate() {
            let is_right = match self.mode {
                Mode::Canonical => sum.to_bits() == expected.to_bits(),
                Mode::Fast => (sum - expected).abs() <= most,
            };
            if !is_right {
                return Err(CheckError::Wrong {
                    what: format!(
                        "element {at} of {} ({:?}) is {sum}: expected {expected}, the host's sum",
                        self.num_elements, self.mode
                    ),
                });
            }
        }
        Ok(())
    }

    /// Begins it, and dies when every other rank is waiting for this one.
    fn die(
        &self,
        rig: &mut dyn Rig,
        mut group: DeviceGroup,
        options: &CheckOptions,
    ) -> Result<(), CheckError> {
        let doing = "wait for the others in the reduction in which this rank dies";
        let running = group.begin(self.operation(options), options.deadline);
        running.map(super::Running::forget).map_err(failed(doing))?;
        for peer in group.world().peers() {
            let told = group.group().recv(peer, options.deadline);
            told.map_err(failed(doing))?;
        }
        rig.die(group);
        Ok(())
    }

    /// Reduces it with a rank that dies meanwhile; how long it took to come out.
    fn lose(
        &self,
        rig: &mut dyn Rig,
        group: &mut DeviceGroup,
        victim: RankId,
        options: &CheckOptions,
    ) -> Result<Duration, CheckError> {
        let running = group.begin(self.operation(options), options.deadline);
        let mut running = running.map_err(failed("begin the reduction in which a rank dies"))?;
        let started = running.start_next(rig.kernels()).map(|_| ());
        let told = started.and_then(|()| running.tell(victim, options.deadline));
        told.map_err(failed("have the last rank die"))?;
        let begun = Instant::now();
        let ended = running.finish(Vec::new(), rig.kernels());
        let took = begun.elapsed();
        let is_named = matches!(ended, Err(Error::PeerLost { rank, .. }) if rank == victim);
        if !is_named || took > options.most_loss {
            return Err(CheckError::Wrong {
                what: format!(
                    "a reduction in which rank {victim} died ended after {} ms with {ended:?}: \
                     expected the loss of that rank, within {} ms",
                    took.as_millis(),
                    options.most_loss.as_millis()
                ),
            });
        }
        Ok(took)
    }
}

/// The sum of these shards along the canonical tree.
fn host_sum(node: Run, num_elements: usize) -> Vec<f32> {
    let mut leaf =
        |node: Run| (node.num_shards() == 1).then(|| contribution(node.start, num_elements));
    let mut add = |mut left: Vec<f32>, right: Vec<f32>| {
        let terms = left.iter_mut().zip(&right);
        terms.for_each(|(left, right)| *left += right);
        left
    };
    tree::fold(node, &mut leaf, &mut add).unwrap_or_default()
}

/// The contribution of a shard: numbers from -1 to 1 whose sum depends on the order.
fn contribution(shard: u32, num_elements: usize) -> Vec<f32> {
    let mut state = u64::from(shard) << 32 | 0x9e37_79b9;
    let mut next = || {
        // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators".
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        bits as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..num_elements).map(|_| next()).collect()
}

#[cfg(test)]
pub(in crate::device) mod tests;
