//! A whole state in shares: what one rank gives another of it, and how the shares become a state again.

use std::ops::Range;

use super::snapshot::slice;
use super::{Error, Head, Trainer, host, host_mut};

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
    #[must_use]
    pub fn values(&self, range: Range<usize>) -> Vec<f32> {
        let optimizer = self.optimizer.state().shares.values();
        let optimizer = optimizer.map(|values| &values[..]);
        slice(std::iter::once(host(&self.arena)).chain(optimizer), range)
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
        *host_mut(&mut self.arena) = slice(parts(), 0..start);
        let kept = self.optimizer.state().shares.keys();
        for share in kept.copied().collect::<Vec<_>>() {
            let end = start + self.num_share_values(share);
            self.optimizer.take(share, slice(parts(), start..end));
            start = end;
        }
        self.go_to(head);
        Ok(())
    }
}
