//! Parameters as views of the arena: the layout that a module implies, a module whose parameters
//! are slices of one flat tensor, and the way of the gradients back into one flat vector.
//!
//! All three walk a module in the same order, that of its fields. What the parameters mean, and
//! their first values, are not known here.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Device, Element, Gradients, Tensor, TensorData, Transaction};
use muster_trainer::learner::LearnerError;
use muster_trainer::{Arena, Group, Layout};

/// Whether operations on parameters are recorded for a backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recording {
    /// Every operation is recorded and must be followed by a backward pass.
    On,
    /// The parameters live on the plain device; nothing is recorded and nothing is kept.
    Off,
}

/// The arena as one flat tensor on `device`, a plain one, in its default float type. A host's arena
/// is copied once; a device's arena is not.
///
/// # Errors
/// When the arena is not as long as the layout, or elsewhere.
pub(crate) fn flat(
    arena: &Arena,
    layout: &Layout,
    device: &Device,
) -> Result<Tensor<1>, LearnerError> {
    let len = match arena {
        Arena::Host(values) => values.len(),
        Arena::Device(tensor) => tensor.shape().num_elements(),
    };
    if len != layout.len() {
        return Err(LearnerError(format!(
            "the arena has {len} elements; the model's layout has {}",
            layout.len()
        )));
    }
    match arena {
        Arena::Host(values) => Ok(Tensor::from_data(
            TensorData::new(values.clone(), [len]),
            device,
        )),
        Arena::Device(tensor) => {
            let tensor = tensor.clone().inner();
            let found = tensor.device();
            if found != *device {
                return Err(LearnerError(format!(
                    "the arena is on {found:?}; the model is on {:?}",
                    *device
                )));
            }
            Ok(tensor)
        }
    }
}

/// Whether a contribution's room is that of the layout.
///
/// # Errors
/// Where it is not.
pub(crate) fn check_room(out: &[f32], layout: &Layout) -> Result<(), LearnerError> {
    if out.len() == layout.len() {
        return Ok(());
    }
    Err(LearnerError(format!(
        "the contribution has room for {} elements; the model's layout has {}",
        out.len(),
        layout.len()
    )))
}

/// The layout of `template`'s parameters in visiting order.
///
/// Names are the paths of the fields with dots; an element of a list is written behind its list's
/// name and counted from 1: element 0 of the field `conv` gives `conv1.weight`. Matrices and
/// kernels are weights, vectors are biases; a field `running_...` is a buffer.
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
        path: Vec::new(),
    })
}

/// Writes the gradients of `module`'s parameters into `out`, in the order of the layout; zeros
/// for buffers, and where a parameter had no part in the loss. `out` has the layout's length.
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

/// The gradients of `module`'s parameters, each flat and on its device, in the order of the layout;
/// zeros for buffers, and where a parameter had no part in the loss.
pub(crate) fn parts<M: Module>(module: &M, gradients: &mut Gradients) -> Vec<Tensor<1>> {
    let mut visitor = Parts {
        gradients,
        parts: Vec::new(),
    };
    module.visit(&mut visitor);
    visitor.parts
}

/// The `N` tensors that were registered, on the host: the device is waited for once.
///
/// # Errors
/// When the device could not be read.
pub(crate) fn read_at_once<const N: usize>(
    tensors: Transaction,
) -> Result<[TensorData; N], LearnerError> {
    let all = tensors.try_execute().map_err(|error| unreadable(&error))?;
    all.try_into().map_err(|all: Vec<TensorData>| {
        unreadable(&format!("it gave {} tensors instead of {N}", all.len()))
    })
}

/// The elements of a tensor that was read, row by row.
///
/// # Errors
/// When they cannot be told as an `E`.
pub(crate) fn elements<E: Element>(read: TensorData) -> Result<Vec<E>, LearnerError> {
    let elements = read.try_into_vec_as::<E>();
    elements.map_err(|error| unreadable(&error))
}

/// Writes tensors into `out` one behind another; together they have its length.
///
/// # Errors
/// When the device could not be read.
pub(crate) fn write(
    tensors: impl Iterator<Item = Tensor<1>>,
    out: &mut [f32],
) -> Result<(), LearnerError> {
    let mut rest = out;
    for tensor in tensors {
        let (here, behind) = rest.split_at_mut(tensor.shape().num_elements());
        rest = behind;
        copy(tensor, here)?;
    }
    Ok(())
}

fn copy<const D: usize>(tensor: Tensor<D>, out: &mut [f32]) -> Result<(), LearnerError> {
    let data = tensor
        .try_into_data_as::<f32>()
        .map_err(|error| unreadable(&error))?;
    let values = data.as_slice::<f32>().map_err(|error| unreadable(&error))?;
    out.copy_from_slice(values);
    Ok(())
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
        let group = match self.path.last() {
            Some(Part::Field(field)) if is_buffer(field) => Group::Buffer,
            _ if D >= 2 => Group::Weight,
            _ => Group::Bias,
        };
        self.layout.push(name, param.lazy_shape().to_vec(), group);
    }
}

/// Whether a field of that name is a buffer: no gradient reaches it.
fn is_buffer(field: &str) -> bool {
    field.starts_with("running_")
}

struct Load<'a> {
    flat: &'a Tensor<1>,
    recording: Recording,
    offset: usize,
    /// The names of the fields on the way to the parameter.
    path: Vec<String>,
}

impl ModuleMapper for Load<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let end = self.offset + shape.num_elements();
        let view = self.flat.clone().slice(self.offset..end).reshape(shape);
        self.offset = end;
        let view = match self.recording {
            Recording::On if self.path.last().is_some_and(|field| is_buffer(field)) => {
                view.autodiff()
            }
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
        if let Err(error) = copy(gradient, here) {
            self.error = Some(error);
        }
    }
}

struct Parts<'a> {
    gradients: &'a mut Gradients,
    parts: Vec<Tensor<1>>,
}

impl ModuleVisitor for Parts<'_> {
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
