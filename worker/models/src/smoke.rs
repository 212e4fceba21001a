//! Whether a device computes what the families need as the host does: each operation forward and
//! backward, on numbers that everybody can make again. `muster doctor` runs it before anything else on
//! a GPU; a kernel that does not compile, or computes something else, is named here and not in the
//! middle of a training run.

mod families;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use burn::tensor::module::{batch_norm_train, conv2d, linear, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation};
use muster_trainer::rng::ParamRng;

/// What came of one operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The operation and its sizes.
    pub name: &'static str,
    /// The largest difference from the host, divided by the largest magnitude of the host's values;
    /// or why there is none.
    pub difference: Result<f64, String>,
    /// What of it is rounding.
    pub tolerance: f64,
}

impl Checked {
    /// Whether the device can be trusted with the operation.
    #[must_use]
    pub fn is_good(&self) -> bool {
        matches!(self.difference, Ok(difference) if difference <= self.tolerance)
    }
}

/// What came of a kernel that has a twin on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twin {
    /// What it computes.
    pub name: &'static str,
    /// Whether all bits are the host's, or why that cannot be told.
    pub is_same: Result<bool, String>,
    /// How long it took once it was compiled, reading the result included.
    pub time: Duration,
}

/// Whether the kernels that move a job's state on `device` give the host's bits, over `num_elements`
/// values.
#[cfg(feature = "cube")]
#[must_use]
pub fn twins(device: &Device, num_elements: usize) -> Vec<Twin> {
    let checked = guarded(|| Ok(muster_trainer::device::check::check(device, num_elements)));
    match checked {
        Ok(kernels) => kernels
            .into_iter()
            .map(|kernel| Twin {
                name: kernel.name,
                is_same: kernel.is_same,
                time: kernel.time,
            })
            .collect(),
        Err(reason) => vec![Twin {
            name: "all kernels",
            is_same: Err(reason),
            time: Duration::ZERO,
        }],
    }
}

/// As in a build with kernels; there are none in this one.
#[cfg(not(feature = "cube"))]
#[must_use]
pub fn twins(_device: &Device, _num_elements: usize) -> Vec<Twin> {
    Vec::new()
}

/// Samples and two vectors of parameters in, result out.
type Operation = fn(Tensor<4>, [Tensor<1>; 2]) -> Tensor<2>;

/// One thing that is tried.
struct Trial {
    name: &'static str,
    samples: [usize; 4],
    parameters: [usize; 2],
    tolerance: f64,
    operation: Operation,
}

/// Products and sums of hundreds of values in another order: some roundings of 6e-8 each, and GPUs'
/// own square roots and exponentials, which are good to a few units in the last place.
const F32: f64 = 2e-5;

/// Eight bits of precision, 4e-3 a rounding.
const BF16: f64 = 2e-2;

/// Tries every operation on `device`, which is plain, not an autodiff device. Takes seconds, most of
/// them for compiling kernels.
#[must_use]
pub fn smoke(device: &Device) -> Vec<Checked> {
    let host = Device::flex();
    let mut all: Vec<Checked> = trials()
        .iter()
        .map(|trial| Checked {
            name: trial.name,
            difference: compare(trial, &host, device),
            tolerance: trial.tolerance,
        })
        .collect();
    all.push(Checked {
        name: "rows of a table by number",
        difference: rows(device),
        tolerance: 0.0,
    });
    all.push(Checked {
        name: "product in bf16, 128x96x64",
        difference: bf16_product(&host, device),
        tolerance: BF16,
    });
    if *device != host {
        all.extend(families::check(device));
    }
    all
}

fn compare(trial: &Trial, host: &Device, device: &Device) -> Result<f64, String> {
    let expected = run(trial, host)?;
    let found = run(trial, device)?;
    difference(&expected, &found)
}

/// The result of an operation, and its gradients, one behind the other.
fn run(trial: &Trial, device: &Device) -> Result<Vec<f32>, String> {
    guarded(|| {
        let samples = numbers(trial.name, trial.samples.iter().product());
        let samples = Tensor::<4>::from_data(TensorData::new(samples, trial.samples), device);
        let samples = samples.autodiff().require_grad();
        let parameters = trial.parameters.map(|len| {
            let values = numbers(&format!("{} {len}", trial.name), len.max(1));
            let len = values.len();
            let tensor = Tensor::<1>::from_data(TensorData::new(values, [len]), device);
            tensor.autodiff().require_grad()
        });
        let result = (trial.operation)(samples.clone(), parameters.clone());
        let mut values = read(result.clone().inner())?;
        let weights = numbers("weights", values.len());
        let weights = Tensor::<2>::from_data(TensorData::new(weights, result.dims()), device);
        let mut gradients = (result * weights.autodiff())
            .sum_dim(1)
            .sum_dim(0)
            .backward();
        if let Some(gradient) = samples.grad_remove(&mut gradients) {
            values.extend(read(gradient)?);
        }
        for parameter in parameters {
            if let Some(gradient) = parameter.grad_remove(&mut gradients) {
                values.extend(read(gradient)?);
            }
        }
        Ok(values)
    })
}

/// A kernel that does not compile ends in a panic of Burn's, which is a finding here.
fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(text.unwrap_or_else(|| "it panicked without a word".to_owned()))
    })
}

fn read<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, String> {
    let values = tensor.try_into_vec_as::<f32>();
    values.map_err(|error| error.to_string())
}

fn numbers(name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    ParamRng::new(5, name).normal(&mut values);
    values
}

fn difference(expected: &[f32], found: &[f32]) -> Result<f64, String> {
    if expected.len() != found.len() {
        let (expected, found) = (expected.len(), found.len());
        return Err(format!("{found} values; the host has {expected}"));
    }
    let mut largest = 0.0_f64;
    let mut scale = f64::MIN_POSITIVE;
    for (at, (&expected, &found)) in expected.iter().zip(found).enumerate() {
        if !found.is_finite() {
            return Err(format!("value {at} is {found}; the host has {expected}"));
        }
        scale = scale.max(f64::from(expected).abs());
        largest = largest.max((f64::from(expected) - f64::from(found)).abs());
    }
    Ok(largest / scale)
}

fn rows(device: &Device) -> Result<f64, String> {
    guarded(|| {
        let table = numbers("table", 300 * 17);
        let numbers: Vec<i64> = (0..64).map(|i| i * 37 % 300).collect();
        let expected: Vec<f32> = numbers
            .iter()
            .flat_map(|&row| table[row as usize * 17..][..17].iter().copied())
            .collect();
        let table = Tensor::<2>::from_data(TensorData::new(table, [300, 17]), device);
        let numbers = Tensor::<1, Int>::from_data(TensorData::new(numbers, [64]), device);
        difference(&expected, &read(table.select(0, numbers))?)
    })
}

fn bf16_product(host: &Device, device: &Device) -> Result<f64, String> {
    let factors = |device: &Device| {
        let factor = |name, shape: [usize; 2]| {
            let values = numbers(name, shape[0] * shape[1]);
            Tensor::<2>::from_data(TensorData::new(values, shape), device)
        };
        [factor("left", [128, 96]), factor("right", [96, 64])]
    };
    let expected = guarded(|| {
        let [left, right] = factors(host);
        read(left.matmul(right))
    })?;
    let found = guarded(|| {
        let [left, right] = factors(device).map(|factor| factor.cast(DType::BF16));
        read(left.matmul(right).cast(DType::F32))
    })?;
    difference(&expected, &found)
}

fn flat(x: Tensor<4>) -> Tensor<2> {
    x.flatten(1, 3)
}

fn to_linear(x: Tensor<4>, [weight, bias]: [Tensor<1>; 2]) -> Tensor<2> {
    let x = flat(x);
    let [inputs, outputs] = [x.dims()[1], bias.dims()[0]];
    linear(x, weight.reshape([inputs, outputs]), Some(bias))
}

fn to_product(x: Tensor<4>, [other, _]: [Tensor<1>; 2]) -> Tensor<2> {
    let [batch, heads, rows, width] = x.dims();
    let other = other.reshape([batch, heads, rows, width]);
    flat(x.matmul(other.swap_dims(2, 3)))
}

fn to_conv(
    x: Tensor<4>,
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    [size, stride]: [usize; 2],
) -> Tensor<2> {
    let inputs = x.dims()[1];
    let outputs = weight.dims()[0] / (inputs * size * size);
    let padding = size / 2;
    let options = ConvOptions::new([stride; 2], [padding; 2], [1, 1], 1);
    let weight = weight.reshape([outputs, inputs, size, size]);
    flat(conv2d(x, weight, bias, options))
}

fn to_layer_norm(x: Tensor<4>, [scale, bias]: [Tensor<1>; 2]) -> Tensor<2> {
    let x = flat(x);
    let mean = x.clone().mean_dim(1);
    let centred = x - mean;
    let variance = centred.clone().powi_scalar(2).mean_dim(1);
    let normed = centred / (variance + 1e-5).sqrt();
    normed * scale.unsqueeze() + bias.unsqueeze()
}

fn to_attention(x: Tensor<4>, [other, _]: [Tensor<1>; 2]) -> Tensor<2> {
    let shape = x.dims();
    let scores = x.clone().matmul(other.reshape(shape).swap_dims(2, 3)) * 0.25;
    let rows = shape[2];
    let mask = Tensor::<2>::ones([rows, rows], &scores.device().inner()).triu(1) * -1e9;
    let weights = activation::softmax(scores + mask.autodiff().unsqueeze(), 3);
    flat(weights.matmul(x))
}

fn to_slices(x: Tensor<4>, [other, _]: [Tensor<1>; 2]) -> Tensor<2> {
    let [samples, ..] = x.dims();
    let x = flat(x);
    let width = x.dims()[1];
    let other = other.reshape([samples, width]);
    let halves = [
        x.clone().slice([0..samples, width / 2..width]),
        other.slice([0..samples, 0..width / 2]),
        x.slice([0..samples, 0..width / 2]),
    ];
    Tensor::cat(halves.to_vec(), 1)
}

fn trials() -> Vec<Trial> {
    let trial = |name, samples, parameters, operation| Trial {
        name,
        samples,
        parameters,
        tolerance: F32,
        operation,
    };
    vec![
        trial(
            "linear, 64x784x512",
            [64, 1, 28, 28],
            [784 * 512, 512],
            to_linear,
        ),
        trial("linear, 8x64x10", [8, 1, 8, 8], [640, 10], to_linear),
        trial(
            "batched product, 4x3x33x40",
            [4, 3, 33, 40],
            [4 * 3 * 33 * 40, 1],
            to_product,
        ),
        trial(
            "conv 3x3, 16 to 32",
            [8, 16, 14, 14],
            [32 * 16 * 9, 32],
            |x, [w, b]| to_conv(x, w, Some(b), [3, 1]),
        ),
        trial(
            "conv 3x3, 1 to 16",
            [8, 1, 8, 8],
            [16 * 9, 16],
            |x, [w, b]| to_conv(x, w, Some(b), [3, 1]),
        ),
        trial(
            "conv 3x3, stride 2, no bias",
            [4, 32, 16, 16],
            [64 * 32 * 9, 1],
            |x, [w, _]| to_conv(x, w, None, [3, 2]),
        ),
        trial(
            "conv 1x1, stride 2, no bias",
            [4, 32, 16, 16],
            [64 * 32, 1],
            |x, [w, _]| to_conv(x, w, None, [1, 2]),
        ),
        trial("max_pool 2x2", [8, 16, 14, 14], [1, 1], |x, _| {
            flat(max_pool2d(x, MaxPoolOptions::new([2, 2])))
        }),
        trial("global mean", [8, 64, 4, 4], [1, 1], |x, _| {
            flat(x.mean_dim(3).mean_dim(2))
        }),
        trial("batch norm", [8, 16, 7, 7], [16, 16], |x, [scale, bias]| {
            flat(batch_norm_train(x, scale, bias, 1e-5).output)
        }),
        trial("layer norm", [32, 1, 1, 384], [384, 384], to_layer_norm),
        trial(
            "causal attention",
            [2, 4, 32, 16],
            [2 * 4 * 32 * 16, 1],
            to_attention,
        ),
        trial("log_softmax", [32, 1, 1, 1000], [1, 1], |x, _| {
            activation::log_softmax(flat(x), 1)
        }),
        trial("relu", [8, 16, 9, 9], [1, 1], |x, _| {
            activation::relu(flat(x))
        }),
        // As the family gpt has it. Burn's own gelu is left out: no family uses it, and on CubeCL its
        // gradient is that of another approximation, 9e-4 beside the function's.
        trial("gelu by a sigmoid", [8, 16, 9, 9], [1, 1], |x, _| {
            let x = flat(x);
            let slope = (x.clone() * x.clone()) * 0.071_354_8 + 1.595_769_1;
            x.clone() * activation::sigmoid(x * slope)
        }),
        trial("tanh, exp, log1p", [8, 4, 9, 9], [1, 1], |x, _| {
            let x = flat(x);
            x.clone().tanh() + x.clone().exp() + (x.clone() * x).log1p()
        }),
        trial(
            "product with a vector",
            [8, 1, 1, 96],
            [96, 96],
            |x, [scale, bias]| flat(x) * scale.unsqueeze() + bias.unsqueeze(),
        ),
        trial("slices and cat", [6, 1, 1, 50], [300, 1], to_slices),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_agrees_with_itself_and_its_bf16_is_close() {
        for checked in smoke(&Device::flex()) {
            assert!(checked.is_good(), "{checked:?}");
        }
    }

    #[test]
    fn a_difference_a_value_that_is_no_number_and_a_panic_are_findings() {
        assert_eq!(difference(&[1.0, -4.0], &[1.5, -4.0]), Ok(0.125));
        assert!(difference(&[1.0], &[f32::NAN]).is_err());
        assert!(difference(&[1.0], &[]).is_err());
        let panics = guarded::<()>(|| panic!("no kernel"));
        assert_eq!(panics, Err("no kernel".to_owned()));
    }

    #[cfg(feature = "cube-cpu")]
    #[test]
    fn cubecls_processor_computes_as_the_host() {
        let mut all = smoke(&Device::cpu());
        all.retain(|checked| !checked.is_good());
        assert_eq!(all, []);
    }
}
