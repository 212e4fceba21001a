//! Values whose sum depends on the order, and the plain sums that results are compared with.

use muster_cluster::tree::{self, Run};

/// The contribution of a shard: magnitudes from 1e-6 to 1e6 with both signs, and zeros of both
/// signs, so that another order of additions gives other bits almost everywhere.
pub(crate) fn shard_values(shard: u32, num_elements: usize) -> Vec<f32> {
    let mut state = u64::from(shard).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678;
    let mut next = move || {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let value = |bits: u64| {
        if bits.is_multiple_of(97) {
            return -0.0;
        }
        let fraction = (bits >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
        fraction * 10f32.powi((bits % 13) as i32 - 6)
    };
    (0..num_elements).map(|_| value(next())).collect()
}

/// The sum of the shards of `node` along the canonical tree, on one thread, one vector at a time.
pub(crate) fn tree_sum(node: Run, num_elements: usize) -> Vec<f32> {
    match tree::split(node) {
        None => shard_values(node.start, num_elements),
        Some((left, right)) => {
            let mut sum = tree_sum(left, num_elements);
            for (sum, right) in sum.iter_mut().zip(tree_sum(right, num_elements)) {
                *sum += right;
            }
            sum
        }
    }
}

/// The bits of the values, for comparisons that tell -0.0 from 0.0.
pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_order_of_the_sum_matters_for_these_values() {
    let forwards = (0..8).map(|shard| shard_values(shard, 1000));
    let forwards = forwards.reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect());
    let differing = forwards
        .iter()
        .flatten()
        .zip(tree_sum(Run::new(0, 8), 1000));
    assert!(
        differing
            .filter(|(a, b)| a.to_bits() != b.to_bits())
            .count()
            > 300
    );
}
