//! The update of a step, where the state is: on the host or on a device.

#[cfg(feature = "cube")]
use crate::optimizer::OnDevice;
use muster_cluster::job::spec::OptimizerSpec;

use super::{Error, Trainer};
use crate::arena::{Arena, Layout};
use crate::clip;
use crate::finite::{Facts, Fault, NotFinite};
use crate::notes::ShardNote;
use crate::optimizer::{Optimizer, Placed};
use crate::vector::{Vector, View};

impl Trainer {
    /// What is to be known of a sum before it is applied.
    pub(super) fn facts(&self, vector: View<'_>, divisor: f32) -> Result<Facts, Error> {
        match (vector, &self.optimizer) {
            #[cfg(feature = "cube")]
            (View::Device(vector), Placed::Device(optimizer)) => {
                Ok(optimizer.facts(vector, divisor)?)
            }
            _ => {
                let values = vector.host()?;
                Ok(Facts {
                    norm: clip::global_norm(&self.layout, &values, divisor),
                    not_finite: NotFinite::find(&values),
                })
            }
        }
    }

    /// The first value of a contribution that is no number.
    pub(super) fn not_finite(&self, vector: &Vector) -> Result<Option<NotFinite>, Error> {
        match vector {
            Vector::Host(values) => Ok(NotFinite::find(values)),
            Vector::Device(_) => Ok(self.facts(vector.into(), 1.0)?.not_finite),
        }
    }

    /// Moves parameters and optimizer.
    pub(super) fn update(
        &mut self,
        reduced: View<'_>,
        norm: f64,
        learning_rate: f64,
    ) -> Result<(), Error> {
        let num_shards = self.num_shards as f32;
        let factor = self.clip_norm.and_then(|max| clip::factor(norm, max));
        let t = self.step.next().0;
        match (&mut self.arena, &mut self.optimizer) {
            (Vector::Host(arena), Placed::Host(optimizer)) => {
                let reduced = reduced.host()?;
                let mut gradient = Vec::new();
                let kept: Vec<u32> = optimizer.state().shares.keys().copied().collect();
                for share in kept {
                    let range = self.cut.range(share);
                    gradient.clear();
                    gradient.extend(reduced[range.clone()].iter().map(|sum| sum / num_shards));
                    if let Some(factor) = factor {
                        clip::scale(&self.layout, &mut gradient, range.clone(), factor);
                    }
                    let parameters = &mut arena[range];
                    optimizer.step_share(share, parameters, &gradient, learning_rate, t);
                }
            }
            #[cfg(feature = "cube")]
            (Vector::Device(arena), Placed::Device(optimizer)) => {
                let there;
                let sums = match reduced {
                    View::Device(sums) => sums,
                    View::Host(sums) => {
                        there = crate::vector::write(sums.to_vec(), &arena.device());
                        &there
                    }
                };
                *arena = optimizer.step(arena, sums, num_shards, factor, learning_rate, t);
            }
            _ => unreachable!("arena and optimizer are put into one place"),
        }
        Ok(())
    }

    /// Why no update can be made from the sum of a step, if so. It follows from what all ranks have,
    /// and one that is given the sum of a step later: all decide alike.
    pub(super) fn fault(
        &self,
        not_finite: Option<NotFinite>,
        notes: &[ShardNote],
    ) -> Option<Fault> {
        let mut faulty = notes
            .iter()
            .filter_map(|note| Some((note.shard, note.not_finite?)));
        let Some((shard, not_finite)) = faulty.next() else {
            let what = not_finite?.describe(&self.layout);
            return Some(Fault::Sum { what });
        };
        let ids = self.order.ids(self.step.0, shard);
        Some(Fault::Contribution {
            shard,
            what: not_finite.describe(&self.layout),
            rows: ids.iter().map(|id| self.dataset.row(*id)).collect(),
            num_others: faulty.count(),
        })
    }
}

/// Puts the state of a job that has made no step where its learner computes.
pub(super) fn place(
    device: Option<burn::tensor::Device>,
    values: Vec<f32>,
    spec: &OptimizerSpec,
    layout: &Layout,
) -> Result<(Arena, Placed), Error> {
    let Some(device) = device else {
        let optimizer = Placed::Host(Optimizer::new(spec, layout));
        return Ok((Arena::Host(values), optimizer));
    };
    #[cfg(feature = "cube")]
    {
        let optimizer = Placed::Device(OnDevice::new(spec, layout, &device));
        let arena = crate::vector::write(values, &device);
        Ok((Arena::Device(arena), optimizer))
    }
    #[cfg(not(feature = "cube"))]
    Err(Error::Unfit(format!(
        "the model computes on {device:?}, and this program was built without kernels for devices; \
         build it with the feature \"cuda\""
    )))
}
