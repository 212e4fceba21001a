//! How the parameters follow a gradient: SGD with momentum, Adam and AdamW, with the formulas and
//! the order of operations of PyTorch's `torch.optim`.
//!
//! Every loop is elementwise over the entries of the layout, so that the bits depend on nothing
//! but the numbers. Not here: where the gradient comes from, how it is clipped ([`crate::clip`]),
//! and how the learning rate moves (`schedule`).

#[cfg(feature = "cube")]
mod on_device;
mod placed;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use muster_cluster::job::spec::{OptimizerKind, OptimizerSpec};
use muster_cluster::shares::{NUM_SHARES, optimizer_hash};

#[cfg(feature = "cube")]
pub(crate) use self::on_device::OnDevice;
pub(crate) use self::placed::Placed;
use crate::arena::{Group, Layout};
use crate::shares::{self, Cut};

/// An optimizer and its state.
#[derive(Clone, Debug)]
pub struct Optimizer {
    kind: OptimizerKind,
    weight_decay: f64,
    layout: Layout,
    cut: Cut,
    state: State,
}

/// The state of an optimizer, or the shares of it that a rank keeps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// PyTorch's names of its vectors, each with one number for every element of the arena, which
    /// is zero over buffers: `momentum` of `sgd` (its `momentum_buffer`), `exp_avg` and
    /// `exp_avg_sq` of `adam` and `adamw`; none of `sgd` without momentum.
    pub vectors: &'static [&'static str],
    /// By share: the elements that it has of each vector, one vector behind the other.
    pub shares: BTreeMap<u32, Vec<f32>>,
}

impl State {
    /// BLAKE3 over a share: each vector's part behind its name, and both behind their lengths.
    /// `None` where the share is not kept.
    #[must_use]
    pub fn digest(&self, share: u32) -> Option<[u8; 32]> {
        Some(digest(self.vectors, self.shares.get(&share)?))
    }

    /// BLAKE3 of the whole state, in hex; `None` where it is not all here.
    #[must_use]
    pub fn hash(&self) -> Option<String> {
        let digests: Option<Vec<_>> = shares::all().map(|share| self.digest(share)).collect();
        Some(optimizer_hash(&digests?))
    }

    /// How many values are kept.
    #[must_use]
    pub fn num_values(&self) -> usize {
        self.shares.values().map(Vec::len).sum()
    }
}

/// BLAKE3 over the values of a share, as [`State::digest`] has it.
pub(crate) fn digest(vectors: &[&str], values: &[f32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    let len = values.len() / vectors.len().max(1);
    for (name, part) in vectors.iter().zip(values.chunks(len.max(1))) {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(bytemuck::cast_slice(part));
    }
    hasher.finalize().into()
}

impl Optimizer {
    /// An optimizer that has made no step, for an arena of that layout.
    #[must_use]
    pub fn new(spec: &OptimizerSpec, layout: &Layout) -> Self {
        let vectors = vectors_of(spec.kind);
        let cut = Cut::new(layout.len());
        // Zeros take no memory before something else is written into them.
        let zeros = |share| vec![0.0; vectors.len() * cut.range(share).len()];
        Self {
            kind: spec.kind,
            weight_decay: spec.weight_decay,
            layout: layout.clone(),
            cut,
            state: State {
                vectors,
                shares: shares::all().map(|share| (share, zeros(share))).collect(),
            },
        }
    }

    /// The state, as far as it is kept.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Gives up the shares that are not `kept`.
    pub fn keep(&mut self, kept: &BTreeSet<u32>) {
        self.state.shares.retain(|share, _| kept.contains(share));
    }

    /// Takes shares over; `false`, and none, where one is not as long as it has to be.
    pub(crate) fn take_all(&mut self, values: Vec<(u32, Vec<f32>)>) -> bool {
        let fits = values.iter().all(|(share, values)| {
            let expected = self.state.vectors.len() * self.cut.range(*share).len();
            values.len() == expected && *share < NUM_SHARES
        });
        if fits {
            self.state.shares.extend(values);
        }
        fits
    }

    /// Makes update number `t` of the elements of all shares that are kept, as
    /// [`Self::step_share`] does.
    ///
    /// # Panics
    /// When a slice is not as long as the layout, or `t` is 0.
    pub fn step(&mut self, arena: &mut [f32], gradient: &[f32], learning_rate: f64, t: u64) {
        assert!(
            arena.len() == self.layout.len() && gradient.len() == self.layout.len(),
            "both are as long as the layout"
        );
        let kept: Vec<u32> = self.state.shares.keys().copied().collect();
        for share in kept {
            let range = self.cut.range(share);
            let (parameters, gradient) = (&mut arena[range.clone()], &gradient[range]);
            self.step_share(share, parameters, gradient, learning_rate, t);
        }
    }

    /// Makes update number `t`, counted from 1, of the elements of one share that is kept, whose
    /// parameters and gradients these are: moves weights and biases along the gradient, and sets
    /// buffers to it, since for a buffer a "gradient" is the mean of the new values.
    ///
    /// Biases and buffers do not decay.
    ///
    /// # Panics
    /// When the share is not kept, a slice is not as long as the share, or `t` is 0.
    pub fn step_share(
        &mut self,
        share: u32,
        parameters: &mut [f32],
        gradient: &[f32],
        learning_rate: f64,
        t: u64,
    ) {
        let range = self.cut.range(share);
        assert!(
            parameters.len() == range.len() && gradient.len() == range.len(),
            "both are as long as the share"
        );
        assert!(t > 0, "updates are counted from 1");
        let state = self.state.shares.get_mut(&share);
        let state = state.expect("a share that is updated is kept");
        for (entry, inside) in self.layout.entries_in(range.clone()) {
            let inside = inside.start - range.start..inside.end - range.start;
            let (parameters, gradient) =
                (&mut parameters[inside.clone()], &gradient[inside.clone()]);
            let decay = match entry.group {
                Group::Weight => self.weight_decay,
                Group::Bias => 0.0,
                Group::Buffer => {
                    parameters.copy_from_slice(gradient);
                    continue;
                }
            };
            match self.kind {
                OptimizerKind::Sgd { momentum } => {
                    let scalars = Sgd::new(momentum, learning_rate, decay);
                    if self.state.vectors.is_empty() {
                        scalars.plain(parameters, gradient);
                    } else {
                        scalars.with_momentum(parameters, gradient, &mut state[inside]);
                    }
                }
                OptimizerKind::Adam {
                    beta1,
                    beta2,
                    epsilon,
                } => {
                    let scalars = Adam::new([beta1, beta2, epsilon], learning_rate, t);
                    let [first, second] = moments(state, inside);
                    scalars.update(parameters, gradient, first, second, decay as f32);
                }
                OptimizerKind::AdamW {
                    beta1,
                    beta2,
                    epsilon,
                } => {
                    let scalars = Adam::new([beta1, beta2, epsilon], learning_rate, t);
                    let [first, second] = moments(state, inside);
                    if decay != 0.0 {
                        let keep = (1.0 - learning_rate * decay) as f32;
                        parameters
                            .iter_mut()
                            .for_each(|parameter| *parameter *= keep);
                    }
                    scalars.update(parameters, gradient, first, second, 0.0);
                }
            }
        }
    }
}

/// The names of the vectors of an optimizer's state.
fn vectors_of(kind: OptimizerKind) -> &'static [&'static str] {
    match kind {
        OptimizerKind::Sgd { momentum: 0.0 } => &[],
        OptimizerKind::Sgd { .. } => &["momentum"],
        OptimizerKind::Adam { .. } | OptimizerKind::AdamW { .. } => &["exp_avg", "exp_avg_sq"],
    }
}

/// The same elements of both vectors of a share of adam or adamw.
fn moments(state: &mut [f32], inside: Range<usize>) -> [&mut [f32]; 2] {
    let (first, second) = state.split_at_mut(state.len() / 2);
    [&mut first[inside.clone()], &mut second[inside]]
}

/// The finished numbers of a step of `torch.optim.SGD` (no dampening, no Nesterov).
struct Sgd {
    momentum: f32,
    step_size: f32,
    decay: f32,
}

impl Sgd {
    fn new(momentum: f64, learning_rate: f64, decay: f64) -> Self {
        Self {
            momentum: momentum as f32,
            step_size: -learning_rate as f32,
            decay: decay as f32,
        }
    }

    /// `g += decay*p; p -= lr*g`
    fn plain(&self, parameters: &mut [f32], gradient: &[f32]) {
        for (parameter, &gradient) in parameters.iter_mut().zip(gradient) {
            *parameter += self.step_size * (gradient + self.decay * *parameter);
        }
    }

    /// `g += decay*p; v = momentum*v + g; p -= lr*v`
    fn with_momentum(&self, parameters: &mut [f32], gradient: &[f32], velocity: &mut [f32]) {
        for ((parameter, &gradient), velocity) in parameters.iter_mut().zip(gradient).zip(velocity)
        {
            *velocity = self.momentum * *velocity + (gradient + self.decay * *parameter);
            *parameter += self.step_size * *velocity;
        }
    }
}

/// The finished numbers of a step of `torch.optim.Adam` or `AdamW`.
struct Adam {
    /// `1 - beta1`
    first_weight: f32,
    beta2: f32,
    /// `1 - beta2`
    second_weight: f32,
    /// `sqrt(1 - beta2^t)`
    second_correction: f32,
    epsilon: f32,
    /// `-lr / (1 - beta1^t)`
    step_size: f32,
}

impl Adam {
    /// The corrections are computed in f64 with `libm`, whose bits are the same on every machine.
    fn new([beta1, beta2, epsilon]: [f64; 3], learning_rate: f64, t: u64) -> Self {
        let t = t as f64;
        Self {
            first_weight: (1.0 - beta1) as f32,
            beta2: beta2 as f32,
            second_weight: (1.0 - beta2) as f32,
            second_correction: (1.0 - libm::pow(beta2, t)).sqrt() as f32,
            epsilon: epsilon as f32,
            step_size: (-learning_rate / (1.0 - libm::pow(beta1, t))) as f32,
        }
    }

    /// `m += (1-beta1)*(g-m); v = beta2*v + (1-beta2)*g*g;
    /// p -= lr/bias1 * m / (sqrt(v)/sqrt(bias2) + epsilon)`
    fn update(
        &self,
        parameters: &mut [f32],
        gradient: &[f32],
        first: &mut [f32],
        second: &mut [f32],
        decay: f32,
    ) {
        let elements = parameters.iter_mut().zip(gradient).zip(first).zip(second);
        for (((parameter, &gradient), first), second) in elements {
            let gradient = gradient + decay * *parameter;
            *first += self.first_weight * (gradient - *first);
            *second = self.beta2 * *second + self.second_weight * gradient * gradient;
            let scale = second.sqrt() / self.second_correction + self.epsilon;
            *parameter += self.step_size * *first / scale;
        }
    }
}

#[cfg(test)]
mod tests;
