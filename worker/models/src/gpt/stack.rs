//! The blocks, one behind another: all of them forward, then all of them backward. What is in memory
//! between the two passes is decided here.

use burn::tensor::Tensor;
use muster_trainer::spec::Recompute;

use super::attention::Attention;
use super::block::{self, Block};
use crate::dropout::Dropout;

/// The blocks of a model while it is trained, and what they have in common.
pub(super) struct Stack<'a> {
    pub(super) blocks: &'a [Block],
    pub(super) attention: &'a Attention,
    pub(super) dropout: Dropout<'a>,
    pub(super) recompute: Recompute,
}

/// What is in memory of a block from its forward to its backward pass.
pub(super) enum Kept {
    /// All that its gradient needs.
    All(Box<block::Kept>),
    /// The rows that went in, from which the rest is computed again.
    Input(Tensor<2>),
}

impl Stack<'_> {
    /// The rows that come out of the last block, and what is kept of each.
    pub(super) fn forward(&self, mut rows: Tensor<2>) -> (Tensor<2>, Vec<Kept>) {
        let mut kept = Vec::with_capacity(self.blocks.len());
        for (number, block) in self.blocks.iter().enumerate() {
            let input = match self.recompute {
                Recompute::None => None,
                Recompute::Blocks => Some(rows.clone()),
            };
            let (next, all) = block.forward(rows, self.attention, &site(number), self.dropout);
            kept.push(match input {
                None => Kept::All(Box::new(all)),
                Some(input) => Kept::Input(input),
            });
            rows = next;
        }
        (rows, kept)
    }

    /// The gradient of the rows that went into the first block, and those of the parameters in the
    /// layout's order.
    pub(super) fn backward(
        &self,
        mut gradient: Tensor<2>,
        kept: Vec<Kept>,
    ) -> (Tensor<2>, Vec<Tensor<1>>) {
        let mut of_blocks = Vec::with_capacity(self.blocks.len());
        for ((number, block), kept) in self.blocks.iter().enumerate().zip(kept).rev() {
            let kept = match kept {
                Kept::All(kept) => *kept,
                // The same operations on the same values, masks included: the same bits.
                Kept::Input(rows) => {
                    block.keep_again(rows, self.attention, &site(number), self.dropout)
                }
            };
            let (before, of_block) = block.backward(gradient, kept, self.attention);
            of_blocks.push(of_block);
            gradient = before;
        }
        (gradient, of_blocks.into_iter().rev().flatten().collect())
    }
}

/// What a block is called to the dropout.
fn site(number: usize) -> String {
    format!("h{}", number + 1)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use muster_trainer::rng::ShardRng;
    use muster_trainer::spec::Precision;

    use super::super::ops::Casts;
    use super::super::weights::{Weights, init, layout};
    use super::super::{Shape, embedding};
    use super::*;

    #[test]
    fn of_blocks_that_are_computed_again_the_input_is_all_that_is_kept() {
        let (shape, device) = (
            Shape {
                layers: 3,
                heads: 2,
                width: 8,
                context: 4,
                vocabulary: 5,
            },
            Device::flex(),
        );
        let casts = Casts::new(Precision::F32);
        let layout = layout(&shape);
        let values = init(&layout, shape.layers, 7);
        let flat = Tensor::from_data(TensorData::new(values, [layout.len()]), &device);
        let weights = Weights::of(flat, &shape, casts);
        let attention = Attention::new(shape.heads, shape.context, casts, &device);
        let rng = ShardRng::new(1, 2, 3);
        let dropout = Dropout::On {
            rng: &rng,
            rate: 0.1,
        };
        let tokens = TensorData::new(vec![0_i64, 1, 2, 3, 4, 3, 2, 1], [8]);
        let tokens = Tensor::from_data(tokens, &device);
        let (rows, _) = embedding::forward(&weights, tokens, dropout);
        let forward = |recompute| {
            let stack = Stack {
                blocks: &weights.blocks,
                attention: &attention,
                dropout,
                recompute,
            };
            stack.forward(rows.clone())
        };
        let values = |rows: Tensor<2>| rows.try_into_vec_as::<f32>().expect("readable");

        let (last, kept) = forward(Recompute::None);
        let is_all = |kept: &Kept| matches!(kept, Kept::All(_));
        assert!(kept.len() == 3 && kept.iter().all(is_all));
        let (same, kept) = forward(Recompute::Blocks);
        assert_eq!(values(same), values(last));
        // One matrix a block, as large as the activations between blocks, and nothing beside it.
        let inputs: Vec<_> = kept
            .into_iter()
            .filter_map(|kept| match kept {
                Kept::Input(rows) => Some(values(rows)),
                Kept::All(_) => None,
            })
            .collect();
        assert_eq!(inputs.len(), 3);
        assert_eq!(inputs[0], values(rows.clone()));
        assert!(inputs.iter().all(|input| input.len() == 8 * 8));
    }
}
