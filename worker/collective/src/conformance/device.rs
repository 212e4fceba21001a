//! Reductions over device memory, with the double of devices: the bits of the tree and of the host,
//! and contributions that stay whole.

mod ends;

use super::*;
use crate::device::memory::{self, Device, Fabric, MemoryBulk};
use crate::device::schedule::BLOCK_ELEMENTS;
use crate::device::{
    Bulk, BulkError, DeviceGroup, DeviceOperation, DeviceSubtree, Kernels, Mode, Region, Schedule,
    Ticket, Transfer,
};

pub(super) use ends::*;

/// Several buckets, of which the last is short and no multiple of anything.
const LONG: usize = 5 * BLOCK_ELEMENTS + 4321;

/// A rank with a device, before its communicator is joined to its group.
struct Rig {
    group: Group,
    bulk: MemoryBulk,
    device: Device,
    fabric: Fabric,
}

impl Rig {
    fn world(&self) -> World {
        self.group.world()
    }

    fn join(self) -> (DeviceGroup, Device, Fabric) {
        let bulk: Option<Box<dyn Bulk>> = match self.group.world().size {
            1 => None,
            _ => Some(Box::new(self.bulk)),
        };
        let group = DeviceGroup::new(self.group, bulk).expect("it has what it needs");
        (group, self.device, self.fabric)
    }
}

/// The ranks of a world, on these devices or new ones.
fn rigs(driver: Driver, generation: Generation, devices: &[Device]) -> Vec<Rig> {
    let size = u32::try_from(devices.len()).expect("a few ranks");
    let (fabric, bulks) = memory::bulks(devices);
    let parts = driver(size, generation).into_iter().zip(bulks).zip(devices);
    parts
        .map(|((group, bulk), device)| Rig {
            group,
            bulk,
            device: device.clone(),
            fabric: fabric.clone(),
        })
        .collect()
}

fn devices(size: u32) -> Vec<Device> {
    (0..size).map(|_| Device::new()).collect()
}

/// Runs `work` on every rank in a thread of its own.
fn on_rigs<T: Send>(rigs: Vec<Rig>, work: impl Fn(Rig) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = rigs
            .into_iter()
            .map(|rig| scope.spawn(move || work(rig)))
            .collect();
        let joined = threads.into_iter().map(thread::ScopedJoinHandle::join);
        joined.map(|result| result.expect("no panic")).collect()
    })
}

/// Which shards each rank has: contiguous runs.
fn runs(num_shards: u32, size: u32) -> Vec<Vec<Run>> {
    let runs = tree::runs(num_shards, size).expect("no more ranks than shards");
    runs.into_iter().map(|run| vec![run]).collect()
}

/// The operation of a rank that has these shards, with the sums in its device's memory.
fn device_operation(
    device: &Device,
    rank: RankId,
    mode: Mode,
    num_shards: u32,
    shards: &[Vec<Run>],
    num_elements: usize,
) -> DeviceOperation {
    let size = u32::try_from(shards.len()).expect("a few ranks");
    let holdings: Vec<Vec<Run>> = shards
        .iter()
        .map(|shards| tree::cover(num_shards, shards))
        .collect();
    let sum = |run: &Run| {
        let values = device.alloc(num_elements);
        let written = device.write(values, &tree_sum(*run, num_elements));
        written.expect("its own memory");
        DeviceSubtree { run: *run, values }
    };
    let mine = holdings[World::index(rank)].iter().map(sum).collect();
    let bucket_elements = 2 * BLOCK_ELEMENTS;
    let schedule = Schedule::new(size, num_shards, num_elements, bucket_elements, &holdings);
    let schedule = schedule.expect("a possible operation");
    DeviceOperation {
        step: Step(4),
        mode,
        num_shards,
        num_elements,
        bucket_elements,
        holdings,
        mine,
        output: device.alloc(num_elements),
        scratch: device.alloc(schedule.scratch_elements(rank, mode)),
    }
}

/// That every contribution is what it was.
fn assert_whole(device: &Device, operation: &DeviceOperation) {
    for DeviceSubtree { run, values } in &operation.mine {
        let now = device.read(*values).expect("its own memory");
        let expected = tree_sum(*run, operation.num_elements);
        assert!(
            bits(&now) == bits(&expected),
            "the sum of {run} has changed"
        );
    }
}

fn assert_output(device: &Device, operation: &DeviceOperation) {
    let sum = device.read(operation.output).expect("its own memory");
    let whole = Run::new(0, operation.num_shards);
    let expected = tree_sum(whole, operation.num_elements);
    assert!(bits(&sum) == bits(&expected), "other bits");
}

fn notes(size: u32) -> Vec<Vec<u8>> {
    (0..size).map(|rank| note(RankId(rank), 4)).collect()
}

/// Reduces what these ranks hold, on all of them, and compares with the plain sum and the host's.
fn device_reduces(driver: Driver, num_shards: u32, shards: &[Vec<Run>], num_elements: usize) {
    let size = u32::try_from(shards.len()).expect("a few ranks");
    let rigs = rigs(driver, Generation(1), &devices(size));
    on_rigs(rigs, |rig| {
        let rank = rig.world().rank;
        let (mut group, mut device, _) = rig.join();
        let mode = Mode::Canonical;
        let operation = device_operation(&device, rank, mode, num_shards, shards, num_elements);
        let reduced = group.all_reduce(operation.clone(), note(rank, 4), &mut device, PATIENT);
        assert_eq!(reduced, Ok(notes(size)));
        assert_output(&device, &operation);
        assert_whole(&device, &operation);

        let mine = operation.mine.iter().map(|subtree| crate::Subtree {
            run: subtree.run,
            values: device.read(subtree.values).expect("its own memory").into(),
        });
        let on_host = Operation {
            step: operation.step,
            num_shards,
            num_elements,
            holdings: operation.holdings.clone(),
            mine: mine.collect(),
            note: Vec::new(),
        };
        let on_host = group.group().all_reduce(on_host, PATIENT);
        let on_host = on_host.expect("all ranks are there").vector;
        let on_device = device.read(operation.output).expect("its own memory");
        assert!(
            bits(&on_host) == bits(&on_device),
            "other bits than the host's"
        );
    });
}

pub(super) fn devices_give_the_bits_of_the_tree_and_of_the_host(driver: Driver) {
    for size in [1, 2, 3, 5, 8] {
        for num_elements in [0, 1, 5000, BLOCK_ELEMENTS + 1, LONG] {
            device_reduces(driver, 11, &runs(11, size), num_elements);
        }
    }
}

pub(super) fn devices_may_hold_any_shards_or_none(driver: Driver) {
    let run = |start, end| Run::new(start, end);
    let scattered = [vec![run(0, 1), run(4, 6)], vec![run(1, 4), run(6, 8)]];
    device_reduces(driver, 8, &scattered, LONG);
    let one_of_three = [vec![], [run(0, 1), run(3, 8)].to_vec(), vec![run(1, 3)]];
    device_reduces(driver, 8, &one_of_three, LONG);
    device_reduces(driver, 8, &[vec![run(0, 8)], vec![], vec![]], LONG);
}

pub(super) fn a_fast_sum_is_right_and_leaves_the_contributions(driver: Driver) {
    let run = |start, end| Run::new(start, end);
    let worlds = [
        runs(8, 1),
        runs(8, 2),
        runs(7, 3),
        vec![vec![run(0, 1), run(4, 8)], vec![], vec![run(1, 4)]],
    ];
    for shards in worlds {
        let num_shards = shards.iter().flatten().map(|run| run.end).max();
        let num_shards = num_shards.expect("somebody holds something");
        let size = u32::try_from(shards.len()).expect("a few ranks");
        let sums = on_rigs(rigs(driver, Generation(1), &devices(size)), |rig| {
            let rank = rig.world().rank;
            let (mut group, mut device, _) = rig.join();
            let operation = device_operation(&device, rank, Mode::Fast, num_shards, &shards, LONG);
            let reduced = group.all_reduce(operation.clone(), note(rank, 4), &mut device, PATIENT);
            assert_eq!(reduced, Ok(notes(size)));
            assert_whole(&device, &operation);
            device.read(operation.output).expect("its own memory")
        });
        let values: Vec<Vec<f32>> = (0..num_shards)
            .map(|shard| shard_values(shard, LONG))
            .collect();
        for sum in &sums {
            assert!(bits(sum) == bits(&sums[0]), "the ranks have different sums");
            for (at, sum) in sum.iter().enumerate() {
                let terms = || values.iter().map(|values| f64::from(values[at]));
                let (exact, size): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
                // Eight terms are seven additions, in whatever order; each rounds a value no larger
                // than the sum of magnitudes by half a unit in the last place.
                let tolerance = 8.0 * f64::from(f32::EPSILON) * size;
                let off = (f64::from(*sum) - exact).abs();
                assert!(off <= tolerance, "element {at}: {sum} is not {exact}");
            }
        }
    }
}

pub(super) fn buckets_may_be_started_one_by_one_and_ranks_may_be_slow(driver: Driver) {
    let shards = runs(8, 3);
    on_rigs(rigs(driver, Generation(1), &devices(3)), |rig| {
        let rank = rig.world().rank;
        let (mut group, mut device, fabric) = rig.join();
        if rank == RankId(1) {
            fabric.hold(rank);
        }
        for mode in [Mode::Canonical, Mode::Fast] {
            let operation = device_operation(&device, rank, mode, 8, &shards, LONG);
            let running = group.begin(operation.clone(), PATIENT);
            let mut running = running.expect("all ranks are there");
            assert_eq!(running.schedule().num_buckets(), 3);
            // Each rank divides its buckets in another way.
            for started in 0..rank.0 as usize {
                assert_eq!(running.num_started(), started);
                assert_eq!(running.start_next(&mut device), Ok(true));
            }
            if rank == RankId(1) {
                fabric.release(rank);
            }
            let reduced = running.finish(note(rank, 4), &mut device);
            assert_eq!(reduced, Ok(notes(3)));
            assert_whole(&device, &operation);
            if mode == Mode::Canonical {
                assert_output(&device, &operation);
            }
        }
    });
}

pub(super) fn ranks_that_mean_different_reductions_notice(driver: Driver) {
    type Change = fn(&mut DeviceOperation);
    let changes: [(Change, &str); 4] = [
        (
            |operation| operation.step = Step(5),
            "it is at step 5 where this rank is at step 4",
        ),
        (
            |operation| operation.mode = Mode::Fast,
            "it reduces in another way",
        ),
        (
            |operation| operation.bucket_elements = BLOCK_ELEMENTS,
            "it reduces in another way",
        ),
        (
            |operation| operation.holdings.reverse(),
            "it reduces in another way",
        ),
    ];
    for (change, expected) in changes {
        // Two ranks that hold alike, so that reversed holdings are possible too.
        let run = |start, end| vec![Run::new(start, end)];
        let shards = [run(0, 2), run(2, 4)];
        on_rigs(rigs(driver, Generation(1), &devices(2)), |rig| {
            let rank = rig.world().rank;
            let (mut group, mut device, _) = rig.join();
            let mut operation = device_operation(&device, rank, Mode::Canonical, 4, &shards, LONG);
            if rank == RankId(1) {
                change(&mut operation);
                operation.scratch = device.alloc(4 * LONG);
                let holdings = operation.holdings[1].clone();
                for (subtree, run) in operation.mine.iter_mut().zip(holdings) {
                    subtree.run = run;
                }
            }
            let error = group.all_reduce(operation, Vec::new(), &mut device, PATIENT);
            match (rank, error) {
                (RankId(0), Err(Error::Protocol { rank, what })) => {
                    assert_eq!(rank, RankId(1));
                    assert!(what.contains(expected), "{what}");
                }
                (RankId(1), Err(Error::Protocol { rank, .. })) => assert_eq!(rank, RankId(0)),
                (rank, error) => panic!("rank {rank}: {error:?}"),
            }
        });
    }
}

pub(super) fn an_impossible_device_operation_harms_nothing(driver: Driver) {
    type Change = fn(&mut DeviceOperation);
    let changes: [(Change, &str); 8] = [
        (|operation| operation.mine.clear(), "does not bring the sum"),
        (|operation| operation.mine.push(operation.mine[0]), "twice"),
        (
            |operation| operation.mine[0].run = Run::new(0, 3),
            "none of its holdings",
        ),
        (
            |operation| operation.mine[0].values.num_elements -= 1,
            "elements: expected",
        ),
        (
            |operation| operation.output = operation.mine[0].values,
            "overlaps",
        ),
        (
            |operation| operation.output.num_elements -= 1,
            "the output has",
        ),
        (
            |operation| operation.scratch = Region::default(),
            "the scratch memory has 0",
        ),
        (
            |operation| operation.output.address += 1,
            "no place for f32",
        ),
    ];
    let shards = runs(4, 2);
    on_rigs(rigs(driver, Generation(1), &devices(2)), |rig| {
        let rank = rig.world().rank;
        let (mut group, mut device, _) = rig.join();
        let operation = device_operation(&device, rank, Mode::Canonical, 4, &shards, LONG);
        for (change, expected) in changes {
            let mut bad = operation.clone();
            change(&mut bad);
            let refused = group.all_reduce(bad, Vec::new(), &mut device, PATIENT);
            match refused {
                Err(Error::Invalid { what }) => assert!(what.contains(expected), "{what}"),
                other => panic!("{other:?}"),
            }
        }
        let reduced = group.all_reduce(operation.clone(), note(rank, 4), &mut device, PATIENT);
        assert_eq!(reduced, Ok(notes(2)));
        assert_output(&device, &operation);
    });
    let alone = rigs(driver, Generation(1), &devices(2)).remove(0);
    let refused = DeviceGroup::new(alone.group, None);
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
}
