//! From tokens to activations, and the gradient of the two embeddings.
//!
//! A token that comes often has its row of the gradient from many positions. A device that adds them
//! as its threads come (a scatter and the gradient of a gather do, on a GPU) gives other bits each
//! time, and one that adds them one after another in a thread a column (`select_assign` does) is idle
//! but for a few threads. So the positions of each token are summed here in a balanced binary tree
//! over their order in the batch: every level is two selections and an addition, of half as many rows
//! as the one before, and its index lists are made on the host, where the tokens are. What is left is
//! one row a token, and adding those to the table collides nowhere, however a device does it.

use std::collections::BTreeMap;

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

use super::ops::masked;
use super::weights::Weights;
use crate::dropout::Dropout;

/// A row for each token, and the mask that was multiplied in.
pub(super) fn forward(
    weights: &Weights,
    tokens: Tensor<1, Int>,
    dropout: Dropout<'_>,
) -> (Tensor<2>, Option<Tensor<2>>) {
    let [context, width] = weights.wpe.dims();
    let [num_tokens] = tokens.dims();
    let rows = weights.embedding.clone().select(0, tokens);
    let samples = rows.reshape([num_tokens / context, context, width]);
    let positions = weights.wpe.clone().reshape([1, context, width]);
    let rows = (samples + positions).reshape([num_tokens, width]);
    let mask = dropout.mask("embedding", rows.dims(), &rows.device());
    (masked(rows, mask.clone()), mask)
}

/// The gradients of `wte` and `wpe` from that of the rows; `wte` is what the table already has from
/// the logits.
pub(super) fn backward(
    gradient: Tensor<2>,
    tokens: &[u32],
    wte: Tensor<2>,
    context: usize,
) -> [Tensor<1>; 2] {
    let [num_tokens, width] = gradient.dims();
    let samples = gradient
        .clone()
        .reshape([num_tokens / context, context, width]);
    let of_positions = samples.sum_dim(0);
    let device = gradient.device();
    let (distinct, sums) = sum_by_token(gradient, tokens);
    let distinct = indices(&distinct, &device);
    let wte = wte.select_assign(0, distinct, sums, IndexingUpdateOp::Add);
    [wte.flatten(0, 1), of_positions.flatten(0, 2)]
}

/// The distinct tokens in order, and for each the sum of its rows.
fn sum_by_token(rows: Tensor<2>, tokens: &[u32]) -> (Vec<usize>, Tensor<2>) {
    let mut places: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (place, &token) in tokens.iter().enumerate() {
        // Row 0 is a row of zeros, for a row that has no other one to be added to it.
        places.entry(token).or_default().push(place + 1);
    }
    let [_, width] = rows.dims();
    let device = rows.device();
    let zeros = Tensor::zeros([1, width], (&device, rows.dtype()));
    let mut rows = Tensor::cat(vec![zeros, rows], 0);
    while places.values().any(|places| places.len() > 1) {
        let (mut left, mut right) = (vec![0], vec![0]);
        for places in places.values_mut() {
            let first = left.len();
            for pair in places.chunks(2) {
                left.push(pair[0]);
                right.push(pair.get(1).copied().unwrap_or(0));
            }
            *places = (first..left.len()).collect();
        }
        let left = rows.clone().select(0, indices(&left, &device));
        rows = left + rows.select(0, indices(&right, &device));
    }
    let last: Vec<usize> = places.values().map(|places| places[0]).collect();
    let sums = rows.select(0, indices(&last, &device));
    (places.keys().map(|&token| token as usize).collect(), sums)
}

fn indices(places: &[usize], device: &Device) -> Tensor<1, Int> {
    let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
    let len = places.len();
    Tensor::from_data(TensorData::new(places, [len]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_token_are_summed_in_a_tree_over_their_order() {
        let device = Device::flex();
        let tokens = [7, 3, 7, 7, 9, 7, 7, 3];
        // Numbers whose sum depends on the order of additions.
        let values = [1.0, 2.0, 1e8, -1e8, 5.0, 0.5, 3.0, 0.25_f32];
        let rows = Tensor::<2>::from_data(TensorData::new(values.to_vec(), [8, 1]), &device);
        let (distinct, sums) = sum_by_token(rows, &tokens);
        assert_eq!(distinct, [3, 7, 9]);
        let tree = ((1.0 + 1e8) + (-1e8 + 0.5)) + 3.0_f32;
        let found = sums.try_into_vec_as::<f32>().expect("readable");
        assert_eq!(found, [2.25, tree, 5.0]);
        let line = 1.0 + 1e8 - 1e8 + 0.5 + 3.0_f32;
        assert_ne!(tree, line, "the numbers tell orders apart");
    }
}
