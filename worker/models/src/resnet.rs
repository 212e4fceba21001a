//! The family `resnet`: ResNet-18 (He et al. 2016) as it is used for images of 32x32: a 3x3 stem
//! without max-pooling, four stages of two basic blocks, global average pooling, an output layer.
//!
//! Batch norm takes its statistics from the samples of one logical shard, so that a step does not
//! depend on who computes which shard. The running statistics are buffers: a contribution carries
//! their new values, the update takes the mean over the shards, and evaluation uses them.

use burn::module::{Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Initializer, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::module::{batch_norm, batch_norm_train};
use burn::tensor::{Device, Tensor, activation};
use muster_trainer::Layout;

use crate::dropout::Dropout;
use crate::glue::Classifier;
use crate::init;

/// PyTorch's.
const EPSILON: f64 = 1e-5;

/// PyTorch's: the share of a running value that a step replaces.
const MOMENTUM: f64 = 0.1;

/// What the channels of the first stage are multiplied with in each stage.
const STAGES: [usize; 4] = [1, 2, 4, 8];

/// The channels of the last stage, or `None` where the number does not fit.
pub(crate) fn last_channels(width: usize) -> Option<usize> {
    STAGES.last()?.checked_mul(width)
}

/// Parameters `conv.weight`, `bn.weight`, `bn.bias`, `bn.running_mean`, `bn.running_var`,
/// `stage1.block1.conv1.weight`, ..., `stage2.block1.shortcut.conv.weight`, ..., `fc.weight`
/// `[inputs, outputs]`, `fc.bias`.
#[derive(Module, Debug)]
pub(crate) struct Resnet {
    conv: Conv2d,
    bn: BatchNorm,
    stage: Vec<Stage>,
    fc: Linear,
    #[module(skip)]
    sample_shape: [usize; 3],
}

#[derive(Module, Debug)]
struct Stage {
    block: Vec<Block>,
}

/// Two convolutions, and around them a path on which their input is added.
#[derive(Module, Debug)]
struct Block {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    /// Where the block changes the shape.
    shortcut: Option<Shortcut>,
}

#[derive(Module, Debug)]
struct Shortcut {
    conv: Conv2d,
    bn: BatchNorm,
}

#[derive(Module, Debug)]
struct BatchNorm {
    weight: Param<Tensor<1>>,
    bias: Param<Tensor<1>>,
    running_mean: Param<Tensor<1>>,
    running_var: Param<Tensor<1>>,
}

/// The new values of buffers, in the layout's order; none where the pass does not train.
type Buffers = Option<Vec<Tensor<1>>>;

impl BatchNorm {
    fn template(channels: usize, device: &Device) -> BatchNorm {
        let lazy = || Initializer::Zeros.init([channels], device);
        BatchNorm {
            weight: lazy(),
            bias: lazy(),
            running_mean: lazy(),
            running_var: lazy(),
        }
    }

    fn forward(&self, maps: Tensor<4>, buffers: &mut Buffers) -> Tensor<4> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        let (mean, var) = (self.running_mean.val(), self.running_var.val());
        let Some(buffers) = buffers else {
            return batch_norm(maps, weight, bias, mean, var, EPSILON);
        };
        let [samples, channels, height, width] = maps.dims();
        let normed = batch_norm_train(maps, weight, bias, EPSILON);
        // As PyTorch: normalized by the variance of the samples, kept as that of what they are drawn
        // from. One value alone has none, and keeps what it has.
        let count = samples * height * width;
        let unbiased = count as f64 / (count.max(2) - 1) as f64;
        let moved = |old: Tensor<1>, new: Tensor<1>| {
            old.detach().mul_scalar(1.0 - MOMENTUM) + new.detach().mul_scalar(MOMENTUM)
        };
        buffers.push(moved(mean, normed.mean.reshape([channels])));
        buffers.push(moved(var, normed.variance.mul_scalar(unbiased)));
        normed.output
    }
}

fn conv(inputs: usize, outputs: usize, size: usize, stride: usize, device: &Device) -> Conv2d {
    let padding = size / 2;
    Conv2dConfig::new([inputs, outputs], [size, size])
        .with_stride([stride, stride])
        .with_padding(PaddingConfig2d::Explicit(
            padding, padding, padding, padding,
        ))
        .with_bias(false)
        .init(device)
}

impl Block {
    fn template(inputs: usize, outputs: usize, stride: usize, device: &Device) -> Block {
        let shortcut = (inputs != outputs || stride != 1).then(|| Shortcut {
            conv: conv(inputs, outputs, 1, stride, device),
            bn: BatchNorm::template(outputs, device),
        });
        Block {
            conv1: conv(inputs, outputs, 3, stride, device),
            bn1: BatchNorm::template(outputs, device),
            conv2: conv(outputs, outputs, 3, 1, device),
            bn2: BatchNorm::template(outputs, device),
            shortcut,
        }
    }

    fn forward(&self, maps: Tensor<4>, buffers: &mut Buffers) -> Tensor<4> {
        let inner = self.bn1.forward(self.conv1.forward(maps.clone()), buffers);
        let inner = self.conv2.forward(activation::relu(inner));
        let inner = self.bn2.forward(inner, buffers);
        let maps = match &self.shortcut {
            Some(shortcut) => shortcut.bn.forward(shortcut.conv.forward(maps), buffers),
            None => maps,
        };
        activation::relu(inner + maps)
    }
}

impl Resnet {
    /// A template for samples `[channels, height, width]`: it has shapes, and no values until it is
    /// loaded.
    pub(crate) fn template(
        sample_shape: [usize; 3],
        width: usize,
        classes: usize,
        device: &Device,
    ) -> Resnet {
        let mut inputs = width;
        let mut stage = Vec::new();
        for factor in STAGES {
            let outputs = factor * width;
            let stride = if factor == 1 { 1 } else { 2 };
            let block = vec![
                Block::template(inputs, outputs, stride, device),
                Block::template(outputs, outputs, 1, device),
            ];
            stage.push(Stage { block });
            inputs = outputs;
        }
        Resnet {
            conv: conv(sample_shape[0], width, 3, 1, device),
            bn: BatchNorm::template(width, device),
            stage,
            fc: LinearConfig::new(inputs, classes).init(device),
            sample_shape,
        }
    }

    fn forward(&self, samples: Tensor<2>, buffers: &mut Buffers) -> Tensor<2> {
        let [num_samples, _] = samples.dims();
        let [channels, height, width] = self.sample_shape;
        let images = samples.reshape([num_samples, channels, height, width]);
        let maps = self.bn.forward(self.conv.forward(images), buffers);
        let mut maps = activation::relu(maps);
        for block in self.stage.iter().flat_map(|stage| &stage.block) {
            maps = block.forward(maps, buffers);
        }
        let [_, channels, height, width] = maps.dims();
        let means = maps
            .reshape([num_samples, channels, height * width])
            .mean_dim(2);
        self.fc.forward(means.reshape([num_samples, channels]))
    }
}

impl Classifier for Resnet {
    fn logits(&self, samples: Tensor<2>, _dropout: Dropout<'_>) -> Tensor<2> {
        self.forward(samples, &mut None)
    }

    fn logits_and_buffers(
        &self,
        samples: Tensor<2>,
        _dropout: Dropout<'_>,
    ) -> (Tensor<2>, Vec<Tensor<1>>) {
        let mut buffers = Some(Vec::new());
        let logits = self.forward(samples, &mut buffers);
        (logits, buffers.unwrap_or_default())
    }

    fn init(layout: &Layout, seed: u64) -> Vec<f32> {
        init::resnet(layout, seed)
    }
}
