//! The schedule against what it must be: every element of every sum goes to its one owner, both
//! ends of a journey list it alike, and the additions are the tree's.

use proptest::prelude::*;

use super::*;
use crate::testing::{bits, tree_sum};
use crate::world::World;

/// What ranks hold when rank `of[shard]` has the shard.
fn holdings(size: u32, of: &[u32]) -> Vec<Vec<Run>> {
    let num_shards = u32::try_from(of.len()).expect("a few");
    let held = |rank: u32| {
        let shards = (0..).zip(of).filter(|(_, holder)| **holder == rank);
        let shards: Vec<Run> = shards.map(|(at, _)| Run::new(at, at + 1)).collect();
        tree::cover(num_shards, &shards)
    };
    (0..size).map(held).collect()
}

/// A world, what it holds, and how it is cut.
fn worlds() -> impl Strategy<Value = (u32, Vec<u32>, usize, usize)> {
    let shards =
        (1u32..9).prop_flat_map(|size| (Just(size), prop::collection::vec(0..size, 1..20)));
    (shards, 0usize..2_000_000, 1usize..1_500_000)
        .prop_map(|((size, of), num_elements, bucket)| (size, of, num_elements, bucket))
}

fn schedule((size, of, num_elements, bucket): &(u32, Vec<u32>, usize, usize)) -> Schedule {
    let num_shards = u32::try_from(of.len()).expect("a few");
    let held = holdings(*size, of);
    let schedule = Schedule::new(*size, num_shards, *num_elements, *bucket, &held);
    schedule.expect("every shard has one holder")
}

/// The moves from one rank to another, in the order of a list.
fn between(moves: &[Move], from: RankId, to: RankId) -> Vec<Move> {
    let moves = moves.iter().filter(|one| one.from == from && one.to == to);
    moves.cloned().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn buckets_tile_the_arena_and_chunks_their_buckets(world in worlds()) {
        let schedule = schedule(&world);
        let mut next = 0;
        for bucket in 0..schedule.num_buckets() {
            prop_assert_eq!(schedule.bucket(bucket).start, next);
            for owner in (0..world.0).map(RankId) {
                let chunk = schedule.chunk(bucket, owner);
                prop_assert_eq!(chunk.start, next);
                prop_assert!(chunk.start.is_multiple_of(BLOCK_ELEMENTS) || chunk.is_empty());
                prop_assert!(chunk.len() <= schedule.part_elements(owner));
                next = chunk.end;
            }
            prop_assert_eq!(schedule.bucket(bucket).end, next);
        }
        prop_assert_eq!(next, world.2);
        prop_assert!(schedule.bucket(schedule.num_buckets()).is_empty());
    }

    #[test]
    fn both_ends_list_a_journey_alike_and_each_part_goes_to_its_owner_once(world in worlds()) {
        let schedule = schedule(&world);
        let ranks = || (0..world.0).map(RankId);
        for bucket in 0..schedule.num_buckets() {
            let scatters: Vec<_> = ranks().map(|rank| schedule.scatter(bucket, rank)).collect();
            let gathers: Vec<_> = ranks().map(|rank| schedule.gather(bucket, rank)).collect();
            for (from, to) in ranks().flat_map(|from| ranks().map(move |to| (from, to))) {
                let of = |moves: &[Vec<Move>], rank| between(&moves[World::index(rank)], from, to);
                let expected: Vec<Move> = schedule
                    .leaves_of(from)
                    .map(Cargo::Leaf)
                    .map(|cargo| Move { from, to, cargo, range: schedule.chunk(bucket, to) })
                    .filter(|one| from != to && !one.range.is_empty())
                    .collect();
                prop_assert_eq!(of(&scatters, from), expected.clone());
                prop_assert_eq!(of(&scatters, to), expected);
                let cargo = Cargo::Total;
                let total = Move { from, to, cargo, range: schedule.chunk(bucket, from) };
                let expected: Vec<Move> = [total]
                    .into_iter()
                    .filter(|one| from != to && !one.range.is_empty())
                    .collect();
                prop_assert_eq!(of(&gathers, from), expected.clone());
                prop_assert_eq!(of(&gathers, to), expected);
            }
            let num_moves: usize = scatters.iter().chain(&gathers).map(Vec::len).sum();
            let between_all = |moves: &[Vec<Move>]| -> usize {
                ranks()
                    .map(|rank| moves[World::index(rank)].iter().filter(|one| one.from == rank).count())
                    .sum()
            };
            prop_assert_eq!(num_moves, 2 * (between_all(&scatters) + between_all(&gathers)));
        }
    }

    #[test]
    fn the_additions_give_the_bits_of_the_plain_tree_sum(world in worlds()) {
        let schedule = schedule(&world);
        let leaves = schedule.leaves().iter().map(|(run, _)| tree_sum(*run, 50));
        let mut values: Vec<Vec<f32>> = leaves.collect();
        for Add { into, from } in schedule.adds() {
            prop_assert!(into < from);
            let right = std::mem::take(&mut values[*from]);
            prop_assert_eq!(right.len(), 50, "a sum is used once");
            for (left, right) in values[*into].iter_mut().zip(right) {
                *left += right;
            }
        }
        let num_shards = u32::try_from(world.1.len()).expect("a few");
        prop_assert_eq!(bits(&values[0]), bits(&tree_sum(Run::new(0, num_shards), 50)));
        prop_assert!(values[1..].iter().all(Vec::is_empty), "every sum is used");
    }
}

#[test]
fn a_schedule_in_words() {
    // Three ranks, five shards: 0..2 with rank 0, 2 and 4 with rank 1, 3 with rank 2.
    let of = [0, 0, 1, 2, 1];
    let schedule = schedule(&(3, of.to_vec(), 6 * BLOCK_ELEMENTS + 5, 4 * BLOCK_ELEMENTS));
    let leaves: Vec<String> = schedule
        .leaves()
        .iter()
        .map(|(run, holder)| format!("{run} at rank {holder}"))
        .collect();
    let expected = [
        "0..2 at rank 0",
        "2..3 at rank 1",
        "3..4 at rank 2",
        "4..5 at rank 1",
    ];
    assert_eq!(leaves, expected);
    let add = |into, from| Add { into, from };
    assert_eq!(schedule.adds(), [add(1, 2), add(0, 1), add(0, 3)]);
    assert_eq!(schedule.num_buckets(), 2);
    let block = |start: usize, end: usize| start * BLOCK_ELEMENTS..end * BLOCK_ELEMENTS;
    let chunks: Vec<_> = (0..3)
        .map(|owner| schedule.chunk(0, RankId(owner)))
        .collect();
    assert_eq!(chunks, [block(0, 1), block(1, 2), block(2, 4)]);
    let last = schedule.chunk(1, RankId(2));
    assert_eq!(last, 6 * BLOCK_ELEMENTS..6 * BLOCK_ELEMENTS + 5);
    // Rank 0 receives three parts of a block, twice.
    let of_rank_0 = schedule.scratch_elements(RankId(0), Mode::Canonical);
    assert_eq!(of_rank_0, 2 * 3 * BLOCK_ELEMENTS);
    assert_eq!(schedule.scratch_elements(RankId(0), Mode::Fast), 0);
    let of_rank_1 = schedule.scratch_elements(RankId(1), Mode::Fast);
    assert_eq!(of_rank_1, 2 * 4 * BLOCK_ELEMENTS);
}

#[test]
fn impossible_schedules_are_refused_in_words() {
    let whole = vec![vec![Run::new(0, 2)]];
    let refusal = |num_shards, num_elements, bucket, holdings: &[Vec<Run>]| {
        Schedule::new(1, num_shards, num_elements, bucket, holdings).expect_err("impossible")
    };
    assert!(refusal(2, 10, 0, &whole).contains("buckets of no elements"));
    assert!(refusal(3, 10, 1, &whole).contains("nobody holds the shards 2..3"));
    assert!(refusal(0, 10, 1, &whole).contains("at least one shard"));
    assert!(refusal(2, usize::MAX, 1, &whole).contains("more than memory"));
    let endless = Schedule::new(1, 2, 10, usize::MAX, &whole).expect("one bucket");
    assert_eq!(endless.num_buckets(), 1);
}
