//! What a learner of this crate promises: names and first values, masks of our own, metrics, and
//! errors instead of panics for samples that do not fit.

mod common;

use burn::tensor::{Tensor, TensorData};
use common::{batch, cnn, hash, learner, mlp};
use muster_trainer::rng::ShardRng;
use muster_trainer::spec::ModelSpec;
use muster_trainer::{Arena, Batch, Group, Inputs, Learner};

fn contribution(
    learner: &mut dyn Learner,
    arena: &Arena,
    batch: &Batch,
    rng: &ShardRng,
) -> Vec<f32> {
    let mut out = vec![f32::NAN; learner.layout().len()];
    learner
        .contribute(arena, batch, rng, &mut out)
        .expect("a good batch");
    out
}

fn digits_cnn(dropout: f64) -> Box<dyn Learner> {
    learner(&cnn(&[4, 8], 16, dropout), &[1, 8, 8], 10)
}

#[test]
fn layout_has_the_names_and_groups_of_pytorch() {
    let layout = digits_cnn(0.0).layout();
    let found: Vec<_> = layout
        .entries()
        .iter()
        .map(|entry| (entry.name.as_str(), entry.shape.as_slice(), entry.group))
        .collect();
    let expected: [(&str, &[usize], Group); 8] = [
        ("conv1.weight", &[4, 1, 3, 3], Group::Weight),
        ("conv1.bias", &[4], Group::Bias),
        ("conv2.weight", &[8, 4, 3, 3], Group::Weight),
        ("conv2.bias", &[8], Group::Bias),
        ("fc1.weight", &[32, 16], Group::Weight),
        ("fc1.bias", &[16], Group::Bias),
        ("fc2.weight", &[16, 10], Group::Weight),
        ("fc2.bias", &[10], Group::Bias),
    ];
    assert_eq!(found, expected);
    let layout = learner(&mlp(&[5], 0.0), &[3], 2).layout();
    let names: Vec<_> = layout
        .entries()
        .iter()
        .map(|entry| entry.name.as_str())
        .collect();
    assert_eq!(names, ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]);
}

#[test]
fn first_values_follow_from_the_seed_alone() {
    let first = digits_cnn(0.0).init(7);
    assert_eq!(hash(&first), hash(&digits_cnn(0.0).init(7)));
    assert_ne!(hash(&first), hash(&digits_cnn(0.0).init(8)));
    // Burn's generator has no say, and every parameter has its own numbers.
    burn::tensor::Device::flex().seed(1);
    assert_eq!(hash(&first), hash(&digits_cnn(0.0).init(7)));
    // Keyed by name: the first convolution does not notice what comes behind it.
    let wider = learner(&cnn(&[4, 9], 30, 0.0), &[1, 8, 8], 10).init(7);
    assert_eq!(hash(&first[..40]), hash(&wider[..40]));
}

#[test]
fn first_values_fill_the_range_of_their_layer() {
    let learner = digits_cnn(0.0);
    let (layout, values) = (learner.layout(), learner.init(7));
    for (layer, fan_in) in [
        ("conv1", 9.0_f32),
        ("conv2", 36.0),
        ("fc1", 32.0),
        ("fc2", 16.0),
    ] {
        let bound = 1.0 / fan_in.sqrt();
        for part in ["weight", "bias"] {
            let entry = layout
                .entry(&format!("{layer}.{part}"))
                .expect("in the layout");
            let largest = values[entry.range()]
                .iter()
                .fold(0.0_f32, |max, value| max.max(value.abs()));
            assert!(largest <= bound, "{layer}.{part}: {largest} of {bound}");
            // Of n uniform draws the largest is under 0.3 of the bound with probability 0.3^n:
            // less than 1 % for the 4 biases of conv1.
            assert!(
                largest > 0.3 * bound,
                "{layer}.{part}: {largest} of {bound}"
            );
        }
    }
}

#[test]
fn dropout_follows_seed_step_and_shard_and_spares_evaluation() {
    let batch = batch("dropout", 8, &[1, 8, 8], 10);
    let (mut with, mut without) = (digits_cnn(0.5), digits_cnn(0.0));
    let arena = Arena::Host(with.init(7));
    let rng = ShardRng::new(1, 2, 3);
    let dropped = hash(&contribution(&mut *with, &arena, &batch, &rng));
    burn::tensor::Device::flex().seed(5);
    assert_eq!(
        dropped,
        hash(&contribution(&mut *with, &arena, &batch, &rng))
    );
    for other in [
        ShardRng::new(9, 2, 3),
        ShardRng::new(1, 9, 3),
        ShardRng::new(1, 2, 9),
    ] {
        assert_ne!(
            dropped,
            hash(&contribution(&mut *with, &arena, &batch, &other))
        );
    }
    assert_ne!(
        dropped,
        hash(&contribution(&mut *without, &arena, &batch, &rng))
    );
    assert_eq!(
        with.evaluate(&arena, &batch).expect("a good batch"),
        without.evaluate(&arena, &batch).expect("a good batch")
    );
}

#[test]
fn arena_on_the_device_gives_the_bits_of_one_on_the_host() {
    let batch = batch("arena", 8, &[1, 8, 8], 10);
    let mut learner = digits_cnn(0.5);
    let values = learner.init(7);
    let data = TensorData::new(values.clone(), [values.len()]);
    let on_device = Arena::Device(Tensor::from_data(data, &burn::tensor::Device::flex()));
    let on_host = Arena::Host(values);
    let rng = ShardRng::new(1, 2, 3);
    assert_eq!(
        hash(&contribution(&mut *learner, &on_device, &batch, &rng)),
        hash(&contribution(&mut *learner, &on_host, &batch, &rng))
    );
    assert_eq!(
        learner.evaluate(&on_device, &batch),
        learner.evaluate(&on_host, &batch)
    );
}

#[test]
fn contribution_without_dropout_reports_the_metrics_of_evaluation() {
    let batch = batch("metrics", 8, &[1, 8, 8], 10);
    let mut learner = digits_cnn(0.0);
    let arena = Arena::Host(learner.init(7));
    let mut out = vec![0.0; learner.layout().len()];
    let recorded = learner.contribute(&arena, &batch, &ShardRng::new(1, 2, 3), &mut out);
    assert_eq!(recorded, learner.evaluate(&arena, &batch));
}

/// With all parameters 0 every score is equal: the loss is `ln(classes)` a sample, and of equal
/// scores the lowest class counts.
#[test]
fn equal_scores_count_for_the_lowest_class() {
    let mut learner = learner(&mlp(&[3], 0.0), &[4], 5);
    let arena = Arena::Host(vec![0.0; learner.layout().len()]);
    let metrics = learner
        .evaluate(&arena, &batch("ties", 10, &[4], 5))
        .expect("a good batch");
    assert_eq!(metrics.num_samples, 10);
    assert_eq!(metrics.sums["accuracy"], 2.0);
    // Ten losses of f32's precision.
    assert!((metrics.sums["loss"] - 10.0 * 5.0_f64.ln()).abs() < 10.0 * 2e-7);
    let none = Batch {
        shape: vec![4],
        ..Batch::default()
    };
    let nothing = learner
        .evaluate(&arena, &none)
        .expect("an empty share of the samples");
    assert_eq!((nothing.num_samples, nothing.sums["loss"]), (0, 0.0));
}

#[test]
fn parameters_that_are_not_numbers_are_never_right() {
    let mut learner = learner(&mlp(&[3], 0.0), &[4], 5);
    let arena = Arena::Host(vec![f32::NAN; learner.layout().len()]);
    let metrics = learner
        .evaluate(&arena, &batch("nan", 10, &[4], 5))
        .expect("a good batch");
    assert_eq!(metrics.sums["accuracy"], 0.0);
    assert!(metrics.sums["loss"].is_nan());
}

#[test]
fn samples_that_do_not_fit_are_refused_by_name() {
    let mut learner = learner(&mlp(&[3], 0.0), &[4], 5);
    let arena = Arena::Host(learner.init(1));
    let len = learner.layout().len();
    let good = batch("bad", 4, &[4], 5);
    let mut message = |arena: &Arena, batch: &Batch, len: usize| {
        let mut out = vec![0.0; len];
        let rng = ShardRng::new(1, 2, 3);
        learner
            .contribute(arena, batch, &rng, &mut out)
            .expect_err("does not fit")
            .to_string()
    };
    let label = Batch {
        labels: vec![0, 5, 1, 2],
        ..good.clone()
    };
    assert!(message(&arena, &label, len).contains("sample 1 of the batch has label 5"));
    let shape = Batch {
        shape: vec![2, 2],
        ..good.clone()
    };
    assert!(message(&arena, &shape, len).contains("shape [2, 2]; the model expects [4]"));
    let short = Batch {
        inputs: Inputs::Features(vec![0.0; 15]),
        ..good.clone()
    };
    assert!(message(&arena, &short, len).contains("15 feature values for 4 samples"));
    let none = Batch {
        shape: vec![4],
        ..Batch::default()
    };
    assert!(message(&arena, &none, len).contains("without samples"));
    assert!(message(&Arena::Host(vec![0.0; 3]), &good, len).contains("the arena has 3 elements"));
    assert!(message(&arena, &good, 3).contains("room for 3 elements"));
}

#[test]
fn models_that_cannot_be_are_refused_by_key() {
    let message = |model: ModelSpec, shape: &[u32], classes: u32| {
        muster_models::build_model(&model, shape, classes, muster_trainer::Device::Cpu)
            .err()
            .expect("refused")
            .to_string()
    };
    assert!(message(cnn(&[4, 4, 4, 4], 8, 0.0), &[1, 8, 8], 10).contains("leave nothing"));
    assert!(message(cnn(&[4], 8, 0.0), &[64], 10).contains("[channels, height, width]"));
    assert!(message(cnn(&[0], 8, 0.0), &[1, 8, 8], 10).contains("model.channels"));
    assert!(message(mlp(&[8], 1.0), &[64], 10).contains("model.dropout is 1"));
    assert!(message(mlp(&[8], f64::NAN), &[64], 10).contains("model.dropout"));
    assert!(message(mlp(&[8], 0.0), &[64], 0).contains("data.num_classes"));
    assert!(message(mlp(&[u32::MAX, u32::MAX], 0.0), &[64], 10).contains("parameters"));
    assert!(message(mlp(&[8], 0.0), &[u32::MAX; 3], 10).contains("parameters"));
    let many = cnn(&[4; 100], 8, 0.0);
    assert!(message(many, &[1, 8, 8], 10).contains("leave nothing"));
}
