//! The parts of a block that are not attention, each with its gradient: layer norm, linear layers,
//! GELU, and the places where the precision changes.

use burn::tensor::{FloatDType, Tensor, activation};
use muster_trainer::spec::Precision;

/// PyTorch's and GPT-2's.
const NORM_EPSILON: f64 = 1e-5;

/// Where the precision changes: what goes into a product of matrices is `narrow`, what comes out of
/// one is made `wide` again. In f32 both do nothing, whatever type the arena has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Casts {
    is_bf16: bool,
}

impl Casts {
    pub(super) fn new(precision: Precision) -> Casts {
        Casts {
            is_bf16: precision == Precision::Bf16,
        }
    }

    pub(super) fn narrow<const D: usize>(self, tensor: Tensor<D>) -> Tensor<D> {
        if self.is_bf16 {
            tensor.cast(FloatDType::BF16)
        } else {
            tensor
        }
    }

    pub(super) fn wide<const D: usize>(self, tensor: Tensor<D>) -> Tensor<D> {
        if self.is_bf16 {
            tensor.cast(FloatDType::F32)
        } else {
            tensor
        }
    }
}

/// `tensor` with a mask multiplied in, where there is one.
pub(super) fn masked<const D: usize>(tensor: Tensor<D>, mask: Option<Tensor<D>>) -> Tensor<D> {
    match mask {
        Some(mask) => tensor * mask,
        None => tensor,
    }
}

/// A layer norm over the rows of a matrix (Ba et al. 2016); both parameters are `[1, width]`.
pub(super) struct Norm {
    pub(super) weight: Tensor<2>,
    pub(super) bias: Tensor<2>,
}

/// What a norm keeps for its gradient.
pub(super) struct NormKept {
    normalized: Tensor<2>,
    /// `1 / deviation` of each row, `[rows, 1]`.
    scale: Tensor<2>,
}

impl Norm {
    pub(super) fn forward(&self, rows: Tensor<2>) -> (Tensor<2>, NormKept) {
        let mean = rows.clone().mean_dim(1);
        let centred = rows - mean;
        let variance = (centred.clone() * centred.clone()).mean_dim(1);
        let scale = variance.add_scalar(NORM_EPSILON).sqrt().recip();
        let normalized = centred * scale.clone();
        let result = normalized.clone() * self.weight.clone() + self.bias.clone();
        (result, NormKept { normalized, scale })
    }

    /// The gradient of the rows, and those of weight and bias.
    pub(super) fn backward(
        &self,
        gradient: Tensor<2>,
        kept: NormKept,
    ) -> (Tensor<2>, [Tensor<1>; 2]) {
        let NormKept { normalized, scale } = kept;
        let of_weight = (gradient.clone() * normalized.clone()).sum_dim(0);
        let of_bias = gradient.clone().sum_dim(0);
        let inner = gradient * self.weight.clone();
        let mean = inner.clone().mean_dim(1);
        let projection = (inner.clone() * normalized.clone()).mean_dim(1);
        let of_rows = (inner - mean - normalized * projection) * scale;
        (of_rows, [of_weight.flatten(0, 1), of_bias.flatten(0, 1)])
    }
}

/// A linear layer: `weight` is `[inputs, outputs]` and narrow, `bias` `[1, outputs]` and wide.
pub(super) struct Linear {
    pub(super) weight: Tensor<2>,
    pub(super) bias: Tensor<2>,
    pub(super) casts: Casts,
}

impl Linear {
    /// From narrow inputs to wide outputs.
    pub(super) fn forward(&self, inputs: Tensor<2>) -> Tensor<2> {
        self.casts.wide(inputs.matmul(self.weight.clone())) + self.bias.clone()
    }

    /// The gradient of the inputs, and those of weight and bias; `inputs` are those of the forward
    /// pass.
    pub(super) fn backward(
        &self,
        gradient: Tensor<2>,
        inputs: Tensor<2>,
    ) -> (Tensor<2>, [Tensor<1>; 2]) {
        let of_bias = gradient.clone().sum_dim(0);
        let gradient = self.casts.narrow(gradient);
        let of_weight = self.casts.wide(inputs.transpose().matmul(gradient.clone()));
        let of_inputs = self
            .casts
            .wide(gradient.matmul(self.weight.clone().transpose()));
        let of_parameters = [of_weight.flatten(0, 1), of_bias.flatten(0, 1)];
        (of_inputs, of_parameters)
    }
}

/// GPT-2's GELU, the approximation by a hyperbolic tangent (Hendrycks and Gimpel 2016), written as
/// `x * sigmoid(x * (SLOPE + CURVE * x^2))`: the same function, with one exponential.
const SLOPE: f64 = 1.595_769_121_605_731;
const CURVE: f64 = SLOPE * 0.044_715;

/// What GELU keeps: its argument, and, in f32, the sigmoid, whose exponentials are slow on a
/// processor; in bf16 it is made again, as it would lose its digits.
pub(super) struct GeluKept {
    argument: Tensor<2>,
    gate: Option<Tensor<2>>,
}

fn gate(argument: Tensor<2>) -> Tensor<2> {
    let square = argument.clone() * argument.clone();
    activation::sigmoid(argument * square.mul_scalar(CURVE).add_scalar(SLOPE))
}

pub(super) fn gelu(argument: Tensor<2>, casts: Casts) -> (Tensor<2>, GeluKept) {
    // Rounded before it is used, so that the gradient is that of what was computed.
    let kept = casts.narrow(argument);
    let argument = casts.wide(kept.clone());
    let gate = gate(argument.clone());
    let result = argument * gate.clone();
    let kept = GeluKept {
        argument: kept,
        gate: (!casts.is_bf16).then_some(gate),
    };
    (result, kept)
}

/// The result again, and the gradient of the argument as a function of that of the result.
pub(super) fn gelu_again(
    kept: GeluKept,
    casts: Casts,
) -> (Tensor<2>, impl FnOnce(Tensor<2>) -> Tensor<2>) {
    let argument = casts.wide(kept.argument);
    let gate = kept.gate.unwrap_or_else(|| gate(argument.clone()));
    let result = argument.clone() * gate.clone();
    let backward = {
        let result = result.clone();
        move |gradient: Tensor<2>| {
            // g = x*s, s = sigmoid(w): g' = s + x*s*(1-s)*w', w' = SLOPE + 3*CURVE*x^2.
            let slope = (argument.clone() * argument)
                .mul_scalar(3.0 * CURVE)
                .add_scalar(SLOPE);
            let rest = gate.clone().neg().add_scalar(1.0);
            gradient * (gate + result * rest * slope)
        }
    };
    (result, backward)
}
