//! Parameters as views of the arena: the layout that a module implies, a module whose parameters
//! are slices of one flat tensor, and the way of the gradients back into one flat vector.
//!
//! All three walk a module in the same order, that of its fields. What the parameters mean, and
//! their first values, are not known here.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor};
use muster_trainer::learner::LearnerError;
use muster_trainer::{Group, Layout};

/// Whether operations on parameters are recorded for a backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recording {
    /// Every operation is recorded and must be followed by a backward pass.
    On,
    /// The parameters live on the plain device; nothing is recorded and nothing is kept.
    Off,
}

/// The layout of `template`'s parameters in visiting order.
///
/// Names are the paths of the fields with dots; an element of a list is written behind its list's
/// name and counted from 1: element 0 of the field `conv` gives `conv1.weight`. Matrices and
/// kernels are weights, vectors are biases.
pub(crate) fn layout<M: Module>(template: &M) -> Layout {
    let mut visitor = ReadLayout::default();
    template.visit(&mut visitor);
    visitor.layout
}

/// `template` with every parameter replaced by its slice of `flat`, without a copy.
///
/// `flat` has the length of the template's layout and is on the plain device. The template's own
/// parameters are lazy and stay so: no value of theirs is ever drawn or stored.
pub(crate) fn load<M: Module>(template: &M, flat: &Tensor<1>, recording: Recording) -> M {
    template.clone().map(&mut Load {
        flat,
        recording,
        offset: 0,
    })
}

/// Writes the gradients of `module`'s parameters into `out`, in the order of the layout; zeros
/// where a parameter had no part in the loss. `out` has the layout's length.
///
/// # Errors
/// When the device could not be read.
pub(crate) fn gather<M: Module>(
    module: &M,
    gradients: &mut Gradients,
    out: &mut [f32],
) -> Result<(), LearnerError> {
    let mut visitor = Gather {
        gradients,
        rest: out,
        error: None,
    };
    module.visit(&mut visitor);
    visitor.error.map_or(Ok(()), Err)
}

/// The gradients of `module`'s parameters as one flat tensor on their device, in the order of the
/// layout; zeros where a parameter had no part in the loss.
pub(crate) fn join<M: Module>(module: &M, gradients: &mut Gradients) -> Tensor<1> {
    let mut visitor = Join {
        gradients,
        parts: Vec::new(),
    };
    module.visit(&mut visitor);
    Tensor::cat(visitor.parts, 0)
}

/// A tensor's elements on the host, row by row.
///
/// # Errors
/// When the device could not be read.
pub(crate) fn read_f64<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f64>, LearnerError> {
    tensor
        .try_into_vec_as::<f64>()
        .map_err(|error| unreadable(&error))
}

fn unreadable(error: &dyn std::fmt::Display) -> LearnerError {
    LearnerError(format!("cannot read a tensor from its device: {error}"))
}

enum Part {
    Field(String),
    /// An element of the list before it, counted from 0.
    Element(usize),
}

#[derive(Default)]
struct ReadLayout {
    /// The way to the parameter.
    path: Vec<Part>,
    layout: Layout,
}

impl ModuleVisitor for ReadLayout {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(match (container_type, name.parse()) {
            ("Vec" | "Array", Ok(index)) => Part::Element(index),
            _ => Part::Field(name.to_owned()),
        });
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self
            .path
            .iter()
            .fold(String::new(), |name, part| match part {
                Part::Element(index) => format!("{name}{}", index + 1),
                Part::Field(part) if name.is_empty() => part.clone(),
                Part::Field(part) => format!("{name}.{part}"),
            });
        let group = if D >= 2 { Group::Weight } else { Group::Bias };
        self.layout.push(name, param.lazy_shape().to_vec(), group);
    }
}

struct Load<'a> {
    flat: &'a Tensor<1>,
    recording: Recording,
    offset: usize,
}

impl ModuleMapper for Load<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let end = self.offset + shape.num_elements();
        let view = self.flat.clone().slice(self.offset..end).reshape(shape);
        self.offset = end;
        let view = match self.recording {
            Recording::On => view.autodiff().require_grad(),
            Recording::Off => view,
        };
        Param::initialized(param.id, view)
    }
}

struct Gather<'a> {
    gradients: &'a mut Gradients,
    rest: &'a mut [f32],
    error: Option<LearnerError>,
}

impl ModuleVisitor for Gather<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let (here, rest) =
            std::mem::take(&mut self.rest).split_at_mut(value.shape().num_elements());
        self.rest = rest;
        let Some(gradient) = value.grad_remove(self.gradients) else {
            here.fill(0.0);
            return;
        };
        match gradient.try_into_data_as::<f32>() {
            Ok(data) => match data.as_slice::<f32>() {
                Ok(values) => here.copy_from_slice(values),
                Err(error) => self.error = Some(unreadable(&error)),
            },
            Err(error) => self.error = Some(unreadable(&error)),
        }
    }
}

struct Join<'a> {
    gradients: &'a mut Gradients,
    parts: Vec<Tensor<1>>,
}

impl ModuleVisitor for Join<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = param.val();
        let len = value.shape().num_elements();
        let gradient = match value.grad_remove(self.gradients) {
            Some(gradient) => gradient.reshape([len]),
            None => Tensor::zeros([len], &value.device().inner()),
        };
        self.parts.push(gradient);
    }
}
