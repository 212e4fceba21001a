//! From a job's specification to a learner: the list of the families, and the checks that only a
//! family can make.

use burn::tensor::Device as Tensors;
use muster_trainer::learner::LearnerError;
use muster_trainer::spec::{JobSpec, ModelSpec, Precision, Recompute};
use muster_trainer::{Device, Learner};

use crate::cnn::{self, Cnn};
use crate::glue::ClassifierLearner;
use crate::gpt::{self, GptLearner};
use crate::mlp::Mlp;
use crate::resnet::{self, Resnet};

/// The most parameters of a model: counts and offsets stay far from any integer's end, and an
/// absurd width is refused before memory is asked for.
const MAX_PARAMETERS: usize = 1 << 33;

/// The learner that a job asks for, on the device that its rank was given.
///
/// # Errors
/// When the model and the samples' shape do not fit each other, and the text names the key; or when
/// this build has nothing that computes on such a device.
pub fn build(spec: &JobSpec, device: Device) -> Result<Box<dyn Learner>, LearnerError> {
    build_with(
        &spec.model,
        &spec.data.shape,
        spec.data.num_classes,
        device,
        spec.train.precision,
        spec.train.recompute,
    )
}

/// [`build_with`] in f32, with nothing computed again.
///
/// # Errors
/// As [`build`].
pub fn build_model(
    model: &ModelSpec,
    sample_shape: &[u32],
    num_classes: u32,
    device: Device,
) -> Result<Box<dyn Learner>, LearnerError> {
    build_with(
        model,
        sample_shape,
        num_classes,
        device,
        Precision::F32,
        Recompute::None,
    )
}

/// [`build`] from the parts of a specification that decide the learner: the model, the shape of a
/// sample, the number of classes (or the vocabulary), the device, the precision, and what is computed again.
///
/// # Errors
/// As [`build`].
pub fn build_with(
    model: &ModelSpec,
    sample_shape: &[u32],
    num_classes: u32,
    device: Device,
    precision: Precision,
    recompute: Recompute,
) -> Result<Box<dyn Learner>, LearnerError> {
    build_on(
        model,
        sample_shape,
        num_classes,
        &tensors(device)?,
        precision,
        recompute,
    )
}

/// [`build_with`] on any device of Burn, which is plain, not an autodiff device.
///
/// # Errors
/// As [`build`].
pub fn build_on(
    model: &ModelSpec,
    sample_shape: &[u32],
    num_classes: u32,
    device: &Tensors,
    precision: Precision,
    recompute: Recompute,
) -> Result<Box<dyn Learner>, LearnerError> {
    let device = device.clone();
    let sample_shape = sizes(sample_shape, "data.shape")?;
    let classes = size(num_classes, "data.num_classes")?;
    match model {
        ModelSpec::Mlp { hidden, dropout } => {
            check_dropout(*dropout)?;
            let hidden = sizes(hidden, "model.hidden")?;
            let features = product(&sample_shape)?;
            check_size(mlp_parameters(features, &hidden, classes))?;
            let template = Mlp::template(features, &hidden, classes, &device);
            Ok(Box::new(ClassifierLearner::new(
                template,
                device,
                sample_shape,
                classes,
                *dropout,
            )))
        }
        ModelSpec::Cnn {
            channels,
            hidden,
            dropout,
        } => {
            check_dropout(*dropout)?;
            let shape = cnn::Shape {
                sample: sample_shape.as_slice().try_into().map_err(|_| {
                    LearnerError(format!(
                        "data.shape is {sample_shape:?}; the model family \"cnn\" needs \
                         [channels, height, width]"
                    ))
                })?,
                channels: sizes(channels, "model.channels")?,
                hidden: size(*hidden, "model.hidden")?,
                classes,
            };
            let flat_features = shape.flat_features().ok_or_else(too_large)?;
            if flat_features == 0 {
                return Err(LearnerError(format!(
                    "model.channels has {} entries, each with a 2x2 pooling, which leave nothing \
                     of samples of {}x{}; use fewer",
                    shape.channels.len(),
                    shape.sample[1],
                    shape.sample[2]
                )));
            }
            check_size(cnn_parameters(&shape, flat_features))?;
            let template = Cnn::template(&shape, flat_features, &device);
            Ok(Box::new(ClassifierLearner::new(
                template,
                device,
                sample_shape,
                classes,
                *dropout,
            )))
        }
        ModelSpec::Gpt {
            layers,
            heads,
            width,
            context,
            dropout,
        } => {
            check_dropout(*dropout)?;
            let shape = gpt::Shape {
                layers: size(*layers, "model.layers")?,
                heads: size(*heads, "model.heads")?,
                width: size(*width, "model.width")?,
                context: size(*context, "model.context")?,
                vocabulary: classes,
            };
            if !shape.width.is_multiple_of(shape.heads) {
                return Err(LearnerError(format!(
                    "model.heads = {heads} does not divide model.width = {width}"
                )));
            }
            if sample_shape != [shape.context] {
                return Err(LearnerError(format!(
                    "the samples have shape {sample_shape:?}; a \"gpt\" of model.context = {context} \
                     needs [{context}]"
                )));
            }
            check_size(gpt_parameters(&shape))?;
            Ok(Box::new(GptLearner::new(
                shape, *dropout, precision, recompute, device,
            )))
        }
        ModelSpec::Resnet { width } => {
            let width = size(*width, "model.width")?;
            let Ok([channels, height, side]) = <[usize; 3]>::try_from(sample_shape.as_slice())
            else {
                return Err(LearnerError(format!(
                    "data.shape is {sample_shape:?}; the model family \"resnet\" needs [channels, \
                     height, width]"
                )));
            };
            check_size(resnet_parameters(channels, width, classes))?;
            let template = Resnet::template([channels, height, side], width, classes, &device);
            Ok(Box::new(ClassifierLearner::new(
                template,
                device,
                sample_shape,
                classes,
                0.0,
            )))
        }
    }
}

/// Where tensors of a device live.
///
/// # Errors
/// For a GPU, in a build without CUDA.
pub fn tensors(device: Device) -> Result<Tensors, LearnerError> {
    match device {
        Device::Cpu => Ok(processor()),
        #[cfg(feature = "cuda")]
        Device::Cuda(index) => Ok(Tensors::cuda(index as usize)),
        #[cfg(not(feature = "cuda"))]
        gpu @ Device::Cuda(_) => Err(LearnerError(format!(
            "this build of muster cannot compute on {gpu}, since it was made without CUDA; build it \
             with `cargo build --release --features cuda`, or write workers.device = \"cpu\""
        ))),
    }
}

/// The processors of this machine.
///
/// A test build may put the jobs of processors on a device of CubeCL, so that what ranks do on a GPU
/// is tried without one: the kernels are the same, and so are the ways of vectors.
fn processor() -> Tensors {
    #[cfg(feature = "cube-cpu")]
    if std::env::var_os("MUSTER_TEST_CUBE").is_some() {
        return Tensors::cpu();
    }
    Tensors::flex()
}

fn size(value: u32, key: &str) -> Result<usize, LearnerError> {
    match usize::try_from(value) {
        Ok(size) if size > 0 => Ok(size),
        _ => Err(LearnerError(format!(
            "{key} has the size {value}; expected 1 or more"
        ))),
    }
}

fn sizes(values: &[u32], key: &str) -> Result<Vec<usize>, LearnerError> {
    values.iter().map(|&value| size(value, key)).collect()
}

fn product(sizes: &[usize]) -> Result<usize, LearnerError> {
    sizes
        .iter()
        .try_fold(1, |product: usize, &size| product.checked_mul(size))
        .ok_or_else(too_large)
}

fn check_dropout(dropout: f64) -> Result<(), LearnerError> {
    if (0.0..1.0).contains(&dropout) {
        return Ok(());
    }
    Err(LearnerError(format!(
        "model.dropout is {dropout}; expected 0 or more and less than 1"
    )))
}

fn check_size(num_parameters: Option<usize>) -> Result<(), LearnerError> {
    match num_parameters {
        Some(count) if count <= MAX_PARAMETERS => Ok(()),
        _ => Err(too_large()),
    }
}

fn too_large() -> LearnerError {
    LearnerError(format!(
        "the model has more than {MAX_PARAMETERS} parameters; make a layer of [model] smaller"
    ))
}

/// The parameters of a gpt but for its norms and biases, or `None` where the count does not fit.
fn gpt_parameters(shape: &gpt::Shape) -> Option<usize> {
    let rows = shape.vocabulary.checked_add(shape.context)?;
    let of_blocks = shape.width.checked_mul(12)?.checked_mul(shape.layers)?;
    rows.checked_add(of_blocks)?.checked_mul(shape.width)
}

/// The kernels of a resnet's first convolution and its last stage, by far the largest, and its
/// output layer; or `None` where the count does not fit.
fn resnet_parameters(channels: usize, width: usize, classes: usize) -> Option<usize> {
    let last = resnet::last_channels(width)?;
    let of_stem = channels.checked_mul(width)?.checked_mul(9)?;
    let of_stage = last.checked_mul(last)?.checked_mul(36)?;
    of_stem
        .checked_add(of_stage)?
        .checked_add(last.checked_mul(classes)?)
}

/// Weights and biases of linear layers, or `None` where the count does not fit.
fn mlp_parameters(features: usize, hidden: &[usize], classes: usize) -> Option<usize> {
    let mut inputs = features;
    let mut count = 0_usize;
    for &outputs in hidden.iter().chain(std::iter::once(&classes)) {
        count = count.checked_add(inputs.checked_add(1)?.checked_mul(outputs)?)?;
        inputs = outputs;
    }
    Some(count)
}

/// Weights and biases of a [`Cnn`], or `None` where the count does not fit.
fn cnn_parameters(shape: &cnn::Shape, flat_features: usize) -> Option<usize> {
    let mut inputs = shape.sample[0];
    let mut count = mlp_parameters(flat_features, &[shape.hidden], shape.classes)?;
    for &outputs in &shape.channels {
        let fan_in = inputs.checked_mul(9)?;
        count = count.checked_add(fan_in.checked_add(1)?.checked_mul(outputs)?)?;
        inputs = outputs;
    }
    Some(count)
}
