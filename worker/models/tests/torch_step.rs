//! Training steps against recorded ones of PyTorch; `testdata/record_torch_step.py` records them
//! and says what is in the file.

mod common;

use common::{cnn, learner, mlp};
use muster_trainer::rng::ShardRng;
use muster_trainer::{Arena, Batch, Entry, Layout, Learner};
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
    let parts = layout.entries().iter().map(|entry| recorded_entry(record, prefix, entry));
    let arena = parts.collect::<Vec<_>>().concat();
    assert_eq!(arena.len(), layout.len());
    arena
}

fn recorded_batch(record: &SafeTensors<'_>) -> Batch {
    let labels = recorded(record, "labels").iter().map(|&label| label as u32).collect();
    Batch { shape: vec![1, 8, 8], features: recorded(record, "samples"), labels }
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
    assert!(expected.iter().any(|value| value.abs() > 0.01), "the record has gradients");
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
