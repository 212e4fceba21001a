//! Training steps against recorded ones of PyTorch; `testdata/record_torch_step.py` records them
//! and says what is in the file.

mod common;

use common::{cnn, learner, mlp};
use muster_trainer::rng::ShardRng;
use muster_trainer::spec::{OptimizerKind, OptimizerSpec};
use muster_trainer::{Arena, Batch, Entry, Inputs, Layout, Learner, Optimizer};
use safetensors::SafeTensors;

const RECORD: &[u8] = include_bytes!("../testdata/torch_step.safetensors");

fn recorded(record: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    let tensor = record.tensor(name).expect("in the record");
    bytemuck::pod_collect_to_vec(tensor.data())
}

/// A recorded parameter in the arena's order: PyTorch keeps a linear weight as
/// `[outputs, inputs]`, the arena as `[inputs, outputs]`.
fn recorded_entry(record: &SafeTensors<'_>, prefix: &str, entry: &Entry) -> Vec<f32> {
    let values = recorded(record, &format!("{prefix}.{}", entry.name));
    match entry.shape[..] {
        [inputs, outputs] => (0..inputs * outputs)
            .map(|i| values[(i % outputs) * inputs + i / outputs])
            .collect(),
        _ => values,
    }
}

fn recorded_arena(record: &SafeTensors<'_>, prefix: &str, layout: &Layout) -> Vec<f32> {
    let parts = layout
        .entries()
        .iter()
        .map(|entry| recorded_entry(record, prefix, entry));
    let arena = parts.collect::<Vec<_>>().concat();
    assert_eq!(arena.len(), layout.len());
    arena
}

fn recorded_batch(record: &SafeTensors<'_>) -> Batch {
    let labels = recorded(record, "labels")
        .iter()
        .map(|&label| label as u32)
        .collect();
    Batch {
        shape: vec![1, 8, 8],
        inputs: Inputs::Features(recorded(record, "samples")),
        labels,
    }
}

/// Asserts that every element is within `tolerance` of the recorded one.
fn assert_close(layout: &Layout, found: &[f32], expected: &[f32], tolerance: f32) {
    for entry in layout.entries() {
        for i in entry.range() {
            assert!(
                (found[i] - expected[i]).abs() <= tolerance,
                "element {} of {}: {} here, {} in PyTorch",
                i - entry.offset,
                entry.name,
                found[i],
                expected[i]
            );
        }
    }
}

/// Gradients of this size (up to 0.5) are sums of some hundred products in another order than
/// PyTorch's: a few units of the 24th binary digit of their largest term.
const GRADIENT_TOLERANCE: f32 = 3e-7;

fn forward_and_gradient_agree(mut learner: Box<dyn Learner>, name: &str) {
    let record = SafeTensors::deserialize(RECORD).expect("a whole file");
    let layout = learner.layout();
    let arena = Arena::Host(recorded_arena(&record, &format!("{name}.init"), &layout));
    let batch = recorded_batch(&record);
    let mut gradient = vec![f32::NAN; layout.len()];
    let metrics = learner
        .contribute(&arena, &batch, &ShardRng::new(0, 0, 0), &mut gradient)
        .expect("a good batch");
    let loss = f64::from(recorded(&record, &format!("{name}.loss"))[0]);
    // The recorded mean is an f32 near 2.3, whose neighbours are 2.4e-7 away.
    assert!((metrics.means()["loss"] - loss).abs() < 5e-7);
    let right = f64::from(recorded(&record, &format!("{name}.right"))[0]);
    assert_eq!(metrics.sums["accuracy"], right);
    let expected = recorded_arena(&record, &format!("{name}.grad"), &layout);
    assert!(
        expected.iter().any(|value| value.abs() > 0.01),
        "the record has gradients"
    );
    assert_close(&layout, &gradient, &expected, GRADIENT_TOLERANCE);
}

#[test]
fn cnn_forward_and_gradient_agree_with_pytorch() {
    forward_and_gradient_agree(learner(&cnn(&[4, 8], 16, 0.0), &[1, 8, 8], 10), "cnn");
}

#[test]
fn mlp_forward_and_gradient_agree_with_pytorch() {
    forward_and_gradient_agree(learner(&mlp(&[16], 0.0), &[1, 8, 8], 10), "mlp");
}

/// The constants of `record_torch_step.py`.
fn optimizer(kind: OptimizerKind) -> OptimizerSpec {
    let learning_rate = if matches!(kind, OptimizerKind::Sgd { .. }) {
        0.05
    } else {
        0.01
    };
    OptimizerSpec {
        kind,
        learning_rate,
        weight_decay: 0.1,
    }
}

const SGD: OptimizerKind = OptimizerKind::Sgd { momentum: 0.9 };
const ADAM: OptimizerKind = OptimizerKind::Adam {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
};
const ADAMW: OptimizerKind = OptimizerKind::AdamW {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
};

/// From PyTorch's own gradient, so that nothing but the update is compared.
fn first_update_agrees(learner: &dyn Learner, name: &str) {
    let record = SafeTensors::deserialize(RECORD).expect("a whole file");
    let layout = learner.layout();
    let mut arena = recorded_arena(&record, &format!("{name}.init"), &layout);
    let gradient = recorded_arena(&record, &format!("{name}.grad"), &layout);
    let spec = optimizer(ADAMW);
    Optimizer::new(&spec, &layout).step(&mut arena, &gradient, spec.learning_rate, 1);
    let expected = recorded_arena(&record, &format!("{name}.adamw"), &layout);
    // Parameters below 1, rounded three times to 24 binary digits.
    assert_close(&layout, &arena, &expected, 1.8e-7);
}

#[test]
fn first_update_of_adamw_agrees_with_pytorch() {
    first_update_agrees(&*learner(&cnn(&[4, 8], 16, 0.0), &[1, 8, 8], 10), "cnn");
    first_update_agrees(&*learner(&mlp(&[16], 0.0), &[1, 8, 8], 10), "mlp");
}

/// Three whole steps on one batch: forward, backward and update.
fn three_steps_agree(kind: OptimizerKind, tolerance: f32) {
    let record = SafeTensors::deserialize(RECORD).expect("a whole file");
    let mut learner = learner(&mlp(&[16], 0.0), &[1, 8, 8], 10);
    let layout = learner.layout();
    let mut arena = Arena::Host(recorded_arena(&record, "mlp.init", &layout));
    let batch = recorded_batch(&record);
    let spec = optimizer(kind);
    let mut optimizer = Optimizer::new(&spec, &layout);
    let mut gradient = vec![0.0; layout.len()];
    for t in 1..=3 {
        let rng = ShardRng::new(0, t, 0);
        learner
            .contribute(&arena, &batch, &rng, &mut gradient)
            .expect("a good batch");
        let Arena::Host(values) = &mut arena else {
            panic!("a host's arena")
        };
        optimizer.step(values, &gradient, spec.learning_rate, t);
    }
    let Arena::Host(found) = arena else {
        panic!("a host's arena")
    };
    let expected = recorded_arena(&record, &format!("mlp.{}3", kind.name()), &layout);
    assert_close(&layout, &found, &expected, tolerance);
}

#[test]
fn three_steps_of_sgd_agree_with_pytorch() {
    // Gradients within GRADIENT_TOLERANCE times a learning rate of 0.05, and three roundings.
    three_steps_agree(SGD, 2e-7);
}

#[test]
fn three_steps_of_adam_and_adamw_agree_with_pytorch() {
    // A step is 0.01 times a quotient of gradients, which for the smallest (1e-4) carries the
    // relative error of the gradient: some 1e-3 of it.
    three_steps_agree(ADAM, 1e-5);
    three_steps_agree(ADAMW, 1e-5);
}
