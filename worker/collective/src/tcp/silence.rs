//! When a peer that is connected but says nothing counts as lost.
//!
//! A connection that ends tells of a death by itself; one whose other machine has stopped, or
//! whose network drops everything, just goes quiet. So every rank lets each peer hear from it at
//! least once per [`beat`], and takes a peer for lost of which it heard nothing for `detect`.
//! Any bytes count, those of a frame that is not whole yet too.

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::error::Error;

/// How long a rank has nothing to say to a peer before it says that it is there. Three of these
/// may be late or lost in a peer's `detect`.
pub(super) fn beat(detect: Duration) -> Duration {
    detect / 4
}

/// The receiving half of a connection. A read that gets nothing for `detect` answers
/// [`ErrorKind::WouldBlock`], which a blocking socket answers for no other reason.
///
/// Only the time within a read counts: a rank that does not ask cannot tell who is silent.
#[derive(Debug)]
pub(super) struct Listening<'a> {
    stream: &'a TcpStream,
    detect: Duration,
}

impl<'a> Listening<'a> {
    pub(super) fn new(stream: &'a TcpStream, detect: Duration) -> Self {
        Self { stream, detect }
    }

    /// Sets the time that a read of `stream` waits at most.
    pub(super) fn prepare(stream: &TcpStream, detect: Duration) -> Result<(), Error> {
        let set = stream.set_read_timeout(Some(detect));
        set.map_err(Error::system("set SO_RCVTIMEO"))
    }

    /// Lets reads wait for ever from now on.
    pub(super) fn forgive(&self) {
        // Where the system refuses, the next silence ends the wait.
        let _ = self.stream.set_read_timeout(None);
    }
}

impl Read for Listening<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut stream = self.stream;
        loop {
            let begun = Instant::now();
            match stream.read(into) {
                // The kernel looks for data once more before it answers that the time is over, so
                // that what came while this process was stopped is read and not missed.
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock
                        && is_own_delay(begun.elapsed(), self.detect) => {}
                // Linux interrupts a wait with a time limit when a stopped process goes on.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

/// Whether a wait for `detect` that took `waited` says more of this thread than of the peer: it
/// was held up itself, by a signal or a busy machine, so the peer's beats may have been too.
fn is_own_delay(waited: Duration, detect: Duration) -> bool {
    waited > detect.saturating_add(detect / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_was_held_up_itself_blames_nobody() {
        let detect = Duration::from_millis(100);
        for (waited_ms, expected) in [(100, false), (150, false), (151, true), (9000, true)] {
            let waited = Duration::from_millis(waited_ms);
            assert_eq!(is_own_delay(waited, detect), expected, "{waited:?}");
        }
        assert!(!is_own_delay(Duration::MAX, Duration::MAX));
    }
}
