//! Each operation against its twin on the host, bit for bit, on CubeCL's processor, and the code that
//! is made of it for a GPU.

#![allow(unsafe_code, reason = "a test writes to the address of a vector")]

use burn::tensor::Device;
use muster_cluster::job::spec::{OptimizerKind, OptimizerSpec};
use proptest::prelude::*;

use super::check::{layout, values};
use super::memory::{Memory, Part, sum, sum_on_host};
use super::*;
use crate::clip;
use crate::optimizer::{OnDevice, Optimizer};
use crate::vector::write;

fn device() -> Device {
    Device::cpu()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn updates_are_those_of_the_host() {
    let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-8);
    let kinds = [
        OptimizerKind::Sgd { momentum: 0.0 },
        OptimizerKind::Sgd { momentum: 0.9 },
        OptimizerKind::Adam {
            beta1,
            beta2,
            epsilon,
        },
        OptimizerKind::AdamW {
            beta1,
            beta2,
            epsilon,
        },
    ];
    let len = 70_001;
    let layout = layout(len);
    for kind in kinds {
        for weight_decay in [0.0, 0.01] {
            let spec = OptimizerSpec {
                kind,
                learning_rate: 0.003,
                weight_decay,
            };
            let mut host = Optimizer::new(&spec, &layout);
            let mut parameters = values(len, 3);
            let mut on_device = OnDevice::new(&spec, &layout, &device());
            let mut there = write(parameters.clone(), &device());
            for t in 1..=4 {
                let sums = values(len, 100 + t);
                let factor = (t % 2 == 0).then_some(0.25);
                let mut gradient: Vec<f32> = sums.iter().map(|sum| sum / 3.0).collect();
                if let Some(factor) = factor {
                    clip::scale(&layout, &mut gradient, 0..len, factor);
                }
                host.step(&mut parameters, &gradient, 0.003, t);
                let sums = write(sums, &device());
                there = on_device.step(&there, &sums, 3.0, factor, 0.003, t);
            }
            assert_eq!(bits(&parameters), bits(&read(&there).unwrap()), "{kind:?}");
            assert_eq!(*host.state(), on_device.state().unwrap(), "{kind:?}");
        }
    }
}

#[test]
fn norms_and_faults_are_those_of_the_host() {
    for len in [1, 255, BLOCK, BLOCK + 1, 3 * BLOCK + 777] {
        let layout = layout(len);
        let groups = Groups::new(&layout, &device());
        let mut vector = values(len, 9);
        let found = facts(&write(vector.clone(), &device()), &groups, 3.0).unwrap();
        let norm = clip::global_norm(&layout, &vector, 3.0);
        assert_eq!(found.norm.to_bits(), norm.to_bits(), "{len}");
        assert_eq!(found.not_finite, None);
        for (at, bad) in [
            (len / 2, f32::NEG_INFINITY),
            (len - 1, f32::NAN),
            (0, f32::INFINITY),
        ] {
            vector[at] = bad;
            let found = facts(&write(vector.clone(), &device()), &groups, 3.0).unwrap();
            assert_eq!(found.not_finite, NotFinite::find(&vector), "{at} of {len}");
        }
    }
}

/// The additions of a random tree over so many parts.
fn random_tree(num_parts: usize, mut seed: u64) -> Vec<(usize, usize)> {
    let mut left: Vec<usize> = (0..num_parts).collect();
    let mut adds = Vec::new();
    while left.len() > 1 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (seed >> 33) as usize % (left.len() - 1);
        adds.push((left[at], left.remove(at + 1)));
    }
    adds
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn sums_along_a_tree_are_those_of_the_host(
        len in 1usize..3000,
        num_parts in 0usize..20,
        seed in any::<u64>(),
    ) {
        let adds = random_tree(num_parts, seed);
        // Behind each other in one vector, the last one in a vector of its own.
        let vectors = values(len * num_parts, seed);
        let parts: Vec<&[f32]> = vectors.chunks(len).collect();
        let mut expected = sum_on_host(&parts, &adds);
        expected.resize(len, 0.0);
        let num_first = num_parts.saturating_sub(1);
        let (first, last) = vectors.split_at(len * num_first);
        let first = Memory::of(&write([first, &[0.0; 4]].concat(), &device())).unwrap();
        let last = Memory::of(&write([last, &[0.0; 4]].concat(), &device())).unwrap();
        let parts: Vec<Part<'_>> = (0..num_parts)
            .map(|number| {
                let (memory, number) = if number < num_first { (&first, number) } else { (&last, 0) };
                Part { memory, range: number * len..(number + 1) * len }
            })
            .collect();
        let (tensor, output) = Memory::empty(len + 7, &device()).unwrap();
        sum(&parts, &adds, &Part { memory: &output, range: 3..3 + len }).unwrap();
        output.flush().unwrap();
        let found = read(&tensor).unwrap();
        prop_assert_eq!(bits(&found[3..3 + len]), bits(&expected));
    }
}

#[test]
fn masks_of_dropout_are_those_of_the_host() {
    let rng = crate::rng::ShardRng::new(7, 123, 5);
    for (keep, len) in [(0.5, 1), (0.9, 7), (1.0, 64), (1e-8, 1000), (0.1, 100_003)] {
        let site = rng.site("a place");
        let mut expected = vec![0.0; len];
        site.mask(keep, &mut expected);
        let found = read(&mask(&site, keep, len, &device())).unwrap();
        assert_eq!(bits(&found), bits(&expected), "{keep}, {len}");
    }
}

#[test]
fn impossible_sums_are_refused() {
    let memory = Memory::of(&write(values(100, 1), &device())).unwrap();
    let (_, output) = Memory::empty(10, &device()).unwrap();
    let part = |(start, end)| Part {
        memory: &memory,
        range: start..end,
    };
    let output = Part {
        memory: &output,
        range: 0..10,
    };
    for (ranges, adds) in [
        (vec![(0, 10), (10, 19)], vec![(0, 1)]),
        (vec![(0, 10), (10, 20)], vec![]),
        (vec![(0, 10), (10, 20)], vec![(0, 2)]),
        (vec![(0, 10), (10, 20)], vec![(1, 0)]),
        (vec![(0, 10)], vec![(0, 0)]),
    ] {
        let parts: Vec<Part<'_>> = ranges.into_iter().map(part).collect();
        assert!(sum(&parts, &adds, &output).is_err(), "{parts:?} {adds:?}");
    }
}

#[test]
fn what_is_written_at_an_address_is_in_the_vector() {
    let (tensor, memory) = Memory::empty(1000, &device()).unwrap();
    memory.flush().unwrap();
    let expected = values(1000, 4);
    let address = memory.address() as *mut f32;
    // SAFETY: this device's memory is the host's, as long as the vector, and nobody else uses it.
    unsafe { std::ptr::copy_nonoverlapping(expected.as_ptr(), address, expected.len()) };
    assert_eq!(bits(&read(&(tensor * 1.0)).unwrap()), bits(&expected));
}

#[test]
fn hashes_are_those_of_the_host() {
    let lens = [
        0,
        1,
        255,
        256,
        257,
        511,
        512,
        513,
        768,
        1025,
        64 * 256,
        64 * 256 + 1,
        100_003,
        1 << 18,
    ];
    for len in lens {
        let vector = values(len, 5);
        let expected = ::blake3::hash(bytemuck::cast_slice(&vector));
        let found = hash(&write(vector, &device())).unwrap();
        assert_eq!(found, expected, "{len} values");
    }
}

#[test]
fn bf16_is_rounded_to_the_nearest_and_even() {
    use burn::tensor::DType;
    let mut vector = values(5000, 11);
    // Ties, and what lies beside them.
    vector.extend((0..64_u32).map(|i| f32::from_bits(0x3F80_7FFF + i * 0x8000)));
    vector.extend([0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, f32::INFINITY]);
    let packed = write(vector.clone(), &device())
        .cast(DType::BF16)
        .cast(DType::F32);
    let expected: Vec<f32> = vector
        .into_iter()
        .map(|value| half::bf16::from_f32(value).to_f32())
        .collect();
    assert_eq!(bits(&read(&packed).unwrap()), bits(&expected));
}

#[test]
fn a_check_of_the_device_finds_the_hosts_bits() {
    for kernel in check::check(&device(), 3 * BLOCK + 5) {
        assert_eq!(kernel.is_same, Ok(true), "{kernel:?}");
    }
}
