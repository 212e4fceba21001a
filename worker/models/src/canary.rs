//! The canary: one small, fixed computation over the operations whose bits depend on the machine,
//! as a hash. Two machines of one numerics class have the same; it says nothing about a model.
//!
//! What it holds is what was seen to differ between processors (the width of their vectors, the
//! size of the first cache) and between C libraries (`tanh`, `sin`, `cos`, `log1p`, `powf`); on
//! one machine it does not depend on the number of threads.

use burn::tensor::module::{conv2d, linear, max_pool2d};
use burn::tensor::ops::{ConvOptions, MaxPoolOptions};
use burn::tensor::{DType, Device, Tensor, TensorData, activation};

/// BLAKE3 over the bits (f32, little-endian) of every result and gradient of the computation.
/// Takes some milliseconds.
#[must_use]
pub fn canary() -> [u8; 32] {
    let mut canary = Canary {
        device: Device::flex(),
        numbers: Numbers(0x4d75_7374_6572_0001),
        hasher: blake3::Hasher::new(),
    };
    canary.products();
    canary.convolutions();
    canary.scalar_functions();
    canary.norm();
    *canary.hasher.finalize().as_bytes()
}

/// [`canary`] in hex.
#[must_use]
pub fn canary_hex() -> String {
    blake3::Hash::from(canary()).to_hex().to_string()
}

struct Canary {
    device: Device,
    numbers: Numbers,
    hasher: blake3::Hasher,
}

impl Canary {
    /// Products whose inner dimension is beyond gemm's block of 512, and a tall and a flat one.
    fn products(&mut self) {
        for [rows, inner, columns] in [[9, 1100, 37], [130, 70, 5], [3, 33, 260]] {
            let a = self.tracked([rows, inner]);
            let b = self.tracked([inner, columns]);
            let bias = self.tracked([columns]);
            let product = linear(a.clone(), b.clone(), Some(bias.clone()));
            let mut gradients = self.weighted(product).backward();
            self.absorb(a.grad_remove(&mut gradients));
            self.absorb(b.grad_remove(&mut gradients));
            self.absorb(bias.grad_remove(&mut gradients));
        }
    }

    /// A convolution of one channel and one of many (they take different paths), each pooled.
    fn convolutions(&mut self) {
        for channels in [1, 12] {
            let images = self.tracked([3, channels, 10, 10]);
            let kernels = self.tracked([20, channels, 3, 3]);
            let bias = self.tracked([20]);
            let options = ConvOptions::new([1, 1], [1, 1], [1, 1], 1);
            let maps = conv2d(images.clone(), kernels.clone(), Some(bias.clone()), options);
            let maps = max_pool2d(activation::relu(maps), MaxPoolOptions::new([2, 2]));
            let mut gradients = self.weighted(maps).backward();
            self.absorb(images.grad_remove(&mut gradients));
            self.absorb(kernels.grad_remove(&mut gradients));
            self.absorb(bias.grad_remove(&mut gradients));
        }
    }

    /// Exponentials and everything that comes from the C library.
    fn scalar_functions(&mut self) {
        let functions: [fn(Tensor<2>) -> Tensor<2>; 10] = [
            |x| activation::softmax(x, 1),
            |x| activation::log_softmax(x, 1),
            activation::gelu,
            activation::sigmoid,
            Tensor::tanh,
            Tensor::exp,
            Tensor::sin,
            Tensor::cos,
            |x| x.abs().log1p(),
            |x| x.abs().add_scalar(0.5).powf_scalar(0.37),
        ];
        for function in functions {
            let x = self.tracked([7, 43]);
            let y = function(x.clone().mul_scalar(4.0));
            let mut gradients = self.weighted(y).backward();
            self.absorb(x.grad_remove(&mut gradients));
        }
    }

    /// A layer norm, written out.
    fn norm(&mut self) {
        let x = self.tracked([6, 75]);
        let centred = x.clone() - x.clone().mean_dim(1);
        let variance = centred.clone().powf_scalar(2.0).mean_dim(1);
        let y = centred / variance.add_scalar(1e-5).sqrt();
        let mut gradients = self.weighted(y).backward();
        self.absorb(x.grad_remove(&mut gradients));
    }

    /// A leaf of fixed numbers in `[-1, 1)`, in f32 whatever the process's default type is.
    fn tracked<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        self.constant(shape).autodiff().require_grad()
    }

    fn constant<const D: usize>(&mut self, shape: [usize; D]) -> Tensor<D> {
        let values = self.numbers.take(shape.iter().product());
        Tensor::from_data(TensorData::new(values, shape), (&self.device, DType::F32))
    }

    /// Takes `results` into the hash; returns their sum, weighted with fixed numbers, so that
    /// every element has a gradient of its own.
    fn weighted<const D: usize>(&mut self, results: Tensor<D>) -> Tensor<2> {
        self.absorb(Some(results.clone().inner()));
        let len = results.shape().num_elements();
        let weights = self.constant([1, len]);
        (results.reshape([1, len]) * weights).sum_dim(1)
    }

    /// Takes a tensor's bits into the hash; every leaf of the canary has a gradient.
    fn absorb<const D: usize>(&mut self, tensor: Option<Tensor<D>>) {
        let values = tensor
            .expect("invariant: every leaf takes part in its result")
            .try_into_vec_as::<f32>()
            .expect("invariant: a tensor on the processor can be read");
        for value in values {
            self.hasher.update(&value.to_bits().to_le_bytes());
        }
    }
}

/// Numbers that are the same on every machine: the upper bits of a linear congruential generator
/// (Knuth's MMIX constants), scaled by a power of two.
struct Numbers(u64);

impl Numbers {
    fn take(&mut self, count: usize) -> Vec<f32> {
        let mut next = || {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 40) as f32 * 2.0_f32.powi(-23) - 1.0
        };
        (0..count).map(|_| next()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canary_repeats_in_one_process() {
        assert_eq!(canary(), canary());
        assert_eq!(canary_hex().len(), 64);
    }

    #[test]
    fn fixed_numbers_lie_between_minus_one_and_one_and_differ() {
        let numbers = Numbers(1).take(1000);
        assert!(numbers.iter().all(|number| (-1.0..1.0).contains(number)));
        assert!(numbers.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
