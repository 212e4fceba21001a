//! The family `mlp`: linear layers with ReLU between them, and dropout behind each ReLU.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, activation};

use crate::dropout::Dropout;
use crate::glue::Classifier;

/// Parameters `fc1.weight`, `fc1.bias`, `fc2.weight`, ...; a weight is `[inputs, outputs]`.
#[derive(Module, Debug)]
pub(crate) struct Mlp {
    fc: Vec<Linear>,
}

impl Mlp {
    /// A template: it has shapes, and no values until it is loaded.
    pub(crate) fn template(
        features: usize,
        hidden: &[usize],
        classes: usize,
        device: &Device,
    ) -> Mlp {
        let inputs = std::iter::once(&features).chain(hidden);
        let outputs = hidden.iter().chain(std::iter::once(&classes));
        let fc = inputs
            .zip(outputs)
            .map(|(&inputs, &outputs)| LinearConfig::new(inputs, outputs).init(device))
            .collect();
        Mlp { fc }
    }
}

impl Classifier for Mlp {
    fn logits(&self, samples: Tensor<2>, dropout: Dropout<'_>) -> Tensor<2> {
        let (last, hidden) = self
            .fc
            .split_last()
            .expect("invariant: there is an output layer");
        let hidden = hidden
            .iter()
            .enumerate()
            .fold(samples, |activations, (i, layer)| {
                let activations = activation::relu(layer.forward(activations));
                dropout.apply(&format!("dropout{}", i + 1), activations)
            });
        last.forward(hidden)
    }
}
