//! How a reduction over device memory ends that does not succeed: by losses in every phase, by
//! revocations, deadlines, and failures of a device.

use super::*;

/// The shortest deadline that is to pass in transfers, after an opening that takes its time, too.
const SOON: Duration = Duration::from_secs(1);

/// A rank's part in a fabric which, after some transfers, is at the mercy of a test.
#[derive(Debug)]
struct Struck {
    inner: MemoryBulk,
    num_left: u32,
    strike: Strike,
}

#[derive(Debug)]
enum Strike {
    /// Its generation is revoked; the test then takes the rank for dead.
    Revoke(Revoker),
    /// Its library fails with these words.
    Fail(&'static str),
}

impl Struck {
    fn strike(&mut self) -> Result<(), BulkError> {
        match &self.strike {
            Strike::Revoke(revoker) => {
                revoker.revoke();
                Ok(())
            }
            Strike::Fail(what) => Err(BulkError::new(*what)),
        }
    }
}

impl Bulk for Struck {
    fn begin(&mut self, transfer: Transfer) -> Result<Ticket, BulkError> {
        if self.num_left == 0 {
            self.strike()?;
        }
        self.num_left = self.num_left.saturating_sub(1);
        self.inner.begin(transfer)
    }

    fn wait(&mut self, ticket: Ticket, at_most: Duration) -> Result<bool, BulkError> {
        let is_complete = self.inner.wait(ticket, at_most)?;
        if is_complete && self.num_left == 0 {
            self.strike()?;
        }
        Ok(is_complete)
    }

    fn abort(&mut self, at_most: Duration) -> bool {
        self.inner.abort(at_most)
    }

    fn close(&mut self, at_most: Duration) {
        self.inner.close(at_most);
    }
}

/// Joins a rank whose part is struck after so many transfers.
fn join_struck(rig: Rig, num_left: u32, strike: Strike) -> (DeviceGroup, Device) {
    let bulk = Struck {
        inner: rig.bulk,
        num_left,
        strike,
    };
    let group = DeviceGroup::new(rig.group, Some(Box::new(bulk)));
    (group.expect("it has what it needs"), rig.device)
}

#[track_caller]
fn assert_lost_rank_1(error: &Error) {
    match error {
        Error::PeerLost {
            rank: RankId(1),
            reason,
        } => assert_closed(*reason),
        other => panic!("{other:?}"),
    }
}

pub(in super::super) fn a_device_rank_that_dies_in_any_phase_is_named_and_its_shards_are_salvaged(
    driver: Driver,
) {
    // Three buckets: of the canonical mode three scatters and three gathers, of the fast one three
    // all-reduces. Dead at the first, between any two, and when it has all but the notes.
    for num_left in 0..=6 {
        dies_and_is_salvaged(driver, Mode::Canonical, num_left);
    }
    for num_left in 0..=3 {
        dies_and_is_salvaged(driver, Mode::Fast, num_left);
    }
}

/// Rank 1 of four dies after so many transfers; the others finish the step in a new generation.
fn dies_and_is_salvaged(driver: Driver, mode: Mode, num_left: u32) {
    let run = |start, end| Run::new(start, end);
    let of = |start, end| vec![run(start, end)];
    let shards = [of(0, 2), of(2, 4), of(4, 6), of(6, 8)];
    let survivors = on_rigs(rigs(driver, Generation(1), &devices(4)), |rig| {
        let rank = rig.world().rank;
        let operation = device_operation(&rig.device, rank, mode, 8, &shards, LONG);
        if rank == RankId(1) {
            let strike = Strike::Revoke(rig.group.revoker());
            let (mut group, mut device) = join_struck(rig, num_left, strike);
            let ended = group.all_reduce(operation, Vec::new(), &mut device, PATIENT);
            assert_eq!(ended, Err(Error::Revoked));
            group.sever();
            return None;
        }
        let (mut group, mut device, _) = rig.join();
        let begun = Instant::now();
        let error = group.all_reduce(operation.clone(), Vec::new(), &mut device, PATIENT);
        let error = error.expect_err("a rank is missing");
        assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
        assert_lost_rank_1(&error);
        let again = group.all_reduce(operation.clone(), Vec::new(), &mut device, PATIENT);
        assert_eq!(again, Err(error), "it stays so");
        assert_whole(&device, &operation);
        Some((device, operation))
    });
    let survivors: Vec<_> = survivors.into_iter().flatten().collect();
    let devices: Vec<Device> = survivors.iter().map(|(device, _)| device.clone()).collect();
    // What they hold stays where it is; the shards of rank 1 are computed again, one by each of two.
    let shards = [of(0, 3), vec![run(3, 4), run(4, 6)], of(6, 8)];
    let holdings = [
        vec![run(0, 2), run(2, 3)],
        vec![run(3, 4), run(4, 6)],
        vec![run(6, 8)],
    ];
    on_rigs(rigs(driver, Generation(2), &devices), |rig| {
        let rank = rig.world().rank;
        let (mut group, mut device, _) = rig.join();
        let mut operation = device_operation(&device, rank, Mode::Canonical, 8, &shards, LONG);
        assert_eq!(operation.holdings, holdings);
        let kept = survivors[World::index(rank)].1.mine[0];
        for subtree in &mut operation.mine {
            if subtree.run == kept.run {
                assert!(device.free(subtree.values));
                *subtree = kept;
            }
        }
        let reduced = group.all_reduce(operation.clone(), note(rank, 4), &mut device, PATIENT);
        assert_eq!(reduced, Ok(notes(3)));
        assert_output(&device, &operation);
        assert_whole(&device, &operation);
    });
}

pub(in super::super) fn a_revocation_ends_transfers_that_wait_for_a_device(driver: Driver) {
    let shards = runs(6, 3);
    let (revokers, to_revoke) = mpsc::channel::<Revoker>();
    let to_revoke = Mutex::new(to_revoke);
    for mode in [Mode::Canonical, Mode::Fast] {
        on_rigs(rigs(driver, Generation(1), &devices(3)), |rig| {
            let rank = rig.world().rank;
            let (mut group, mut device, fabric) = rig.join();
            let operation = device_operation(&device, rank, mode, 6, &shards, LONG);
            let mut running = group
                .begin(operation.clone(), PATIENT)
                .expect("all are there");
            if rank == RankId(1) {
                // It begins nothing, so that the others wait until it has them revoked.
                for _ in 0..2 {
                    let revokers = to_revoke.lock().expect("no panic");
                    let revoker = revokers.recv_timeout(PATIENT);
                    revoker.expect("every rank tells its revoker").revoke();
                }
                drop(running);
                return;
            }
            assert_eq!(running.start_next(&mut device), Ok(true));
            revokers.send(running.revoker()).expect("rank 1 listens");
            let begun = Instant::now();
            assert_eq!(running.finish(Vec::new(), &mut device), Err(Error::Revoked));
            assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
            assert!(fabric.num_begun(rank) > 0);
            assert_whole(&device, &operation);
        });
    }
}

pub(in super::super) fn a_deadline_ends_transfers_that_wait_for_a_device(driver: Driver) {
    let shards = runs(6, 3);
    // A rank that is not there at all is named; one whose device is slow is not, for all answer.
    in_some_time(SOON, |soon| {
        let mut all = rigs(driver, Generation(1), &devices(3));
        let _idle = all.remove(1);
        let errors = on_rigs(all, |rig| {
            let rank = rig.world().rank;
            let (mut group, mut device, _) = rig.join();
            let operation = device_operation(&device, rank, Mode::Canonical, 6, &shards, LONG);
            group.all_reduce(operation, Vec::new(), &mut device, soon)
        });
        let waiting_for = vec![RankId(1)];
        let missing = Err(Error::TimedOut { waiting_for });
        let is_so = errors.iter().all(|error| *error == missing);
        is_so.then_some(()).ok_or_else(|| format!("{errors:?}"))
    });
    in_some_time(SOON, |soon| {
        let ranks = on_rigs(rigs(driver, Generation(2), &devices(3)), |rig| {
            let rank = rig.world().rank;
            let (mut group, mut device, fabric) = rig.join();
            fabric.hold(RankId(1));
            let operation = device_operation(&device, rank, Mode::Canonical, 6, &shards, LONG);
            group.group().barrier(PATIENT).expect("all are there");
            let error = group.all_reduce(operation.clone(), Vec::new(), &mut device, soon);
            assert_whole(&device, &operation);
            match error.expect_err("nothing gets through") {
                Error::TimedOut { waiting_for } if waiting_for.is_empty() => Ok(()),
                // Another rank's deadline was a moment earlier.
                Error::PeerLost {
                    reason: LossReason::GaveUp,
                    ..
                } => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        ranks.into_iter().collect()
    });
}

pub(in super::super) fn a_library_that_fails_is_told_apart_from_a_lost_rank(driver: Driver) {
    let shards = runs(6, 3);
    let words = "unhandled cuda error (run with NCCL_DEBUG=INFO for details)";
    // Rank 2's library fails by itself: it waits for an explanation for a while.
    on_rigs(rigs(driver, Generation(1), &devices(3)), |rig| {
        let rank = rig.world().rank;
        let operation = device_operation(&rig.device, rank, Mode::Canonical, 6, &shards, LONG);
        if rank == RankId(2) {
            let (mut group, mut device) = join_struck(rig, 1, Strike::Fail(words));
            group.group().barrier(PATIENT).expect("all are there");
            let error = group.all_reduce(operation, Vec::new(), &mut device, PATIENT);
            let what = words.to_owned();
            assert_eq!(error, Err(Error::Device { what }));
            return;
        }
        let (mut group, mut device, _) = rig.join();
        group.group().barrier(PATIENT).expect("all are there");
        let error = group.all_reduce(operation, Vec::new(), &mut device, PATIENT);
        match error.expect_err("rank 2 fails") {
            Error::PeerLost { rank, reason } => {
                let is_given_up = [LossReason::GaveUp, LossReason::Reported { by: RankId(0) }]
                    .contains(&reason)
                    || reason == LossReason::Reported { by: RankId(1) };
                assert!(rank == RankId(2) && is_given_up, "{rank} {reason:?}");
            }
            other => panic!("{other:?}"),
        }
    });
    // Rank 1 dies, and the others' libraries notice before their connections do.
    on_rigs(rigs(driver, Generation(2), &devices(3)), |rig| {
        let rank = rig.world().rank;
        let operation = device_operation(&rig.device, rank, Mode::Canonical, 6, &shards, LONG);
        let fabric = rig.fabric.clone();
        let (mut group, mut device, _) = rig.join();
        let running = group
            .begin(operation, PATIENT)
            .expect("all ranks are there");
        if rank == RankId(1) {
            // It lives until the others wait for it.
            while [0, 2]
                .iter()
                .any(|peer| fabric.num_begun(RankId(*peer)) == 0)
            {
                thread::yield_now();
            }
            for peer in [0, 2].map(RankId) {
                fabric.fail(peer, "remote process exited");
            }
            running.forget();
            return group.sever();
        }
        let error = running.finish(Vec::new(), &mut device);
        assert_lost_rank_1(&error.expect_err("a rank is missing"));
    });
}

pub(in super::super) fn memory_that_is_not_let_go_ends_the_process(driver: Driver) {
    let shards = runs(6, 2);
    on_rigs(rigs(driver, Generation(1), &devices(2)), |rig| {
        let rank = rig.world().rank;
        let (mut group, mut device, fabric) = rig.join();
        fabric.hold(RankId(1));
        fabric.jam(RankId(0));
        let operation = device_operation(&device, rank, Mode::Canonical, 6, &shards, LONG);
        let soon = Duration::from_millis(100);
        let error = group.all_reduce(operation, Vec::new(), &mut device, soon);
        let error = error.expect_err("nothing gets through");
        let is_told = matches!(error, Error::Stuck { .. });
        assert_eq!(is_told, rank == RankId(0), "{error:?}");
    });
}

pub(in super::super) fn a_reduction_that_is_given_up_fails_the_group(driver: Driver) {
    let shards = runs(6, 2);
    on_rigs(rigs(driver, Generation(1), &devices(2)), |rig| {
        let rank = rig.world().rank;
        let (mut group, mut device, _) = rig.join();
        let operation = device_operation(&device, rank, Mode::Canonical, 6, &shards, LONG);
        let running = group
            .begin(operation, PATIENT)
            .expect("all ranks are there");
        if rank == RankId(0) {
            drop(running);
            let error = group.group().barrier(PATIENT);
            assert!(matches!(error, Err(Error::Invalid { .. })), "{error:?}");
            return;
        }
        let error = running.finish(Vec::new(), &mut device);
        let expected = Error::PeerLost {
            rank: RankId(0),
            reason: LossReason::GaveUp,
        };
        assert_eq!(error, Err(expected));
    });
}

pub(in super::super) fn kernels_that_fail_are_a_failure_of_the_device(driver: Driver) {
    /// Sums nothing.
    struct Broken;

    impl Kernels for Broken {
        fn sum(&mut self, _: &[Region], _: &[crate::device::Add], _: Region) -> Result<(), String> {
            Err("out of memory".to_owned())
        }

        fn flush(&mut self) -> Result<(), String> {
            Ok(())
        }
    }

    let shards = runs(6, 2);
    on_rigs(rigs(driver, Generation(1), &devices(2)), |rig| {
        let rank = rig.world().rank;
        let (mut group, mut device, _) = rig.join();
        let operation = device_operation(&device, rank, Mode::Canonical, 6, &shards, LONG);
        let kernels: &mut dyn Kernels = if rank == RankId(0) {
            &mut Broken
        } else {
            &mut device
        };
        let error = group.all_reduce(operation, Vec::new(), kernels, PATIENT);
        let expected = match rank {
            RankId(0) => Error::Device {
                what: "out of memory".to_owned(),
            },
            _ => Error::PeerLost {
                rank: RankId(0),
                reason: LossReason::GaveUp,
            },
        };
        assert_eq!(error, Err(expected));
    });
}
