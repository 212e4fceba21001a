//! Vectors of the arena's length in the memory of a device: sums along the canonical tree, updates,
//! norms and hashes, without a way through the host. What comes back of a step is a few words a block.
//!
//! Each operation has a twin on the host, and gives its bits. Not here: what a model computes, and how
//! vectors get from rank to rank.

mod blake3;
pub mod check;
#[allow(
    clippy::needless_pass_by_value,
    clippy::needless_range_loop,
    reason = "what a kernel is compiled for is handed over, and loops count, as its macro wants it"
)]
mod kernels;
pub mod memory;
mod ops;
pub mod store;

use std::ops::Range;

use burn::backend::Dispatch;
use burn::tensor::{Device, Int, Tensor, TensorData};

use self::ops::ArenaOps as _;
pub(crate) use self::ops::{AdamNumbers, Scale, SgdNumbers};
use crate::arena::{Group, Layout};
use crate::clip::BLOCK;
use crate::finite::{Facts, NoNumber, NotFinite};
use crate::rng::Site;
use crate::vector::{DeviceError, read};

/// The groups of a layout, two bits an element, on a device.
#[derive(Clone, Debug)]
pub(crate) struct Groups(Tensor<1, Int>);

impl Groups {
    pub(crate) fn new(layout: &Layout, device: &Device) -> Self {
        let mut words = vec![0_u32; layout.len().div_ceil(16).max(1)];
        for entry in layout.entries() {
            let code = match entry.group {
                Group::Weight => kernels::WEIGHT,
                Group::Bias => 1,
                Group::Buffer => kernels::BUFFER,
            };
            for at in entry.range() {
                words[at / 16] |= code << (2 * (at % 16));
            }
        }
        let words: Vec<i32> = words.into_iter().map(u32::cast_signed).collect();
        let len = words.len();
        Groups(Tensor::from_data(TensorData::new(words, [len]), device))
    }

    /// Those of some elements, the first of which begins a word, as shares do.
    pub(crate) fn part(&self, range: &Range<usize>) -> Self {
        let words = range.start / 16..range.end.div_ceil(16);
        if words == (0..self.0.shape().num_elements()) {
            return self.clone();
        }
        Groups(self.0.clone().slice(words))
    }
}

/// The norm of `values / divisor`, and whether all values are numbers.
pub(crate) fn facts(
    values: &Tensor<1>,
    groups: &Groups,
    divisor: f32,
) -> Result<Facts, DeviceError> {
    let facts = Dispatch::arena_facts(
        values.clone().into_dispatch(),
        groups.0.clone().into_dispatch(),
        divisor,
    );
    let words = read_words(Tensor::from_dispatch(facts))?;
    let mut sum = 0.0_f64;
    let mut fault = None;
    for (block, words) in words.chunks_exact(3).enumerate() {
        sum += f64::from_bits(u64::from(words[0]) | u64::from(words[1]) << 32);
        if words[2] != u32::MAX {
            fault = fault.or(Some(block * BLOCK + words[2] as usize));
        }
    }
    let not_finite = fault.map(|at| kind_of(values, at)).transpose()?;
    Ok(Facts {
        norm: sum.sqrt(),
        not_finite,
    })
}

fn kind_of(values: &Tensor<1>, at: usize) -> Result<NotFinite, DeviceError> {
    let value = read(&values.clone().slice(at..at + 1))?;
    let value = match value.first() {
        Some(value) if value.is_nan() => NoNumber::Nan,
        Some(value) if *value > 0.0 => NoNumber::Infinity,
        _ => NoNumber::NegativeInfinity,
    };
    let at = at as u64;
    Ok(NotFinite { at, value })
}

fn read_words(words: Tensor<1, Int>) -> Result<Vec<u32>, DeviceError> {
    let words = words
        .try_into_vec_as::<i32>()
        .map_err(|error| DeviceError::unreadable(&error))?;
    Ok(words.into_iter().map(i32::cast_unsigned).collect())
}

/// Nodes of a hash's tree that are few enough for the host.
const FEW_NODES: usize = 64;

/// BLAKE3 over the little-endian values of a vector, as the host computes it.
///
/// # Errors
/// When the device could not be read.
pub fn hash(values: &Tensor<1>) -> Result<::blake3::Hash, DeviceError> {
    let num_bytes = values.shape().num_elements() * 4;
    if num_bytes <= blake3::CHUNK_BYTES {
        // One chunk is its own root.
        return Ok(::blake3::hash(bytemuck::cast_slice(&read(values)?)));
    }
    let mut nodes = Dispatch::arena_chunks(values.clone().into_dispatch());
    let mut num_nodes = num_bytes.div_ceil(blake3::CHUNK_BYTES);
    while num_nodes > FEW_NODES {
        nodes = Dispatch::arena_parents(nodes);
        num_nodes = num_nodes.div_ceil(2);
    }
    let words = read_words(Tensor::from_dispatch(nodes))?;
    let mut nodes: Vec<[u8; 32]> = words
        .chunks_exact(blake3::CV_WORDS)
        .map(|words| {
            let mut cv = [0; 32];
            for (bytes, word) in cv.chunks_exact_mut(4).zip(words) {
                bytes.copy_from_slice(&word.to_le_bytes());
            }
            cv
        })
        .collect();
    use ::blake3::hazmat::{Mode, merge_subtrees_non_root, merge_subtrees_root};
    while nodes.len() > 2 {
        nodes = nodes
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => merge_subtrees_non_root(left, right, Mode::Hash),
                _ => pair[0],
            })
            .collect();
    }
    match &nodes[..] {
        [left, right] => Ok(merge_subtrees_root(left, right, Mode::Hash)),
        _ => Err(DeviceError(format!(
            "the hash's tree has {} nodes at its top; expected two",
            nodes.len()
        ))),
    }
}

/// A mask of inverted dropout of `len` elements, made on the device.
///
/// # Panics
/// As its twin, [`Site::mask`].
#[must_use]
pub fn mask(site: &Site, keep: f32, len: usize, device: &Device) -> Tensor<1> {
    if len == 0 {
        return Tensor::empty([0], device);
    }
    let (threshold, kept) = site.threshold(keep);
    let beside: Tensor<1> = Tensor::empty([1], device);
    Tensor::from_dispatch(Dispatch::arena_mask(
        beside.into_dispatch(),
        site.words(),
        threshold,
        kept,
        len,
    ))
}

/// An update of SGD without momentum: the new parameters.
pub(crate) fn sgd(
    sums: Tensor<1>,
    groups: &Groups,
    parameters: Tensor<1>,
    scale: Scale,
    numbers: SgdNumbers,
) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::arena_sgd(
        sums.into_dispatch(),
        groups.0.clone().into_dispatch(),
        parameters.into_dispatch(),
        scale,
        numbers,
    ))
}

/// An update of SGD with momentum: the new parameters and velocities.
pub(crate) fn sgd_momentum(
    sums: Tensor<1>,
    groups: &Groups,
    parameters: Tensor<1>,
    velocities: Tensor<1>,
    scale: Scale,
    numbers: SgdNumbers,
) -> [Tensor<1>; 2] {
    let (parameters, velocities) = Dispatch::arena_sgd_momentum(
        sums.into_dispatch(),
        groups.0.clone().into_dispatch(),
        parameters.into_dispatch(),
        velocities.into_dispatch(),
        scale,
        numbers,
    );
    [parameters, velocities].map(Tensor::from_dispatch)
}

/// An update of Adam or AdamW: the new parameters, first and second moments.
pub(crate) fn adam(
    sums: Tensor<1>,
    groups: &Groups,
    parameters: Tensor<1>,
    [firsts, seconds]: [Tensor<1>; 2],
    scale: Scale,
    numbers: AdamNumbers,
) -> [Tensor<1>; 3] {
    let (parameters, firsts, seconds) = Dispatch::arena_adam(
        sums.into_dispatch(),
        groups.0.clone().into_dispatch(),
        parameters.into_dispatch(),
        firsts.into_dispatch(),
        seconds.into_dispatch(),
        scale,
        numbers,
    );
    [parameters, firsts, seconds].map(Tensor::from_dispatch)
}

#[cfg(all(test, feature = "cuda"))]
mod ptx;
#[cfg(all(test, feature = "cube-cpu"))]
mod tests;
