//! What a gpt promises as a learner: names and first values, metrics of tokens, no sight of the
//! future, bf16 near f32, and errors instead of panics for batches that do not fit.

mod common;

use common::{gpt, hash, learner, windows};
use muster_trainer::rng::ShardRng;
use muster_trainer::spec::{ModelSpec, Precision, Recompute};
use muster_trainer::{Arena, Batch, Group, Inputs, Learner, Metrics};

const VOCABULARY: u32 = 31;

fn small(dropout: f64) -> Box<dyn Learner> {
    learner(&gpt([2, 2, 16, 12], dropout), &[12], VOCABULARY)
}

fn built(model: &ModelSpec, precision: Precision, recompute: Recompute) -> Box<dyn Learner> {
    let device = muster_trainer::Device::Cpu;
    muster_models::build_with(model, &[12], VOCABULARY, device, precision, recompute)
        .expect("a good model")
}

fn contribution(learner: &mut dyn Learner, arena: &Arena, batch: &Batch) -> (Vec<f32>, Metrics) {
    let mut out = vec![f32::NAN; learner.layout().len()];
    let metrics = learner
        .contribute(arena, batch, &ShardRng::new(1, 2, 3), &mut out)
        .expect("a good batch");
    (out, metrics)
}

#[test]
fn layout_has_the_names_of_gpt2_and_its_number_of_parameters() {
    let layout = small(0.0).layout();
    let names: Vec<_> = layout.entries().iter().map(|entry| &*entry.name).collect();
    let of_block = [
        "h1.ln_1.weight",
        "h1.ln_1.bias",
        "h1.attn.c_attn.weight",
        "h1.attn.c_attn.bias",
        "h1.attn.c_proj.weight",
        "h1.attn.c_proj.bias",
        "h1.ln_2.weight",
        "h1.ln_2.bias",
        "h1.mlp.c_fc.weight",
        "h1.mlp.c_fc.bias",
        "h1.mlp.c_proj.weight",
        "h1.mlp.c_proj.bias",
    ];
    assert_eq!(names[..2], ["wte.weight", "wpe.weight"]);
    assert_eq!(names[2..14], of_block);
    assert_eq!(names[26..], ["ln_f.weight", "ln_f.bias"]);
    let decays = |name: &str| layout.entry(name).map(|entry| entry.group) == Some(Group::Weight);
    assert!(decays("wte.weight") && decays("h2.mlp.c_fc.weight"));
    assert!(!decays("h2.ln_1.weight") && !decays("h2.mlp.c_fc.bias"));
    // The published model: 124,439,808 parameters.
    let published = learner(&gpt([12, 12, 768, 1024], 0.0), &[1024], 50_257);
    assert_eq!(published.layout().len(), 124_439_808);
}

#[test]
fn first_values_are_those_of_gpt2() {
    let model = gpt([8, 2, 64, 12], 0.0);
    let learner = learner(&model, &[12], 256);
    let (layout, values) = (learner.layout(), learner.init(3));
    assert_eq!(hash(&values), hash(&learner.init(3)));
    assert_ne!(hash(&values), hash(&learner.init(4)));
    for entry in layout.entries() {
        let values = &values[entry.range()];
        let square: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
        let deviation = (square / values.len() as f64).sqrt();
        let expected = match &*entry.name {
            name if name.ends_with("bias") => 0.0,
            name if name.contains("ln_") => 1.0,
            // Two additions in each of eight blocks.
            name if name.ends_with("c_proj.weight") => 0.02 / 4.0,
            _ => 0.02,
        };
        // Of n normal draws the deviation is within 5/sqrt(2n) of its own, but once in a million;
        // the shortest has 768.
        assert!(
            (deviation - expected).abs() <= 0.13 * expected,
            "{}: {deviation}, expected {expected}",
            entry.name
        );
    }
}

#[test]
fn metrics_are_sums_over_tokens_and_evaluation_agrees_with_contribution() {
    let batch = windows("metrics", 3, 12, VOCABULARY);
    let mut learner = small(0.0);
    let arena = Arena::Host(learner.init(7));
    let (_, recorded) = contribution(&mut *learner, &arena, &batch);
    assert_eq!(recorded.num_samples, 36);
    let evaluated = learner.evaluate(&arena, &batch).expect("a good batch");
    assert_eq!(recorded, evaluated);
    // A model that knows nothing: every token is as likely as every other.
    assert!((recorded.means()["loss"] - f64::from(VOCABULARY).ln()).abs() < 0.1);
    let nothing = windows("metrics", 0, 12, VOCABULARY);
    let nothing = learner.evaluate(&arena, &nothing).expect("no windows");
    assert_eq!((nothing.num_samples, nothing.sums["loss"]), (0, 0.0));
}

/// With all parameters 0 every logit is equal: the loss is `ln(vocabulary)` a token, and of equal
/// logits the lowest token counts.
#[test]
fn equal_logits_count_for_the_lowest_token() {
    let batch = windows("ties", 4, 12, VOCABULARY);
    let mut learner = small(0.0);
    let arena = Arena::Host(vec![0.0; learner.layout().len()]);
    let metrics = learner.evaluate(&arena, &batch).expect("a good batch");
    let zeros = batch.labels.iter().filter(|&&label| label == 0).count();
    assert!(zeros > 0, "the batch has token 0");
    assert_eq!(metrics.sums["accuracy"], zeros as f64);
    // 48 losses of f32's precision, each near 3.4.
    assert!((metrics.sums["loss"] - 48.0 * f64::from(VOCABULARY).ln()).abs() < 48.0 * 5e-7);
}

#[test]
fn parameters_that_are_not_numbers_are_never_right() {
    let mut learner = small(0.0);
    let arena = Arena::Host(vec![f32::NAN; learner.layout().len()]);
    let batch = windows("nan", 2, 12, VOCABULARY);
    let metrics = learner.evaluate(&arena, &batch).expect("a good batch");
    assert_eq!(metrics.sums["accuracy"], 0.0);
    assert!(metrics.sums["loss"].is_nan());
}

/// The losses of windows that differ in one token: only positions from that one on may see it.
#[test]
fn no_position_sees_what_comes_after_it() {
    let mut learner = small(0.0);
    let arena = Arena::Host(learner.init(7));
    let batch = windows("future", 1, 12, VOCABULARY);
    let Inputs::Tokens(tokens) = &batch.inputs else {
        panic!("windows of tokens")
    };
    let mut losses = |tokens: &[u32], labels: &[u32]| {
        let batch = Batch {
            shape: vec![12],
            inputs: Inputs::Tokens(tokens.to_vec()),
            labels: labels.to_vec(),
        };
        learner.evaluate(&arena, &batch).expect("a good batch").sums["loss"]
    };
    let mut other = tokens.clone();
    other[11] = (other[11] + 1) % VOCABULARY;
    // What other labels of the first eleven positions change depends on what these positions see.
    let mut labels = batch.labels.clone();
    labels[..11]
        .iter_mut()
        .for_each(|label| *label = (*label + 5) % VOCABULARY);
    let one = losses(tokens, &batch.labels) - losses(tokens, &labels);
    let two = losses(&other, &batch.labels) - losses(&other, &labels);
    // f64 sums of twelve equal f32 terms: a few roundings of 4e-15.
    assert!((one - two).abs() < 1e-12, "{one} {two}");
    other[0] = (other[0] + 1) % VOCABULARY;
    let three = losses(&other, &batch.labels) - losses(&other, &labels);
    assert!((one - three).abs() > 1e-6, "the first token is seen by all");
}

#[test]
fn dropout_follows_the_shard_and_spares_evaluation() {
    let batch = windows("dropout", 3, 12, VOCABULARY);
    let (mut with, mut without) = (small(0.3), small(0.0));
    let arena = Arena::Host(with.init(7));
    let (dropped, _) = contribution(&mut *with, &arena, &batch);
    assert_eq!(
        hash(&dropped),
        hash(&contribution(&mut *with, &arena, &batch).0)
    );
    assert_ne!(
        hash(&dropped),
        hash(&contribution(&mut *without, &arena, &batch).0)
    );
    assert_eq!(
        with.evaluate(&arena, &batch),
        without.evaluate(&arena, &batch)
    );
}

/// More rows than one part of the logits has, and more windows than are evaluated at once: the mean
/// gradient of two halves is that of the whole.
#[test]
fn parts_of_a_batch_sum_up_to_the_whole() {
    let mut learner = learner(&gpt([1, 2, 16, 128], 0.0), &[128], VOCABULARY);
    let arena = Arena::Host(learner.init(7));
    let whole = windows("parts", 20, 128, VOCABULARY);
    let Inputs::Tokens(tokens) = &whole.inputs else {
        panic!("windows of tokens")
    };
    let half = |range: std::ops::Range<usize>| Batch {
        shape: vec![128],
        inputs: Inputs::Tokens(tokens[range.clone()].to_vec()),
        labels: whole.labels[range].to_vec(),
    };
    let (gradient, metrics) = contribution(&mut *learner, &arena, &whole);
    let (first, mut sums) = contribution(&mut *learner, &arena, &half(0..1280));
    let (second, others) = contribution(&mut *learner, &arena, &half(1280..2560));
    sums.add(&others);
    assert_eq!(metrics.num_samples, sums.num_samples);
    assert_eq!(metrics.sums["accuracy"], sums.sums["accuracy"]);
    // Rows of one shard may be multiplied in other blocks: some units of the 24th digit.
    assert!((metrics.sums["loss"] / sums.sums["loss"] - 1.0).abs() < 1e-6);
    let evaluated = learner.evaluate(&arena, &whole).expect("a good batch");
    assert_eq!(evaluated.num_samples, 2560);
    assert!((evaluated.sums["loss"] / sums.sums["loss"] - 1.0).abs() < 1e-6);
    let largest = gradient
        .iter()
        .fold(0.0_f32, |most, value| most.max(value.abs()));
    for (whole, (first, second)) in gradient.iter().zip(first.iter().zip(&second)) {
        let mean = 0.5 * (first + second);
        // Sums of 2,560 rows in two orders, each with a rounding of 6e-8 of the largest partial sum.
        assert!(
            (whole - mean).abs() < 2e-6 * largest.max(1.0),
            "{whole} {mean}"
        );
    }
}

#[test]
fn bf16_is_near_f32_and_not_equal() {
    let batch = windows("bf16", 4, 12, VOCABULARY);
    let model = gpt([2, 2, 16, 12], 0.1);
    let [mut f32s, mut bf16s] = [Precision::F32, Precision::Bf16]
        .map(|precision| built(&model, precision, Recompute::None));
    let arena = Arena::Host(f32s.init(7));
    let (exact, exact_metrics) = contribution(&mut *f32s, &arena, &batch);
    let (near, near_metrics) = contribution(&mut *bf16s, &arena, &batch);
    assert_ne!(hash(&exact), hash(&near));
    let (exact_loss, near_loss) = (exact_metrics.means()["loss"], near_metrics.means()["loss"]);
    // Logits of a size of 0.1, each with a rounding of 2^-9 of itself.
    assert!(
        (exact_loss - near_loss).abs() < 2e-3,
        "{exact_loss} {near_loss}"
    );
    let norm = |values: &mut dyn Iterator<Item = f32>| {
        values
            .map(|value| f64::from(value).powi(2))
            .sum::<f64>()
            .sqrt()
    };
    let distance = norm(&mut exact.iter().zip(&near).map(|(exact, near)| exact - near));
    let size = norm(&mut exact.iter().copied());
    // A dozen roundings of 2^-9 on the way of each, which mostly do not add up.
    assert!(distance < 0.02 * size, "{distance} of {size}");
}

#[test]
fn blocks_that_are_computed_again_give_the_same_bits() {
    let batch = windows("recompute", 4, 12, VOCABULARY);
    for precision in [Precision::F32, Precision::Bf16] {
        for dropout in [0.0, 0.3] {
            let model = gpt([3, 2, 16, 12], dropout);
            let [(kept, metrics), (again, same_metrics)] = [Recompute::None, Recompute::Blocks]
                .map(|recompute| {
                    let mut learner = built(&model, precision, recompute);
                    let arena = Arena::Host(learner.init(7));
                    contribution(&mut *learner, &arena, &batch)
                });
            let what = format!("{precision:?}, dropout {dropout}");
            assert_eq!(hash(&again), hash(&kept), "{what}");
            assert_eq!(same_metrics, metrics, "{what}");
        }
    }
}

#[test]
fn batches_that_do_not_fit_are_refused_by_name() {
    let mut learner = small(0.0);
    let arena = Arena::Host(learner.init(1));
    let len = learner.layout().len();
    let good = windows("bad", 2, 12, VOCABULARY);
    let mut message = |arena: &Arena, batch: &Batch, len: usize| {
        let mut out = vec![0.0; len];
        let rng = ShardRng::new(1, 2, 3);
        learner
            .contribute(arena, batch, &rng, &mut out)
            .expect_err("does not fit")
            .to_string()
    };
    let with = |change: fn(&mut Batch)| {
        let mut batch = good.clone();
        change(&mut batch);
        batch
    };
    let features = with(|batch| batch.inputs = Inputs::Features(vec![0.0; 24]));
    assert!(message(&arena, &features, len).contains("expects tokens"));
    let shape = with(|batch| batch.shape = vec![3, 4]);
    assert!(message(&arena, &shape, len).contains("shape [3, 4]; the model expects [12]"));
    let few = with(|batch| batch.labels.truncate(23));
    assert!(message(&arena, &few, len).contains("24 tokens and 23 next ones"));
    let token = with(|batch| batch.labels[5] = VOCABULARY);
    assert!(message(&arena, &token, len).contains("token 31; the model's vocabulary has 31"));
    let none = windows("bad", 0, 12, VOCABULARY);
    assert!(message(&arena, &none, len).contains("without samples"));
    assert!(message(&Arena::Host(vec![0.0; 3]), &good, len).contains("the arena has 3 elements"));
    assert!(message(&arena, &good, 3).contains("room for 3 elements"));
}

#[test]
fn models_that_cannot_be_are_refused_by_key() {
    let message = |model: ModelSpec, shape: &[u32]| {
        muster_models::build_model(&model, shape, 31, muster_trainer::Device::Cpu)
            .err()
            .expect("refused")
            .to_string()
    };
    assert!(message(gpt([2, 3, 16, 12], 0.0), &[12]).contains("model.heads = 3"));
    assert!(message(gpt([0, 2, 16, 12], 0.0), &[12]).contains("model.layers"));
    assert!(message(gpt([2, 2, 16, 12], 0.0), &[13]).contains("model.context = 12 needs [12]"));
    assert!(message(gpt([2, 2, 16, 12], 1.0), &[12]).contains("model.dropout"));
    let huge = gpt([u32::MAX, 1, u32::MAX, 12], 0.0);
    assert!(message(huge, &[12]).contains("parameters"));
    let resnet = |width| ModelSpec::Resnet { width };
    assert!(message(resnet(8), &[64]).contains("[channels, height, width]"));
    assert!(message(resnet(u32::MAX), &[3, 32, 32]).contains("parameters"));
}
