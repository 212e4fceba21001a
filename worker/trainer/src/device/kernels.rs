//! The kernels that run over device memory: optimizer updates, sums along the canonical tree, norms,
//! a search for values that are no numbers, and BLAKE3. Written once, in CubeCL, for every device of
//! Burn. What they compute, bit for bit, is defined by their twins on the host; who launches them is
//! not known here.
//!
//! Every product is rounded before it is added ([`times`]): GPU compilers contract `a * b + c` into
//! one rounding otherwise, and the host's bits would be others.

use cubecl::prelude::*;

use crate::rng;

/// How many sums a block of a norm is cut into; its twin is [`crate::clip::LANES`].
pub(crate) const LANES: usize = crate::clip::LANES;

/// Elements in a block of a norm.
pub(crate) const BLOCK: usize = crate::clip::BLOCK;

/// The code of a weight among the groups of a layout, as [`super::Groups`] packs them.
pub(crate) const WEIGHT: u32 = 0;
/// The code of a buffer; that of a bias is neither.
pub(crate) const BUFFER: u32 = 2;

/// `a * b`, rounded: a fused multiply-add of -0.0 changes no bit of the product, and its result may
/// not be fused with what comes behind it.
#[cube]
fn times(a: f32, b: f32) -> f32 {
    fma(a, b, f32::new(-0.0))
}

/// As [`times`].
#[cube]
fn times_f64(a: f64, b: f64) -> f64 {
    fma(a, b, f64::new(-0.0))
}

/// No place in a block.
const NONE: u32 = u32::MAX;

/// The group of element `at`: two bits each, sixteen in a word.
#[cube]
fn group_of(groups: &[u32], at: usize) -> u32 {
    (groups[at / 16] >> ((at % 16) as u32 * 2)) & 3
}

/// What of a reduced vector moves a parameter: its mean over the shards, and for what is no buffer
/// that scaled down.
#[cube]
fn gradient_of(sum: f32, group: u32, num_shards: f32, factor: f32) -> f32 {
    let mean = sum / num_shards;
    let mut gradient = mean;
    if group != BUFFER {
        gradient = times(mean, factor);
    }
    gradient
}

/// `torch.optim.SGD` without momentum; twin: `Sgd::plain`.
#[cube(launch)]
pub(crate) fn sgd(
    sums: &[f32],
    groups: &[u32],
    parameters: &[f32],
    new_parameters: &mut [f32],
    num_shards: f32,
    factor: f32,
    step_size: f32,
    weight_decay: f32,
) {
    let at = ABSOLUTE_POS;
    if at < new_parameters.len() {
        let group = group_of(groups, at);
        let gradient = gradient_of(sums[at], group, num_shards, factor);
        let mut new = gradient;
        if group != BUFFER {
            let decay = select(group == WEIGHT, weight_decay, f32::new(0.0));
            let old = parameters[at];
            new = old + times(step_size, gradient + times(decay, old));
        }
        new_parameters[at] = new;
    }
}

/// `torch.optim.SGD` with momentum; twin: `Sgd::with_momentum`.
#[cube(launch)]
pub(crate) fn sgd_momentum(
    sums: &[f32],
    groups: &[u32],
    parameters: &[f32],
    velocities: &[f32],
    new_parameters: &mut [f32],
    new_velocities: &mut [f32],
    num_shards: f32,
    factor: f32,
    step_size: f32,
    weight_decay: f32,
    momentum: f32,
) {
    let at = ABSOLUTE_POS;
    if at < new_parameters.len() {
        let group = group_of(groups, at);
        let gradient = gradient_of(sums[at], group, num_shards, factor);
        let mut new = gradient;
        let mut velocity = velocities[at];
        if group != BUFFER {
            let decay = select(group == WEIGHT, weight_decay, f32::new(0.0));
            let old = parameters[at];
            velocity = times(momentum, velocity) + (gradient + times(decay, old));
            new = old + times(step_size, velocity);
        }
        new_parameters[at] = new;
        new_velocities[at] = velocity;
    }
}

/// `torch.optim.Adam` and `AdamW`; twin: `Adam::update`. The parameters of weights are scaled by
/// `keep` first (AdamW's decay), and `decay` of them is added to their gradient (Adam's).
#[cube(launch)]
pub(crate) fn adam(
    sums: &[f32],
    groups: &[u32],
    parameters: &[f32],
    firsts: &[f32],
    seconds: &[f32],
    new_parameters: &mut [f32],
    new_firsts: &mut [f32],
    new_seconds: &mut [f32],
    num_shards: f32,
    factor: f32,
    step_size: f32,
    weight_keep: f32,
    weight_decay: f32,
    first_weight: f32,
    beta2: f32,
    second_weight: f32,
    second_correction: f32,
    epsilon: f32,
) {
    let at = ABSOLUTE_POS;
    if at < new_parameters.len() {
        let group = group_of(groups, at);
        let mean = gradient_of(sums[at], group, num_shards, factor);
        let mut new = mean;
        let mut first = firsts[at];
        let mut second = seconds[at];
        if group != BUFFER {
            let is_weight = group == WEIGHT;
            let keep = select(is_weight, weight_keep, f32::new(1.0));
            let decay = select(is_weight, weight_decay, f32::new(0.0));
            let old = times(parameters[at], keep);
            let gradient = mean + times(decay, old);
            first += times(first_weight, gradient - first);
            second = times(beta2, second) + times(times(second_weight, gradient), gradient);
            let scale = second.sqrt() / second_correction + epsilon;
            new = old + times(step_size, first) / scale;
        }
        new_parameters[at] = new;
        new_firsts[at] = first;
        new_seconds[at] = second;
    }
}

/// `sum` = the sum of parts that are as long, `values[into] += values[from]` for each of `adds`, in order:
/// along the canonical tree, where the additions follow it. Twin: [`super::memory::sum_on_host`].
#[cube(launch)]
pub(crate) fn sum(
    parts: &Sequence<Box<[f32]>>,
    sum: &mut [f32],
    #[comptime] adds: Vec<(usize, usize)>,
) {
    let at = ABSOLUTE_POS;
    if at < sum.len() {
        let num_parts = parts.len().comptime();
        if comptime![num_parts == 0] {
            sum[at] = f32::new(0.0);
        } else {
            let mut values = Array::<f32>::new(num_parts);
            #[unroll]
            for i in 0..num_parts {
                values[i] = parts[i][at];
            }
            #[unroll]
            for i in 0..comptime![adds.len()] {
                let into = comptime![adds[i].0];
                let from = comptime![adds[i].1];
                values[into] += values[from];
            }
            sum[at] = values[0usize];
        }
    }
}

/// A mask of inverted dropout: `kept` where the upper 24 bits of the stream's word are below `threshold`,
/// else 0; a unit for each block of four. Twin: `Site::mask`.
#[cube(launch)]
pub(crate) fn mask(
    out: &mut [f32],
    key0: u32,
    key1: u32,
    name0: u32,
    name1: u32,
    threshold: u32,
    kept: f32,
) {
    let block = ABSOLUTE_POS;
    let start = block * 4;
    if start < out.len() {
        let mut words = Array::<u32>::new(4usize);
        words[0usize] = block as u32;
        words[1usize] = 0u32.runtime();
        words[2usize] = name0;
        words[3usize] = name1;
        let mut first_key = key0;
        let mut second_key = key1;
        #[unroll]
        for round in 0..comptime![rng::ROUNDS] {
            if comptime![round > 0] {
                first_key += comptime![rng::WEYL[0]];
                second_key += comptime![rng::WEYL[1]];
            }
            let first = u64::cast_from(words[0usize])
                * u64::cast_from(comptime![rng::MULTIPLIERS[0]].runtime());
            let second = u64::cast_from(words[2usize])
                * u64::cast_from(comptime![rng::MULTIPLIERS[1]].runtime());
            let high = u32::cast_from(second >> 32) ^ words[1usize] ^ first_key;
            let other = u32::cast_from(first >> 32) ^ words[3usize] ^ second_key;
            words[0usize] = high;
            words[1usize] = u32::cast_from(second & 4_294_967_295);
            words[2usize] = other;
            words[3usize] = u32::cast_from(first & 4_294_967_295);
        }
        #[unroll]
        for i in 0..4usize {
            if start + i < out.len() {
                out[start + i] = select((words[i] >> 8) < threshold, kept, f32::new(0.0));
            }
        }
    }
}

/// For each lane of each block of a vector: the bits of the sum of the squares of what lies there and
/// is no buffer, divided by `divisor`, in f64; and the place in the block of the first value that is
/// no number, `u32::MAX` where all are.
#[cube(launch)]
pub(crate) fn lane_facts(
    values: &[f32],
    groups: &[u32],
    squares: &mut [f64],
    faults: &mut [u32],
    divisor: f32,
) {
    let unit = ABSOLUTE_POS;
    if unit < squares.len() {
        let block = unit / LANES;
        let lane = unit % LANES;
        let mut sum = f64::new(0.0);
        let mut fault = NONE.runtime();
        for row in 0..comptime![BLOCK / LANES] {
            let inside = row * LANES + lane;
            let at = block * BLOCK + inside;
            if at < values.len() {
                let value = values[at];
                let exponent = (u32::reinterpret(value) >> 23) & 255;
                if exponent == 255 && fault == NONE {
                    fault = inside as u32;
                }
                if group_of(groups, at) != BUFFER {
                    let mean = f64::cast_from(value / divisor);
                    sum += times_f64(mean, mean);
                }
            }
        }
        squares[unit] = sum;
        faults[unit] = fault;
    }
}

/// The lanes of each block together, in order: the bits of the sum of squares as two words, the lower
/// one first, and the place of the first fault.
#[cube(launch)]
pub(crate) fn block_facts(squares: &[f64], faults: &[u32], facts: &mut [u32]) {
    let block = ABSOLUTE_POS;
    if block < facts.len() / 3 {
        let mut sum = f64::new(0.0);
        let mut fault = NONE.runtime();
        for lane in 0..comptime![LANES] {
            sum += squares[block * LANES + lane];
            let other = faults[block * LANES + lane];
            if other < fault {
                fault = other;
            }
        }
        let bits = u64::reinterpret(sum);
        facts[block * 3] = u32::cast_from(bits & 4_294_967_295);
        facts[block * 3 + 1] = u32::cast_from(bits >> 32);
        facts[block * 3 + 2] = fault;
    }
}
