//! The self-check over host memory, and a death while a transfer waits.

use std::net::Ipv4Addr;
use std::sync::Barrier;
use std::thread;

use super::*;
use crate::device::check::tests::check_all;
use crate::device::check::{CheckError, CheckOptions, Report, Rig};
use crate::device::{Add, DeviceGroup, Kernels};

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Buffers of this process, whose addresses are handed out.
#[derive(Default)]
struct Memory {
    buffers: Vec<Vec<f32>>,
}

impl Kernels for Memory {
    fn sum(&mut self, parts: &[Region], adds: &[Add], output: Region) -> Result<(), String> {
        let mut values: Vec<Vec<f32>> = parts.iter().map(|part| read(*part).to_vec()).collect();
        for Add { into, from } in adds {
            let right = std::mem::take(&mut values[*from]);
            let left = values[*into].iter_mut();
            left.zip(right).for_each(|(left, right)| *left += right);
        }
        match values.first() {
            Some(sum) => written(output).copy_from_slice(sum),
            None => written(output).fill(0.0),
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        Ok(())
    }
}

impl Rig for Memory {
    fn alloc(&mut self, num_elements: usize) -> Result<Region, BulkError> {
        let mut buffer = vec![f32::NAN; num_elements];
        let address = buffer.as_mut_ptr() as u64;
        self.buffers.push(buffer);
        Ok(Region {
            address,
            num_elements,
        })
    }

    fn write(&mut self, region: Region, values: &[f32]) -> Result<(), BulkError> {
        written(region).copy_from_slice(values);
        Ok(())
    }

    fn read(&mut self, region: Region) -> Result<Vec<f32>, BulkError> {
        Ok(read(region).to_vec())
    }

    fn kernels(&mut self) -> &mut dyn Kernels {
        self
    }

    fn connect(
        &mut self,
        group: &mut Group,
        deadline: Duration,
    ) -> Result<Option<Box<dyn Bulk>>, Error> {
        let options = Options {
            host: LOCAL,
            token: Token(*b"vectors of tests"),
            detect: Duration::from_secs(30),
            refuses: false,
        };
        // SAFETY: the regions are of buffers that live as long as this does, and each is used by one
        // thread at a time.
        let bulk = unsafe { connect(group, &options, deadline) }?;
        Ok(bulk.map(|bulk| Box::new(bulk) as Box<dyn Bulk>))
    }

    fn name(&self) -> String {
        "buffers of this process".to_owned()
    }

    fn die(&mut self, group: DeviceGroup) {
        group.sever();
    }
}

fn check(size: u32) -> Vec<Result<Report, CheckError>> {
    let options = CheckOptions {
        // More than a piece, and than what is queued for one receiver.
        sizes: vec![1000, 300_000, 1 << 21],
        num_repeats: 3,
        bucket_elements: 1 << 19,
        // A machine that is busy with other tests.
        most_loss: Duration::from_secs(10),
        detect: Duration::from_secs(30),
        ..CheckOptions::default()
    };
    check_all(size, &options, |_| Memory::default())
}

#[test]
fn sums_are_right_and_a_death_ends_them() {
    for size in [2, 3] {
        for (rank, report) in (0..size).zip(check(size)) {
            let report = report.unwrap_or_else(|error| panic!("rank {rank} of {size}: {error:?}"));
            assert_eq!(report.loss.is_none(), rank == size - 1);
        }
    }
}

/// Each rank's bulk, in a world of `size`, driven by `drive` on a thread of its own.
fn with_bulks(size: u32, drive: impl Fn(RankId, &mut HostBulk) + Sync) {
    let groups = crate::memory::groups(
        muster_cluster::History(1),
        muster_cluster::Generation(1),
        size,
    );
    thread::scope(|scope| {
        for mut group in groups {
            let drive = &drive;
            scope.spawn(move || {
                let options = Options {
                    host: LOCAL,
                    token: Token(*b"vectors of tests"),
                    detect: Duration::from_secs(30),
                    refuses: false,
                };
                let rank = group.world().rank;
                // SAFETY: the buffers outlive the transfers, which are waited for.
                let bulk = unsafe { connect(&mut group, &options, Duration::from_secs(30)) };
                drive(
                    rank,
                    &mut bulk.expect("all are here").expect("several ranks"),
                );
            });
        }
    });
}

fn region(values: &mut [f32]) -> Region {
    Region {
        address: values.as_mut_ptr() as u64,
        num_elements: values.len(),
    }
}

#[test]
fn a_scatter_gives_each_rank_its_part_and_a_gather_all_of_them() {
    with_bulks(3, |rank, bulk| {
        let mine = rank.0 as f32;
        let mut input: Vec<f32> = (0_u8..6).map(|at| f32::from(at) + 10.0 * mine).collect();
        let (mut part, mut all) = (vec![0.0; 2], vec![0.0; 6]);
        let scatter = Transfer::ReduceScatter {
            input: region(&mut input),
            output: region(&mut part),
        };
        let gather = Transfer::AllGather {
            input: region(&mut part),
            output: region(&mut all),
        };
        for transfer in [scatter, gather] {
            let ticket = bulk.begin(transfer).expect("it is connected");
            let is_complete = bulk.wait(ticket, Duration::from_secs(30));
            assert_eq!(is_complete, Ok(true));
        }
        assert_eq!(all, [30.0, 33.0, 36.0, 39.0, 42.0, 45.0]);
        assert_eq!(part, all[2 * rank.0 as usize..][..2]);
    });
}

#[test]
fn an_abort_frees_the_regions_of_a_transfer_that_waits() {
    let both_wait = Barrier::new(2);
    with_bulks(2, |rank, bulk| {
        let mut into = vec![0.0; 8];
        let from = RankId(1 - rank.0);
        // Neither sends.
        let legs = vec![Leg::Receive {
            from,
            into: region(&mut into),
        }];
        let ticket = bulk.begin(Transfer::Exchange(legs)).expect("connected");
        assert_eq!(bulk.wait(ticket, Duration::ZERO), Ok(false));
        // An abort is heard by the other rank, too.
        both_wait.wait();
        assert!(bulk.abort(Duration::from_secs(30)));
        assert!(bulk.wait(ticket, Duration::ZERO).is_err());
    });
}

#[test]
fn where_one_rank_is_not_reached_all_go_on_without_devices() {
    let groups =
        crate::memory::groups(muster_cluster::History(1), muster_cluster::Generation(1), 3);
    thread::scope(|scope| {
        for mut group in groups {
            scope.spawn(move || {
                // Rank 2 knows another token, and so is a stranger to the others.
                let token = match group.world().rank {
                    RankId(2) => Token(*b"another of tests"),
                    _ => Token(*b"vectors of tests"),
                };
                let options = Options {
                    host: LOCAL,
                    token,
                    detect: Duration::from_secs(30),
                    refuses: false,
                };
                // SAFETY: nothing is transferred.
                let refused = unsafe { connect(&mut group, &options, Duration::from_secs(10)) };
                let refused = refused.expect_err("two ranks that do not know the third");
                assert!(matches!(refused, Error::Device { .. }), "{refused:?}");
                let all = group.all_gather(vec![1], Duration::from_secs(30));
                assert_eq!(all, Ok(vec![vec![1]; 3]));
            });
        }
    });
}
