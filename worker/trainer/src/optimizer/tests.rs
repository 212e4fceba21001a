//! Against the same rules written once more in f64, straight from the papers' formulas.

use super::*;

const STEPS: u64 = 50;
const LEARNING_RATE: f64 = 0.01;

fn layout() -> Layout {
    let mut layout = Layout::default();
    layout.push("w", [2, 3], Group::Weight);
    layout.push("running", [2], Group::Buffer);
    layout.push("b", [4], Group::Bias);
    layout
}

fn gradient(step: u64, element: usize) -> f64 {
    let wave = (step as f64 * 0.7 + element as f64 * 1.3).sin();
    f64::from((wave * 2.0 + 0.1) as f32)
}

/// The parameter that started at `parameter`, after [`STEPS`] updates in f64.
fn derived(spec: &OptimizerSpec, mut parameter: f64, element: usize, decay: f64) -> f64 {
    let (mut m, mut v) = (0.0, 0.0);
    for t in 1..=STEPS {
        let g = gradient(t, element);
        match spec.kind {
            OptimizerKind::Sgd { momentum } => {
                m = momentum * m + g + decay * parameter;
                parameter -= LEARNING_RATE * m;
            }
            OptimizerKind::Adam {
                beta1,
                beta2,
                epsilon,
            }
            | OptimizerKind::AdamW {
                beta1,
                beta2,
                epsilon,
            } => {
                let decoupled = matches!(spec.kind, OptimizerKind::AdamW { .. });
                let g = if decoupled { g } else { g + decay * parameter };
                if decoupled {
                    parameter -= LEARNING_RATE * decay * parameter;
                }
                m = beta1 * m + (1.0 - beta1) * g;
                v = beta2 * v + (1.0 - beta2) * g * g;
                let (m_hat, v_hat) = (
                    m / (1.0 - beta1.powf(t as f64)),
                    v / (1.0 - beta2.powf(t as f64)),
                );
                parameter -= LEARNING_RATE * m_hat / (v_hat.sqrt() + epsilon);
            }
        }
    }
    parameter
}

fn follows_the_formulas(kind: OptimizerKind) {
    let spec = OptimizerSpec {
        kind,
        learning_rate: LEARNING_RATE,
        weight_decay: 0.1,
    };
    let layout = layout();
    let start: Vec<f32> = (0..layout.len()).map(|i| i as f32 * 0.3 - 1.0).collect();
    let mut arena = start.clone();
    let mut optimizer = Optimizer::new(&spec, &layout);
    for t in 1..=STEPS {
        let gradient: Vec<f32> = (0..layout.len()).map(|i| gradient(t, i) as f32).collect();
        optimizer.step(&mut arena, &gradient, LEARNING_RATE, t);
    }
    for entry in layout.entries() {
        for i in entry.range() {
            if entry.group == Group::Buffer {
                assert_eq!(
                    arena[i],
                    gradient(STEPS, i) as f32,
                    "a buffer takes its new value"
                );
                continue;
            }
            let decay = if entry.group == Group::Weight {
                0.1
            } else {
                0.0
            };
            let expected = derived(&spec, f64::from(start[i]), i, decay);
            let error = (f64::from(arena[i]) - expected).abs();
            // Fifty f32 updates of values up to 3, each rounded a few times by 2^-24 of itself.
            assert!(
                error < 5e-6,
                "{kind:?}, element {i}: {} instead of {expected}",
                arena[i]
            );
            assert!(
                (f64::from(start[i]) - expected).abs() > 1e-4,
                "the formulas move element {i}"
            );
        }
    }
}

#[test]
fn sgd_follows_its_formula() {
    follows_the_formulas(OptimizerKind::Sgd { momentum: 0.9 });
    follows_the_formulas(OptimizerKind::Sgd { momentum: 0.0 });
}

#[test]
fn adam_follows_its_formula() {
    follows_the_formulas(OptimizerKind::Adam {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
    });
    // An epsilon that matters, so that its place in the formula is seen.
    follows_the_formulas(OptimizerKind::Adam {
        beta1: 0.8,
        beta2: 0.99,
        epsilon: 0.5,
    });
}

#[test]
fn adamw_follows_its_formula() {
    follows_the_formulas(OptimizerKind::AdamW {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
    });
    follows_the_formulas(OptimizerKind::AdamW {
        beta1: 0.8,
        beta2: 0.99,
        epsilon: 0.5,
    });
}

/// The same entries behind another one, so that every share begins and ends elsewhere in them.
#[test]
fn where_shares_begin_and_end_changes_no_bit() {
    let spec = OptimizerSpec {
        kind: OptimizerKind::AdamW {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
        },
        learning_rate: LEARNING_RATE,
        weight_decay: 0.1,
    };
    let arena_behind = |num_before: usize| {
        let mut layout = Layout::default();
        layout.push("before", [num_before], Group::Bias);
        layout.push("w", [70, 1000], Group::Weight);
        layout.push("running", [500], Group::Buffer);
        layout.push("b", [3000], Group::Bias);
        let mut arena: Vec<f32> = (0..layout.len())
            .map(|i| value(i + 1000 - num_before))
            .collect();
        let mut optimizer = Optimizer::new(&spec, &layout);
        for t in 1..=3 {
            let gradient = (0..layout.len()).map(|i| value((i + 1000 - num_before) * t as usize));
            optimizer.step(&mut arena, &gradient.collect::<Vec<_>>(), LEARNING_RATE, t);
        }
        arena.split_off(num_before)
    };
    fn value(i: usize) -> f32 {
        (i * 37 % 1009) as f32 * 0.001 - 0.5
    }
    let (few, many) = (arena_behind(1), arena_behind(777));
    assert!(
        few.iter()
            .zip(&many)
            .all(|(a, b)| a.to_bits() == b.to_bits())
    );
}

#[test]
fn a_share_that_is_given_on_goes_on_where_it_was() {
    let spec = OptimizerSpec {
        kind: OptimizerKind::Sgd { momentum: 0.9 },
        learning_rate: LEARNING_RATE,
        weight_decay: 0.0,
    };
    let mut layout = Layout::default();
    layout.push("w", [40, 1024], Group::Weight);
    let mut giver = Optimizer::new(&spec, &layout);
    let mut taker = giver.clone();
    taker.keep(&BTreeSet::from([3]));
    let mut arena = vec![0.25; layout.len()];
    giver.step(&mut arena, &vec![0.5; layout.len()], LEARNING_RATE, 1);
    assert!(taker.take_all(vec![(7, giver.state().shares[&7].clone())]));
    assert!(
        !taker.take_all(vec![(8, vec![0.0; 5])]),
        "no share has five values"
    );
    assert_eq!(taker.state().shares.keys().collect::<Vec<_>>(), [&3, &7]);
    assert_eq!(taker.state().digest(7), giver.state().digest(7));
    assert_ne!(taker.state().digest(3), giver.state().digest(3));
    assert_eq!(
        (taker.state().digest(4), taker.state().hash()),
        (None, None)
    );
    assert!(giver.state().hash().is_some());
}

#[test]
fn state_vectors_have_pytorchs_names() {
    let names = |kind| {
        let spec = OptimizerSpec {
            kind,
            learning_rate: 0.1,
            weight_decay: 0.0,
        };
        let optimizer = Optimizer::new(&spec, &layout());
        optimizer.state().vectors
    };
    assert_eq!(names(OptimizerKind::Sgd { momentum: 0.9 }), ["momentum"]);
    assert!(names(OptimizerKind::Sgd { momentum: 0.0 }).is_empty());
    let adam = OptimizerKind::AdamW {
        beta1: 0.9,
        beta2: 0.999,
        epsilon: 1e-8,
    };
    assert_eq!(names(adam), ["exp_avg", "exp_avg_sq"]);
}
