//! What every driver must do: one suite, run over each of them.
//!
//! Waits are for states, never for times: an operation that should succeed gets [`PATIENT`], one
//! that should fail at once gets it too and must not use it up.

mod device;
mod losses;
mod salvage;
mod silence;
mod tcp;
mod vectors;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use muster_cluster::tree::{self, Run};
use muster_cluster::{Generation, History, RankId, ShardId, Step};

use crate::accumulator::Accumulator;
use crate::error::{Error, LossReason};
use crate::frame::{Body, Cause, Frame, Refusal};
use crate::group::{Group, Revoker};
use crate::memory;
use crate::queue::Patience;
use crate::reduction::{Input, Operation, Output, Reduced, Reduction};
use crate::testing::{bits, shard_values, tree_sum};
use crate::values::Pool;
use crate::world::World;

const PATIENT: Duration = Duration::from_secs(60);
/// "At once", with room for a machine that is busy with other tests.
const PROMPT: Duration = Duration::from_secs(10);

/// Makes the groups of a world of this size and generation.
type Driver = fn(u32, Generation) -> Vec<Group>;

fn memory_world(size: u32, generation: Generation) -> Vec<Group> {
    memory::groups(History(1), generation, size)
}

macro_rules! conformance {
    ($($behaviour:ident),+ $(,)?) => {
        mod over_memory {
            $(#[test] fn $behaviour() { super::$behaviour(super::memory_world); })+
        }
        mod over_tcp {
            $(#[test] fn $behaviour() { super::$behaviour(super::tcp::tcp_world); })+
        }
    };
}

conformance!(
    every_world_size_gives_the_bits_of_the_plain_tree_sum,
    a_million_elements_give_the_same_bits,
    notes_messages_and_broadcasts_arrive_whole,
    vectors_of_any_length_arrive_bit_by_bit,
    a_vector_of_another_length_is_a_broken_rule,
    a_vector_that_stops_on_its_way_fails_and_one_that_does_not_begin_harms_nothing,
    a_revocation_ends_a_send_that_waits_for_room,
    a_barrier_opens_only_when_all_have_come,
    operations_may_be_one_apart,
    a_rank_that_leaves_after_its_last_operation_harms_nobody,
    a_rank_that_left_is_named_by_all_survivors,
    a_rank_that_retired_has_said_goodbye,
    a_rank_that_died_before_the_operation_is_named_by_all_survivors,
    a_rank_that_dies_in_the_operation_is_named_by_all_survivors,
    a_loss_is_blamed_on_the_rank_that_was_lost_first,
    a_revocation_ends_the_operation_of_every_rank,
    a_deadline_names_the_missing_rank,
    a_message_that_does_not_come_times_out_and_harms_nothing,
    frames_of_other_generations_are_counted_and_not_applied,
    a_frame_with_another_sender_ends_the_connection,
    ranks_at_different_steps_notice,
    an_impossible_operation_harms_nothing,
    ranks_may_hold_no_shard,
    sums_outlive_a_loss_and_are_reduced_again_by_fewer_ranks,
    sums_outlive_a_revocation_and_are_reduced_again_by_fewer_ranks,
    devices_give_the_bits_of_the_tree_and_of_the_host,
    devices_may_hold_any_shards_or_none,
    a_fast_sum_is_right_and_leaves_the_contributions,
    buckets_may_be_started_one_by_one_and_ranks_may_be_slow,
    ranks_that_mean_different_reductions_notice,
    an_impossible_device_operation_harms_nothing,
    a_device_rank_that_dies_in_any_phase_is_named_and_its_shards_are_salvaged,
    a_revocation_ends_transfers_that_wait_for_a_device,
    a_deadline_ends_transfers_that_wait_for_a_device,
    a_library_that_fails_is_told_apart_from_a_lost_rank,
    memory_that_is_not_let_go_ends_the_process,
    a_reduction_that_is_given_up_fails_the_group,
    kernels_that_fail_are_a_failure_of_the_device,
);

use device::{
    a_deadline_ends_transfers_that_wait_for_a_device,
    a_device_rank_that_dies_in_any_phase_is_named_and_its_shards_are_salvaged,
    a_fast_sum_is_right_and_leaves_the_contributions,
    a_library_that_fails_is_told_apart_from_a_lost_rank,
    a_reduction_that_is_given_up_fails_the_group,
    a_revocation_ends_transfers_that_wait_for_a_device,
    an_impossible_device_operation_harms_nothing,
    buckets_may_be_started_one_by_one_and_ranks_may_be_slow,
    devices_give_the_bits_of_the_tree_and_of_the_host, devices_may_hold_any_shards_or_none,
    kernels_that_fail_are_a_failure_of_the_device, memory_that_is_not_let_go_ends_the_process,
    ranks_that_mean_different_reductions_notice,
};
use losses::{
    a_loss_is_blamed_on_the_rank_that_was_lost_first,
    a_rank_that_died_before_the_operation_is_named_by_all_survivors,
    a_rank_that_dies_in_the_operation_is_named_by_all_survivors,
    a_rank_that_left_is_named_by_all_survivors, a_rank_that_retired_has_said_goodbye,
    assert_closed, die_within,
};
use salvage::{
    ranks_may_hold_no_shard, sums_outlive_a_loss_and_are_reduced_again_by_fewer_ranks,
    sums_outlive_a_revocation_and_are_reduced_again_by_fewer_ranks,
};
use vectors::{
    a_revocation_ends_a_send_that_waits_for_room, a_vector_of_another_length_is_a_broken_rule,
    a_vector_that_stops_on_its_way_fails_and_one_that_does_not_begin_harms_nothing,
    vectors_of_any_length_arrive_bit_by_bit,
};

/// Runs `work` on every rank in a thread of its own; the results by rank.
/// Shows what holds on a machine that keeps up with these times, each four times as long as the one
/// before, up to ten seconds: it must hold for one of them. A rank that stands still for longer than
/// the time that it is given looks like one that is gone.
fn in_some_time(shortest: Duration, holds: impl Fn(Duration) -> Result<(), String>) {
    let times = std::iter::successors(Some(shortest), |time| Some(*time * 4));
    let mut failures = Vec::new();
    for time in times.take_while(|time| *time <= Duration::from_secs(10)) {
        match holds(time) {
            Ok(()) => return,
            Err(failure) => failures.push(format!("in {time:?}: {failure}")),
        }
    }
    panic!("{}", failures.join("\n"));
}

fn on_ranks<T: Send>(groups: Vec<Group>, work: impl Fn(Group) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = groups
            .into_iter()
            .map(|group| scope.spawn(move || work(group)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    })
}

/// The operation of `group`'s rank, with the contributions that [`shard_values`] defines.
fn operation(group: &Group, step: u64, num_shards: u32, num_elements: usize) -> Operation {
    let world = group.world();
    let runs = tree::runs(num_shards, world.size).expect("no more ranks than shards");
    let mut accumulator = Accumulator::new(num_shards, num_elements, group.pool());
    push(&mut accumulator, runs[world.rank.0 as usize].shards());
    Operation {
        step: Step(step),
        num_shards,
        num_elements,
        holdings: runs
            .into_iter()
            .map(|run| tree::subtrees(num_shards, run))
            .collect(),
        mine: accumulator.subtrees(),
        note: note(world.rank, step),
    }
}

/// Pushes the contributions that [`shard_values`] defines.
fn push(accumulator: &mut Accumulator, shards: impl IntoIterator<Item = u32>) {
    for shard in shards {
        let mut values = accumulator.buffer();
        let contribution = shard_values(shard, values.len());
        values.copy_from_slice(&contribution);
        let result = accumulator.push(ShardId(shard), values);
        result.expect("a shard of the step, not held yet");
    }
}

fn note(rank: RankId, step: u64) -> Vec<u8> {
    format!("rank {rank} at step {step}").into_bytes()
}

fn assert_reduced(group: &Group, step: u64, reduced: &Reduced, expected: &[f32]) {
    let world = group.world();
    assert!(
        bits(&reduced.vector) == bits(expected),
        "other bits at step {step} of {world:?}"
    );
    let notes: Vec<Vec<u8>> = world.ranks().map(|rank| note(rank, step)).collect();
    assert_eq!(reduced.notes, notes);
}

fn reduce_everywhere(driver: Driver, size: u32, num_shards: u32, lengths: &[usize]) {
    let sums: Vec<Vec<f32>> = lengths
        .iter()
        .map(|len| tree_sum(Run::new(0, num_shards), *len))
        .collect();
    on_ranks(driver(size, Generation(1)), |mut group| {
        for (step, expected) in (0..).zip(&sums) {
            let operation = operation(&group, step, num_shards, expected.len());
            let reduced = group
                .all_reduce(operation, PATIENT)
                .expect("all ranks are there");
            assert_reduced(&group, step, &reduced, expected);
            group.pool().give_shared(reduced.vector);
        }
        assert!(group.counters().refused.is_empty());
    });
}

fn every_world_size_gives_the_bits_of_the_plain_tree_sum(driver: Driver) {
    for size in 1..=4 {
        for num_shards in [size, 5, 8] {
            reduce_everywhere(driver, size, num_shards, &[0, 1, 1023, 1024, 100_000, 2049]);
        }
    }
}

fn a_million_elements_give_the_same_bits(driver: Driver) {
    for size in [2, 3] {
        reduce_everywhere(driver, size, 6, &[1_000_000, 1_000_000]);
    }
}

fn notes_messages_and_broadcasts_arrive_whole(driver: Driver) {
    // Empty, shorter and longer than a part, and of several whole parts.
    let text = |rank: u32, len: usize| -> Vec<u8> {
        (0..len).map(|i| (i % 241) as u8 ^ rank as u8).collect()
    };
    let lengths = [0, 1, 100_000, 1_000_001, 1 << 20];
    on_ranks(driver(3, Generation(1)), |mut group| {
        let own = group.world().rank.0;
        for len in lengths {
            let all = group
                .all_gather(text(own, len + own as usize), PATIENT)
                .expect("gathered");
            assert_eq!(
                all,
                (0..3)
                    .map(|r| text(r, len + r as usize))
                    .collect::<Vec<_>>()
            );
            let from_2 = group
                .broadcast(RankId(2), text(own, len), PATIENT)
                .expect("broadcast");
            assert_eq!(from_2, text(2, len));
            // Around the ring, two at a time, received after a collective.
            let (next, previous) = ((own + 1) % 3, (own + 2) % 3);
            for message in [text(own, len), vec![own as u8]] {
                group.send(RankId(next), message, PATIENT).expect("sent");
            }
            group.barrier(PATIENT).expect("all ranks are there");
            for message in [text(previous, len), vec![previous as u8]] {
                assert_eq!(group.recv(RankId(previous), PATIENT), Ok(message));
            }
        }
        for nobody in [RankId(own), RankId(3), RankId(u32::MAX)] {
            let refused = group.send(nobody, Vec::new(), PATIENT);
            assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
        }
        group.barrier(PATIENT).expect("the group can still be used");
    });
}

fn a_barrier_opens_only_when_all_have_come(driver: Driver) {
    let num_come = AtomicU32::new(0);
    on_ranks(driver(4, Generation(1)), |mut group| {
        for round in 1..=50 {
            num_come.fetch_add(1, Ordering::SeqCst);
            group.barrier(PATIENT).expect("all ranks come");
            assert!(num_come.load(Ordering::SeqCst) >= 4 * round);
        }
    });
}

fn operations_may_be_one_apart(driver: Driver) {
    let lengths = [3000, 0, 70_000, 1];
    let sums: Vec<Vec<f32>> = lengths
        .iter()
        .map(|len| tree_sum(Run::new(0, 5), *len))
        .collect();
    on_ranks(driver(3, Generation(1)), |mut group| {
        let rank = u64::from(group.world().rank.0);
        for step in 0..120u64 {
            // Another rank dawdles at each step, so that others run ahead of it.
            for _ in 0..(step * 7 + rank * 5) % 11 * 20 {
                thread::yield_now();
            }
            let expected = &sums[step as usize % sums.len()];
            let operation = operation(&group, step, 5, expected.len());
            let reduced = group
                .all_reduce(operation, PATIENT)
                .expect("all ranks are there");
            assert_reduced(&group, step, &reduced, expected);
        }
        assert!(group.counters().refused.is_empty());
    });
}

fn a_rank_that_leaves_after_its_last_operation_harms_nobody(driver: Driver) {
    let expected = tree_sum(Run::new(0, 3), 300_000);
    for _ in 0..10 {
        on_ranks(driver(3, Generation(1)), |mut group| {
            let operation = operation(&group, 0, 3, expected.len());
            let reduced = group.all_reduce(operation, PATIENT);
            assert_reduced(&group, 0, &reduced.expect("all ranks took part"), &expected);
        });
    }
}

fn a_revocation_ends_the_operation_of_every_rank(driver: Driver) {
    let (revokers, revoker) = mpsc::sync_channel::<Revoker>(1);
    let revoker = Mutex::new(revoker);
    on_ranks(driver(3, Generation(1)), |mut group| {
        let begun = Instant::now();
        match group.world().rank {
            // Rank 0 never begins an operation; it stays until rank 1 has left.
            RankId(0) => assert_eq!(group.recv(RankId(1), PATIENT), Err(Error::Revoked)),
            RankId(1) => {
                revokers.send(group.revoker()).expect("the test listens");
                assert_eq!(group.barrier(PATIENT), Err(Error::Revoked));
                assert_eq!(group.barrier(PATIENT), Err(Error::Revoked), "it stays so");
            }
            _ => {
                let revoker = revoker.lock().expect("no panic").recv_timeout(PATIENT);
                revoker.expect("rank 1 tells its revoker").revoke();
                // Nobody revokes rank 2: it hears of it as the others leave.
                assert_eq!(group.barrier(PATIENT), Err(Error::Revoked));
            }
        }
        assert!(begun.elapsed() < PROMPT);
    });
}

fn a_deadline_names_the_missing_rank(driver: Driver) {
    in_some_time(Duration::from_millis(50), |deadline| {
        let mut groups = driver(3, Generation(1));
        let _idle = groups.remove(1);
        let errors = on_ranks(groups, |mut group| group.barrier(deadline));
        let waiting_for = vec![RankId(1)];
        let missing = Err(Error::TimedOut { waiting_for });
        let is_so = errors.iter().all(|error| *error == missing);
        is_so.then_some(()).ok_or_else(|| format!("{errors:?}"))
    });
}

fn a_message_that_does_not_come_times_out_and_harms_nothing(driver: Driver) {
    on_ranks(driver(2, Generation(1)), |mut group| {
        let peer = RankId(1 - group.world().rank.0);
        let error = group.recv(peer, Duration::from_millis(20));
        assert_eq!(
            error,
            Err(Error::TimedOut {
                waiting_for: vec![peer]
            })
        );
        group.barrier(PATIENT).expect("the group can still be used");
    });
}

fn frames_of_other_generations_are_counted_and_not_applied(driver: Driver) {
    let expected = tree_sum(Run::new(0, 2), 2000);
    on_ranks(driver(2, Generation(5)), |mut group| {
        let operation = operation(&group, 0, 2, 2000);
        let world = group.world();
        if world.rank == RankId(0) {
            // Frames that would end or spoil the operation if they were applied.
            let older = crate::World {
                generation: Generation(4),
                ..world
            };
            let newer = crate::World {
                generation: Generation(6),
                ..world
            };
            for world in [older, older, newer] {
                let values = crate::Values::new(vec![f32::NAN; 976]);
                for body in [
                    Body::Total { piece: 0, values },
                    Body::Goodbye(Cause::Revoked),
                ] {
                    let frame = Frame::new(&world, 0, Step(0), body);
                    group
                        .transport()
                        .send(RankId(1), frame, Patience::Never)
                        .expect("room");
                }
            }
        }
        let reduced = group
            .all_reduce(operation, PATIENT)
            .expect("all ranks are there");
        assert_reduced(&group, 0, &reduced, &expected);
        if world.rank == RankId(1) {
            let refused = [(Refusal::Older, 4), (Refusal::Unknown, 2)].into();
            assert_eq!(group.counters().refused, refused);
        }
    });
}

fn a_frame_with_another_sender_ends_the_connection(driver: Driver) {
    on_ranks(driver(3, Generation(1)), |mut group| {
        let world = group.world();
        if world.rank == RankId(0) {
            let world = crate::World {
                rank: RankId(2),
                ..world
            };
            let frame = Frame::new(&world, 0, Step(0), Body::Goodbye(Cause::Done));
            group
                .transport()
                .send(RankId(1), frame, Patience::Never)
                .expect("room");
        }
        let error = group.barrier(PATIENT);
        if world.rank == RankId(1) {
            let reason = LossReason::Garbage(Refusal::Sender);
            assert_eq!(
                error,
                Err(Error::PeerLost {
                    rank: RankId(0),
                    reason
                })
            );
            assert_eq!(group.counters().refused, [(Refusal::Sender, 1)].into());
        }
    });
}

fn ranks_at_different_steps_notice(driver: Driver) {
    on_ranks(driver(2, Generation(1)), |mut group| {
        let step = u64::from(group.world().rank.0);
        let operation = operation(&group, step, 2, 10);
        let error = group
            .all_reduce(operation, PATIENT)
            .expect_err("the steps differ");
        let is_named = matches!(error, Error::Protocol { .. } | Error::PeerLost { .. });
        assert!(is_named, "{error:?}");
    });
}

fn an_impossible_operation_harms_nothing(driver: Driver) {
    on_ranks(driver(2, Generation(1)), |mut group| {
        let mut impossible = operation(&group, 0, 2, 10);
        impossible.mine.clear();
        let refused = group.all_reduce(impossible, PATIENT);
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
        group.barrier(PATIENT).expect("the group can still be used");
    });
}
