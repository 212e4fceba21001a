//! A listener to what a group sends, for tests that stop a rank between two frames of an operation.

use std::fmt;

use muster_cluster::RankId;

/// Is told of the frames of operations, on the thread that runs them: the number of a frame in its
/// operation, from 1, and its receiver.
pub struct OnSent(Box<dyn FnMut(u64, RankId) + Send>);

impl OnSent {
    /// Calls `tell` behind each frame; the operation goes on when it returns.
    pub fn new(tell: impl FnMut(u64, RankId) + Send + 'static) -> Self {
        Self(Box::new(tell))
    }

    pub(super) fn tell(&mut self, number: u64, to: RankId) {
        (self.0)(number, to);
    }
}

impl fmt::Debug for OnSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnSent")
    }
}
