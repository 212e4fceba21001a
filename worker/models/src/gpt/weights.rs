//! The parameters of a gpt: their names and shapes, their first values, and tensors that are views
//! of the arena.

use burn::tensor::Tensor;
use muster_trainer::rng::ParamRng;
use muster_trainer::{Group, Layout};

use super::Shape;
use super::block::Block;
use super::ops::{Casts, Linear, Norm};

/// All of them. Matrices are in the precision of products; the rest is in that of the arena.
pub(super) struct Weights {
    /// The embedding of each token, which also turns activations into logits.
    pub(super) wte: Tensor<2>,
    /// The same in the arena's precision, to be added to positions.
    pub(super) embedding: Tensor<2>,
    /// The embedding of each position.
    pub(super) wpe: Tensor<2>,
    pub(super) blocks: Vec<Block>,
    pub(super) ln_f: Norm,
}

/// The layout of a model of that shape: the names of GPT-2's published parameters, but for the
/// blocks, which are counted from 1 here as every list is: `wte.weight`, `wpe.weight`,
/// `h1.ln_1.weight`, `h1.ln_1.bias`, `h1.attn.c_attn.weight` `[width, 3*width]`, ..., `ln_f.bias`.
pub(super) fn layout(shape: &Shape) -> Layout {
    let width = shape.width;
    let mut layout = Layout::default();
    layout.push("wte.weight", [shape.vocabulary, width], Group::Weight);
    layout.push("wpe.weight", [shape.context, width], Group::Weight);
    let norm = |layout: &mut Layout, name: &str| {
        layout.push(format!("{name}.weight"), [width], Group::Bias);
        layout.push(format!("{name}.bias"), [width], Group::Bias);
    };
    let linear = |layout: &mut Layout, name: &str, inputs: usize, outputs: usize| {
        layout.push(format!("{name}.weight"), [inputs, outputs], Group::Weight);
        layout.push(format!("{name}.bias"), [outputs], Group::Bias);
    };
    for number in 1..=shape.layers {
        norm(&mut layout, &format!("h{number}.ln_1"));
        linear(
            &mut layout,
            &format!("h{number}.attn.c_attn"),
            width,
            3 * width,
        );
        linear(&mut layout, &format!("h{number}.attn.c_proj"), width, width);
        norm(&mut layout, &format!("h{number}.ln_2"));
        linear(
            &mut layout,
            &format!("h{number}.mlp.c_fc"),
            width,
            4 * width,
        );
        linear(
            &mut layout,
            &format!("h{number}.mlp.c_proj"),
            4 * width,
            width,
        );
    }
    norm(&mut layout, "ln_f");
    layout
}

/// GPT-2's first values: normal with a deviation of 0.02; what is added to the residual stream
/// (`c_proj`) is scaled by `1/sqrt(2*layers)`, as there are so many additions; biases are 0, and the
/// weights of norms 1.
pub(super) fn init(layout: &Layout, layers: usize, seed: u64) -> Vec<f32> {
    let mut arena = vec![0.0; layout.len()];
    // Root and quotient are correctly rounded everywhere, so no `libm` is needed.
    let residual = 0.02 / (2.0 * layers as f64).sqrt();
    for entry in layout.entries() {
        let values = &mut arena[entry.range()];
        if entry.group == Group::Weight {
            let is_residual = entry.name.ends_with("c_proj.weight");
            let deviation = if is_residual { residual } else { 0.02 } as f32;
            ParamRng::new(seed, &entry.name).normal(values);
            for value in values {
                *value *= deviation;
            }
        } else if entry.name.ends_with(".weight") {
            values.fill(1.0);
        }
    }
    arena
}

impl Weights {
    /// Views of the arena, which is as long as the layout; matrices are copied where they change
    /// their precision.
    pub(super) fn of(flat: Tensor<1>, shape: &Shape, casts: Casts) -> Weights {
        let width = shape.width;
        let mut rest = Rest { flat, offset: 0 };
        let embedding = rest.take([shape.vocabulary, width]);
        let wpe = rest.take([shape.context, width]);
        let mut blocks = Vec::with_capacity(shape.layers);
        for _ in 0..shape.layers {
            blocks.push(Block {
                ln_1: rest.norm(width),
                c_attn: rest.linear(width, 3 * width, casts),
                c_proj: rest.linear(width, width, casts),
                ln_2: rest.norm(width),
                c_fc: rest.linear(width, 4 * width, casts),
                mlp_proj: rest.linear(4 * width, width, casts),
            });
        }
        Weights {
            wte: casts.narrow(embedding.clone()),
            embedding,
            wpe,
            blocks,
            ln_f: rest.norm(width),
        }
    }
}

/// The part of the arena that was not taken yet.
struct Rest {
    flat: Tensor<1>,
    offset: usize,
}

impl Rest {
    fn take<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        let start = self.offset;
        self.offset += shape.iter().product::<usize>();
        let view = self.flat.clone().slice(start..self.offset);
        view.reshape(shape)
    }

    fn norm(&mut self, width: usize) -> Norm {
        Norm {
            weight: self.take([1, width]),
            bias: self.take([1, width]),
        }
    }

    fn linear(&mut self, inputs: usize, outputs: usize, casts: Casts) -> Linear {
        Linear {
            weight: casts.narrow(self.take([inputs, outputs])),
            bias: self.take([1, outputs]),
            casts,
        }
    }
}
