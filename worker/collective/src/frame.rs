//! The frames between ranks: what they say, and their bytes.
//!
//! A frame is a header of 64 bytes, all numbers little-endian, and a payload:
//!
//! | bytes | what |
//! |---|---|
//! | 0..4 | the letters `MSTR` |
//! | 4..6 | format version |
//! | 6 | kind: 1 note, 2 sum, 3 total, 4 message, 5 goodbye, 6 alive |
//! | 7 | goodbye's cause, otherwise 0 |
//! | 8..16, 16..24 | history, generation |
//! | 24..32 | step |
//! | 32..40 | sequence: the number of the operation in this generation |
//! | 40..44 | the rank that sends |
//! | 44..48 | piece, part, or the rank that a goodbye blames |
//! | 48..52, 52..56 | first and last-plus-one shard of a sum; number of parts, 0 |
//! | 56..60 | length of the payload in bytes; 0 for a goodbye and for alive |
//! | 60..64 | CRC-32 (IEEE) of bytes 0..60 and the payload |
//!
//! Who may send which frame when is decided in [`crate::reduction`] and [`crate::group`].

mod parts;

use std::borrow::Cow;
use std::io::{self, ErrorKind, Read};

use muster_cluster::tree::Run;
use muster_cluster::{Generation, History, RankId, Step};

use crate::error::LossReason;
use crate::values::{Values, le_bytes};
use crate::world::World;

pub(crate) use parts::{Assembly, parts};
pub use parts::{PART_BYTES, Part};

/// The length of a frame's header.
pub const HEADER_BYTES: usize = 64;
/// The longest payload that a decoder accepts; a header that announces more is refused before
/// any memory is set aside.
pub const MAX_PAYLOAD_BYTES: usize = 4 << 20;

const MAGIC: [u8; 4] = *b"MSTR";
const VERSION: u16 = 1;

/// One message from one rank to another.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// The sender's history.
    pub history: History,
    /// The sender's generation.
    pub generation: Generation,
    /// The sender.
    pub from: RankId,
    /// The number of the operation, from 0 in each generation.
    pub sequence: u64,
    /// The step that the operation belongs to.
    pub step: Step,
    /// What is said.
    pub body: Body,
}

/// What a frame says.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A part of the sender's note to everyone.
    Note(Part),
    /// A piece of one of the sender's subtree sums, to the owner of the piece.
    Sum {
        /// The piece's number in the receiver's chunk.
        piece: u32,
        /// Which shards are summed.
        subtree: Run,
        /// The sum, of the piece's elements.
        values: Values,
    },
    /// A piece that the sender owns, summed over all shards.
    Total {
        /// The piece's number in the sender's chunk.
        piece: u32,
        /// The sum, of the piece's elements.
        values: Values,
    },
    /// A part of a message to this rank alone.
    Message(Part),
    /// The sender leaves; nothing follows.
    Goodbye(Cause),
    /// The sender is there and has nothing else to say. It belongs to the connection: a driver
    /// keeps it to itself.
    Alive,
}

/// Why a rank leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is done.
    Done,
    /// Its generation was revoked.
    Revoked,
    /// It lost another rank.
    Lost(RankId),
    /// It failed in another way.
    Failed,
}

impl Cause {
    /// Who is lost with it to `world`'s rank, when `from` leaves for it, and how that was seen.
    #[must_use]
    pub fn loss(self, from: RankId, world: &World) -> (RankId, LossReason) {
        match self {
            Cause::Done => (from, LossReason::Left),
            Cause::Failed => (from, LossReason::GaveUp),
            Cause::Revoked => (from, LossReason::Revoked),
            // A rank that lost us is lost to us.
            Cause::Lost(rank) if [from, world.rank].contains(&rank) || rank.0 >= world.size => {
                (from, LossReason::GaveUp)
            }
            Cause::Lost(rank) => (rank, LossReason::Reported { by: from }),
        }
    }
}

/// Why something that arrived was not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Refusal {
    /// It does not start with the magic number.
    #[error("wrong magic number")]
    Magic,
    /// It is of another format version.
    #[error("unknown format version")]
    Version,
    /// Its kind or one of its fields has no meaning.
    #[error("meaningless field")]
    Field,
    /// It announces a length that is not allowed.
    #[error("absurd length")]
    Length,
    /// Its checksum does not match.
    #[error("wrong checksum")]
    Checksum,
    /// It is of an older history or generation, or of an operation that is over.
    #[error("older generation or operation")]
    Older,
    /// It is of a generation that this rank knows nothing of.
    #[error("unknown generation")]
    Unknown,
    /// It names another sender than the one whose connection it came on.
    #[error("wrong sender")]
    Sender,
    /// A handshake was signed with another token.
    #[error("wrong token")]
    Token,
    /// A handshake is meant for another rank, or for a world of another size.
    #[error("wrong receiver or world size")]
    Receiver,
    /// A connection said too little before its deadline or its end.
    #[error("no whole handshake in time")]
    Silent,
    /// Too many connections waited for their handshake; this was the oldest.
    #[error("too many strangers")]
    Crowded,
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("the stream ended")]
    Closed(ErrorKind),
    #[error("{0}")]
    Refused(Refusal),
}

impl Frame {
    /// A frame of operation `sequence` of `world`.
    pub(crate) fn new(world: &World, sequence: u64, step: Step, body: Body) -> Self {
        let World {
            history,
            generation,
            rank: from,
            ..
        } = *world;
        Self {
            history,
            generation,
            from,
            sequence,
            step,
            body,
        }
    }

    /// Whether a frame that came on the connection of `from` may be used in `world`.
    ///
    /// # Errors
    /// [`Refusal::Older`], [`Refusal::Unknown`] or [`Refusal::Sender`]; every driver asks before a
    /// machine sees the frame.
    pub fn admit(&self, world: &World, from: RankId) -> Result<(), Refusal> {
        let theirs = (self.history, self.generation);
        match theirs.cmp(&(world.history, world.generation)) {
            std::cmp::Ordering::Less => Err(Refusal::Older),
            std::cmp::Ordering::Greater => Err(Refusal::Unknown),
            std::cmp::Ordering::Equal if self.from != from => Err(Refusal::Sender),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }

    /// The frame's length on a wire, in bytes.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        let payload = match &self.body {
            Body::Note(part) | Body::Message(part) => part.bytes.len(),
            Body::Sum { values, .. } | Body::Total { values, .. } => {
                values.len() * size_of::<f32>()
            }
            Body::Goodbye(_) | Body::Alive => 0,
        };
        HEADER_BYTES + payload
    }

    /// The payload's bytes, not copied where the processor is little-endian.
    pub(crate) fn payload(&self) -> Cow<'_, [u8]> {
        match &self.body {
            Body::Note(part) | Body::Message(part) => Cow::Borrowed(&part.bytes),
            Body::Sum { values, .. } | Body::Total { values, .. } => le_bytes(values),
            Body::Goodbye(_) | Body::Alive => Cow::Borrowed(&[]),
        }
    }

    /// The header, with the checksum over it and `payload`.
    pub(crate) fn header(&self, payload: &[u8]) -> [u8; HEADER_BYTES] {
        let (kind, cause, fields) = match &self.body {
            Body::Note(part) => (1, 0, [part.part, part.num_parts, 0]),
            Body::Sum { piece, subtree, .. } => (2, 0, [*piece, subtree.start, subtree.end]),
            Body::Total { piece, .. } => (3, 0, [*piece, 0, 0]),
            Body::Message(part) => (4, 0, [part.part, part.num_parts, 0]),
            Body::Goodbye(Cause::Done) => (5, 0, [0; 3]),
            Body::Goodbye(Cause::Revoked) => (5, 1, [0; 3]),
            Body::Goodbye(Cause::Lost(rank)) => (5, 2, [rank.0, 0, 0]),
            Body::Goodbye(Cause::Failed) => (5, 3, [0; 3]),
            Body::Alive => (6, 0, [0; 3]),
        };
        let length = u32::try_from(payload.len()).expect("a payload is at most MAX_PAYLOAD_BYTES");
        let mut header = [0; HEADER_BYTES];
        header[0..4].copy_from_slice(&MAGIC);
        header[4..6].copy_from_slice(&VERSION.to_le_bytes());
        header[6] = kind;
        header[7] = cause;
        header[8..16].copy_from_slice(&self.history.0.to_le_bytes());
        header[16..24].copy_from_slice(&self.generation.0.to_le_bytes());
        header[24..32].copy_from_slice(&self.step.0.to_le_bytes());
        header[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        header[40..44].copy_from_slice(&self.from.0.to_le_bytes());
        for (at, field) in [44, 48, 52].into_iter().zip(fields) {
            header[at..at + 4].copy_from_slice(&field.to_le_bytes());
        }
        header[56..60].copy_from_slice(&length.to_le_bytes());
        let checksum = checksum(&header, payload);
        header[60..64].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// Reads one frame; the bytes may be anything.
    ///
    /// The payload is read straight into the memory that the frame keeps.
    pub(crate) fn read(input: &mut impl Read) -> Result<Frame, ReadError> {
        let mut header = [0; HEADER_BYTES];
        read_exact(input, &mut header)?;
        let (kind, length) = opening(&header).map_err(ReadError::Refused)?;
        let mut values = Vec::new();
        let mut bytes = Vec::new();
        let computed = if matches!(kind, 2 | 3) {
            values = vec![0f32; length / size_of::<f32>()];
            let payload: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
            read_exact(input, payload)?;
            let computed = checksum(&header, payload);
            if cfg!(target_endian = "big") {
                for value in &mut values {
                    *value = f32::from_bits(value.to_bits().swap_bytes());
                }
            }
            computed
        } else {
            bytes = vec![0; length];
            read_exact(input, &mut bytes)?;
            checksum(&header, &bytes)
        };
        if computed != u32_at(&header, 60) {
            return Err(ReadError::Refused(Refusal::Checksum));
        }
        let [first, second, third] = [44, 48, 52].map(|at| u32_at(&header, at));
        let part = |bytes: Vec<u8>| {
            let part = Part {
                part: first,
                num_parts: second,
                bytes: bytes.into(),
            };
            (first < second).then_some(part)
        };
        let body = match (kind, header[7]) {
            (1, 0) => part(bytes).map(Body::Note),
            (2, 0) if second < third => {
                let subtree = Run::new(second, third);
                Some(Body::Sum {
                    piece: first,
                    subtree,
                    values: Values::new(values),
                })
            }
            (3, 0) => Some(Body::Total {
                piece: first,
                values: Values::new(values),
            }),
            (4, 0) => part(bytes).map(Body::Message),
            (5, 0) => Some(Body::Goodbye(Cause::Done)),
            (5, 1) => Some(Body::Goodbye(Cause::Revoked)),
            (5, 2) => Some(Body::Goodbye(Cause::Lost(RankId(first)))),
            (5, 3) => Some(Body::Goodbye(Cause::Failed)),
            (6, 0) => Some(Body::Alive),
            _ => None,
        };
        Ok(Frame {
            history: History(u64_at(&header, 8)),
            generation: Generation(u64_at(&header, 16)),
            step: Step(u64_at(&header, 24)),
            sequence: u64_at(&header, 32),
            from: RankId(u32_at(&header, 40)),
            body: body.ok_or(ReadError::Refused(Refusal::Field))?,
        })
    }
}

/// The kind and the payload's length, where the header is one that this version writes.
fn opening(header: &[u8; HEADER_BYTES]) -> Result<(u8, usize), Refusal> {
    if header[0..4] != MAGIC {
        return Err(Refusal::Magic);
    }
    if header[4..6] != VERSION.to_le_bytes() {
        return Err(Refusal::Version);
    }
    let length = usize::try_from(u32_at(header, 56)).map_err(|_| Refusal::Length)?;
    let is_allowed = match header[6] {
        1 | 4 => length <= MAX_PAYLOAD_BYTES,
        2 | 3 => length <= MAX_PAYLOAD_BYTES && length.is_multiple_of(size_of::<f32>()),
        5 | 6 => length == 0,
        _ => return Err(Refusal::Field),
    };
    if is_allowed {
        Ok((header[6], length))
    } else {
        Err(Refusal::Length)
    }
}

fn checksum(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..60]);
    hasher.update(payload);
    hasher.finalize()
}

fn read_exact(input: &mut impl Read, into: &mut [u8]) -> Result<(), ReadError> {
    input
        .read_exact(into)
        .map_err(|error: io::Error| ReadError::Closed(error.kind()))
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("a range of four"))
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("a range of eight"))
}

#[cfg(test)]
mod tests;
