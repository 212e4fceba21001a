//! How a generation is closed from outside.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Inbox;
use crate::queue::Queue;

/// Closes the generation of one group from any thread.
#[derive(Clone)]
pub struct Revoker {
    inbox: Arc<Inbox>,
    is_taken: Arc<AtomicBool>,
}

impl Default for Revoker {
    fn default() -> Self {
        Self {
            inbox: Arc::new(Queue::new()),
            is_taken: Arc::default(),
        }
    }
}

impl Revoker {
    /// Makes the operation in flight, and every later one, answer
    /// [`Error::Revoked`](crate::Error::Revoked).
    pub fn revoke(&self) {
        self.inbox.interrupt();
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.inbox.is_interrupted()
    }

    pub(crate) fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }

    /// The first caller gets `true`: a revoker belongs to one group.
    pub(crate) fn claim(&self) -> bool {
        !self.is_taken.swap(true, Ordering::SeqCst)
    }
}

impl fmt::Debug for Revoker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revoker(revoked: {})", self.is_revoked())
    }
}
