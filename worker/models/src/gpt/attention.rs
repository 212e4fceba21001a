//! Causal self-attention with several heads (Vaswani et al. 2017), forward and backward. The linear
//! layers around it are the block's.

use burn::tensor::{Device, Tensor, TensorData, activation};

use super::ops::{Casts, masked};
use crate::dropout::Dropout;

/// What the attentions of all blocks share: made once for a learner.
#[derive(Debug)]
pub(super) struct Attention {
    heads: usize,
    context: usize,
    casts: Casts,
    /// Added to scores, `[1, 1, context, context]`: 0, and minus infinity where a key lies behind
    /// its query.
    future: Tensor<4>,
}

/// What is kept for the gradient, as `[samples, heads, context, width / heads]`, and the scores'
/// softmax.
pub(super) struct Kept {
    /// Divided by the root of their width already.
    queries: Tensor<4>,
    keys: Tensor<4>,
    values: Tensor<4>,
    probabilities: Tensor<4>,
    mask: Option<Tensor<4>>,
}

impl Attention {
    pub(super) fn new(heads: usize, context: usize, casts: Casts, device: &Device) -> Attention {
        let row = |query: usize| {
            (0..context).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 })
        };
        let future: Vec<f32> = (0..context).flat_map(row).collect();
        let shape = [1, 1, context, context];
        Attention {
            heads,
            context,
            casts,
            future: Tensor::from_data(TensorData::new(future, shape), device),
        }
    }

    pub(super) fn casts(&self) -> Casts {
        self.casts
    }

    /// From rows of queries, keys and values side by side, `[rows, 3 * width]`, to rows of what was
    /// attended to, narrow.
    pub(super) fn forward(
        &self,
        rows: Tensor<2>,
        site: &str,
        dropout: Dropout<'_>,
    ) -> (Tensor<2>, Kept) {
        let [num_rows, columns] = rows.dims();
        let (heads, context) = (self.heads, self.context);
        let (samples, width) = (num_rows / context, columns / 3);
        let scale = 1.0 / ((width / heads) as f64).sqrt();
        // Views: nothing is copied.
        let parts = rows
            .reshape([samples, context, 3 * heads, width / heads])
            .swap_dims(1, 2);
        let part = |number: usize| {
            parts
                .clone()
                .slice_dim(1, number * heads..(number + 1) * heads)
        };
        let queries = self.casts.narrow(part(0).mul_scalar(scale));
        let (keys, values) = (self.casts.narrow(part(1)), self.casts.narrow(part(2)));
        let scores = queries.clone().matmul(keys.clone().swap_dims(2, 3));
        let scores = self.casts.wide(scores) + self.future.clone();
        let probabilities = self.casts.narrow(activation::softmax(scores, 3));
        let mask = dropout
            .mask(site, [samples, heads, context, context], &parts.device())
            .map(|mask| self.casts.narrow(mask));
        let attended = masked(probabilities.clone(), mask.clone()).matmul(values.clone());
        let kept = Kept {
            queries,
            keys,
            values,
            probabilities,
            mask,
        };
        (attended.swap_dims(1, 2).reshape([num_rows, width]), kept)
    }

    /// The gradient of the rows that went in, wide; `attended` are the rows that came out.
    pub(super) fn backward(
        &self,
        gradient: Tensor<2>,
        attended: Tensor<2>,
        kept: Kept,
    ) -> Tensor<2> {
        let Kept {
            queries,
            keys,
            values,
            probabilities,
            mask,
        } = kept;
        let [num_rows, width] = gradient.dims();
        let (heads, context) = (self.heads, self.context);
        let samples = num_rows / context;
        let scale = 1.0 / ((width / heads) as f64).sqrt();
        let split = |rows: Tensor<2>| {
            let shape = [samples, context, heads, width / heads];
            rows.reshape(shape).swap_dims(1, 2)
        };
        // The sum over the keys of probability times gradient is the product of what was attended
        // to with its gradient (Dao et al. 2022): it needs no pass over the scores.
        let products = gradient.clone() * self.casts.wide(attended);
        let dot = split(products).sum_dim(3);
        let gradient = split(self.casts.narrow(gradient));
        let used = masked(probabilities.clone(), mask.clone());
        let of_values = used.swap_dims(2, 3).matmul(gradient.clone());
        let of_used = gradient.matmul(values.swap_dims(2, 3));
        let of_probabilities = self.casts.wide(masked(of_used, mask));
        // Where a key lies behind its query the probability is 0, and so is this.
        let of_scores = self.casts.wide(probabilities) * (of_probabilities - dot);
        let of_scores = self.casts.narrow(of_scores);
        let of_queries = of_scores.clone().matmul(keys);
        let of_keys = of_scores.swap_dims(2, 3).matmul(queries);
        let of_queries = self.casts.wide(of_queries).mul_scalar(scale);
        let parts = vec![
            of_queries,
            self.casts.wide(of_keys),
            self.casts.wide(of_values),
        ];
        Tensor::cat(parts, 1)
            .swap_dims(1, 2)
            .reshape([num_rows, 3 * width])
    }
}
