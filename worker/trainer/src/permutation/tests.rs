//! That it is a permutation, whatever the length and the key; and that epochs use every sample.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn whole(key: u64, len: u64) -> Vec<u64> {
    let permutation = Permutation::new(key, len);
    (0..len).map(|place| permutation.at(place)).collect()
}

proptest! {
    #[test]
    fn every_number_stands_at_one_place(key: u64, len in 1_u64..3000) {
        let mut values = whole(key, len);
        values.sort_unstable();
        prop_assert!(values.into_iter().eq(0..len));
    }

    #[test]
    fn numbers_of_long_permutations_are_in_range_and_differ(key: u64, len in 1_u64 << 40..=1 << 62) {
        let permutation = Permutation::new(key, len);
        let places = [0, 1, 2, len / 2, len / 2 + 1, len - 2, len - 1];
        let values: BTreeSet<u64> = places.iter().map(|&place| permutation.at(place)).collect();
        prop_assert_eq!(values.len(), places.len());
        prop_assert!(values.iter().all(|&value| value < len));
    }

    #[test]
    fn steps_and_shards_read_each_epoch_exactly_once(
        seed: u64, num_samples in 1_u64..200, per_shard in 1_u32..8, num_shards in 1_u32..8,
    ) {
        let batch = per_shard * num_shards;
        let order = SampleOrder::new(seed, num_samples, batch, num_shards);
        let num_steps = total_steps(StopSpec::Epochs(3), num_samples, batch).expect("few");
        let read: Vec<u64> = (0..num_steps)
            .flat_map(|step| (0..num_shards).map(move |shard| (step, ShardId(shard))))
            .flat_map(|(step, shard)| order.ids(step, shard))
            .collect();
        prop_assert!(read.len() as u64 >= 3 * num_samples);
        prop_assert!((read.len() as u64) < 3 * num_samples + u64::from(batch));
        for epoch in read.chunks_exact(num_samples as usize) {
            let mut epoch = epoch.to_vec();
            epoch.sort_unstable();
            prop_assert!(epoch.into_iter().eq(0..num_samples));
        }
    }

    #[test]
    fn shards_are_slices_of_the_step_whatever_their_number(seed: u64, step in 0_u64..1 << 50) {
        let whole = SampleOrder::new(seed, 100, 24, 1).ids(step, ShardId(0));
        for num_shards in [2, 3, 8, 24] {
            let order = SampleOrder::new(seed, 100, 24, num_shards);
            let shards = (0..num_shards).flat_map(|shard| order.ids(step, ShardId(shard)));
            prop_assert!(shards.eq(whole.iter().copied()));
        }
    }
}

#[test]
fn epochs_and_seeds_have_orders_of_their_own() {
    let of = |seed| SampleOrder::new(seed, 50, 50, 1);
    let orders: BTreeSet<Vec<u64>> = [(0, 0), (0, 1), (0, 2), (1, 0), (1 << 40, 0)]
        .map(|(seed, step)| of(seed).ids(step, ShardId(0)))
        .into();
    assert_eq!(orders.len(), 5);
    assert!(orders.iter().all(|order| !order.iter().copied().eq(0..50)));
}

/// Over many keys each number stands at each place equally often: chi-squared.
#[test]
fn small_permutations_have_no_favourites() {
    const LEN: usize = 10;
    const KEYS: u64 = 4000;
    let mut counts = [[0_u32; LEN]; LEN];
    for key in 0..KEYS {
        for (place, value) in whole(key, LEN as u64).into_iter().enumerate() {
            counts[place][value as usize] += 1;
        }
    }
    let expected = KEYS as f64 / LEN as f64;
    let terms = counts
        .iter()
        .flatten()
        .map(|&count| (f64::from(count) - expected).powi(2) / expected);
    // 81 degrees of freedom: the mean is 81 and the deviation sqrt(162); five deviations.
    let chi_squared: f64 = terms.sum();
    assert!(chi_squared < 81.0 + 5.0 * 162.0_f64.sqrt(), "{chi_squared}");
}

/// The order is part of every job's bits.
#[test]
fn order_is_the_recorded_one() {
    let order = SampleOrder::new(3, 1000, 8, 2);
    assert_eq!(order.ids(0, ShardId(0)), [860, 231, 123, 400], "recorded");
    assert_eq!(order.ids(250, ShardId(1)), [17, 740, 346, 509], "recorded");
}

#[test]
fn last_step_there_can_be_has_samples() {
    let ids = SampleOrder::new(1, 1, 4, 2).ids(u64::MAX, ShardId(1));
    assert_eq!(ids, [0, 0]);
}

#[test]
fn epochs_are_rounded_up_to_steps() {
    assert_eq!(total_steps(StopSpec::Steps(7), 100, 8), Some(7));
    assert_eq!(total_steps(StopSpec::Epochs(1), 100, 8), Some(13));
    assert_eq!(total_steps(StopSpec::Epochs(2), 100, 8), Some(25));
    assert_eq!(total_steps(StopSpec::Epochs(2), 100, 200), Some(1));
    assert_eq!(total_steps(StopSpec::Epochs(u64::MAX), u64::MAX, 8), None);
    assert_eq!(total_steps(StopSpec::Epochs(1), 100, 0), None);
}
