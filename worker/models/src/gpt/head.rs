//! From activations to logits, loss and both gradients, in parts of so many rows that no tensor has
//! the size of all logits.
//!
//! The gradient of a row of logits is its softmax, less 1 at the target. The 1 is taken off by a
//! scatter with one target a row: no element is added to twice, so its result does not depend on the
//! order in which a device adds. (One-hot targets would be as large as the logits.)

use burn::tensor::{IndexingUpdateOp, Int, Tensor, Transaction};
use muster_trainer::learner::LearnerError;

use super::ops::Casts;
use crate::views;

/// Rows of logits that are made at once. The part of a step that it decides is the order in which
/// the gradient of `wte` is summed, and so its bits.
const ROWS_PER_PART: usize = 2048;

/// What the logits of all rows came to, on the device, part by part.
#[derive(Default)]
pub(super) struct Measured {
    losses: Vec<Tensor<2>>,
    /// How far the target's logit is below the highest one.
    behind: Vec<Tensor<2>>,
    /// The first highest logit.
    best: Vec<Tensor<2, Int>>,
}

impl Measured {
    /// The sum of the losses, and how many targets had the highest logit; of equal ones the lowest
    /// token counts. Added up on the host in f64, in the order of the rows.
    pub(super) fn sums(self, labels: &[u32]) -> Result<(f64, f64), LearnerError> {
        let all = Transaction::default()
            .register(Tensor::cat(self.losses, 0))
            .register(Tensor::cat(self.behind, 0))
            .register(Tensor::cat(self.best, 0));
        let [losses, behind, best] = views::read_at_once(all)?;
        let losses = views::elements::<f64>(losses)?;
        let behind = views::elements::<f64>(behind)?;
        let best = views::elements::<i64>(best)?;
        let loss = losses.iter().fold(0.0, |sum, loss| sum + loss);
        let rows = labels.iter().zip(behind).zip(best);
        // What is not a number is not 0, and so never right.
        let right =
            rows.filter(|((label, behind), best)| *behind == 0.0 && i64::from(**label) == *best);
        Ok((loss, right.count() as f64))
    }
}

/// What a contribution needs of the head. Gradients are those of the mean loss.
pub(super) struct Head {
    pub(super) measured: Measured,
    /// The gradient of the activations, wide.
    pub(super) activations: Tensor<2>,
    /// The gradient of `wte`, wide.
    pub(super) wte: Tensor<2>,
}

/// The losses of rows of activations; `wte` is narrow, `[vocabulary, width]`.
pub(super) fn forward(
    activations: &Tensor<2>,
    wte: &Tensor<2>,
    targets: Tensor<1, Int>,
    casts: Casts,
) -> Measured {
    let mut measured = Measured::default();
    each_part(activations, targets, |rows, targets| {
        let rows = casts.narrow(rows);
        let _ = softmax(casts.wide(logits(rows, wte)), targets, &mut measured);
    });
    measured
}

/// The losses, and the gradients of their mean.
pub(super) fn forward_and_backward(
    activations: &Tensor<2>,
    wte: &Tensor<2>,
    targets: Tensor<1, Int>,
    casts: Casts,
) -> Head {
    let [num_rows, _] = activations.dims();
    let share = 1.0 / num_rows as f64;
    let mut measured = Measured::default();
    let mut of_activations = Vec::new();
    let mut of_wte: Option<Tensor<2>> = None;
    each_part(activations, targets, |rows, targets| {
        let logits = casts.wide(logits(casts.narrow(rows.clone()), wte));
        let softmax = softmax(logits, targets.clone(), &mut measured);
        let ones = Tensor::ones(targets.dims(), (&softmax.device(), softmax.dtype()));
        let of_logits = softmax.scatter(1, targets, ones.neg(), IndexingUpdateOp::Add);
        let of_logits = casts.narrow(of_logits);
        // Both are scaled where they are small, not where they are as large as the logits.
        let of_rows = casts.wide(of_logits.clone().matmul(wte.clone()));
        of_activations.push(of_rows.mul_scalar(share));
        let rows = casts.narrow(rows.mul_scalar(share));
        let part = casts.wide(of_logits.transpose().matmul(rows));
        of_wte = Some(match of_wte.take() {
            Some(sum) => sum + part,
            None => part,
        });
    });
    Head {
        measured,
        activations: Tensor::cat(of_activations, 0),
        wte: of_wte.expect("invariant: a contribution has rows"),
    }
}

/// Calls `work` with some rows and their targets, `[rows, 1]`, until all were taken.
fn each_part(
    activations: &Tensor<2>,
    targets: Tensor<1, Int>,
    mut work: impl FnMut(Tensor<2>, Tensor<2, Int>),
) {
    let [num_rows, _] = activations.dims();
    let targets = targets.reshape([num_rows, 1]);
    for start in (0..num_rows).step_by(ROWS_PER_PART) {
        let part = start..(start + ROWS_PER_PART).min(num_rows);
        work(
            activations.clone().slice_dim(0, part.clone()),
            targets.clone().slice_dim(0, part),
        );
    }
}

fn logits(rows: Tensor<2>, wte: &Tensor<2>) -> Tensor<2> {
    rows.matmul(wte.clone().transpose())
}

/// The softmax of each row; the losses go to `measured`.
fn softmax(logits: Tensor<2>, targets: Tensor<2, Int>, measured: &mut Measured) -> Tensor<2> {
    let (highest, best) = logits.clone().max_dim_with_indices(1);
    let target = logits.clone().gather(1, targets);
    let powers = (logits - highest.clone()).exp();
    let sum = powers.clone().sum_dim(1);
    let behind = highest - target;
    measured.losses.push(sum.clone().log() + behind.clone());
    measured.behind.push(behind);
    measured.best.push(best);
    powers / sum
}
