//! A whole state in shares: what one rank gives another of it, and how the shares become a state again.

use std::ops::Range;

use super::snapshot::slice;
use super::{Error, Head, Trainer};
use crate::vector::DeviceError;

impl Trainer {
    /// What its state is beside its values.
    #[must_use]
    pub fn head(&self) -> Head {
        Head {
            step: self.step,
            trace: self.trace,
        }
    }

    /// A copy of the elements `range` of its values: the arena, and behind it the optimizer's state as
    /// far as it is kept here.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn values(&self, range: Range<usize>) -> Result<Vec<f32>, DeviceError> {
        let len = self.arena.len();
        let values = self.arena.part(range.start.min(len)..range.end.min(len))?;
        let mut values = values.into_owned();
        let mut start = len;
        for share in self.optimizer.kept() {
            let end = start + self.num_share_values(share);
            let inside = range.start.clamp(start, end)..range.end.clamp(start, end);
            if !inside.is_empty() {
                let share = self.optimizer.share(share)?.unwrap_or_default();
                values.extend_from_slice(&share[inside.start - start..inside.end - start]);
            }
            start = end;
        }
        Ok(values)
    }

    /// Takes over the state of other ranks of the same job, whose [`Self::values`] these parts are one
    /// behind the other. They keep of it what is kept here.
    ///
    /// # Errors
    /// [`Error::WrongLength`], where they are not as many as this job has; nothing was changed then.
    pub fn take_over(&mut self, head: Head, parts: &[Vec<f32>]) -> Result<(), Error> {
        let (expected, found) = (self.num_state_values(), parts.iter().map(Vec::len).sum());
        if found != expected {
            return Err(Error::WrongLength {
                step: head.step,
                expected,
                found,
            });
        }
        let parts = || parts.iter().map(|part| &part[..]);
        let mut start = self.layout.len();
        self.arena.set(slice(parts(), 0..start));
        let shares = self.optimizer.kept().into_iter().map(|share| {
            let end = start + self.num_share_values(share);
            let values = slice(parts(), start..end);
            start = end;
            (share, values)
        });
        let shares = shares.collect();
        self.optimizer.take(shares);
        self.go_to(head);
        Ok(())
    }
}
