//! A transformer block with norms in front: `x + attention(norm(x))`, then `x + mlp(norm(x))`.

use burn::tensor::Tensor;

use super::attention::{self, Attention};
use super::ops::{self, GeluKept, Linear, Norm, NormKept, masked};
use crate::dropout::Dropout;

/// The parameters of a block.
pub(super) struct Block {
    pub(super) ln_1: Norm,
    /// To queries, keys and values, side by side.
    pub(super) c_attn: Linear,
    pub(super) c_proj: Linear,
    pub(super) ln_2: Norm,
    /// To the hidden layer, four times as wide.
    pub(super) c_fc: Linear,
    pub(super) mlp_proj: Linear,
}

/// What a block keeps for its gradient.
pub(super) struct Kept {
    ln_1: NormKept,
    /// What went into `c_attn`, narrow.
    first: Tensor<2>,
    attention: attention::Kept,
    /// What went into `c_proj`, narrow.
    attended: Tensor<2>,
    attention_mask: Option<Tensor<2>>,
    ln_2: NormKept,
    /// What went into `c_fc`, narrow.
    second: Tensor<2>,
    gelu: GeluKept,
    mlp_mask: Option<Tensor<2>>,
}

impl Block {
    /// `site` names the block to the dropout.
    pub(super) fn forward(
        &self,
        rows: Tensor<2>,
        attention: &Attention,
        site: &str,
        dropout: Dropout<'_>,
    ) -> (Tensor<2>, Kept) {
        let (rows, hidden, kept) = self.up_to_hidden(rows, attention, site, dropout);
        let added = self.mlp_proj.forward(attention.casts().narrow(hidden));
        let rows = rows + masked(added, kept.mlp_mask.clone());
        (rows, kept)
    }

    /// What [`Self::forward`] keeps, without the product behind it.
    pub(super) fn keep_again(
        &self,
        rows: Tensor<2>,
        attention: &Attention,
        site: &str,
        dropout: Dropout<'_>,
    ) -> Kept {
        let (_, _, kept) = self.up_to_hidden(rows, attention, site, dropout);
        kept
    }

    /// The rows behind the attention, the hidden layer, and all that is kept.
    fn up_to_hidden(
        &self,
        rows: Tensor<2>,
        attention: &Attention,
        site: &str,
        dropout: Dropout<'_>,
    ) -> (Tensor<2>, Tensor<2>, Kept) {
        let casts = attention.casts();
        let (shape, device) = (rows.dims(), rows.device());
        let mask = |part: &str| dropout.mask(&format!("{site}.{part}"), shape, &device);

        let (first, ln_1) = self.ln_1.forward(rows.clone());
        let first = casts.narrow(first);
        let parts = self.c_attn.forward(first.clone());
        let (attended, kept_attention) =
            attention.forward(parts, &format!("{site}.attn.probabilities"), dropout);
        let attention_mask = mask("attn");
        let added = masked(
            self.c_proj.forward(attended.clone()),
            attention_mask.clone(),
        );
        let rows = rows + added;

        let (second, ln_2) = self.ln_2.forward(rows.clone());
        let second = casts.narrow(second);
        let (hidden, gelu) = ops::gelu(self.c_fc.forward(second.clone()), casts);
        let kept = Kept {
            ln_1,
            first,
            attention: kept_attention,
            attended,
            attention_mask,
            ln_2,
            second,
            gelu,
            mlp_mask: mask("mlp"),
        };
        (rows, hidden, kept)
    }

    /// The gradient of the rows that went in, and those of the parameters in the layout's order.
    pub(super) fn backward(
        &self,
        gradient: Tensor<2>,
        kept: Kept,
        attention: &Attention,
    ) -> (Tensor<2>, Vec<Tensor<1>>) {
        let casts = attention.casts();
        let (hidden, gelu_backward) = ops::gelu_again(kept.gelu, casts);
        let added = masked(gradient.clone(), kept.mlp_mask);
        let (of_hidden, mlp_proj) = self.mlp_proj.backward(added, casts.narrow(hidden));
        let (of_second, c_fc) = self.c_fc.backward(gelu_backward(of_hidden), kept.second);
        let (of_rows, ln_2) = self.ln_2.backward(of_second, kept.ln_2);
        let gradient = gradient + of_rows;

        let added = masked(gradient.clone(), kept.attention_mask);
        let (of_attended, c_proj) = self.c_proj.backward(added, kept.attended.clone());
        let of_parts = attention.backward(of_attended, kept.attended, kept.attention);
        let (of_first, c_attn) = self.c_attn.backward(of_parts, kept.first);
        let (of_rows, ln_1) = self.ln_1.backward(of_first, kept.ln_1);
        let of_parameters = [ln_1, c_attn, c_proj, ln_2, c_fc, mlp_proj];
        (
            gradient + of_rows,
            of_parameters.into_iter().flatten().collect(),
        )
    }
}
