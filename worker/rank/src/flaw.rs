//! A device that computes wrongly, for the tests of audits: without its variable in the environment
//! there is none.
//!
//! `MUSTER_TEST_FLAW=process:step:once` flips a bit in the first contribution of an audited shard that
//! this process computes at this step or later; `lasting` flips it in all of them.

use muster_trainer::{DeviceError, Vector};

/// See above.
#[derive(Debug, Default)]
pub(crate) struct Flaw {
    /// From which step on it shows; `None` where it does not.
    from_step: Option<u64>,
    lasts: bool,
}

impl Flaw {
    /// The flaw of this process.
    pub(crate) fn of(process: u64) -> Self {
        let text = std::env::var("MUSTER_TEST_FLAW").unwrap_or_default();
        Self::parse(&text, process).unwrap_or_default()
    }

    fn parse(text: &str, process: u64) -> Option<Self> {
        let (number, rest) = text.split_once(':')?;
        let (step, how) = rest.split_once(':')?;
        let lasts = match how {
            "once" => false,
            "lasting" => true,
            _ => return None,
        };
        let from_step = Some(step.parse().ok()?);
        (number.parse() == Ok(process)).then_some(Self { from_step, lasts })
    }

    /// Spoils a contribution to an audited shard of `step`, where it shows.
    pub(crate) fn spoil(&mut self, step: u64, values: &mut Vector) -> Result<(), DeviceError> {
        if self.from_step.is_some_and(|from| step >= from) && !values.is_empty() {
            let first = values.part(0..1)?[0];
            values.set_part(0, &[f32::from_bits(first.to_bits() ^ 1)]);
            if !self.lasts {
                self.from_step = None;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flaw_shows_in_its_process_from_its_step_on_and_once_or_for_good() {
        let shows = |text: &str, process: u64| {
            let mut flaw = Flaw::parse(text, process).unwrap_or_default();
            let mut shows = |step| {
                let mut values = Vector::Host(vec![1.0, 2.0]);
                flaw.spoil(step, &mut values).expect("it is on the host");
                let values = values.into_host().expect("it is on the host");
                assert_eq!(values[1], 2.0);
                values[0] != 1.0
            };
            [2, 3, 3, 9].map(&mut shows)
        };
        assert_eq!(shows("2:3:once", 2), [false, true, false, false]);
        assert_eq!(shows("2:3:lasting", 2), [false, true, true, true]);
        for (text, process) in [
            ("2:3:once", 1),
            ("", 2),
            ("2:3", 2),
            ("2:x:once", 2),
            ("2:3:often", 2),
        ] {
            assert_eq!(shows(text, process), [false; 4], "{text}");
        }
    }
}
