//! The trait that a model implements to be trained by Muster.

use std::collections::BTreeMap;

use crate::arena::{Arena, Layout};

/// A learning rule as a map over logical shards: everything a rank needs to know of a model.
///
/// A learner holds no state that outlives a call: the arena, the samples and the random numbers
/// decide its results, to the bit, whatever ran before.
pub trait Learner: Send {
    /// The names, shapes and groups of the arena, always the same for one job.
    fn layout(&self) -> Layout;

    /// The first values of the arena; each drawn from `seed` and the parameter's name.
    fn init(&self, seed: u64) -> Vec<f32>;

    /// The device that it computes on, and where the arena is to be; `None` for the host.
    fn device(&self) -> Option<burn::tensor::Device> {
        None
    }

    /// What one logical shard adds to a step, written into `out` (of the layout's length): for
    /// weights and biases the gradient of the mean loss over the shard's samples (of a model of
    /// tokens: over their tokens), for buffers their new value. The metrics are sums over the same.
    ///
    /// # Errors
    /// When the samples do not fit the model.
    fn contribute(
        &mut self,
        arena: &Arena,
        batch: &Batch,
        rng: &crate::rng::ShardRng,
        out: &mut [f32],
    ) -> Result<Metrics, LearnerError>;

    /// [`Self::contribute`] of a learner that has a [`Self::device`]: the vector stays there.
    ///
    /// # Errors
    /// As there; and for a learner without a device.
    fn contribute_on_device(
        &mut self,
        arena: &Arena,
        batch: &Batch,
        rng: &crate::rng::ShardRng,
    ) -> Result<(burn::tensor::Tensor<1>, Metrics), LearnerError> {
        let _ = (arena, batch, rng);
        Err(LearnerError("this model computes on the host".to_owned()))
    }

    /// The metrics of samples with the parameters as they are; nothing is recorded for a
    /// backward pass and nothing is dropped out.
    ///
    /// # Errors
    /// When the samples do not fit the model.
    fn evaluate(&mut self, arena: &Arena, batch: &Batch) -> Result<Metrics, LearnerError>;
}

/// A learner could not use what it was given; the text says what, and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LearnerError(pub String);

/// Samples, in the order of the step's permutation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The shape of one sample.
    pub shape: Vec<usize>,
    /// The samples back to back, `shape.product()` values each.
    pub inputs: Inputs,
    /// What is to be predicted: the class of each sample, or, where the inputs are tokens, the next
    /// token of each.
    pub labels: Vec<u32>,
}

/// What the values of samples are.
#[derive(Clone, Debug, PartialEq)]
pub enum Inputs {
    /// Numbers that a model computes with.
    Features(Vec<f32>),
    /// Numbers of entries of a vocabulary.
    Tokens(Vec<u32>),
}

impl Default for Inputs {
    fn default() -> Self {
        Inputs::Features(Vec::new())
    }
}

impl Inputs {
    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Inputs::Features(values) => values.len(),
            Inputs::Tokens(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The features; none where the inputs are tokens.
    #[must_use]
    pub fn features(&self) -> &[f32] {
        match self {
            Inputs::Features(values) => values,
            Inputs::Tokens(_) => &[],
        }
    }
}

/// Sums of named quantities over what is predicted; additive.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics {
    /// How many labels were predicted, over which the sums are: samples, or tokens where the
    /// inputs are tokens. So the mean loss of a model of tokens is that of a token, and its
    /// exponential the perplexity.
    pub num_samples: u64,
    /// By name: `loss` (sum of the losses), `accuracy` (how many were right).
    pub sums: BTreeMap<String, f64>,
}

impl Metrics {
    /// Adds the sums of `other`, name by name.
    pub fn add(&mut self, other: &Metrics) {
        self.num_samples += other.num_samples;
        for (name, sum) in &other.sums {
            *self.sums.entry(name.clone()).or_default() += sum;
        }
    }

    /// The mean of each quantity over what was predicted; empty where there were none.
    #[must_use]
    pub fn means(&self) -> BTreeMap<String, f64> {
        if self.num_samples == 0 {
            return BTreeMap::new();
        }
        let count = self.num_samples as f64;
        self.sums
            .iter()
            .map(|(name, sum)| (name.clone(), sum / count))
            .collect()
    }
}
