//! A trainer that keeps only some shares of the optimizer's state: what it gives to other ranks of
//! the job, and takes from them.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::{Error, Head, Trainer};
use crate::optimizer::digest;
use crate::vector::DeviceError;

impl Trainer {
    /// The shares of the optimizer's state that are kept here, in order.
    #[must_use]
    pub fn kept(&self) -> Vec<u32> {
        self.optimizer.kept()
    }

    /// The values of a share of the optimizer's state; `None` where it is not kept here.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn share(&self, share: u32) -> Result<Option<Cow<'_, [f32]>>, DeviceError> {
        self.optimizer.share(share)
    }

    /// BLAKE3 of a share, as [`State::digest`](crate::optimizer::State::digest) has it; `None` where
    /// it is not kept here.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn share_digest(&self, share: u32) -> Result<Option<[u8; 32]>, DeviceError> {
        let values = self.optimizer.share(share)?;
        Ok(values.map(|values| digest(self.optimizer.vectors(), &values)))
    }

    /// Gives up the shares of the optimizer's state that are not `kept`.
    pub fn keep(&mut self, kept: &BTreeSet<u32>) {
        self.optimizer.keep(kept);
    }

    /// How many values a share of the optimizer's state has.
    #[must_use]
    pub fn num_share_values(&self, share: u32) -> usize {
        self.optimizer.vectors().len() * self.cut.range(share).len()
    }

    /// Takes a share of the optimizer's state over from another rank of the same job, which is at
    /// the same step.
    ///
    /// # Errors
    /// [`Error::WrongLength`], where it is not as long as it has to be; nothing was changed then.
    pub fn take_share(&mut self, share: u32, values: Vec<f32>) -> Result<(), Error> {
        let (expected, found) = (self.num_share_values(share), values.len());
        if self.optimizer.take(vec![(share, values)]) {
            return Ok(());
        }
        Err(Error::WrongLength {
            step: self.step,
            expected,
            found,
        })
    }

    /// How many parameters a share has.
    #[must_use]
    pub fn num_parameters(&self, share: u32) -> usize {
        self.cut.range(share).len()
    }

    /// The parameters of a share.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn parameters(&self, share: u32) -> Result<Cow<'_, [f32]>, DeviceError> {
        self.arena.part(self.cut.range(share))
    }

    /// Takes the parameters of a share over that another rank has updated.
    ///
    /// # Panics
    /// When they are not as many as the share has.
    pub fn set_parameters(&mut self, share: u32, values: &[f32]) {
        let range = self.cut.range(share);
        assert_eq!(values.len(), range.len(), "the parameters of a share");
        self.arena.set_part(range.start, values);
    }

    /// It is where another rank of the same job is, whose parameters and shares are to follow.
    pub fn go_to(&mut self, head: Head) {
        self.step = head.step;
        self.trace = head.trace;
    }
}
