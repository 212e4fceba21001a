//! What a group counts.

use std::collections::BTreeMap;

use crate::frame::Refusal;

/// What a group has moved and refused so far, as of its last operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames handed to the transport.
    pub frames_sent: u64,
    /// Their bytes, headers included.
    pub bytes_sent: u64,
    /// Frames that were used.
    pub frames_received: u64,
    /// Their bytes, headers included.
    pub bytes_received: u64,
    /// Frames and handshakes that were not used, by reason.
    pub refused: BTreeMap<Refusal, u64>,
}

impl Counters {
    pub(crate) fn refuse(&mut self, refusal: Refusal) {
        *self.refused.entry(refusal).or_default() += 1;
    }
}
