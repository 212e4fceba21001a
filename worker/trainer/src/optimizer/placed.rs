//! An optimizer where the arena is: on the host, or on a device.

use std::borrow::Cow;
use std::collections::BTreeSet;

#[cfg(feature = "cube")]
use super::OnDevice;
use super::{Optimizer, State};
use crate::vector::DeviceError;

/// See the module.
#[derive(Debug)]
pub(crate) enum Placed {
    Host(Optimizer),
    #[cfg(feature = "cube")]
    Device(OnDevice),
}

impl Placed {
    /// The one on the host, if it is there.
    #[cfg(test)]
    pub(crate) fn host(&self) -> Option<&Optimizer> {
        match self {
            Placed::Host(optimizer) => Some(optimizer),
            #[cfg(feature = "cube")]
            Placed::Device(_) => None,
        }
    }

    /// The names of the state's vectors.
    pub(crate) fn vectors(&self) -> &'static [&'static str] {
        match self {
            Placed::Host(optimizer) => optimizer.state().vectors,
            #[cfg(feature = "cube")]
            Placed::Device(optimizer) => optimizer.vectors(),
        }
    }

    /// The shares that are kept, in order.
    pub(crate) fn kept(&self) -> Vec<u32> {
        match self {
            Placed::Host(optimizer) => optimizer.state().shares.keys().copied().collect(),
            #[cfg(feature = "cube")]
            Placed::Device(optimizer) => optimizer.kept(),
        }
    }

    /// How many values are kept.
    pub(crate) fn num_values(&self) -> usize {
        match self {
            Placed::Host(optimizer) => optimizer.state().num_values(),
            #[cfg(feature = "cube")]
            Placed::Device(optimizer) => optimizer.num_values(),
        }
    }

    /// A share's values, as [`State::shares`] has them; `None` where it is not kept.
    pub(crate) fn share(&self, share: u32) -> Result<Option<Cow<'_, [f32]>>, DeviceError> {
        match self {
            Placed::Host(optimizer) => {
                let values = optimizer.state().shares.get(&share);
                Ok(values.map(|values| Cow::Borrowed(&values[..])))
            }
            #[cfg(feature = "cube")]
            Placed::Device(optimizer) => Ok(optimizer.share(share)?.map(Cow::Owned)),
        }
    }

    /// The state, as far as it is kept, on the host.
    pub(crate) fn state(&self) -> Result<Cow<'_, State>, DeviceError> {
        match self {
            Placed::Host(optimizer) => Ok(Cow::Borrowed(optimizer.state())),
            #[cfg(feature = "cube")]
            Placed::Device(optimizer) => Ok(Cow::Owned(optimizer.state()?)),
        }
    }

    /// Gives up the shares that are not `kept`.
    pub(crate) fn keep(&mut self, kept: &BTreeSet<u32>) {
        match self {
            Placed::Host(optimizer) => optimizer.keep(kept),
            #[cfg(feature = "cube")]
            Placed::Device(optimizer) => optimizer.keep(kept),
        }
    }

    /// Takes shares over; `false`, and none, where one is not as long as it has to be.
    pub(crate) fn take(&mut self, values: Vec<(u32, Vec<f32>)>) -> bool {
        match self {
            Placed::Host(optimizer) => optimizer.take_all(values),
            #[cfg(feature = "cube")]
            Placed::Device(optimizer) => optimizer.take(values),
        }
    }
}
