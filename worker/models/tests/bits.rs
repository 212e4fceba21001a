//! Equal bits: every Burn operation that the families use gives the same result and the same
//! gradients over 1, 2 and 4 threads, at several offsets of its parameters in the arena and after
//! other work; so do whole contributions and the canary.
//!
//! Burn's threads are those of the process, so the test starts itself again with other numbers of
//! threads and compares what the children print.

mod common;

use std::process::Command;

use burn::tensor::module::{batch_norm_train, conv2d, linear, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{Device, Tensor, TensorData, activation};
use common::{batch, cnn, gpt, hash, learner, mlp, windows};
use muster_trainer::rng::{ParamRng, ShardRng};
use muster_trainer::spec::ModelSpec;
use muster_trainer::{Arena, Batch, Learner};

/// Set for the children: they print hashes; and whether they do other work first.
const CHILD: &str = "MUSTER_TEST_BITS_CHILD";

/// Where the parameters of an operation begin in their arena, in elements.
const OFFSETS: [usize; 4] = [0, 1, 7, 1023];

/// An operation: samples and parameters (views of an arena) in, result out.
type Operation = fn(Tensor<4>, &[Tensor<1>]) -> Tensor<2>;

/// Name, shape of the samples, lengths of the parameters, the operation. Each comes in the size
/// of the digits and in one that is worth several threads.
fn operations() -> Vec<(&'static str, [usize; 4], Vec<usize>, Operation)> {
    fn flat(x: Tensor<4>) -> Tensor<2> {
        x.flatten(1, 3)
    }
    fn linear_to(x: Tensor<4>, p: &[Tensor<1>]) -> Tensor<2> {
        let [_, inputs] = flat(x.clone()).dims();
        let outputs = p[1].dims()[0];
        linear(
            flat(x),
            p[0].clone().reshape([inputs, outputs]),
            Some(p[1].clone()),
        )
    }
    fn conv(x: Tensor<4>, p: &[Tensor<1>]) -> Tensor<2> {
        let (inputs, outputs) = (x.dims()[1], p[1].dims()[0]);
        let kernels = p[0].clone().reshape([outputs, inputs, 3, 3]);
        let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
        flat(conv2d(x, kernels, Some(p[1].clone()), options))
    }
    fn strided(x: Tensor<4>, p: &[Tensor<1>]) -> Tensor<2> {
        let (inputs, outputs) = (x.dims()[1], p[1].dims()[0]);
        let kernels = p[0].clone().reshape([outputs, inputs, 3, 3]);
        let options = ConvOptions::new([2, 2], [1, 1], [1, 1], 1);
        flat(conv2d(x, kernels, None, options)) * p[1].clone().reshape([1, outputs]).mean_dim(1)
    }
    fn batch_norm(x: Tensor<4>, p: &[Tensor<1>]) -> Tensor<2> {
        flat(batch_norm_train(x, p[0].clone(), p[1].clone(), 1e-5).output)
    }
    fn softmax(x: Tensor<4>, _: &[Tensor<1>]) -> Tensor<2> {
        flat(activation::softmax(x, 3))
    }
    fn pool(x: Tensor<4>, _: &[Tensor<1>]) -> Tensor<2> {
        flat(max_pool2d(x, MaxPoolOptions::new([2, 2])))
    }
    fn relu(x: Tensor<4>, _: &[Tensor<1>]) -> Tensor<2> {
        activation::relu(flat(x))
    }
    fn log_softmax(x: Tensor<4>, _: &[Tensor<1>]) -> Tensor<2> {
        activation::log_softmax(flat(x), 1)
    }
    fn mask(x: Tensor<4>, p: &[Tensor<1>]) -> Tensor<2> {
        let shape = flat(x.clone()).dims();
        flat(x) * p[0].clone().reshape(shape)
    }
    fn cross_entropy(x: Tensor<4>, p: &[Tensor<1>]) -> Tensor<2> {
        let log_probabilities = activation::log_softmax(flat(x), 1);
        let targets = p[0].clone().reshape(log_probabilities.dims());
        (log_probabilities * targets).sum_dim(1).sum_dim(0)
    }
    vec![
        ("linear, digits", [8, 1, 8, 8], vec![64 * 16, 16], linear_to),
        (
            "linear, large",
            [64, 1, 28, 28],
            vec![784 * 512, 512],
            linear_to,
        ),
        ("conv2d, digits", [8, 1, 8, 8], vec![16 * 9, 16], conv),
        (
            "conv2d, digits, second",
            [8, 16, 4, 4],
            vec![32 * 16 * 9, 32],
            conv,
        ),
        (
            "conv2d, large",
            [16, 16, 28, 28],
            vec![32 * 16 * 9, 32],
            conv,
        ),
        ("strided, digits", [8, 3, 8, 8], vec![8 * 27, 8], strided),
        (
            "strided, large",
            [16, 16, 32, 32],
            vec![32 * 16 * 9, 32],
            strided,
        ),
        ("batch norm, digits", [8, 3, 8, 8], vec![3, 3], batch_norm),
        (
            "batch norm, large",
            [16, 32, 32, 32],
            vec![32, 32],
            batch_norm,
        ),
        ("softmax, digits", [2, 2, 8, 8], vec![], softmax),
        ("softmax, large", [4, 8, 128, 128], vec![], softmax),
        ("max_pool2d, digits", [8, 16, 8, 8], vec![], pool),
        ("max_pool2d, large", [32, 32, 28, 28], vec![], pool),
        ("relu, digits", [8, 16, 8, 8], vec![], relu),
        ("relu, large", [32, 32, 28, 28], vec![], relu),
        ("log_softmax, digits", [8, 1, 1, 10], vec![], log_softmax),
        ("log_softmax, large", [512, 1, 1, 1000], vec![], log_softmax),
        ("mask, digits", [8, 1, 8, 8], vec![8 * 64], mask),
        ("mask, large", [64, 16, 16, 16], vec![64 * 4096], mask),
        (
            "cross entropy, digits",
            [8, 1, 1, 10],
            vec![8 * 10],
            cross_entropy,
        ),
        (
            "cross entropy, large",
            [512, 1, 1, 1000],
            vec![512 * 1000],
            cross_entropy,
        ),
    ]
}

fn numbers(name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    ParamRng::new(5, name).normal(&mut values);
    values
}

/// The hash of an operation's result and of all its gradients, with the parameters at `offset`.
fn operation_hash(
    (name, shape, lengths, operation): &(&str, [usize; 4], Vec<usize>, Operation),
    offset: usize,
) -> String {
    let device = Device::flex();
    let mut arena = vec![0.25; offset];
    for (i, &len) in lengths.iter().enumerate() {
        arena.extend(numbers(&format!("{name} {i}"), len));
    }
    arena.extend([0.5; 3]);
    let arena_len = arena.len();
    let flat = Tensor::<1>::from_data(TensorData::new(arena, [arena_len]), &device);
    let mut start = offset;
    let parameters: Vec<Tensor<1>> = lengths
        .iter()
        .map(|&len| {
            let view = flat.clone().slice(start..start + len);
            start += len;
            view.autodiff().require_grad()
        })
        .collect();
    let samples = numbers(name, shape.iter().product());
    let samples = Tensor::<4>::from_data(TensorData::new(samples, *shape), &device)
        .autodiff()
        .require_grad();

    let result = operation(samples.clone(), &parameters);
    let mut bits = result
        .clone()
        .inner()
        .try_into_vec_as::<f32>()
        .expect("readable");
    let weights = numbers("weights", bits.len());
    let weights = Tensor::<2>::from_data(TensorData::new(weights, result.dims()), &device);
    let mut gradients = (result * weights).sum_dim(1).sum_dim(0).backward();
    let gradient = samples
        .grad_remove(&mut gradients)
        .expect("the samples take part");
    bits.extend(gradient.try_into_vec_as::<f32>().expect("readable"));
    for parameter in parameters {
        let gradient = parameter
            .grad_remove(&mut gradients)
            .expect("parameters take part");
        bits.extend(gradient.try_into_vec_as::<f32>().expect("readable"));
    }
    hash(&bits)
}

/// The hash of a contribution and its loss.
fn contribution_hash(
    learner: &mut dyn Learner,
    samples: Samples,
    arena: &Arena,
    shard: u64,
) -> String {
    let layout = learner.layout();
    let mut out = vec![f32::NAN; layout.len()];
    let batch = samples(&format!("shard {shard}"), 8);
    let rng = ShardRng::new(1, 2, shard as u32);
    let metrics = learner
        .contribute(arena, &batch, &rng, &mut out)
        .expect("a good batch");
    format!("{} {:016x}", hash(&out), metrics.sums["loss"].to_bits())
}

/// Makes so many samples from a name.
type Samples = fn(&str, usize) -> Batch;

fn digits(name: &str, samples: usize) -> Batch {
    batch(name, samples, &[1, 8, 8], 10)
}

fn texts(name: &str, samples: usize) -> Batch {
    windows(name, samples, 64, 256)
}

fn learners() -> Vec<(&'static str, Box<dyn Learner>, Samples)> {
    let resnet = ModelSpec::Resnet { width: 8 };
    let gpt = gpt([2, 4, 64, 64], 0.25);
    vec![
        (
            "cnn",
            learner(&cnn(&[16, 32], 64, 0.25), &[1, 8, 8], 10),
            digits,
        ),
        (
            "mlp",
            learner(&mlp(&[64, 32], 0.25), &[1, 8, 8], 10),
            digits,
        ),
        ("resnet", learner(&resnet, &[1, 8, 8], 10), digits),
        ("gpt", learner(&gpt, &[64], 256), texts),
    ]
}

/// One line per thing that must have the same bits.
fn report() -> String {
    let mut lines = vec![format!("canary {}", muster_models::canary_hex())];
    for operation in operations() {
        for offset in OFFSETS {
            lines.push(format!(
                "{} at {offset}: {}",
                operation.0,
                operation_hash(&operation, offset)
            ));
        }
    }
    for (name, mut learner, samples) in learners() {
        let arena = Arena::Host(learner.init(7));
        for shard in 0..3 {
            lines.push(format!(
                "{name} {shard}: {}",
                contribution_hash(&mut *learner, samples, &arena, shard)
            ));
        }
    }
    lines.join("\n")
}

/// Work whose traces (threads, allocations, Burn's generator) must not be seen in any bit.
fn other_work() {
    let device = Device::flex();
    device.seed(99);
    let noise = Tensor::<2>::random([300, 300], burn::tensor::Distribution::Default, &device);
    let _ = noise.clone().matmul(noise).into_data();
    let mut other = learner(&cnn(&[5], 9, 0.5), &[1, 8, 8], 10);
    let arena = Arena::Host(other.init(3));
    contribution_hash(&mut *other, digits, &arena, 77);
}

fn child_report(threads: usize, other_work_first: bool) -> String {
    let program = std::env::current_exe().expect("a path");
    let output = Command::new(program)
        .args([
            "--exact",
            "child_prints_its_hashes",
            "--nocapture",
            "--test-threads=1",
        ])
        .env("RAYON_NUM_THREADS", threads.to_string())
        .env(
            CHILD,
            if other_work_first {
                "after other work"
            } else {
                "at once"
            },
        )
        .output()
        .expect("the test binary starts again");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).expect("text");
    let (_, rest) = text.split_once("BEGIN\n").expect("a report");
    rest.split_once("\nEND")
        .expect("a whole report")
        .0
        .to_owned()
}

/// The body of the children; an ordinary run of it does nothing.
#[test]
fn child_prints_its_hashes() {
    let Ok(mode) = std::env::var(CHILD) else {
        return;
    };
    if mode == "after other work" {
        other_work();
    }
    println!("\nBEGIN\n{}\nEND", report());
}

#[test]
fn bits_do_not_depend_on_threads_or_earlier_work() {
    let reference = child_report(1, false);
    assert!(reference.lines().count() > 60, "{reference}");
    for (threads, other_work_first) in [(2, false), (4, false), (4, true)] {
        let found = child_report(threads, other_work_first);
        for (expected, found) in reference.lines().zip(found.lines()) {
            assert_eq!(
                expected, found,
                "{threads} threads, other work first: {other_work_first}"
            );
        }
        assert_eq!(reference.lines().count(), found.lines().count());
    }
}

#[test]
fn bits_do_not_depend_on_the_arena_offset() {
    let mut seen = std::collections::BTreeSet::new();
    for operation in operations() {
        let hashes = OFFSETS.map(|offset| operation_hash(&operation, offset));
        assert!(
            hashes.iter().all(|hash| *hash == hashes[0]),
            "{}: {hashes:?}",
            operation.0
        );
        seen.insert(hashes[0].clone());
    }
    assert_eq!(
        seen.len(),
        operations().len(),
        "the hash tells operations apart"
    );
}

#[test]
fn contribution_repeats_after_other_shards_and_evaluations() {
    for (name, mut learner, samples) in learners() {
        let arena = Arena::Host(learner.init(7));
        let first = contribution_hash(&mut *learner, samples, &arena, 0);
        assert_ne!(
            first,
            contribution_hash(&mut *learner, samples, &arena, 1),
            "{name}: shards differ"
        );
        let other = Arena::Host(learner.init(8));
        assert_ne!(
            first,
            contribution_hash(&mut *learner, samples, &other, 0),
            "{name}: arenas differ"
        );
        learner
            .evaluate(&other, &samples("evaluation", 33))
            .expect("a good batch");
        other_work();
        assert_eq!(
            first,
            contribution_hash(&mut *learner, samples, &arena, 0),
            "{name}"
        );
        // A learner that was just built agrees with one that has worked.
        let (_, mut fresh, _) = learners()
            .into_iter()
            .find(|(other, _, _)| *other == name)
            .expect("built");
        assert_eq!(
            first,
            contribution_hash(&mut *fresh, samples, &arena, 0),
            "{name}"
        );
    }
}
