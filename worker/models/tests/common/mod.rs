//! What the tests of this crate share: fixed numbers, batches and models.

#![allow(dead_code, reason = "each test binary uses its own part")]

use muster_trainer::Device;
use muster_trainer::rng::ParamRng;
use muster_trainer::spec::ModelSpec;
use muster_trainer::{Batch, Learner};

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
        features,
        labels,
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
