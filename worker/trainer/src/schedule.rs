//! How the learning rate moves: a factor that depends on the step alone. In f64 with `libm`, whose
//! bits are the same on every machine.

use muster_cluster::job::spec::{ScheduleKind, ScheduleSpec};

/// What the learning rate is multiplied with in the step that turns state `step` into the next,
/// in a job of `total_steps`. Always finite and in `[0, 1]`.
///
/// A warm-up that is as long as the decay, or longer, leaves the decay no step: the factor is
/// `final_factor` behind it.
#[must_use]
pub fn factor(spec: &ScheduleSpec, total_steps: u64, step: u64) -> f64 {
    let warmup = spec.warmup_steps;
    if step < warmup {
        return (step as f64 + 1.0) / (warmup as f64 + 1.0);
    }
    match spec.kind {
        ScheduleKind::Constant => 1.0,
        ScheduleKind::Cosine {
            decay_steps,
            final_factor,
        } => {
            let end = decay_steps.unwrap_or(total_steps);
            if step >= end {
                return final_factor;
            }
            // Here warmup <= step < end.
            let progress = (step - warmup) as f64 / (end - warmup) as f64;
            let cosine = 0.5 * (1.0 + libm::cos(std::f64::consts::PI * progress));
            final_factor + (1.0 - final_factor) * cosine
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cosine(warmup_steps: u64, decay_steps: Option<u64>, final_factor: f64) -> ScheduleSpec {
        ScheduleSpec {
            warmup_steps,
            kind: ScheduleKind::Cosine {
                decay_steps,
                final_factor,
            },
        }
    }

    #[test]
    fn warm_up_rises_linearly_and_ends_at_one() {
        let spec = ScheduleSpec {
            warmup_steps: 4,
            kind: ScheduleKind::Constant,
        };
        let factors: Vec<f64> = (0..6).map(|step| factor(&spec, 100, step)).collect();
        // The quotients themselves are correctly rounded.
        assert_eq!(
            factors,
            [1.0 / 5.0, 2.0 / 5.0, 3.0 / 5.0, 4.0 / 5.0, 1.0, 1.0]
        );
    }

    #[test]
    fn cosine_falls_from_one_to_its_final_factor() {
        let spec = cosine(10, None, 0.2);
        assert_eq!(factor(&spec, 110, 10), 1.0);
        // Half-way the cosine is 0, and a third of the way it is a half, to a few roundings.
        assert!((factor(&spec, 110, 60) - 0.6).abs() < 1e-15);
        assert!((factor(&cosine(0, Some(90), 0.0), 7, 30) - 0.75).abs() < 1e-15);
        assert_eq!(factor(&spec, 110, 110), 0.2);
        assert_eq!(factor(&spec, 110, u64::MAX), 0.2);
        for step in 10..109 {
            assert!(
                factor(&spec, 110, step) > factor(&spec, 110, step + 1),
                "step {step}"
            );
        }
    }

    #[test]
    fn every_schedule_gives_a_factor_between_zero_and_one() {
        for warmup in [0, 1, 50, 100, 101, u64::MAX] {
            for decay in [None, Some(1), Some(50), Some(u64::MAX)] {
                for step in [0, 1, 49, 50, 99, 100, 101, u64::MAX - 1, u64::MAX] {
                    let found = factor(&cosine(warmup, decay, 0.0), 100, step);
                    assert!(
                        (0.0..=1.0).contains(&found),
                        "{warmup} {decay:?} {step}: {found}"
                    );
                }
            }
        }
    }

    #[test]
    fn warm_up_as_long_as_the_job_leaves_the_decay_nothing() {
        let spec = cosine(100, None, 0.5);
        assert_eq!(factor(&spec, 100, 99), 100.0 / 101.0);
        assert_eq!(factor(&spec, 100, 100), 0.5);
        assert_eq!(factor(&cosine(200, Some(50), 0.5), 100, 200), 0.5);
    }
}
