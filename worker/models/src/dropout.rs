//! Dropout with masks from Muster's own generator. Burn's dropout is never used: Burn has one
//! generator for the whole process, so a draw anywhere would change the masks.

use burn::tensor::{Device, Tensor, TensorData};
use muster_trainer::rng::ShardRng;

/// What happens to activations on their way through a model.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Dropout<'a> {
    /// Nothing: evaluation.
    Off,
    /// Inverted dropout (Srivastava et al. 2014): an activation is kept with probability
    /// `1 - rate` and then scaled by `1 / (1 - rate)`, else 0.
    On {
        /// The shard's random numbers.
        rng: &'a ShardRng,
        /// The probability of dropping, in `[0, 1)`.
        rate: f64,
    },
}

impl Dropout<'_> {
    /// `activations` with the mask of `site` multiplied in. A site names a place in the model;
    /// the mask's element follows the activation's place in the shard, row by row.
    pub(crate) fn apply<const D: usize>(&self, site: &str, activations: Tensor<D>) -> Tensor<D> {
        match self.mask(site, activations.dims(), &activations.device().inner()) {
            Some(mask) => activations * mask,
            None => activations,
        }
    }

    /// The mask of `site` for activations of that shape, on a plain device; none where nothing is
    /// dropped.
    pub(crate) fn mask<const D: usize>(
        &self,
        site: &str,
        shape: [usize; D],
        device: &Device,
    ) -> Option<Tensor<D>> {
        match *self {
            #[cfg(feature = "cube")]
            Dropout::On { rng, rate } if rate > 0.0 && *device != Device::flex() => {
                let keep = (1.0 - rate) as f32;
                let len = shape.iter().product();
                let mask = muster_trainer::device::mask(&rng.site(site), keep, len, device);
                Some(mask.reshape(shape))
            }
            Dropout::On { rng, rate } if rate > 0.0 => {
                let mut mask = vec![0.0; shape.iter().product()];
                rng.site(site).mask((1.0 - rate) as f32, &mut mask);
                Some(Tensor::from_data(TensorData::new(mask, shape), device))
            }
            _ => None,
        }
    }
}
