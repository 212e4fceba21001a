//! Sums that outlive an operation that failed: survivors keep what they computed, compute what is
//! missing, and reduce again in a new generation, to the bits of an undisturbed step.

use super::*;
use crate::values::Subtree;

const NUM_SHARDS: u32 = 8;
/// Several pieces for every owner, so that an operation that fails leaves frames in its outboxes.
const NUM_ELEMENTS: usize = 400_000;

/// How the first generation ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    /// Rank 1 dies within the operation.
    Death,
    /// Rank 1 revokes the generation while the others wait for it.
    Revocation,
}

/// An all-reduce of `step` over what `accumulator` holds.
fn salvaging(accumulator: &Accumulator, world: World, holdings: Vec<Vec<Run>>) -> Operation {
    Operation {
        step: Step(3),
        num_shards: NUM_SHARDS,
        num_elements: NUM_ELEMENTS,
        holdings,
        mine: accumulator.subtrees(),
        note: note(world.rank, 3),
    }
}

/// What ranks hold that have pushed these shards.
fn covers(shards: &[Vec<Run>]) -> Vec<Vec<Run>> {
    let cover = |shards: &Vec<Run>| tree::cover(NUM_SHARDS, shards);
    shards.iter().map(cover).collect()
}

fn assert_sums(subtrees: &[Subtree]) {
    for subtree in subtrees {
        let expected = tree_sum(subtree.run, NUM_ELEMENTS);
        assert!(
            bits(&subtree.values) == bits(&expected),
            "other bits in the sum of {}",
            subtree.run
        );
    }
}

pub(super) fn sums_outlive_a_loss_and_are_reduced_again_by_fewer_ranks(driver: Driver) {
    reduces_again_after(driver, End::Death);
}

pub(super) fn sums_outlive_a_revocation_and_are_reduced_again_by_fewer_ranks(driver: Driver) {
    reduces_again_after(driver, End::Revocation);
}

/// Four ranks hold two shards each and fail; the ranks 0, 2 and 3 go on with the shards of rank 1.
fn reduces_again_after(driver: Driver, end: End) {
    let run = |start, end| vec![Run::new(start, end)];
    let shards = [run(0, 2), run(2, 4), run(4, 6), run(6, 8)];
    let (revokers, to_revoke) = mpsc::channel::<Revoker>();
    let to_revoke = Mutex::new(to_revoke);
    let failed = on_ranks(driver(4, Generation(1)), |mut group| {
        let world = group.world();
        let mut accumulator = Accumulator::new(NUM_SHARDS, NUM_ELEMENTS, group.pool());
        let own = shards[World::index(world.rank)].iter();
        push(&mut accumulator, own.flat_map(|run| run.shards()));
        let operation = salvaging(&accumulator, world, covers(&shards));
        if world.rank == RankId(1) && end == End::Death {
            die_within(group, operation, Some(5));
            return None;
        }
        if world.rank == RankId(1) {
            let revokers = to_revoke.lock().expect("no panic");
            for rank in [0, 2, 3].map(RankId) {
                let begins = group.recv(rank, PATIENT);
                begins.expect("every rank says that it begins");
                let revoker = revokers.recv_timeout(PATIENT);
                revoker.expect("every rank tells its revoker").revoke();
            }
            return None;
        }
        // Rank 1 may take any revoker once it has heard of one rank.
        let begins = group.send(RankId(1), Vec::new(), PATIENT);
        begins.expect("rank 1 takes it");
        revokers.send(group.revoker()).expect("rank 1 listens");
        let kept = accumulator.subtrees();
        let error = group.all_reduce(operation, PATIENT).expect_err("it fails");
        match end {
            End::Death => assert!(matches!(error, Error::PeerLost { .. }), "{error:?}"),
            End::Revocation => assert_eq!(error, Error::Revoked),
        }
        assert_eq!(accumulator.shards(), shards[World::index(world.rank)]);
        assert_sums(&accumulator.subtrees());
        // The failed group stays, with whatever its outboxes still share with the sums.
        Some((group, accumulator, kept))
    });
    let survivors: Vec<_> = failed.into_iter().flatten().collect();
    assert_eq!(survivors.len(), 3);

    // Rank 0 makes one sum of its own shards and those that are missing, the others add nothing.
    let shards = [run(0, 4), run(4, 6), run(6, 8)];
    let survivors = Mutex::new(survivors.into_iter().map(Some).collect::<Vec<_>>());
    let expected = tree_sum(Run::new(0, NUM_SHARDS), NUM_ELEMENTS);
    on_ranks(driver(3, Generation(2)), |mut group| {
        let world = group.world();
        let survivor = survivors.lock().expect("no panic")[World::index(world.rank)].take();
        let (failed, mut accumulator, kept) = survivor.expect("one per rank");
        if world.rank == RankId(0) {
            push(&mut accumulator, [3, 2]);
        }
        let operation = salvaging(&accumulator, world, covers(&shards));
        let reduced = group.all_reduce(operation, PATIENT);
        assert_reduced(&group, 3, &reduced.expect("all are there"), &expected);
        assert_sums(&kept);
        drop(failed);
    });
}

pub(super) fn ranks_may_hold_no_shard(driver: Driver) {
    let run = |start, end| vec![Run::new(start, end)];
    let of_three = [vec![], [run(0, 1), run(3, 8)].concat(), run(1, 3)];
    let expected = tree_sum(Run::new(0, NUM_SHARDS), NUM_ELEMENTS);
    for shards in [of_three, [run(0, 8), vec![], vec![]]] {
        on_ranks(driver(3, Generation(1)), |mut group| {
            let world = group.world();
            let mut accumulator = Accumulator::new(NUM_SHARDS, NUM_ELEMENTS, group.pool());
            let own = shards[World::index(world.rank)].iter();
            push(&mut accumulator, own.flat_map(|run| run.shards()));
            for _ in 0..2 {
                let operation = salvaging(&accumulator, world, covers(&shards));
                let reduced = group.all_reduce(operation, PATIENT);
                assert_reduced(&group, 3, &reduced.expect("all are there"), &expected);
            }
        });
    }
}
