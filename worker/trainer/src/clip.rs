//! Clipping by the global norm, as PyTorch's `clip_grad_norm_` does it, in one fixed order of
//! additions: blocks of 64 Ki elements of the arena.

use crate::arena::{Group, Layout};

/// The length of a block, in elements of the arena. It decides bits.
pub const BLOCK: usize = 64 * 1024;

/// PyTorch adds this to the norm before it divides by it.
const EPSILON: f64 = 1e-6;

/// The L2 norm of a vector of the layout without its buffers: squares are summed in f64, in order
/// within each block, and then block by block.
///
/// # Panics
/// When `gradient` is not as long as the layout.
#[must_use]
pub fn global_norm(layout: &Layout, gradient: &[f32]) -> f64 {
    assert_eq!(
        gradient.len(),
        layout.len(),
        "a gradient is as long as its layout"
    );
    let mut blocks = vec![0.0_f64; gradient.len().div_ceil(BLOCK)];
    for entry in layout
        .entries()
        .iter()
        .filter(|entry| entry.group != Group::Buffer)
    {
        let mut start = entry.offset;
        while start < entry.range().end {
            let block = start / BLOCK;
            let end = entry.range().end.min((block + 1) * BLOCK);
            for &value in &gradient[start..end] {
                blocks[block] += f64::from(value) * f64::from(value);
            }
            start = end;
        }
    }
    blocks.iter().fold(0.0, |sum, block| sum + block).sqrt()
}

/// Scales a gradient of that norm down to `max_norm`, where it is larger; buffers stay.
pub fn clip(layout: &Layout, gradient: &mut [f32], norm: f64, max_norm: f64) {
    let scale = max_norm / (norm + EPSILON);
    if scale >= 1.0 {
        return;
    }
    let scale = scale as f32;
    for entry in layout
        .entries()
        .iter()
        .filter(|entry| entry.group != Group::Buffer)
    {
        gradient[entry.range()]
            .iter_mut()
            .for_each(|value| *value *= scale);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let mut layout = Layout::default();
        layout.push("a", [3, 40_000], Group::Weight);
        layout.push("mean", [7], Group::Buffer);
        layout.push("b", [20_000], Group::Bias);
        layout
    }

    #[test]
    fn norm_sums_squares_block_by_block_without_buffers() {
        let layout = layout();
        let gradient: Vec<f32> = (0..layout.len())
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 7.0)
            .collect();
        let mut expected = 0.0_f64;
        for (number, block) in gradient.chunks(BLOCK).enumerate() {
            let mut sum = 0.0_f64;
            for (i, &value) in block.iter().enumerate() {
                let at = number * BLOCK + i;
                sum += if (120_000..120_007).contains(&at) {
                    0.0
                } else {
                    f64::from(value).powi(2)
                };
            }
            expected += sum;
        }
        assert_eq!(
            global_norm(&layout, &gradient).to_bits(),
            expected.sqrt().to_bits()
        );
    }

    #[test]
    fn larger_gradients_are_scaled_down_to_the_norm_and_buffers_stay() {
        let layout = layout();
        let mut gradient = vec![0.5_f32; layout.len()];
        // sqrt(140000 / 4), a closed form.
        let norm = global_norm(&layout, &gradient);
        assert_eq!(norm, 35_000.0_f64.sqrt());
        clip(&layout, &mut gradient, norm, 2.0);
        // One rounding of the scale and one of each product: 2^-23 of the value.
        assert!(
            (global_norm(&layout, &gradient) - 2.0 * norm / (norm + 1e-6)).abs() < 2.0 * 1.2e-7
        );
        assert_eq!(gradient[120_003], 0.5, "a buffer is no gradient");
        assert!(gradient[0] < 0.5 && gradient[139_000] < 0.5);
    }

    #[test]
    fn smaller_gradients_keep_their_bits() {
        let layout = layout();
        let mut gradient = vec![1e-3_f32; layout.len()];
        let before = gradient.clone();
        clip(&layout, &mut gradient, global_norm(&layout, &before), 1.0);
        assert_eq!(gradient, before);
    }
}
