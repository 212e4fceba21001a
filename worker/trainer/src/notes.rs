//! What travels beside a contribution: which shard it was, what it measured, and which samples it
//! read. The bytes are a frame between ranks, so decoding trusts nothing.
//!
//! Not here: how notes reach the other ranks (`collective` and `rank`).
//!
//! ```text
//! note    = shard: u32, digest: 32 bytes, not finite: u8 (0 none, 1 NaN, 2 inf, 3 -inf),
//!           its place: u64 unless none, metrics
//! metrics = num_samples: u64, count: u32, count * (length: u16, name: UTF-8, sum: f64)
//! ```
//! All numbers are little-endian; names are in alphabetical order.

use std::collections::BTreeMap;

use muster_cluster::ShardId;

use crate::finite::{NoNumber, NotFinite};
use crate::learner::Metrics;

/// The most quantities of one set of metrics; more are refused before memory is asked for.
const MAX_QUANTITIES: u32 = 1024;

/// The longest name of a quantity, in bytes.
const MAX_NAME: usize = 255;

/// What one logical shard says of its part in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardNote {
    /// Which shard.
    pub shard: ShardId,
    /// Sums over the shard's samples.
    pub metrics: Metrics,
    /// BLAKE3 over the row numbers of the samples that were read, each a little-endian u64.
    pub digest: [u8; 32],
    /// The first value of its contribution that is not finite.
    pub not_finite: Option<NotFinite>,
}

/// Bytes that are no note or no metrics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// They end too early.
    #[error("a note ends in the middle of {what}")]
    Truncated {
        /// What was being read.
        what: &'static str,
    },
    /// A count or a length is beyond its bound.
    #[error("a note states {found} {what}; at most {most} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// As stated.
        found: u64,
        /// The bound.
        most: u64,
    },
    /// A value that is not finite is of no kind that there is.
    #[error("a note names a value of kind {found}, which there is not")]
    BadValue {
        /// As stated.
        found: u8,
    },
    /// A name is not UTF-8, or not behind the name before it.
    #[error("the names of a note are not UTF-8 in alphabetical order")]
    BadName,
}

impl ShardNote {
    /// Appends the note to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.shard.0.to_le_bytes());
        out.extend(self.digest);
        let value = self.not_finite.map(|not_finite| not_finite.value);
        out.push(match value {
            None => 0,
            Some(NoNumber::Nan) => 1,
            Some(NoNumber::Infinity) => 2,
            Some(NoNumber::NegativeInfinity) => 3,
        });
        if let Some(NotFinite { at, .. }) = self.not_finite {
            out.extend(at.to_le_bytes());
        }
        self.metrics.encode(out);
    }

    /// Reads a note from the front of `bytes` and moves `bytes` behind it.
    ///
    /// # Errors
    /// [`NoteError`] for bytes that [`ShardNote::encode`] does not write.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self, NoteError> {
        let shard = ShardId(u32::from_le_bytes(take(bytes, "the shard")?));
        let digest = take(bytes, "the digest")?;
        let [kind] = take(bytes, "a kind of value")?;
        let value = match kind {
            0 => None,
            1 => Some(NoNumber::Nan),
            2 => Some(NoNumber::Infinity),
            3 => Some(NoNumber::NegativeInfinity),
            found => return Err(NoteError::BadValue { found }),
        };
        let not_finite = match value {
            None => None,
            Some(value) => {
                let at = u64::from_le_bytes(take(bytes, "the place of a value")?);
                Some(NotFinite { at, value })
            }
        };
        Ok(Self {
            shard,
            metrics: Metrics::decode(bytes)?,
            digest,
            not_finite,
        })
    }
}

impl Metrics {
    /// Appends the metrics to `out`.
    ///
    /// # Panics
    /// When a name is longer than 255 bytes or there are more than 1024: names are a learner's
    /// constants.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let count = u32::try_from(self.sums.len()).unwrap_or(u32::MAX);
        assert!(
            count <= MAX_QUANTITIES,
            "a learner has at most {MAX_QUANTITIES} quantities"
        );
        out.extend(self.num_samples.to_le_bytes());
        out.extend(count.to_le_bytes());
        for (name, sum) in &self.sums {
            assert!(
                name.len() <= MAX_NAME,
                "a quantity's name has at most {MAX_NAME} bytes"
            );
            out.extend((name.len() as u16).to_le_bytes());
            out.extend(name.as_bytes());
            out.extend(sum.to_le_bytes());
        }
    }

    /// Reads metrics from the front of `bytes` and moves `bytes` behind them.
    ///
    /// # Errors
    /// [`NoteError`] for bytes that [`Metrics::encode`] does not write.
    pub fn decode(bytes: &mut &[u8]) -> Result<Self, NoteError> {
        let num_samples = u64::from_le_bytes(take(bytes, "the number of samples")?);
        let count = u32::from_le_bytes(take(bytes, "the number of quantities")?);
        bounded("quantities", u64::from(count), u64::from(MAX_QUANTITIES))?;
        let mut sums = BTreeMap::new();
        for _ in 0..count {
            let length = usize::from(u16::from_le_bytes(take(bytes, "the length of a name")?));
            bounded("bytes of a name", length as u64, MAX_NAME as u64)?;
            let Some((name, rest)) = bytes.split_at_checked(length) else {
                return Err(NoteError::Truncated { what: "a name" });
            };
            let name = std::str::from_utf8(name).map_err(|_| NoteError::BadName)?;
            if sums
                .last_key_value()
                .is_some_and(|(last, _): (&String, &f64)| last.as_str() >= name)
            {
                return Err(NoteError::BadName);
            }
            *bytes = rest;
            sums.insert(name.to_owned(), f64::from_le_bytes(take(bytes, "a sum")?));
        }
        Ok(Self { num_samples, sums })
    }
}

fn bounded(what: &'static str, found: u64, most: u64) -> Result<(), NoteError> {
    if found > most {
        Err(NoteError::TooMany { what, found, most })
    } else {
        Ok(())
    }
}

fn take<const N: usize>(bytes: &mut &[u8], what: &'static str) -> Result<[u8; N], NoteError> {
    let (first, rest) = bytes
        .split_first_chunk()
        .ok_or(NoteError::Truncated { what })?;
    *bytes = rest;
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note() -> ShardNote {
        let sums = BTreeMap::from([("accuracy".to_owned(), 3.0), ("loss".to_owned(), 0.1)]);
        ShardNote {
            shard: ShardId(5),
            metrics: Metrics {
                num_samples: 8,
                sums,
            },
            digest: [7; 32],
            not_finite: Some(NotFinite {
                at: 1 << 40,
                value: NoNumber::NegativeInfinity,
            }),
        }
    }

    #[test]
    fn notes_are_read_back_one_behind_another() {
        let mut bytes = Vec::new();
        note().encode(&mut bytes);
        let other = ShardNote {
            shard: ShardId(6),
            metrics: Metrics::default(),
            digest: [1; 32],
            not_finite: None,
        };
        other.encode(&mut bytes);
        let mut rest = &bytes[..];
        assert_eq!(ShardNote::decode(&mut rest), Ok(note()));
        assert_eq!(ShardNote::decode(&mut rest), Ok(other));
        assert!(rest.is_empty());
    }

    #[test]
    fn every_shortened_note_is_refused() {
        let mut bytes = Vec::new();
        note().encode(&mut bytes);
        for length in 0..bytes.len() {
            let refusal = ShardNote::decode(&mut &bytes[..length]);
            assert!(
                matches!(refusal, Err(NoteError::Truncated { .. })),
                "{length} bytes: {refusal:?}"
            );
        }
    }

    #[test]
    fn values_of_no_kind_are_refused() {
        let mut bytes = Vec::new();
        note().encode(&mut bytes);
        for found in [4, 0xff] {
            bytes[36] = found;
            let refusal = ShardNote::decode(&mut &bytes[..]);
            assert_eq!(refusal, Err(NoteError::BadValue { found }));
        }
    }

    #[test]
    fn absurd_counts_and_names_out_of_order_are_refused() {
        let mut bytes = Vec::new();
        note().metrics.encode(&mut bytes);
        let mut absurd = bytes.clone();
        absurd[8..12].fill(0xff);
        let refusal = Metrics::decode(&mut &absurd[..]);
        assert!(
            matches!(
                refusal,
                Err(NoteError::TooMany {
                    what: "quantities",
                    ..
                })
            ),
            "{refusal:?}"
        );
        let mut disordered = bytes.clone();
        disordered[14] = b'z';
        assert_eq!(
            Metrics::decode(&mut &disordered[..]),
            Err(NoteError::BadName)
        );
        disordered[14] = 0xff;
        assert_eq!(
            Metrics::decode(&mut &disordered[..]),
            Err(NoteError::BadName)
        );
    }
}
