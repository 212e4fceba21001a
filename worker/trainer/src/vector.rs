//! A flat vector of f32, where it is: on the host, or on a device. Parameters, contributions and their
//! sums are such vectors; what is computed with them stays where they are.

use std::borrow::Cow;
use std::ops::Range;

use burn::tensor::{Tensor, TensorData};

/// The values of an arena, or of a vector of its length.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a process holds a few of these, and no list of them"
)]
pub enum Vector {
    /// In the memory of the host.
    Host(Vec<f32>),
    /// In the memory of a device, as one flat tensor.
    Device(Tensor<1>),
}

/// A vector that somebody else holds.
#[derive(Clone, Copy, Debug)]
pub enum View<'a> {
    /// In the memory of the host.
    Host(&'a [f32]),
    /// In the memory of a device.
    Device(&'a Tensor<1>),
}

impl<'a> View<'a> {
    /// The number of elements.
    #[must_use]
    pub fn len(self) -> usize {
        match self {
            View::Host(values) => values.len(),
            View::Device(tensor) => tensor.shape().num_elements(),
        }
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The values on the host: copied, where they are on a device.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn host(self) -> Result<Cow<'a, [f32]>, DeviceError> {
        match self {
            View::Host(values) => Ok(Cow::Borrowed(values)),
            View::Device(tensor) => Ok(Cow::Owned(read(tensor)?)),
        }
    }
}

impl<'a> From<&'a Vector> for View<'a> {
    fn from(vector: &'a Vector) -> Self {
        match vector {
            Vector::Host(values) => View::Host(values),
            Vector::Device(tensor) => View::Device(tensor),
        }
    }
}

impl<'a> From<&'a [f32]> for View<'a> {
    fn from(values: &'a [f32]) -> Self {
        View::Host(values)
    }
}

impl<'a> From<&'a Vec<f32>> for View<'a> {
    fn from(values: &'a Vec<f32>) -> Self {
        View::Host(values)
    }
}

impl From<Vec<f32>> for Vector {
    fn from(values: Vec<f32>) -> Self {
        Vector::Host(values)
    }
}

/// A device that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DeviceError(pub String);

impl DeviceError {
    pub(crate) fn unreadable(error: &dyn std::fmt::Display) -> Self {
        Self(format!("cannot read the device's memory: {error}"))
    }
}

impl Vector {
    /// The number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        View::from(self).len()
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values on the host: copied, where they are on a device.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn host(&self) -> Result<Cow<'_, [f32]>, DeviceError> {
        View::from(self).host()
    }

    /// The values on the host.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn into_host(self) -> Result<Vec<f32>, DeviceError> {
        match self {
            Vector::Host(values) => Ok(values),
            Vector::Device(tensor) => read(&tensor),
        }
    }

    /// The elements `range` on the host: copied, where they are on a device.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn part(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, DeviceError> {
        match self {
            Vector::Host(values) => Ok(Cow::Borrowed(&values[range])),
            Vector::Device(_) if range.is_empty() => Ok(Cow::Borrowed(&[])),
            Vector::Device(tensor) => Ok(Cow::Owned(read(&tensor.clone().slice(range))?)),
        }
    }

    /// Replaces all values, which stay where these are.
    ///
    /// # Panics
    /// When they are not as many.
    pub fn set(&mut self, values: Vec<f32>) {
        assert_eq!(values.len(), self.len(), "a vector keeps its length");
        match self {
            Vector::Host(own) => *own = values,
            Vector::Device(tensor) => *tensor = write(values, &tensor.device()),
        }
    }

    /// Replaces the elements from `start` on.
    ///
    /// # Panics
    /// When they are more than there are.
    pub fn set_part(&mut self, start: usize, values: &[f32]) {
        let range = start..start + values.len();
        match self {
            Vector::Host(own) => own[range].copy_from_slice(values),
            Vector::Device(_) if range.is_empty() => {}
            Vector::Device(tensor) => {
                let values = write(values.to_vec(), &tensor.device());
                *tensor = tensor.clone().slice_assign(range, values);
            }
        }
    }

    /// `left + right`, element by element.
    ///
    /// # Panics
    /// When the two are not in one place.
    #[must_use]
    pub fn sum(left: Vector, right: Vector) -> Vector {
        match (left, right) {
            (Vector::Host(mut left), Vector::Host(right)) => {
                for (left, right) in left.iter_mut().zip(right) {
                    *left += right;
                }
                Vector::Host(left)
            }
            (Vector::Device(left), Vector::Device(right)) => Vector::Device(left + right),
            _ => unreachable!("the vectors of a job are in one place"),
        }
    }

    /// BLAKE3 over the little-endian values, computed where they are.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn hash(&self) -> Result<blake3::Hash, DeviceError> {
        match self {
            Vector::Host(values) => Ok(blake3::hash(bytemuck::cast_slice(values))),
            #[cfg(feature = "cube")]
            Vector::Device(tensor) => crate::device::hash(tensor),
            #[cfg(not(feature = "cube"))]
            Vector::Device(tensor) => Ok(blake3::hash(bytemuck::cast_slice(&read(tensor)?))),
        }
    }
}

/// A tensor's values on the host.
pub(crate) fn read(tensor: &Tensor<1>) -> Result<Vec<f32>, DeviceError> {
    let values = tensor.clone().try_into_vec_as::<f32>();
    values.map_err(|error| DeviceError::unreadable(&error))
}

/// A tensor of these values.
pub(crate) fn write(values: Vec<f32>, device: &burn::tensor::Device) -> Tensor<1> {
    let len = values.len();
    Tensor::from_data(TensorData::new(values, [len]), device)
}
