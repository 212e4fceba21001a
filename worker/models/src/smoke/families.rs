//! A whole contribution of each family, on a device and on the host: what a family writes itself of
//! gradients, gathers and buffers is tried as it is used.

use burn::tensor::{Device, Tensor, TensorData};
use muster_trainer::rng::{ParamRng, ShardRng};
use muster_trainer::spec::{ModelSpec, Precision, Recompute};
use muster_trainer::{Arena, Batch, Inputs};

use super::{Checked, difference, guarded, read};
use crate::build_on;

/// A dozen layers, each of which rounds its products and sums in another order: some hundred
/// roundings of 6e-8, amplified by norms over few values.
const TOLERANCE: f64 = 2e-4;

/// A family at a size that takes milliseconds.
struct Family {
    name: &'static str,
    model: ModelSpec,
    shape: Vec<u32>,
    num_classes: u32,
    batch: Batch,
}

/// Compares a contribution of each.
pub(super) fn check(device: &Device) -> Vec<Checked> {
    families()
        .iter()
        .map(|family| Checked {
            name: family.name,
            difference: guarded(|| compare(family, device)),
            tolerance: TOLERANCE,
        })
        .collect()
}

fn compare(family: &Family, device: &Device) -> Result<f64, String> {
    let build = |device: &Device| {
        let (shape, classes) = (&family.shape, family.num_classes);
        let (precision, recompute) = (Precision::F32, Recompute::None);
        build_on(&family.model, shape, classes, device, precision, recompute)
            .map_err(|error| error.to_string())
    };
    let rng = ShardRng::new(1, 2, 3);
    let mut host = build(&Device::flex())?;
    let values = host.init(7);
    let len = values.len();
    let mut expected = vec![0.0; len];
    let arena = Arena::Host(values.clone());
    let metrics = host.contribute(&arena, &family.batch, &rng, &mut expected);
    let metrics = metrics.map_err(|error| error.to_string())?;
    let arena = Arena::Device(Tensor::from_data(TensorData::new(values, [len]), device));
    let found = build(device)?.contribute_on_device(&arena, &family.batch, &rng);
    let (vector, there) = found.map_err(|error| error.to_string())?;
    let loss = [&metrics, &there].map(|metrics| vec![metrics.sums["loss"] as f32]);
    let of_loss = difference(&loss[0], &loss[1])?;
    Ok(difference(&expected, &read(vector)?)?.max(of_loss))
}

fn families() -> Vec<Family> {
    let images = |shape: [usize; 3]| {
        let mut features = vec![0.0; 3 * shape.iter().product::<usize>()];
        ParamRng::new(3, "samples").normal(&mut features);
        Batch {
            shape: shape.to_vec(),
            inputs: Inputs::Features(features),
            labels: vec![0, 2, 1],
        }
    };
    vec![
        Family {
            name: "a contribution of a cnn",
            model: ModelSpec::Cnn {
                channels: vec![8, 16],
                hidden: 32,
                dropout: 0.25,
            },
            shape: vec![1, 8, 8],
            num_classes: 3,
            batch: images([1, 8, 8]),
        },
        Family {
            name: "a contribution of a resnet",
            model: ModelSpec::Resnet { width: 8 },
            shape: vec![3, 8, 8],
            num_classes: 3,
            batch: images([3, 8, 8]),
        },
        Family {
            name: "a contribution of a gpt",
            model: ModelSpec::Gpt {
                layers: 2,
                heads: 2,
                width: 16,
                context: 12,
                dropout: 0.1,
            },
            shape: vec![12],
            num_classes: 20,
            batch: Batch {
                shape: vec![12],
                inputs: Inputs::Tokens((0..36).map(|i| i * 7 % 20).collect()),
                labels: (0..36).map(|i| (i * 7 + 1) % 20).collect(),
            },
        },
    ]
}
