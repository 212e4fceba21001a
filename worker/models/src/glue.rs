//! Makes a [`Learner`] of a model family: checks the samples, loads the arena, runs forward and
//! backward, counts. What a family computes is not known here.

use burn::module::Module;
use burn::tensor::{Device, Gradients, Tensor, TensorData, Transaction, activation};
use muster_trainer::learner::LearnerError;
use muster_trainer::rng::ShardRng;
use muster_trainer::{Arena, Batch, Entry, Group, Inputs, Layout, Learner, Metrics};

use crate::dropout::Dropout;
use crate::init;
use crate::views::{self, Recording};

/// A model family: samples in, one score per class out.
pub(crate) trait Classifier: Module {
    /// The unnormalised log-probabilities `[samples, classes]` of `samples` `[samples, features]`.
    fn logits(&self, samples: Tensor<2>, dropout: Dropout<'_>) -> Tensor<2>;

    /// The same while training, and the new values of the model's buffers in the layout's order.
    fn logits_and_buffers(
        &self,
        samples: Tensor<2>,
        dropout: Dropout<'_>,
    ) -> (Tensor<2>, Vec<Tensor<1>>) {
        (self.logits(samples, dropout), Vec::new())
    }

    /// First values of the parameters and buffers.
    fn init(layout: &Layout, seed: u64) -> Vec<f32> {
        init::kaiming_uniform(layout, seed)
    }
}

/// A classifier trained by the cross entropy of its softmax.
#[derive(Debug)]
pub(crate) struct ClassifierLearner<M> {
    /// Shapes only; its parameters are lazy and never read.
    template: M,
    layout: Layout,
    device: Device,
    sample_shape: Vec<usize>,
    num_classes: usize,
    dropout: f64,
}

impl<M: Classifier> ClassifierLearner<M> {
    /// A learner on `device`, which is plain, not an autodiff device.
    pub(crate) fn new(
        template: M,
        device: Device,
        sample_shape: Vec<usize>,
        num_classes: usize,
        dropout: f64,
    ) -> ClassifierLearner<M> {
        let layout = views::layout(&template);
        ClassifierLearner {
            template,
            layout,
            device,
            sample_shape,
            num_classes,
            dropout,
        }
    }

    /// The arena as one flat tensor on the plain device, in the device's default float type.
    /// A host's arena is copied once; a device's arena is not.
    fn flat(&self, arena: &Arena) -> Result<Tensor<1>, LearnerError> {
        views::flat(arena, &self.layout, &self.device)
    }

    fn check(&self, batch: &Batch) -> Result<(), LearnerError> {
        if batch.shape != self.sample_shape {
            return Err(LearnerError(format!(
                "the samples have shape {:?}; the model expects {:?}",
                batch.shape, self.sample_shape
            )));
        }
        if matches!(batch.inputs, Inputs::Tokens(_)) {
            return Err(LearnerError(
                "the samples are tokens; the model expects features".to_owned(),
            ));
        }
        let (found, samples) = (batch.inputs.len(), batch.labels.len());
        let expected = self.num_features().checked_mul(samples);
        if expected != Some(found) {
            return Err(LearnerError(format!(
                "the batch has {found} feature values for {samples} samples of shape {:?}; \
                 expected {} a sample",
                self.sample_shape,
                self.num_features()
            )));
        }
        let out_of_range = |&label: &u32| label as usize >= self.num_classes;
        if let Some(sample) = batch.labels.iter().position(out_of_range) {
            return Err(LearnerError(format!(
                "sample {sample} of the batch has label {}; the model has {} classes, from 0 to {}",
                batch.labels[sample],
                self.num_classes,
                self.num_classes - 1
            )));
        }
        Ok(())
    }

    fn num_features(&self) -> usize {
        self.sample_shape.iter().product()
    }

    fn samples(&self, batch: &Batch) -> Tensor<2> {
        let shape = [batch.labels.len(), self.num_features()];
        let features = batch.inputs.features().to_vec();
        Tensor::from_data(TensorData::new(features, shape), &self.device)
    }

    /// The negated mean as a matrix: `-1/n` at each sample's label, 0 elsewhere. Multiplied with
    /// log-probabilities and summed it gives the mean cross entropy. (A gather would do it as
    /// well, but its gradient adds atomically on a GPU.)
    fn targets(&self, labels: &[u32]) -> Tensor<2> {
        let mut targets = vec![0.0_f64; labels.len() * self.num_classes];
        for (row, &label) in targets.chunks_exact_mut(self.num_classes).zip(labels) {
            row[label as usize] = -1.0 / labels.len() as f64;
        }
        let shape = [labels.len(), self.num_classes];
        Tensor::from_data(TensorData::new(targets, shape), &self.device)
    }

    /// Sums of loss and accuracy, added up on the host in f64 in the order of the samples.
    fn metrics(
        &self,
        [logits, log_probabilities]: [Tensor<2>; 2],
        labels: &[u32],
    ) -> Result<Metrics, LearnerError> {
        let both = Transaction::default()
            .register(logits)
            .register(log_probabilities);
        let [logits, log_probabilities] = views::read_at_once(both)?;
        let logits = views::elements::<f64>(logits)?;
        let log_probabilities = views::elements::<f64>(log_probabilities)?;
        let scores = logits.chunks_exact(self.num_classes);
        let rows = log_probabilities.chunks_exact(self.num_classes);
        let (mut loss, mut right) = (0.0, 0.0);
        for ((scores, row), &label) in scores.zip(rows).zip(labels) {
            loss -= row[label as usize];
            right += f64::from(u8::from(is_right(scores, label as usize)));
        }
        let sums = [("loss".to_owned(), loss), ("accuracy".to_owned(), right)];
        Ok(Metrics {
            num_samples: labels.len() as u64,
            sums: sums.into(),
        })
    }
}

impl<M: Classifier> ClassifierLearner<M> {
    /// A forward and a backward pass. Nothing is waited for; and nothing can fail between the two, as
    /// Burn keeps the activations of a pass until the next backward pass anywhere in the process.
    fn backward(
        &self,
        arena: &Arena,
        batch: &Batch,
        rng: &ShardRng,
    ) -> Result<Passed<M>, LearnerError> {
        self.check(batch)?;
        if batch.labels.is_empty() {
            return Err(LearnerError(
                "a shard without samples has no mean loss".to_owned(),
            ));
        }
        let flat = self.flat(arena)?;
        let module = views::load(&self.template, &flat, Recording::On);
        let dropout = Dropout::On {
            rng,
            rate: self.dropout,
        };
        let (logits, buffers) = module.logits_and_buffers(self.samples(batch), dropout);
        let log_probabilities = activation::log_softmax(logits.clone(), 1);
        let measured = [logits.inner(), log_probabilities.clone().inner()];
        // Dimension by dimension: `sum()` over a whole tensor promises no bits (from 4 Mi on).
        let loss = (log_probabilities * self.targets(&batch.labels))
            .sum_dim(1)
            .sum_dim(0);
        Ok(Passed {
            module,
            gradients: loss.backward(),
            buffers: buffers.into_iter().map(Tensor::inner).collect(),
            measured,
        })
    }

    /// The places of the buffers in the layout.
    fn buffers(&self) -> impl Iterator<Item = (usize, &Entry)> {
        let entries = self.layout.entries().iter().enumerate();
        entries.filter(|(_, entry)| entry.group == Group::Buffer)
    }
}

/// What a forward and a backward pass leave, on the plain device.
struct Passed<M> {
    /// Its parameters have the gradients.
    module: M,
    gradients: Gradients,
    /// The new values of its buffers.
    buffers: Vec<Tensor<1>>,
    /// Logits and log-probabilities.
    measured: [Tensor<2>; 2],
}

impl<M: Classifier> Learner for ClassifierLearner<M> {
    fn layout(&self) -> Layout {
        self.layout.clone()
    }

    fn init(&self, seed: u64) -> Vec<f32> {
        M::init(&self.layout, seed)
    }

    fn device(&self) -> Option<Device> {
        (self.device != Device::flex()).then(|| self.device.clone())
    }

    fn contribute(
        &mut self,
        arena: &Arena,
        batch: &Batch,
        rng: &ShardRng,
        out: &mut [f32],
    ) -> Result<Metrics, LearnerError> {
        views::check_room(out, &self.layout)?;
        let mut passed = self.backward(arena, batch, rng)?;
        views::gather(&passed.module, &mut passed.gradients, out)?;
        for ((_, entry), values) in self.buffers().zip(passed.buffers) {
            views::write([values].into_iter(), &mut out[entry.range()])?;
        }
        self.metrics(passed.measured, &batch.labels)
    }

    fn contribute_on_device(
        &mut self,
        arena: &Arena,
        batch: &Batch,
        rng: &ShardRng,
    ) -> Result<(Tensor<1>, Metrics), LearnerError> {
        let mut passed = self.backward(arena, batch, rng)?;
        let mut parts = views::parts(&passed.module, &mut passed.gradients);
        for ((at, _), values) in self.buffers().zip(passed.buffers) {
            parts[at] = values;
        }
        // All of it is queued before the metrics are waited for.
        let vector = Tensor::cat(parts, 0);
        let metrics = self.metrics(passed.measured, &batch.labels)?;
        Ok((vector, metrics))
    }

    fn evaluate(&mut self, arena: &Arena, batch: &Batch) -> Result<Metrics, LearnerError> {
        self.check(batch)?;
        let flat = self.flat(arena)?;
        if batch.labels.is_empty() {
            let sums = [("loss".to_owned(), 0.0), ("accuracy".to_owned(), 0.0)];
            return Ok(Metrics {
                num_samples: 0,
                sums: sums.into(),
            });
        }
        let module = views::load(&self.template, &flat, Recording::Off);
        let logits = module.logits(self.samples(batch), Dropout::Off);
        let log_probabilities = activation::log_softmax(logits.clone(), 1);
        self.metrics([logits, log_probabilities], &batch.labels)
    }
}

/// Whether the highest score is that of `label`; of equal ones the lowest class counts. A score
/// that is not a number is never the highest.
fn is_right(scores: &[f64], label: usize) -> bool {
    let mine = scores[label];
    scores[..label].iter().all(|&other| mine > other)
        && scores[label..].iter().all(|&other| mine >= other)
}
