//! What a rank holds of the step that comes next: the sums of its contributions, on the host or on the
//! device where its model computes.

use std::sync::Arc;

use muster_cluster::ids::ShardId;
use muster_cluster::tree::Run;
use muster_collective::{Accumulator, Pool, PushError, Subtree, Summand};
use muster_trainer::{DeviceError, Vector, View};

/// A vector on a device, as an accumulator adds it up.
#[derive(Debug)]
pub(crate) struct There(Vector);

impl Summand for There {
    fn num_elements(&self) -> usize {
        self.0.len()
    }

    fn sum(left: Arc<Self>, right: Arc<Self>, _pool: &Pool) -> Arc<Self> {
        Arc::new(Self(Vector::sum(left.0.clone(), right.0.clone())))
    }

    fn give_back(vector: Arc<Self>, _pool: &Pool) {
        drop(vector);
    }
}

/// The sums of a rank's contributions to a step.
#[derive(Debug)]
pub(crate) enum Held {
    Host(Accumulator),
    Device(Accumulator<There>),
}

impl Held {
    /// Starts the sums of one step; the host's vectors come from `pool` and go back to it.
    pub(crate) fn new(num_shards: u32, num_elements: usize, pool: Pool, on_device: bool) -> Self {
        if on_device {
            Held::Device(Accumulator::new(num_shards, num_elements, pool))
        } else {
            Held::Host(Accumulator::new(num_shards, num_elements, pool))
        }
    }

    /// A vector for the next contribution; on a device the contribution brings its own.
    pub(crate) fn buffer(&self) -> Vector {
        match self {
            Held::Host(sums) => Vector::Host(sums.buffer()),
            Held::Device(_) => Vector::Host(Vec::new()),
        }
    }

    /// Adds the contribution of `shard`, which is where the others are.
    pub(crate) fn push(&mut self, shard: ShardId, values: Vector) -> Result<(), Refused> {
        match (self, values) {
            (Held::Host(sums), values) => Ok(sums.push(shard, values.into_host()?)?),
            (Held::Device(sums), values) => Ok(sums.push(shard, There(values))?),
        }
    }

    /// The shards that are held, as the fewest runs, in order.
    pub(crate) fn shards(&self) -> Vec<Run> {
        match self {
            Held::Host(sums) => sums.shards(),
            Held::Device(sums) => sums.shards(),
        }
    }

    /// The sums on the host, one per node of the cover of the shards that are held.
    pub(crate) fn subtrees(&self) -> Result<Vec<Subtree>, DeviceError> {
        match self {
            Held::Host(sums) => Ok(sums.subtrees()),
            Held::Device(sums) => sums
                .subtrees()
                .into_iter()
                .map(|Subtree { run, values }| {
                    let values = Arc::new(values.0.host()?.into_owned());
                    Ok(Subtree { run, values })
                })
                .collect(),
        }
    }

    /// The sum over all shards, where it is whole and on a device.
    pub(crate) fn whole_on_device(&self, num_shards: u32) -> Option<Vector> {
        let Held::Device(sums) = self else {
            return None;
        };
        match &sums.subtrees()[..] {
            [whole] if whole.run == Run::new(0, num_shards) => Some(whole.values.0.clone()),
            _ => None,
        }
    }

    /// Where they are on a device, the sums there, one per node of the cover of the shards that are held.
    #[cfg(feature = "devices")]
    pub(crate) fn sums_on_device(&self) -> Option<Vec<(Run, Vector)>> {
        let Held::Device(sums) = self else {
            return None;
        };
        let sums = sums.subtrees().into_iter();
        Some(sums.map(|sum| (sum.run, sum.values.0.clone())).collect())
    }

    /// Forgets all shards, for the next step.
    pub(crate) fn clear(&mut self) {
        match self {
            Held::Host(sums) => sums.clear(),
            Held::Device(sums) => sums.clear(),
        }
    }
}

/// A contribution that cannot be held.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Push(#[from] PushError),
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The sum over all shards of a step.
#[derive(Clone, Debug)]
pub(crate) enum Reduced {
    /// As it came over the wire.
    Host(Arc<Vec<f32>>),
    /// Where the model computes.
    Device(Vector),
}

impl Reduced {
    pub(crate) fn len(&self) -> usize {
        match self {
            Reduced::Host(values) => values.len(),
            Reduced::Device(vector) => vector.len(),
        }
    }

    pub(crate) fn view(&self) -> View<'_> {
        match self {
            Reduced::Host(values) => View::Host(values),
            Reduced::Device(vector) => View::from(vector),
        }
    }
}
