//! Whether a device gives the host's bits: each kernel beside its twin, on numbers that everybody can
//! make again. `muster doctor --compute` runs it on a GPU.

use std::time::{Duration, Instant};

use burn::tensor::Device;
use muster_cluster::job::spec::{OptimizerKind, OptimizerSpec};

use super::memory::{Memory, Part, sum, sum_on_host};
use super::{Groups, facts, hash, mask};
use crate::arena::{Group, Layout};
use crate::clip;
use crate::finite::NotFinite;
use crate::optimizer::{OnDevice, Optimizer};
use crate::rng::ShardRng;
use crate::vector::{DeviceError, read, write};

/// What came of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What it computes.
    pub name: &'static str,
    /// Whether all bits are the host's, or why that cannot be told.
    pub is_same: Result<bool, String>,
    /// How long it took over all elements, the way back to the host included; the second time, since
    /// the first one compiles it.
    pub time: Duration,
}

/// Compares every kernel with its twin over `num_elements` values on `device`, which is plain, not an
/// autodiff device.
#[must_use]
pub fn check(device: &Device, num_elements: usize) -> Vec<Kernel> {
    let len = num_elements.max(1);
    let layout = layout(len);
    let parameters = values(len, 1);
    let sums = values(len, 2);
    let there = write(sums.clone(), device);
    let groups = Groups::new(&layout, device);
    let mut all = Vec::new();
    for (name, kind) in [
        ("update of sgd", OptimizerKind::Sgd { momentum: 0.9 }),
        (
            "update of adamw",
            OptimizerKind::AdamW {
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
            },
        ),
    ] {
        let spec = OptimizerSpec {
            kind,
            learning_rate: 0.003,
            weight_decay: 0.01,
        };
        let mut host = Optimizer::new(&spec, &layout);
        let mut expected = parameters.clone();
        let mut on_device = OnDevice::new(&spec, &layout, device);
        let mut found = write(parameters.clone(), device);
        let mut step = 0;
        all.push(timed(name, || {
            step += 1;
            let mut gradient: Vec<f32> = sums.iter().map(|sum| sum / 3.0).collect();
            clip::scale(&layout, &mut gradient, 0..len, 0.25);
            host.step(&mut expected, &gradient, 0.003, step);
            let begun = Instant::now();
            found = on_device.step(&found, &there, 3.0, Some(0.25), 0.003, step);
            let found = read(&found)?;
            let time = begun.elapsed();
            let is_same = bits(&found) == bits(&expected) && on_device.state()? == *host.state();
            Ok((is_same, time))
        }));
    }
    all.push(timed("norm and faults", || {
        let begun = Instant::now();
        let found = facts(&there, &groups, 3.0)?;
        let time = begun.elapsed();
        let norm = clip::global_norm(&layout, &sums, 3.0);
        let same = found.norm.to_bits() == norm.to_bits();
        Ok((same && found.not_finite == NotFinite::find(&sums), time))
    }));
    all.push(timed("sum along the tree", || {
        let adds = [(0, 1), (2, 3), (0, 2)];
        let part = len.div_ceil(adds.len() + 1);
        let vectors = values(part * (adds.len() + 1), 3);
        let parts: Vec<&[f32]> = vectors.chunks(part).collect();
        let expected = sum_on_host(&parts, &adds);
        let memory = Memory::of(&write(vectors.clone(), device))?;
        let parts: Vec<Part<'_>> = (0..=adds.len())
            .map(|number| Part {
                memory: &memory,
                range: number * part..(number + 1) * part,
            })
            .collect();
        let (found, output) = Memory::empty(part, device)?;
        let begun = Instant::now();
        let output = Part {
            memory: &output,
            range: 0..part,
        };
        sum(&parts, &adds, &output)?;
        let found = read(&found)?;
        Ok((bits(&found) == bits(&expected), begun.elapsed()))
    }));
    all.push(timed("mask of dropout", || {
        let site = ShardRng::new(1, 2, 3).site("check");
        let mut expected = vec![0.0; len];
        site.mask(0.9, &mut expected);
        let begun = Instant::now();
        let found = read(&mask(&site, 0.9, len, device))?;
        Ok((bits(&found) == bits(&expected), begun.elapsed()))
    }));
    all.push(timed("hash", || {
        let begun = Instant::now();
        let found = hash(&there)?;
        let time = begun.elapsed();
        Ok((found == blake3::hash(bytemuck::cast_slice(&sums)), time))
    }));
    all
}

fn timed(
    name: &'static str,
    mut run: impl FnMut() -> Result<(bool, Duration), DeviceError>,
) -> Kernel {
    let result = run().and_then(|(first, _)| {
        let (second, time) = run()?;
        Ok((first && second, time))
    });
    let (is_same, time) = match result {
        Ok((is_same, time)) => (Ok(is_same), time),
        Err(error) => (Err(error.to_string()), Duration::ZERO),
    };
    Kernel {
        name,
        is_same,
        time,
    }
}

fn bits(values: &[f32]) -> &[u32] {
    bytemuck::cast_slice(values)
}

/// Values of many magnitudes and both signs, from a counter.
pub(super) fn values(len: usize, seed: u64) -> Vec<f32> {
    (0..len as u64)
        .map(|i| {
            let mixed = (i + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ seed.rotate_left(17);
            let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = mixed ^ (mixed >> 32);
            let exponent = 100 + (mixed >> 24) % 40;
            f32::from_bits((mixed as u32 & 0x807F_FFFF) | (exponent as u32) << 23)
        })
        .collect()
}

/// Entries of all groups, whose ends are no multiples of anything.
pub(super) fn layout(len: usize) -> Layout {
    let mut layout = Layout::default();
    let groups = [Group::Weight, Group::Bias, Group::Buffer];
    let mut left = len;
    let mut number = 0;
    while left > 0 {
        let part = (len / 7 + 13 * number + 1).min(left);
        layout.push(format!("entry{number}"), [part], groups[number % 3]);
        left -= part;
        number += 1;
    }
    layout
}
