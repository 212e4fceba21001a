//! How much a leader says at once to the ranks of large worlds. What has to be said is in `orders`.

/// Messages as long as a world is large that go out between two ticks, and their bytes: a world of ten
/// thousand ranks has its assignments within a quarter of a second, and never holds up the messages by which the
/// leader keeps its lead, nor fills the memory with what waits for its streams.
const MAX_LARGE_PER_TICK: usize = 1_000;
const MAX_LARGE_BYTES_PER_TICK: usize = 16 << 20;

/// What may still be said at length until the next tick.
#[derive(Debug)]
pub(super) struct Allowance {
    pub(super) num_messages: usize,
    num_bytes: usize,
    /// Whether something had to wait when it was last told what is missing.
    pub(super) is_short: bool,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            num_messages: MAX_LARGE_PER_TICK,
            num_bytes: MAX_LARGE_BYTES_PER_TICK,
            is_short: false,
        }
    }
}

impl Allowance {
    /// A tick; what had to wait is still to be told.
    pub(super) fn refill(&mut self) {
        *self = Self {
            is_short: self.is_short,
            ..Self::default()
        };
    }

    /// Whether a message of so many bytes may go now. The last one between two ticks may be longer than
    /// what is left.
    pub(super) fn takes(&mut self, num_bytes: usize) -> bool {
        if self.num_messages == 0 || self.num_bytes == 0 {
            self.is_short = true;
            return false;
        }
        self.num_messages -= 1;
        self.num_bytes = self.num_bytes.saturating_sub(num_bytes);
        true
    }
}
