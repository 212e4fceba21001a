//! The family `gpt`: GPT-2's architecture (Radford et al. 2019) as a learner of tokens.
//!
//! ```text
//! tokens -> wte + wpe -> [x + attention(norm(x)); x + mlp(norm(x))] * layers -> norm -> wte^T -> logits
//! ```
//! Unlike the other families this one writes out its gradients instead of recording its operations.
//! Three things cost most in a language model, and all three are better so: the scores of attention
//! (recorded, a softmax keeps four tensors of their size; written out, one), the logits (made and used
//! in parts here, so that no tensor is as large as batch x context x vocabulary), and the embedding's
//! gradient, whose additions collide (a device would make them in any order; see `embedding`). What a
//! learner keeps between forward and backward is in plain sight, and so is every change of precision.
//!
//! 1. `weights`: names, first values, and parameters as views of the arena.
//! 2. `stack`, `block`, `attention`, `ops`: the blocks, forward and backward.
//! 3. `embedding` and `head`: from tokens to activations, and from those to a loss.

mod attention;
mod block;
mod embedding;
mod head;
mod ops;
mod stack;
mod weights;

use burn::tensor::{Device, Int, Tensor, TensorData};
use muster_trainer::learner::LearnerError;
use muster_trainer::rng::ShardRng;
use muster_trainer::spec::{Precision, Recompute};
use muster_trainer::{Arena, Batch, Inputs, Layout, Learner, Metrics};

use self::attention::Attention;
use self::head::Measured;
use self::ops::Casts;
use self::stack::Stack;
use self::weights::Weights;
use crate::dropout::Dropout;
use crate::views;

/// Windows that are evaluated at once: memory is bounded, whatever an evaluation asks for.
const WINDOWS_PER_EVALUATION: usize = 8;

/// The sizes of a model, each 1 or more; `heads` divides `width`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) width: usize,
    pub(crate) context: usize,
    pub(crate) vocabulary: usize,
}

/// A model that predicts each next token, trained by the cross entropy of all positions.
#[derive(Debug)]
pub(crate) struct GptLearner {
    shape: Shape,
    layout: Layout,
    dropout: f64,
    casts: Casts,
    attention: Attention,
    recompute: Recompute,
    device: Device,
}

impl GptLearner {
    /// A learner on `device`, which is plain, not an autodiff device.
    pub(crate) fn new(
        shape: Shape,
        dropout: f64,
        precision: Precision,
        recompute: Recompute,
        device: Device,
    ) -> GptLearner {
        let casts = Casts::new(precision);
        GptLearner {
            shape,
            layout: weights::layout(&shape),
            dropout,
            casts,
            attention: Attention::new(shape.heads, shape.context, casts, &device),
            recompute,
            device,
        }
    }

    /// Refuses what is no batch of windows, so that no index can be out of range below.
    fn check<'a>(&self, batch: &'a Batch) -> Result<&'a [u32], LearnerError> {
        let Shape {
            context,
            vocabulary,
            ..
        } = self.shape;
        let Inputs::Tokens(tokens) = &batch.inputs else {
            return Err(LearnerError(
                "the samples are features; a \"gpt\" expects tokens".to_owned(),
            ));
        };
        if batch.shape != [context] {
            return Err(LearnerError(format!(
                "the samples have shape {:?}; the model expects [{context}]",
                batch.shape
            )));
        }
        if tokens.len() != batch.labels.len() || !tokens.len().is_multiple_of(context) {
            return Err(LearnerError(format!(
                "the batch has {} tokens and {} next ones; expected as many of both, {context} a \
                 sample",
                tokens.len(),
                batch.labels.len()
            )));
        }
        let mut all = tokens.iter().chain(&batch.labels);
        if let Some(token) = all.find(|&&token| token as usize >= vocabulary) {
            return Err(LearnerError(format!(
                "the batch has token {token}; the model's vocabulary has {vocabulary}, from 0 to {}",
                vocabulary - 1
            )));
        }
        Ok(tokens)
    }

    fn ids(&self, tokens: &[u32]) -> Tensor<1, Int> {
        let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
        Tensor::from_data(TensorData::new(ids, [tokens.len()]), &self.device)
    }

    fn metrics(&self, measured: Measured, labels: &[u32]) -> Result<Metrics, LearnerError> {
        let (loss, right) = measured.sums(labels)?;
        let sums = [("loss".to_owned(), loss), ("accuracy".to_owned(), right)];
        Ok(Metrics {
            num_samples: labels.len() as u64,
            sums: sums.into(),
        })
    }
}

impl GptLearner {
    /// A forward and a backward pass: the gradients of all parameters, in the order of the layout, and
    /// what the metrics are made of. Nothing is waited for.
    fn gradients(
        &self,
        arena: &Arena,
        batch: &Batch,
        rng: &ShardRng,
    ) -> Result<(Vec<Tensor<1>>, Measured), LearnerError> {
        let tokens = self.check(batch)?;
        if tokens.is_empty() {
            return Err(LearnerError(
                "a shard without samples has no mean loss".to_owned(),
            ));
        }
        let flat = views::flat(arena, &self.layout, &self.device)?;
        let weights = Weights::of(flat, &self.shape, self.casts);
        let dropout = Dropout::On {
            rng,
            rate: self.dropout,
        };

        let (embedded, mask) = embedding::forward(&weights, self.ids(tokens), dropout);
        let stack = Stack {
            blocks: &weights.blocks,
            attention: &self.attention,
            dropout,
            recompute: self.recompute,
        };
        let (activations, kept) = stack.forward(embedded);
        let (last, norm) = weights.ln_f.forward(activations);
        let head =
            head::forward_and_backward(&last, &weights.wte, self.ids(&batch.labels), self.casts);

        let (gradient, last_norm) = weights.ln_f.backward(head.activations, norm);
        let (gradient, of_blocks) = stack.backward(gradient, kept);
        let gradient = ops::masked(gradient, mask);
        let [wte, wpe] = embedding::backward(gradient, tokens, head.wte, self.shape.context);

        let first = [wte, wpe].into_iter();
        let gradients = first.chain(of_blocks).chain(last_norm).collect();
        Ok((gradients, head.measured))
    }
}

impl Learner for GptLearner {
    fn device(&self) -> Option<Device> {
        (self.device != Device::flex()).then(|| self.device.clone())
    }

    fn layout(&self) -> Layout {
        self.layout.clone()
    }

    fn init(&self, seed: u64) -> Vec<f32> {
        weights::init(&self.layout, self.shape.layers, seed)
    }

    fn contribute(
        &mut self,
        arena: &Arena,
        batch: &Batch,
        rng: &ShardRng,
        out: &mut [f32],
    ) -> Result<Metrics, LearnerError> {
        views::check_room(out, &self.layout)?;
        let (gradients, measured) = self.gradients(arena, batch, rng)?;
        views::write(gradients.into_iter(), out)?;
        self.metrics(measured, &batch.labels)
    }

    fn contribute_on_device(
        &mut self,
        arena: &Arena,
        batch: &Batch,
        rng: &ShardRng,
    ) -> Result<(Tensor<1>, Metrics), LearnerError> {
        let (gradients, measured) = self.gradients(arena, batch, rng)?;
        // All of it is queued before the metrics are waited for.
        let vector = Tensor::cat(gradients, 0);
        Ok((vector, self.metrics(measured, &batch.labels)?))
    }

    fn evaluate(&mut self, arena: &Arena, batch: &Batch) -> Result<Metrics, LearnerError> {
        let tokens = self.check(batch)?;
        let mut metrics = Metrics {
            num_samples: 0,
            sums: [("loss".to_owned(), 0.0), ("accuracy".to_owned(), 0.0)].into(),
        };
        let flat = views::flat(arena, &self.layout, &self.device)?;
        let weights = Weights::of(flat, &self.shape, self.casts);
        let part = WINDOWS_PER_EVALUATION * self.shape.context;
        for (tokens, labels) in tokens.chunks(part).zip(batch.labels.chunks(part)) {
            let (mut activations, _) = embedding::forward(&weights, self.ids(tokens), Dropout::Off);
            for block in &weights.blocks {
                (activations, _) = block.forward(activations, &self.attention, "", Dropout::Off);
            }
            let (last, _) = weights.ln_f.forward(activations);
            let measured = head::forward(&last, &weights.wte, self.ids(labels), self.casts);
            metrics.add(&self.metrics(measured, labels)?);
        }
        Ok(metrics)
    }
}
