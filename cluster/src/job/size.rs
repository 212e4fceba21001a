//! How large a model becomes on its data, so that a job which cannot fit is refused at once.
//!
//! The bounds are about sense, not about a machine's memory: below them nothing overflows.

use super::spec::{DataSpec, ModelSpec};

/// Parameters of a model: 4 GiB of f32.
const MAX_PARAMETERS: u64 = 1 << 30;
/// Values of the widest layer for the samples of one logical shard: 8 GiB of f32.
const MAX_SHARD_VALUES: u64 = 1 << 31;
/// Values of one sample.
const MAX_FEATURES: u64 = 1 << 24;

/// What is wrong with the shapes of a model and of its samples, and the key to change.
pub(super) fn fault_of_shape(model: &ModelSpec, data: &DataSpec) -> Option<(&'static str, String)> {
    if let ModelSpec::Gpt { heads, width, .. } = model {
        return (width % heads != 0).then(|| {
            let message = format!("heads = {heads} does not divide width = {width}");
            let expected = "each head has its share of the width: change one of them";
            ("model.heads", format!("{message}; {expected}"))
        });
    }
    fault_of_row(model, data).map(|message| ("data.shape", message))
}

fn fault_of_row(model: &ModelSpec, data: &DataSpec) -> Option<String> {
    let shape = &data.shape;
    if num_features(data) > MAX_FEATURES {
        let message = format!("shape = {shape:?} has too many values");
        return Some(format!(
            "{message}; expected at most {MAX_FEATURES} in one sample"
        ));
    }
    match (model, shape.as_slice()) {
        (ModelSpec::Gpt { .. }, _) | (ModelSpec::Resnet { .. }, [_, _, _]) => None,
        (ModelSpec::Resnet { .. }, _) => Some(format!(
            "shape = {shape:?} is no image; a \"resnet\" expects [channels, height, width], \
             e.g. shape = [3, 32, 32]"
        )),
        (ModelSpec::Mlp { .. }, [_] | [_, _, _]) => None,
        (ModelSpec::Mlp { .. }, _) => Some(format!(
            "shape = {shape:?} is neither [features] nor [channels, height, width]; \
             write one of these, e.g. shape = [64]"
        )),
        (ModelSpec::Cnn { channels, .. }, [_, height, width]) => {
            let smaller = (*height).min(*width);
            let num_poolings = channels.len();
            // Each pooling halves: 8, 4, 2, 1 allows three.
            let num_possible = smaller.ilog2() as usize;
            let expected = match num_possible {
                0 => "expected a height and a width of at least 2".to_owned(),
                num => format!("shorten model.channels to at most {num}"),
            };
            (num_poolings > num_possible).then(|| {
                format!(
                    "shape = {shape:?} is too small for {num_poolings} convolutions, each of \
                     which halves height and width; {expected}"
                )
            })
        }
        (ModelSpec::Cnn { .. }, _) => Some(format!(
            "shape = {shape:?} is no image; a \"cnn\" expects [channels, height, width], \
             e.g. shape = [1, 8, 8]"
        )),
    }
}

/// What is too large, and the key to make smaller.
pub(super) fn fault_of_size(
    model: &ModelSpec,
    data: &DataSpec,
    samples_per_shard: u32,
) -> Option<(&'static str, String)> {
    let Size {
        num_parameters,
        widest,
    } = size_of(model, data);
    let shard_values = widest.saturating_mul(u64::from(samples_per_shard));
    if num_parameters > MAX_PARAMETERS {
        let message = format!("the model has {num_parameters} parameters");
        let expected = format!("expected at most {MAX_PARAMETERS}: make its layers narrower");
        return Some(("model.family", format!("{message}; {expected}")));
    }
    (shard_values > MAX_SHARD_VALUES).then(|| {
        let message = format!(
            "a layer has {shard_values} values for the {samples_per_shard} samples of a logical \
             shard; expected at most {MAX_SHARD_VALUES}: use more logical_shards or a smaller batch"
        );
        ("train.global_batch_size", message)
    })
}

struct Size {
    num_parameters: u64,
    /// Values of the widest layer, for one sample.
    widest: u64,
}

fn num_features(data: &DataSpec) -> u64 {
    let dims = data.shape.iter().map(|dim| u64::from(*dim));
    dims.fold(1, u64::saturating_mul)
}

fn size_of(model: &ModelSpec, data: &DataSpec) -> Size {
    let mut size = Size {
        num_parameters: 0,
        widest: num_features(data),
    };
    let mut inputs = num_features(data);
    let linear = |inputs: &mut u64, outputs: u32, size: &mut Size| {
        let outputs = u64::from(outputs);
        let weights = inputs.saturating_mul(outputs).saturating_add(outputs);
        size.num_parameters = size.num_parameters.saturating_add(weights);
        size.widest = size.widest.max(outputs);
        *inputs = outputs;
    };
    match model {
        ModelSpec::Mlp { hidden, .. } => {
            for width in hidden {
                linear(&mut inputs, *width, &mut size);
            }
        }
        ModelSpec::Cnn {
            channels, hidden, ..
        } => {
            let [mut from, mut height, mut width] =
                [0, 1, 2].map(|dim| data.shape.get(dim).map_or(1, |dim| u64::from(*dim)));
            for channels in channels {
                let to = u64::from(*channels);
                size.num_parameters += 9 * from * to + to;
                size.widest = size.widest.max(to.saturating_mul(height * width));
                (from, height, width) = (to, height / 2, width / 2);
            }
            inputs = from.saturating_mul(height * width);
            linear(&mut inputs, *hidden, &mut size);
        }
        ModelSpec::Gpt {
            layers,
            heads,
            width,
            context,
            ..
        } => {
            let [layers, heads, width, context] =
                [layers, heads, width, context].map(|size| u64::from(*size));
            // Two tables of rows; a block's four matrices, their biases and two norms; a norm.
            let tables = (u64::from(data.num_classes) + context) * width;
            let block = 12 * width * width + 13 * width;
            size.num_parameters = layers * block + tables + 2 * width;
            // Scores of every token for every one, and the hidden layer. (Logits are made in parts.)
            let scores = heads * context * context;
            size.widest = scores.max(4 * width * context);
            return size;
        }
        ModelSpec::Resnet { width } => {
            let [channels, height, side] =
                [0, 1, 2].map(|dim| data.shape.get(dim).map_or(1, |dim| u64::from(*dim)));
            let width = u64::from(*width);
            let conv = |from: u64, to: u64| 9 * from * to + 2 * to;
            size.num_parameters = conv(channels, width);
            size.widest = size.widest.max(width.saturating_mul(height * side));
            let mut from = width;
            for to in [width, 2 * width, 4 * width, 8 * width] {
                let shortcut = if from == to { 0 } else { from * to + 2 * to };
                size.num_parameters += conv(from, to) + 3 * conv(to, to) + shortcut;
                from = to;
            }
            inputs = from;
        }
    }
    linear(&mut inputs, data.num_classes, &mut size);
    size
}
