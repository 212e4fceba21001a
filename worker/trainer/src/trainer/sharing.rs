//! A trainer that keeps only some shares of the optimizer's state: what it gives to other ranks of
//! the job, and takes from them.

use std::collections::BTreeSet;

use super::{Error, Head, Trainer, host, host_mut};
use crate::optimizer::State;

impl Trainer {
    /// The optimizer's state, as far as it is kept here.
    #[must_use]
    pub fn optimizer_state(&self) -> &State {
        self.optimizer.state()
    }

    /// Gives up the shares of the optimizer's state that are not `kept`.
    pub fn keep(&mut self, kept: &BTreeSet<u32>) {
        self.optimizer.keep(kept);
    }

    /// How many values a share of the optimizer's state has.
    #[must_use]
    pub fn num_share_values(&self, share: u32) -> usize {
        self.optimizer.state().vectors.len() * self.cut.range(share).len()
    }

    /// Takes a share of the optimizer's state over from another rank of the same job, which is at
    /// the same step.
    ///
    /// # Errors
    /// [`Error::WrongLength`], where it is not as long as it has to be; nothing was changed then.
    pub fn take_share(&mut self, share: u32, values: Vec<f32>) -> Result<(), Error> {
        let (expected, found) = (self.num_share_values(share), values.len());
        if self.optimizer.take(share, values) {
            return Ok(());
        }
        Err(Error::WrongLength {
            step: self.step,
            expected,
            found,
        })
    }

    /// The parameters of a share.
    #[must_use]
    pub fn parameters(&self, share: u32) -> &[f32] {
        &host(&self.arena)[self.cut.range(share)]
    }

    /// Where the parameters of a share go that another rank has updated.
    pub fn parameters_mut(&mut self, share: u32) -> &mut [f32] {
        &mut host_mut(&mut self.arena)[self.cut.range(share)]
    }

    /// It is where another rank of the same job is, whose parameters and shares are to follow.
    pub fn go_to(&mut self, head: Head) {
        self.step = head.step;
        self.trace = head.trace;
    }
}
