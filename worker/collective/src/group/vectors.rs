//! Vectors of any length from one rank to another, as messages of a bounded size.
//!
//! The first message is the number of elements (8 bytes), so that two ranks that disagree on it
//! notice before anything is moved; the elements follow, at most [`MESSAGE_ELEMENTS`] a message.
//! All numbers are little-endian.

use std::time::{Duration, Instant};

use muster_cluster::RankId;

use super::Group;
use crate::error::Error;
use crate::values::le_bytes;

/// 64 MiB: what a sender copies at a time, and no more than a lane holds before its sender waits.
const MESSAGE_ELEMENTS: usize = (64 << 20) / size_of::<f32>();

impl Group {
    /// Sends a vector of any length to one other rank, which receives it with
    /// [`Self::recv_vector`]; returns when all of it is queued.
    ///
    /// Of a long vector, all but about two messages' worth waits until the receiver receives. Two
    /// ranks that both send a long vector first wait for each other.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn send_vector(
        &mut self,
        to: RankId,
        values: &[f32],
        deadline: Duration,
    ) -> Result<(), Error> {
        let until = Instant::now().checked_add(deadline);
        let num_elements = values.len() as u64;
        self.send_until(to, num_elements.to_le_bytes().to_vec(), until)?;
        for message in values.chunks(MESSAGE_ELEMENTS) {
            self.send_until(to, le_bytes(message).into_owned(), until)?;
        }
        Ok(())
    }

    /// The next vector from another rank, of `num_elements` elements and taken from the pool.
    ///
    /// # Errors
    /// As [`Self::recv`], and [`Error::Protocol`] where the sender's vector has another length.
    /// After [`Error::TimedOut`] the group can still be used if nothing of the vector had come;
    /// otherwise it has failed, because the rest of the vector may still come.
    pub fn recv_vector(
        &mut self,
        from: RankId,
        num_elements: usize,
        deadline: Duration,
    ) -> Result<Vec<f32>, Error> {
        let until = Instant::now().checked_add(deadline);
        let opening = self.recv_until(from, until)?;
        if opening != (num_elements as u64).to_le_bytes() {
            let what = match <[u8; 8]>::try_from(opening.as_slice()) {
                Ok(len) => format!("a vector of {} elements", u64::from_le_bytes(len)),
                Err(_) => format!("a message of {} bytes", opening.len()),
            };
            let what = format!("{what}: expected a vector of {num_elements} elements");
            return Err(self.fail(Error::Protocol { rank: from, what }));
        }
        let mut values = self.pool.take(num_elements);
        for part in values.chunks_mut(MESSAGE_ELEMENTS) {
            let message = self.recv_until(from, until);
            let message = message.map_err(|error| self.fail(error))?;
            let (len, expected) = (message.len(), size_of_val(part));
            if len != expected {
                let what = format!("{len} bytes of a vector: expected {expected}");
                return Err(self.fail(Error::Protocol { rank: from, what }));
            }
            let (bytes, _) = message.as_chunks();
            for (value, bytes) in part.iter_mut().zip(bytes) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        Ok(values)
    }
}
