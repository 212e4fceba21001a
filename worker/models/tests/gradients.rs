//! The gradient of every layer that the families use, against central finite differences in f64.
//! A process of its own: the default float type is set before the first tensor.

mod common;

use std::sync::OnceLock;

use burn::tensor::{Device, FloatDType, IntDType, Tensor, TensorData};
use common::{batch, cnn, gpt, learner, mlp, windows};
use muster_trainer::rng::ShardRng;
use muster_trainer::spec::ModelSpec;
use muster_trainer::{Arena, Batch, Group, Learner};

/// Half the distance of the two points of a difference. The error of the difference is then
/// about `1e-12 * f'''/6` for the curve and `2e-16 * |loss| / 1e-6`, some 1e-9, for the rounding.
const STEP: f64 = 1e-6;

/// A contribution is f32, so it carries a rounding of up to `2^-24`, 6e-8 of its size; doubled.
const RELATIVE: f64 = 1.2e-7;

/// The rounding of the difference, five-fold.
const ABSOLUTE: f64 = 1e-8;

fn f64_device() -> Device {
    static CONFIGURED: OnceLock<()> = OnceLock::new();
    CONFIGURED.get_or_init(|| {
        Device::flex()
            .configure((FloatDType::F64, IntDType::I64))
            .expect("no tensor was made before");
    });
    Device::flex()
}

/// Compares every element of the gradient; returns how many were clearly not zero.
fn check(model: &ModelSpec, shape: &[usize], num_classes: u32) -> usize {
    let batch = batch("gradients", 5, shape, num_classes);
    check_with(model, &batch, num_classes)
}

/// The same for samples of one's own. What a contribution has for a buffer is no gradient.
fn check_with(model: &ModelSpec, batch: &Batch, num_classes: u32) -> usize {
    let device = f64_device();
    let shape_u32: Vec<u32> = batch.shape.iter().map(|&size| size as u32).collect();
    let mut learner = learner(model, &shape_u32, num_classes);
    let rng = ShardRng::new(3, 14, 15);
    let start: Vec<f64> = learner.init(1).into_iter().map(f64::from).collect();

    let mut gradient = vec![0.0; start.len()];
    loss(&mut *learner, &start, batch, &rng, &device, &mut gradient);
    let mut ignored = vec![0.0; start.len()];
    let layout = learner.layout();
    let mut large = 0;
    let entries = layout.entries().iter();
    for entry in entries.filter(|entry| entry.group != Group::Buffer) {
        for index in entry.range() {
            let mut at = |offset: f64| {
                let mut values = start.clone();
                values[index] += offset;
                loss(&mut *learner, &values, batch, &rng, &device, &mut ignored)
            };
            let expected = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let found = f64::from(gradient[index]);
            let tolerance = ABSOLUTE + RELATIVE * expected.abs();
            assert!(
                (found - expected).abs() <= tolerance,
                "{model:?}: element {} of {}: gradient {found:e}, difference quotient {expected:e}",
                index - entry.offset,
                entry.name
            );
            large += usize::from(expected.abs() > 100.0 * tolerance);
        }
    }
    large
}

/// The mean loss at `values`, and its gradient.
fn loss(
    learner: &mut dyn Learner,
    values: &[f64],
    batch: &Batch,
    rng: &ShardRng,
    device: &Device,
    gradient: &mut [f32],
) -> f64 {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    let arena = Arena::Device(Tensor::from_data(data, device));
    let metrics = learner
        .contribute(&arena, batch, rng, gradient)
        .expect("a good batch");
    metrics.means()["loss"]
}

#[test]
fn softmax_regression_agrees_with_finite_differences() {
    let large = check(&mlp(&[], 0.0), &[6], 4);
    assert_eq!(large, 6 * 4 + 4, "every element takes part");
}

#[test]
fn mlp_agrees_with_finite_differences() {
    let large = check(&mlp(&[9, 7], 0.0), &[6], 4);
    assert!(large > 120, "most elements take part; {large} did");
}

#[test]
fn mlp_with_dropout_agrees_with_finite_differences() {
    let large = check(&mlp(&[9, 7], 0.3), &[6], 4);
    assert!(large > 80, "most elements take part; {large} did");
}

#[test]
fn cnn_agrees_with_finite_differences() {
    let large = check(&cnn(&[3, 4], 8, 0.0), &[2, 8, 8], 5);
    assert!(
        large > 200,
        "more than half take part, dead units aside; {large} did"
    );
}

#[test]
fn cnn_with_dropout_and_odd_sides_agrees_with_finite_differences() {
    let large = check(&cnn(&[6, 5], 8, 0.4), &[5, 7, 9], 3);
    assert!(large > 300, "most elements take part; {large} did");
}

/// Two blocks of two heads; the vocabulary has tokens that do not occur, and some that often do.
#[test]
fn gpt_agrees_with_finite_differences() {
    let batch = windows("gpt", 3, 5, 11);
    let large = check_with(&gpt([2, 2, 8, 5], 0.0), &batch, 11);
    assert!(large > 1000, "most elements take part; {large} did");
}

#[test]
fn gpt_with_dropout_agrees_with_finite_differences() {
    let batch = windows("gpt", 3, 5, 11);
    let large = check_with(&gpt([1, 2, 8, 5], 0.3), &batch, 11);
    assert!(large > 500, "most elements take part; {large} did");
}

#[test]
fn resnet_agrees_with_finite_differences() {
    let model = ModelSpec::Resnet { width: 1 };
    let batch = batch("resnet", 4, &[2, 8, 8], 3);
    let large = check_with(&model, &batch, 3);
    assert!(
        large > 1000,
        "a third take part, dead units and kernels over padding aside; {large} did"
    );
}
