//! An optimizer whose state is on a device: the same updates, by one kernel over each run of shares
//! that are kept. Its twin is [`Optimizer`](super::Optimizer), whose bits it gives.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use burn::tensor::{Device, Tensor};
use muster_cluster::job::spec::{OptimizerKind, OptimizerSpec};
use muster_cluster::shares::NUM_SHARES;

use super::{Adam, Sgd, State, vectors_of};
use crate::arena::Layout;
use crate::device::{self, AdamNumbers, Groups, Scale, SgdNumbers};
use crate::finite::Facts;
use crate::shares::Cut;
use crate::vector::{DeviceError, read, write};

/// See the module.
#[derive(Debug)]
pub(crate) struct OnDevice {
    kind: OptimizerKind,
    weight_decay: f64,
    cut: Cut,
    vectors: &'static [&'static str],
    groups: Groups,
    device: Device,
    /// The shares that are kept, as runs of neighbours, in order.
    runs: Vec<Run>,
}

/// Neighbouring shares, whose elements lie in one piece.
#[derive(Debug)]
struct Run {
    shares: Range<u32>,
    /// The elements of each vector of the state.
    vectors: Vec<Tensor<1>>,
}

impl OnDevice {
    /// An optimizer that has made no step and keeps all shares.
    pub(crate) fn new(spec: &OptimizerSpec, layout: &Layout, device: &Device) -> Self {
        let vectors = vectors_of(spec.kind);
        let zeros = || Tensor::zeros([layout.len()], device);
        Self {
            kind: spec.kind,
            weight_decay: spec.weight_decay,
            cut: Cut::new(layout.len()),
            vectors,
            groups: Groups::new(layout, device),
            device: device.clone(),
            runs: vec![Run {
                shares: 0..NUM_SHARES,
                vectors: vectors.iter().map(|_| zeros()).collect(),
            }],
        }
    }

    pub(crate) fn vectors(&self) -> &'static [&'static str] {
        self.vectors
    }

    pub(crate) fn kept(&self) -> Vec<u32> {
        let shares = self.runs.iter().flat_map(|run| run.shares.clone());
        shares.collect()
    }

    /// The norm of `values / divisor`, and the first value that is no number.
    pub(crate) fn facts(&self, values: &Tensor<1>, divisor: f32) -> Result<Facts, DeviceError> {
        device::facts(values, &self.groups, divisor)
    }

    /// The elements of some neighbouring shares.
    fn elements(&self, shares: &Range<u32>) -> Range<usize> {
        self.cut.range(shares.start).start..self.cut.range(shares.end - 1).end
    }

    /// A share's part of each vector, one behind the other; `None` where it is not kept.
    pub(crate) fn share(&self, share: u32) -> Result<Option<Vec<f32>>, DeviceError> {
        let Some(run) = self.runs.iter().find(|run| run.shares.contains(&share)) else {
            return Ok(None);
        };
        let start = self.elements(&run.shares).start;
        let range = self.cut.range(share);
        let range = range.start - start..range.end - start;
        let mut values = Vec::with_capacity(range.len() * run.vectors.len());
        for vector in &run.vectors {
            if !range.is_empty() {
                values.extend(read(&vector.clone().slice(range.clone()))?);
            }
        }
        Ok(Some(values))
    }

    /// The state, as far as it is kept, on the host.
    pub(crate) fn state(&self) -> Result<State, DeviceError> {
        let mut shares = BTreeMap::new();
        for share in self.kept() {
            shares.insert(share, self.share(share)?.unwrap_or_default());
        }
        Ok(State {
            vectors: self.vectors,
            shares,
        })
    }

    /// Gives up the shares that are not `kept`.
    pub(crate) fn keep(&mut self, kept: &BTreeSet<u32>) {
        let mut shares = self.apart();
        shares.retain(|share, _| kept.contains(share));
        self.together(shares);
    }

    /// Takes shares over; `false`, and none, where one is not as long as it has to be.
    pub(crate) fn take(&mut self, values: Vec<(u32, Vec<f32>)>) -> bool {
        let fits = values.iter().all(|(share, values)| {
            let expected = self.vectors.len() * self.cut.range(*share).len();
            *share < NUM_SHARES && values.len() == expected
        });
        if fits {
            let mut shares = self.apart();
            for (share, values) in values {
                let len = self.cut.range(share).len().max(1);
                let parts = values.chunks(len);
                let mut vectors: Vec<_> = parts
                    .map(|part| write(part.to_vec(), &self.device))
                    .collect();
                vectors.resize_with(self.vectors.len(), || Tensor::zeros([0], &self.device));
                shares.insert(share, vectors);
            }
            self.together(shares);
        }
        fits
    }

    /// The state, share by share.
    fn apart(&mut self) -> BTreeMap<u32, Vec<Tensor<1>>> {
        let mut shares = BTreeMap::new();
        for run in std::mem::take(&mut self.runs) {
            let start = self.elements(&run.shares).start;
            for share in run.shares {
                let range = self.cut.range(share);
                let range = range.start - start..range.end - start;
                let part = |vector: &Tensor<1>| {
                    if range.is_empty() {
                        Tensor::zeros([0], &self.device)
                    } else {
                        vector.clone().slice(range.clone())
                    }
                };
                shares.insert(share, run.vectors.iter().map(part).collect());
            }
        }
        shares
    }

    /// The reverse of [`Self::apart`].
    fn together(&mut self, shares: BTreeMap<u32, Vec<Tensor<1>>>) {
        let mut runs: Vec<(Range<u32>, Vec<Vec<Tensor<1>>>)> = Vec::new();
        for (share, vectors) in shares {
            match runs.last_mut() {
                Some((run, parts)) if run.end == share => {
                    run.end += 1;
                    parts.push(vectors);
                }
                _ => runs.push((share..share + 1, vec![vectors])),
            }
        }
        let runs = runs.into_iter().map(|(shares, parts)| Run {
            shares,
            vectors: (0..self.vectors.len())
                .map(|at| {
                    let parts = parts.iter().map(|vectors| vectors[at].clone());
                    let parts: Vec<_> = parts
                        .filter(|part| part.shape().num_elements() > 0)
                        .collect();
                    match parts.len() {
                        0 => Tensor::zeros([0], &self.device),
                        _ => Tensor::cat(parts, 0),
                    }
                })
                .collect(),
        });
        self.runs = runs.collect();
    }

    /// Makes update number `t`, counted from 1, of the elements of all shares that are kept: `sums`
    /// are the sums of `num_shards` contributions, whose mean is scaled by `factor`. Gives the new
    /// parameters.
    pub(crate) fn step(
        &mut self,
        parameters: &Tensor<1>,
        sums: &Tensor<1>,
        num_shards: f32,
        factor: Option<f32>,
        learning_rate: f64,
        t: u64,
    ) -> Tensor<1> {
        let scale = Scale {
            num_shards,
            factor: factor.unwrap_or(1.0),
        };
        let len = parameters.shape().num_elements();
        let mut runs = std::mem::take(&mut self.runs);
        let mut parts = Vec::new();
        let mut next = 0;
        for run in &mut runs {
            let range = self.elements(&run.shares);
            if range.is_empty() {
                continue;
            }
            if next < range.start {
                parts.push(parameters.clone().slice(next..range.start));
            }
            next = range.end;
            let is_whole = range == (0..len);
            let of = |vector: &Tensor<1>| {
                if is_whole {
                    vector.clone()
                } else {
                    vector.clone().slice(range.clone())
                }
            };
            let groups = self.groups.part(&range);
            let (parameters, sums) = (of(parameters), of(sums));
            parts.push(self.update(run, [parameters, sums], &groups, scale, learning_rate, t));
        }
        self.runs = runs;
        if next < len {
            parts.push(parameters.clone().slice(next..len));
        }
        match parts.len() {
            1 => parts.remove(0),
            _ => Tensor::cat(parts, 0),
        }
    }

    fn update(
        &self,
        run: &mut Run,
        [parameters, sums]: [Tensor<1>; 2],
        groups: &Groups,
        scale: Scale,
        learning_rate: f64,
        t: u64,
    ) -> Tensor<1> {
        let (betas, decoupled) = match self.kind {
            OptimizerKind::Sgd { momentum } => {
                let numbers = Sgd::new(momentum, learning_rate, self.weight_decay);
                let numbers = SgdNumbers {
                    step_size: numbers.step_size,
                    weight_decay: numbers.decay,
                    momentum: numbers.momentum,
                };
                let Some(velocities) = run.vectors.first_mut() else {
                    return device::sgd(sums, groups, parameters, scale, numbers);
                };
                let old = velocities.clone();
                let [new, velocity] =
                    device::sgd_momentum(sums, groups, parameters, old, scale, numbers);
                *velocities = velocity;
                return new;
            }
            OptimizerKind::Adam {
                beta1,
                beta2,
                epsilon,
            } => ([beta1, beta2, epsilon], false),
            OptimizerKind::AdamW {
                beta1,
                beta2,
                epsilon,
            } => ([beta1, beta2, epsilon], true),
        };
        let numbers = Adam::new(betas, learning_rate, t);
        let (keep, decay) = if decoupled {
            ((1.0 - learning_rate * self.weight_decay) as f32, 0.0)
        } else {
            (1.0, self.weight_decay as f32)
        };
        let numbers = AdamNumbers {
            step_size: numbers.step_size,
            weight_keep: keep,
            weight_decay: decay,
            first_weight: numbers.first_weight,
            beta2: numbers.beta2,
            second_weight: numbers.second_weight,
            second_correction: numbers.second_correction,
            epsilon: numbers.epsilon,
        };
        let moments = [run.vectors[0].clone(), run.vectors[1].clone()];
        let [new, first, second] = device::adam(sums, groups, parameters, moments, scale, numbers);
        run.vectors = vec![first, second];
        new
    }

    /// The number of values that are kept.
    pub(crate) fn num_values(&self) -> usize {
        let shares = self.kept().into_iter();
        let elements: usize = shares.map(|share| self.cut.range(share).len()).sum();
        elements * self.vectors.len()
    }
}
