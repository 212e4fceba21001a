//! What the tests of this crate share: fixed numbers, batches and models.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod training;

use muster_trainer::rng::ParamRng;
use muster_trainer::spec::ModelSpec;
use muster_trainer::{Batch, Device, Inputs, Learner};

pub(crate) fn cnn(channels: &[u32], hidden: u32, dropout: f64) -> ModelSpec {
    ModelSpec::Cnn {
        channels: channels.to_vec(),
        hidden,
        dropout,
    }
}

pub(crate) fn mlp(hidden: &[u32], dropout: f64) -> ModelSpec {
    ModelSpec::Mlp {
        hidden: hidden.to_vec(),
        dropout,
    }
}

pub(crate) fn learner(model: &ModelSpec, shape: &[u32], num_classes: u32) -> Box<dyn Learner> {
    muster_models::build_model(model, shape, num_classes, Device::Cpu).expect("a good model")
}

/// Samples of normal features, whose labels run through the classes.
pub(crate) fn batch(name: &str, samples: usize, shape: &[usize], num_classes: u32) -> Batch {
    let mut features = vec![0.0; samples * shape.iter().product::<usize>()];
    ParamRng::new(11, name).normal(&mut features);
    let labels = (0..num_classes).cycle().take(samples).collect();
    Batch {
        shape: shape.to_vec(),
        inputs: Inputs::Features(features),
        labels,
    }
}

/// A gpt of `[layers, heads, width, context]`.
pub(crate) fn gpt([layers, heads, width, context]: [u32; 4], dropout: f64) -> ModelSpec {
    ModelSpec::Gpt {
        layers,
        heads,
        width,
        context,
        dropout,
    }
}

/// Windows of random tokens, each with its next; small numbers come more often, as in texts.
pub(crate) fn windows(name: &str, samples: usize, context: usize, vocabulary: u32) -> Batch {
    let mut draws = vec![0.0; samples * context + 1];
    ParamRng::new(12, name).uniform(&mut draws);
    let token = |draw: &f32| (draw * draw * vocabulary as f32) as u32;
    let tokens: Vec<u32> = draws.iter().map(token).collect();
    Batch {
        shape: vec![context],
        inputs: Inputs::Tokens(tokens[..samples * context].to_vec()),
        labels: tokens[1..].to_vec(),
    }
}

/// The hash of the bits of `values`.
pub(crate) fn hash(values: &[f32]) -> String {
    let mut hasher = blake3::Hasher::new();
    for value in values {
        hasher.update(&value.to_bits().to_le_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}
