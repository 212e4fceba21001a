//! The family `cnn`: 3x3 convolutions, each with ReLU and 2x2 max-pooling; then a hidden linear
//! layer with ReLU and dropout, and the output layer.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Tensor, activation};

use crate::dropout::Dropout;
use crate::glue::Classifier;

/// Parameters `conv1.weight` `[outputs, inputs, 3, 3]`, `conv1.bias`, ..., `fc1.weight`
/// `[inputs, outputs]`, `fc1.bias`, `fc2.weight`, `fc2.bias`.
#[derive(Module, Debug)]
pub(crate) struct Cnn {
    conv: Vec<Conv2d>,
    pool: MaxPool2d,
    fc1: Linear,
    fc2: Linear,
    #[module(skip)]
    sample_shape: [usize; 3],
}

/// The shape of a [`Cnn`].
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// `[channels, height, width]` of a sample.
    pub(crate) sample: [usize; 3],
    /// The output channels of each convolution.
    pub(crate) channels: Vec<usize>,
    /// The width of the hidden linear layer.
    pub(crate) hidden: usize,
    /// The number of classes.
    pub(crate) classes: usize,
}

impl Shape {
    /// The number of activations behind the last pooling; 0 where a pooling has left nothing,
    /// `None` where it does not fit a `usize`. Every pooling halves both sides, rounding down.
    pub(crate) fn flat_features(&self) -> Option<usize> {
        let [channels, height, width] = self.sample;
        let halvings = u32::try_from(self.channels.len()).unwrap_or(u32::MAX);
        let halved = |side: usize| side.checked_shr(halvings).unwrap_or(0);
        let channels = self.channels.last().copied().unwrap_or(channels);
        channels
            .checked_mul(halved(height))?
            .checked_mul(halved(width))
    }
}

impl Cnn {
    /// A template: it has shapes, and no values until it is loaded. `flat_features` is
    /// [`Shape::flat_features`].
    pub(crate) fn template(shape: &Shape, flat_features: usize, device: &Device) -> Cnn {
        let inputs = std::iter::once(&shape.sample[0]).chain(&shape.channels);
        let conv = inputs
            .zip(&shape.channels)
            .map(|(&inputs, &outputs)| {
                Conv2dConfig::new([inputs, outputs], [3, 3])
                    .with_padding(PaddingConfig2d::Same)
                    .init(device)
            })
            .collect();
        Cnn {
            conv,
            pool: MaxPool2dConfig::new([2, 2]).init(),
            fc1: LinearConfig::new(flat_features, shape.hidden).init(device),
            fc2: LinearConfig::new(shape.hidden, shape.classes).init(device),
            sample_shape: shape.sample,
        }
    }
}

impl Classifier for Cnn {
    fn logits(&self, samples: Tensor<2>, dropout: Dropout<'_>) -> Tensor<2> {
        let [num_samples, _] = samples.dims();
        let [channels, height, width] = self.sample_shape;
        let images = samples.reshape([num_samples, channels, height, width]);
        let maps = self.conv.iter().fold(images, |maps, conv| {
            self.pool.forward(activation::relu(conv.forward(maps)))
        });
        let hidden = activation::relu(self.fc1.forward(maps.flatten::<2>(1, 3)));
        self.fc2.forward(dropout.apply("dropout1", hidden))
    }
}
