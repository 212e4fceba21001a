//! First values of a model's parameters, drawn by Muster's own generator from the job's seed and
//! the parameter's name: independent of the order of the layout and of everything else.

use muster_trainer::rng::ParamRng;
use muster_trainer::{Entry, Group, Layout};

/// Uniform in `±1/sqrt(fan_in)` for weights and biases alike, PyTorch's default for `Linear` and
/// `Conv2d` (Kaiming et al. 2015 with `a = sqrt(5)`); `fan_in` is that of the layer's weight.
pub(crate) fn kaiming_uniform(layout: &Layout, seed: u64) -> Vec<f32> {
    let mut arena = vec![0.0; layout.len()];
    for entry in layout.entries() {
        // Root and quotient are correctly rounded everywhere, so the bound needs no `libm`.
        let bound = (1.0 / (fan_in(layout, entry) as f64).sqrt()) as f32;
        let values = &mut arena[entry.range()];
        ParamRng::new(seed, &entry.name).uniform(values);
        for value in values {
            *value = (2.0 * *value - 1.0) * bound;
        }
    }
    arena
}

/// The first values of a ResNet, those of torchvision: kernels are normal with a deviation of
/// `sqrt(2 / fan_out)` (He et al. 2015), the output layer is [`kaiming_uniform`]; a batch norm begins
/// as the identity, with a mean of 0 and a variance of 1.
pub(crate) fn resnet(layout: &Layout, seed: u64) -> Vec<f32> {
    let mut arena = kaiming_uniform(layout, seed);
    for entry in layout.entries() {
        let values = &mut arena[entry.range()];
        match entry.shape[..] {
            [outputs, _, height, width] => {
                let fan_out = outputs * height * width;
                let deviation = (2.0 / fan_out as f64).sqrt() as f32;
                ParamRng::new(seed, &entry.name).normal(values);
                for value in values {
                    *value *= deviation;
                }
            }
            [_] if entry.group == Group::Buffer => {
                values.fill(if entry.name.ends_with("var") {
                    1.0
                } else {
                    0.0
                });
            }
            [_] if entry.name != "fc.bias" => {
                values.fill(if entry.name.ends_with("weight") {
                    1.0
                } else {
                    0.0
                });
            }
            _ => {}
        }
    }
    arena
}

/// How many inputs feed one output of the layer that `entry` belongs to.
fn fan_in(layout: &Layout, entry: &Entry) -> usize {
    let layer = entry.name.rsplit_once('.').map_or("", |(layer, _)| layer);
    let weight = layout.entry(&format!("{layer}.weight")).unwrap_or(entry);
    match weight.shape[..] {
        // A linear layer's `[inputs, outputs]`.
        [inputs, _] => inputs,
        // A convolution's `[outputs, inputs, height, width]`.
        [_, ref inputs @ ..] => inputs.iter().product(),
        [] => 1,
    }
}
