//! Against the authors' known answers, and the distributions' closed forms.

use std::collections::BTreeSet;

use super::*;

/// From `kat_vectors` of Random123, the authors' library.
#[test]
fn philox_gives_the_authors_known_answers() {
    assert_eq!(
        philox([0; 4], [0; 2]),
        [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
    );
    assert_eq!(
        philox([u32::MAX; 4], [u32::MAX; 2]),
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
    );
    assert_eq!(
        philox(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0]
        ),
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
    );
}

fn drawn(len: usize, draw: impl Fn(&mut [f32])) -> Vec<f32> {
    let mut values = vec![f32::NAN; len];
    draw(&mut values);
    values
}

fn mean(values: &[f32], of: impl Fn(f64) -> f64) -> f64 {
    values
        .iter()
        .map(|&value| of(f64::from(value)))
        .sum::<f64>()
        / values.len() as f64
}

/// The streams are part of every job's bits: another derivation needs another name of the format.
#[test]
fn streams_are_the_recorded_ones() {
    let mut first = [0.0; 3];
    ShardRng::new(1, 2, 3).site("dropout1").uniform(&mut first);
    let shard = first.map(f32::to_bits);
    ParamRng::new(1, "fc1.weight").uniform(&mut first);
    let parameter = first.map(f32::to_bits);
    assert_eq!(
        shard,
        [1_044_050_288, 1_061_312_456, 1_059_524_258],
        "recorded"
    );
    assert_eq!(
        parameter,
        [1_058_188_419, 1_044_150_780, 1_059_289_999],
        "recorded"
    );
}

#[test]
fn an_element_does_not_depend_on_how_many_are_drawn() {
    let site = ShardRng::new(7, 8, 9).site("a");
    let many = drawn(1000, |out| site.normal(out));
    for len in [0, 1, 2, 3, 4, 5, 999] {
        assert_eq!(drawn(len, |out| site.normal(out)), many[..len]);
    }
}

#[test]
fn seed_step_shard_and_site_each_make_another_stream() {
    let seeds = [
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1 << 40, 0, 0),
        (0, 1 << 40, 0),
    ];
    let mut seen = BTreeSet::new();
    for (seed, step, shard) in seeds {
        for site in ["", "dropout1", "dropout2"] {
            let site = ShardRng::new(seed, step, shard).site(site);
            seen.insert(
                drawn(4, |out| site.uniform(out))
                    .iter()
                    .map(|x| x.to_bits())
                    .collect(),
            );
        }
    }
    for (seed, name) in [(0, "a"), (0, "b"), (1, "a")] {
        let rng = ParamRng::new(seed, name);
        seen.insert(
            drawn(4, |out| rng.uniform(out))
                .iter()
                .map(|x| x.to_bits())
                .collect::<Vec<_>>(),
        );
    }
    assert_eq!(seen.len(), 6 * 3 + 3);
}

#[test]
fn uniform_numbers_have_the_moments_of_their_distribution() {
    let values = drawn(100_000, |out| ParamRng::new(3, "w").uniform(out));
    assert!(values.iter().all(|value| (0.0..1.0).contains(value)));
    // Five standard deviations of the mean: 5 * sqrt(1/12 / 1e5); the square's is 5 * sqrt(4/45 / 1e5).
    assert!((mean(&values, |x| x) - 0.5).abs() < 4.6e-3);
    assert!((mean(&values, |x| x * x) - 1.0 / 3.0).abs() < 4.8e-3);
}

#[test]
fn normal_numbers_have_the_moments_of_their_distribution() {
    let values = drawn(100_000, |out| ParamRng::new(3, "w").normal(out));
    assert!(values.iter().all(|value| value.is_finite()));
    // Five standard deviations: of x, x^2, x^4 they are 1, sqrt(2), sqrt(96), over sqrt(1e5).
    assert!(mean(&values, |x| x).abs() < 1.6e-2);
    assert!((mean(&values, |x| x * x) - 1.0).abs() < 2.3e-2);
    assert!((mean(&values, |x| x.powi(4)) - 3.0).abs() < 0.16);
    // Neighbours, which come of one pair of words, are independent.
    let products: Vec<f32> = values
        .chunks_exact(2)
        .map(|pair| pair[0] * pair[1])
        .collect();
    assert!(mean(&products, |x| x).abs() < 5.0 / 50_000.0_f64.sqrt());
}

#[test]
fn masks_keep_their_share_and_scale_what_they_keep() {
    let site = ShardRng::new(1, 2, 3).site("dropout1");
    let mask = drawn(100_000, |out| site.mask(0.8, out));
    assert!(mask.iter().all(|&value| value == 0.0 || value == 1.0 / 0.8));
    let kept = mask.iter().filter(|&&value| value != 0.0).count() as f64 / 1e5;
    // Five standard deviations: 5 * sqrt(0.8 * 0.2 / 1e5).
    assert!((kept - 0.8).abs() < 6.4e-3, "{kept}");
    assert!(
        drawn(1000, |out| site.mask(1.0, out))
            .iter()
            .all(|&value| value == 1.0)
    );
}
