//! How the parameters follow a gradient: SGD with momentum, Adam and AdamW, with the formulas and
//! the order of operations of PyTorch's `torch.optim`.
//!
//! Every loop is elementwise over the entries of the layout, so that the bits depend on nothing
//! but the numbers. Not here: where the gradient comes from, how it is clipped ([`crate::clip`]),
//! and how the learning rate moves (`schedule`).

use muster_cluster::job::spec::{OptimizerKind, OptimizerSpec};

use crate::arena::{Entry, Group, Layout};

/// An optimizer and its state.
#[derive(Clone, Debug)]
pub struct Optimizer {
    kind: OptimizerKind,
    weight_decay: f64,
    entries: Vec<Entry>,
    len: usize,
    state: Vec<StateVector>,
}

/// One number of an optimizer's state for each element of the arena; zero over buffers.
#[derive(Clone, Debug, PartialEq)]
pub struct StateVector {
    /// PyTorch's name for it: `momentum` of `sgd` (its `momentum_buffer`), `exp_avg` and
    /// `exp_avg_sq` of `adam` and `adamw`.
    pub name: &'static str,
    /// In the order of the layout.
    pub values: Vec<f32>,
}

impl Optimizer {
    /// An optimizer that has made no step, for an arena of that layout.
    #[must_use]
    pub fn new(spec: &OptimizerSpec, layout: &Layout) -> Self {
        let names: &[&'static str] = match spec.kind {
            OptimizerKind::Sgd { momentum: 0.0 } => &[],
            OptimizerKind::Sgd { .. } => &["momentum"],
            OptimizerKind::Adam { .. } | OptimizerKind::AdamW { .. } => &["exp_avg", "exp_avg_sq"],
        };
        let zeros = |&name| StateVector {
            name,
            values: vec![0.0; layout.len()],
        };
        Self {
            kind: spec.kind,
            weight_decay: spec.weight_decay,
            entries: layout.entries().to_vec(),
            len: layout.len(),
            state: names.iter().map(zeros).collect(),
        }
    }

    /// The state, in a fixed order; empty for `sgd` without momentum.
    #[must_use]
    pub fn state(&self) -> &[StateVector] {
        &self.state
    }

    /// The state, to be replaced by a restored one of the same lengths.
    pub(crate) fn state_mut(&mut self) -> &mut [StateVector] {
        &mut self.state
    }

    /// Makes update number `t`, counted from 1: moves weights and biases along `gradient`, and
    /// sets buffers to it, since for a buffer a "gradient" is the mean of the new values.
    ///
    /// Biases and buffers do not decay.
    ///
    /// # Panics
    /// When a slice is not as long as the layout, or `t` is 0.
    pub fn step(&mut self, arena: &mut [f32], gradient: &[f32], learning_rate: f64, t: u64) {
        assert!(
            arena.len() == self.len && gradient.len() == self.len,
            "both are as long as the layout"
        );
        assert!(t > 0, "updates are counted from 1");
        for entry in &self.entries {
            let range = entry.range();
            let (parameters, gradient) = (&mut arena[range.clone()], &gradient[range.clone()]);
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
                    match &mut self.state[..] {
                        [velocity] => {
                            scalars.with_momentum(
                                parameters,
                                gradient,
                                &mut velocity.values[range],
                            );
                        }
                        _ => scalars.plain(parameters, gradient),
                    }
                }
                OptimizerKind::Adam {
                    beta1,
                    beta2,
                    epsilon,
                } => {
                    let scalars = Adam::new([beta1, beta2, epsilon], learning_rate, t);
                    let [first, second] = moments(&mut self.state, range);
                    scalars.update(parameters, gradient, first, second, decay as f32);
                }
                OptimizerKind::AdamW {
                    beta1,
                    beta2,
                    epsilon,
                } => {
                    let scalars = Adam::new([beta1, beta2, epsilon], learning_rate, t);
                    let [first, second] = moments(&mut self.state, range);
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

fn moments(state: &mut [StateVector], range: std::ops::Range<usize>) -> [&mut [f32]; 2] {
    let [first, second] = state else {
        unreachable!("adam and adamw have two state vectors")
    };
    [&mut first.values[range.clone()], &mut second.values[range]]
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
