//! Clipping by the global norm, as PyTorch's `clip_grad_norm_` does it, in one fixed order of
//! additions: [`LANES`] sums a block of 64 Ki elements of the arena.

use std::ops::Range;

use crate::arena::{Group, Layout};

/// The length of a block, in elements of the arena. It decides bits.
pub const BLOCK: usize = 64 * 1024;

/// Into how many sums the squares of a block go: element `i` into number `i % LANES`. It decides bits,
/// lets processors add several at a time, and gives a GPU a unit for each.
pub const LANES: usize = 256;

/// PyTorch adds this to the norm before it divides by it.
const EPSILON: f64 = 1e-6;

/// The L2 norm of `sum / divisor`, a vector of the layout, without its buffers: squares are summed in
/// f64, in [`LANES`] sums a block, which are added in order, and then block by block.
///
/// # Panics
/// When `sum` is not as long as the layout.
#[must_use]
pub fn global_norm(layout: &Layout, sum: &[f32], divisor: f32) -> f64 {
    assert_eq!(
        sum.len(),
        layout.len(),
        "a gradient is as long as its layout"
    );
    let mut squares = 0.0_f64;
    for (number, block) in sum.chunks(BLOCK).enumerate() {
        let start = number * BLOCK;
        let mut lanes = [0.0_f64; LANES];
        let entries = layout.entries_in(start..start + block.len());
        for (_, inside) in entries.filter(|(entry, _)| entry.group != Group::Buffer) {
            let mut at = inside.start - start;
            let end = inside.end - start;
            while at < end {
                // Up to the end of a row, so that lanes and values lie side by side.
                let row_end = end.min((at / LANES + 1) * LANES);
                let lanes = &mut lanes[at % LANES..];
                for (lane, &value) in lanes.iter_mut().zip(&block[at..row_end]) {
                    let value = f64::from(value / divisor);
                    *lane += value * value;
                }
                at = row_end;
            }
        }
        squares += lanes.iter().fold(0.0, |sum, lane| sum + lane);
    }
    squares.sqrt()
}

/// What scales a gradient of that norm down to `max_norm`; `None` where it is no larger.
#[must_use]
pub fn factor(norm: f64, max_norm: f64) -> Option<f32> {
    let factor = max_norm / (norm + EPSILON);
    (factor < 1.0).then_some(factor as f32)
}

/// Scales the part of a gradient that lies at `range` of the layout; buffers stay.
///
/// # Panics
/// When `part` is not as long as `range`.
pub fn scale(layout: &Layout, part: &mut [f32], range: Range<usize>, factor: f32) {
    for (_, inside) in layout
        .entries_in(range.clone())
        .filter(|(entry, _)| entry.group != Group::Buffer)
    {
        part[inside.start - range.start..inside.end - range.start]
            .iter_mut()
            .for_each(|value| *value *= factor);
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
            let mut sums = vec![0.0_f64; LANES];
            for (i, &value) in block.iter().enumerate() {
                let at = number * BLOCK + i;
                sums[i % LANES] += if (120_000..120_007).contains(&at) {
                    0.0
                } else {
                    f64::from(value).powi(2)
                };
            }
            expected += sums.iter().fold(0.0, |sum, lane| sum + lane);
        }
        assert_eq!(
            global_norm(&layout, &gradient, 1.0).to_bits(),
            expected.sqrt().to_bits()
        );
    }

    #[test]
    fn larger_gradients_are_scaled_down_to_the_norm_and_buffers_stay() {
        let layout = layout();
        let mut gradient = vec![0.5_f32; layout.len()];
        // sqrt(140000 / 4), a closed form.
        let norm = global_norm(&layout, &gradient, 1.0);
        assert_eq!(norm, 35_000.0_f64.sqrt());
        assert_eq!(global_norm(&layout, &gradient, 2.0), norm / 2.0);
        let factor = factor(norm, 2.0).expect("it is larger");
        // In two parts, as shares are.
        for range in [0..50_000, 50_000..layout.len()] {
            scale(&layout, &mut gradient[range.clone()], range, factor);
        }
        // One rounding of the scale and one of each product: 2^-23 of the value.
        assert!(
            (global_norm(&layout, &gradient, 1.0) - 2.0 * norm / (norm + 1e-6)).abs()
                < 2.0 * 1.2e-7
        );
        assert_eq!(gradient[120_003], 0.5, "a buffer is no gradient");
        assert!(gradient[0] < 0.5 && gradient[139_000] < 0.5);
    }

    #[test]
    fn smaller_gradients_are_not_scaled() {
        let layout = layout();
        let gradient = vec![1e-3_f32; layout.len()];
        assert_eq!(factor(global_norm(&layout, &gradient, 1.0), 1.0), None);
    }
}
