//! A training step of `gpt` and one of `resnet` against recorded ones of PyTorch;
//! `testdata/record_torch_families.py` records them and says what is in the file.

mod common;

use common::{gpt, learner};
use muster_trainer::rng::ShardRng;
use muster_trainer::spec::ModelSpec;
use muster_trainer::{Arena, Batch, Inputs, Layout, Learner};
use safetensors::SafeTensors;

const RECORD: &[u8] = include_bytes!("../testdata/torch_families.safetensors");

fn recorded(name: &str) -> Vec<f32> {
    let record = SafeTensors::deserialize(RECORD).expect("a whole file");
    let tensor = record.tensor(name).expect("in the record");
    bytemuck::pod_collect_to_vec(tensor.data())
}

fn recorded_whole(name: &str) -> Vec<u32> {
    recorded(name).iter().map(|&value| value as u32).collect()
}

/// The recorded vector in the order of the layout.
fn recorded_arena(prefix: &str, layout: &Layout) -> Vec<f32> {
    let entries = layout.entries().iter();
    let parts = entries.map(|entry| recorded(&format!("{prefix}.{}", entry.name)));
    let arena = parts.collect::<Vec<_>>().concat();
    assert_eq!(arena.len(), layout.len());
    arena
}

/// The learner's contribution to the recorded step is the recorded one, to `tolerance`.
fn step_agrees(learner: &mut dyn Learner, batch: &Batch, name: &str, tolerance: f32) {
    let layout = learner.layout();
    let arena = Arena::Host(recorded_arena(&format!("{name}.init"), &layout));
    let mut found = vec![f32::NAN; layout.len()];
    let metrics = learner
        .contribute(&arena, batch, &ShardRng::new(0, 0, 0), &mut found)
        .expect("a good batch");
    let loss = f64::from(recorded(&format!("{name}.loss"))[0]);
    // Means below 4 in f32, whose neighbours are 2.4e-7 away, of terms with a few roundings each.
    let mean = metrics.means()["loss"];
    assert!((mean - loss).abs() < 2e-6, "{mean} here, {loss} in PyTorch");
    let right = f64::from(recorded(&format!("{name}.right"))[0]);
    assert_eq!(metrics.sums["accuracy"], right);
    let expected = recorded_arena(&format!("{name}.grad"), &layout);
    let is_large = |value: &&f32| value.abs() > 0.01;
    assert!(expected.iter().filter(is_large).count() > layout.len() / 4);
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

#[test]
fn gpt_forward_and_gradient_agree_with_pytorch() {
    let mut learner = learner(&gpt([2, 2, 8, 6], 0.0), &[6], 13);
    let batch = Batch {
        shape: vec![6],
        inputs: Inputs::Tokens(recorded_whole("gpt.tokens")),
        labels: recorded_whole("gpt.next"),
    };
    // Gradients of up to 1 are sums of tens of products in another order, through two blocks: some
    // tens of units of the 24th binary digit.
    step_agrees(&mut *learner, &batch, "gpt", 2e-6);
}

fn resnet_batch() -> Batch {
    Batch {
        shape: vec![2, 16, 16],
        inputs: Inputs::Features(recorded("resnet.samples")),
        labels: recorded_whole("resnet.labels"),
    }
}

/// Gradients, and the new running values.
#[test]
fn resnet_forward_gradient_and_running_values_agree_with_pytorch() {
    let mut learner = learner(&ModelSpec::Resnet { width: 2 }, &[2, 16, 16], 3);
    // Twenty norms by deviations of four samples scale the roundings of gradients of up to 2.
    step_agrees(&mut *learner, &resnet_batch(), "resnet", 1e-5);
}

#[test]
fn resnet_is_evaluated_with_its_running_values() {
    let mut learner = learner(&ModelSpec::Resnet { width: 2 }, &[2, 16, 16], 3);
    let layout = learner.layout();
    let mut values = recorded_arena("resnet.init", &layout);
    let new = recorded_arena("resnet.grad", &layout);
    for entry in layout.entries() {
        if entry.name.contains("running_") {
            values[entry.range()].copy_from_slice(&new[entry.range()]);
        }
    }
    let metrics = learner
        .evaluate(&Arena::Host(values), &resnet_batch())
        .expect("a good batch");
    let (mean, expected) = (metrics.means()["loss"], recorded("resnet.evaluated")[0]);
    // As for the losses of the step.
    assert!(
        (mean - f64::from(expected)).abs() < 2e-6,
        "{mean} here, {expected} in PyTorch"
    );
}
