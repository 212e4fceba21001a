//! What crosses a connection between a rank and a process that follows it.
//!
//! The follower dials and says hello; the rank answers welcome, or closes without a word. Each of the
//! two is 80 bytes ([`seal`](muster_collective::tcp::seal)), with the letters `MSTRFEED`, sealed with
//! the job's token. The body is four u64, little-endian: the kind (1 hello, 2 welcome), the history,
//! the sender's and the receiver's number among the processes of the job.
//!
//! Behind it both send frames: kind (u8), three zeros, the payload's length (u32), BLAKE3 of the kind and
//! the payload (32 bytes), and the payload.
//!
//! ```text
//! 1 ask for a state   attempt: u64, part: u8, parts: u8
//! 2 ask for steps     from: u64
//! 3 refused           kind of the ask: u8, and its payload
//! 4 a share begins    attempt: u64, step: u64, trace: 32 bytes, number of values: u64, acked step: u64,
//!                     acked evaluation: u8, records; pieces follow
//! 5 a piece           values
//! 6 a step begins     step: u64, number of values: u64, generation: u64, acked step: u64,
//!                     acked evaluation: u8, length of records: u32, records, shard notes; pieces follow
//! 7 level             step: u64
//! 8 alive
//! ```
//! Records are each behind its length as u32.

use std::io::{self, Read, Write};

use muster_cluster::ids::{ProcessId, Step};
use muster_collective::tcp::Token;
use muster_collective::tcp::seal::{BODY_BYTES, HANDSHAKE_BYTES, Seal};
use muster_proto::v1;
use muster_trainer::{Head, ShardNote};
use muster_worker_core::feed::{Ask, MAX_PARTS, Ticket};

use crate::heal::{decode_records, encode_records};
use crate::last::Story;

/// The values of one piece, at most.
const PIECE_VALUES: usize = 1 << 20;

/// No frame of ours is longer.
const MAX_BYTES: usize = 64 << 20;

const SEAL: Seal = Seal {
    magic: *b"MSTRFEED",
    version: 1,
    context: "muster feed handshake v1",
};

/// What tells whether a handshake is one of ours.
const FIRST_BYTES: usize = 16;

const HEAD_BYTES: usize = 40;
const PIECE: u8 = 5;

/// What a handshake says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Hello,
    Welcome,
}

/// One handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handshake {
    pub(crate) kind: Kind,
    pub(crate) history: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Bytes that are none of ours, or not for us.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadBytes {
    #[error("it speaks something else")]
    Foreign,
    #[error("it is of another job, history or process")]
    Stranger,
    #[error("a frame was damaged on its way")]
    Damaged,
    #[error("a frame makes no sense")]
    Senseless,
}

impl From<BadBytes> for io::Error {
    fn from(error: BadBytes) -> Self {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

impl Handshake {
    pub(crate) fn encode(&self, token: Token) -> [u8; HANDSHAKE_BYTES] {
        let mut body = [0; BODY_BYTES];
        body[0] = match self.kind {
            Kind::Hello => 1,
            Kind::Welcome => 2,
        };
        for (at, number) in [(8, self.history), (16, self.from), (24, self.to)] {
            body[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        SEAL.close(body, token)
    }

    /// Reads a handshake. Garbage is refused when its first bytes are here.
    pub(crate) fn read(stream: &mut impl Read, token: Token) -> io::Result<Self> {
        let mut bytes = [0; HANDSHAKE_BYTES];
        let (first, rest) = bytes.split_at_mut(FIRST_BYTES);
        stream.read_exact(first)?;
        SEAL.open(first, token).map_err(|_| BadBytes::Foreign)?;
        stream.read_exact(rest)?;
        let body = SEAL.open(&bytes, token).map_err(|_| BadBytes::Stranger)?;
        let body = body.ok_or(BadBytes::Senseless)?;
        let mut rest = &body[..];
        let kind = match number(&mut rest) {
            Some(1) => Kind::Hello,
            Some(2) => Kind::Welcome,
            _ => return Err(BadBytes::Senseless.into()),
        };
        let mut next = || number(&mut rest).ok_or(BadBytes::Senseless);
        Ok(Self {
            kind,
            history: next()?,
            from: next()?,
            to: next()?,
        })
    }
}

/// One frame, a piece excepted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Frame {
    /// The ticket's process is whoever asks.
    Ask(Ask),
    Refused(Ask),
    Share {
        attempt: u64,
        head: Head,
        num_values: u64,
        acked: (u64, bool),
        records: Vec<v1::StepRecord>,
    },
    Step {
        step: u64,
        num_values: u64,
        story: Story,
        notes: Vec<ShardNote>,
    },
    Level {
        step: u64,
    },
    Alive,
}

impl Frame {
    pub(crate) fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let (kind, payload) = self.encode();
        write(stream, kind, &payload)
    }

    fn encode(&self) -> (u8, Vec<u8>) {
        let mut payload = Vec::new();
        let kind = match self {
            Frame::Ask(ask) => {
                let (kind, ask) = encode_ask(*ask);
                payload = ask;
                kind
            }
            Frame::Refused(ask) => {
                let (kind, ask) = encode_ask(*ask);
                payload.push(kind);
                payload.extend(ask);
                3
            }
            Frame::Share {
                attempt,
                head,
                num_values,
                acked,
                records,
            } => {
                payload.extend(attempt.to_le_bytes());
                payload.extend(head.step.0.to_le_bytes());
                payload.extend(head.trace);
                payload.extend(num_values.to_le_bytes());
                encode_place(*acked, &mut payload);
                payload.extend(encode_records(records));
                4
            }
            Frame::Step {
                step,
                num_values,
                story,
                notes,
            } => {
                payload.extend(step.to_le_bytes());
                payload.extend(num_values.to_le_bytes());
                story.encode(&mut payload);
                for note in notes {
                    note.encode(&mut payload);
                }
                6
            }
            Frame::Level { step } => {
                payload.extend(step.to_le_bytes());
                7
            }
            Frame::Alive => 8,
        };
        (kind, payload)
    }

    /// Reads the next frame of a connection on which process `asker` follows.
    pub(crate) fn read(stream: &mut impl Read, asker: ProcessId) -> io::Result<Self> {
        let (kind, length, hash) = read_head(stream)?;
        if length > MAX_BYTES {
            return Err(BadBytes::Senseless.into());
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload)?;
        if hash_of(kind, &payload) != hash {
            return Err(BadBytes::Damaged.into());
        }
        Self::decode(kind, &payload, asker).ok_or_else(|| BadBytes::Senseless.into())
    }

    fn decode(kind: u8, payload: &[u8], asker: ProcessId) -> Option<Self> {
        let mut rest = payload;
        let frame = match kind {
            1 | 2 => Frame::Ask(decode_ask(kind, &mut rest, asker)?),
            3 => {
                let [kind] = take(&mut rest)?;
                Frame::Refused(decode_ask(kind, &mut rest, asker)?)
            }
            4 => Frame::Share {
                attempt: number(&mut rest)?,
                head: Head {
                    step: Step(number(&mut rest)?),
                    trace: take(&mut rest)?,
                },
                num_values: number(&mut rest)?,
                acked: decode_place(&mut rest)?,
                records: decode_records(std::mem::take(&mut rest))?,
            },
            6 => {
                let (step, num_values) = (number(&mut rest)?, number(&mut rest)?);
                let story = Story::decode(&mut rest)?;
                let mut notes = Vec::new();
                while !rest.is_empty() {
                    notes.push(ShardNote::decode(&mut rest).ok()?);
                }
                Frame::Step {
                    step,
                    num_values,
                    story,
                    notes,
                }
            }
            7 => Frame::Level {
                step: number(&mut rest)?,
            },
            8 => Frame::Alive,
            _ => return None,
        };
        rest.is_empty().then_some(frame)
    }
}

/// Sends values in pieces.
pub(crate) fn write_values(stream: &mut impl Write, values: &[f32]) -> io::Result<()> {
    values
        .chunks(PIECE_VALUES)
        .try_for_each(|piece| write(stream, PIECE, bytemuck::cast_slice(piece)))
}

/// Reads so many values, a piece at a time; `arrived` hears how many are here.
pub(crate) fn read_values(
    stream: &mut impl Read,
    num_values: usize,
    mut arrived: impl FnMut(usize),
) -> io::Result<Vec<f32>> {
    let mut values = vec![0.0; num_values];
    let mut at = 0;
    while at < num_values {
        let (kind, length, hash) = read_head(stream)?;
        let rest: &mut [u8] = bytemuck::cast_slice_mut(&mut values[at..]);
        let is_whole = length > 0 && length.is_multiple_of(size_of::<f32>());
        if kind != PIECE || !is_whole || length > rest.len() {
            return Err(BadBytes::Senseless.into());
        }
        stream.read_exact(&mut rest[..length])?;
        if hash_of(PIECE, &rest[..length]) != hash {
            return Err(BadBytes::Damaged.into());
        }
        at += length / size_of::<f32>();
        arrived(at);
    }
    Ok(values)
}

fn write(stream: &mut impl Write, kind: u8, payload: &[u8]) -> io::Result<()> {
    let mut head = [0; HEAD_BYTES];
    head[0] = kind;
    let length = u32::try_from(payload.len()).map_err(|_| BadBytes::Senseless)?;
    head[4..8].copy_from_slice(&length.to_le_bytes());
    head[8..].copy_from_slice(hash_of(kind, payload).as_bytes());
    stream.write_all(&head)?;
    stream.write_all(payload)
}

fn read_head(stream: &mut impl Read) -> io::Result<(u8, usize, blake3::Hash)> {
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head)?;
    let length = u32::from_le_bytes(head[4..8].try_into().expect("a range of four"));
    let hash: [u8; 32] = head[8..].try_into().expect("a range of 32");
    Ok((head[0], length as usize, hash.into()))
}

fn hash_of(kind: u8, payload: &[u8]) -> blake3::Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[kind]);
    hasher.update(payload);
    hasher.finalize()
}

fn encode_ask(ask: Ask) -> (u8, Vec<u8>) {
    match ask {
        Ask::State(ticket) => {
            let mut payload = ticket.attempt.to_le_bytes().to_vec();
            payload.extend([ticket.part, ticket.parts]);
            (1, payload)
        }
        Ask::Steps { from } => (2, from.to_le_bytes().to_vec()),
    }
}

fn decode_ask(kind: u8, rest: &mut &[u8], process: ProcessId) -> Option<Ask> {
    match kind {
        1 => {
            let attempt = number(rest)?;
            let [part, parts] = take(rest)?;
            let ticket = Ticket {
                process,
                attempt,
                part,
                parts,
            };
            (part < parts && parts <= MAX_PARTS).then_some(Ask::State(ticket))
        }
        2 => Some(Ask::Steps {
            from: number(rest)?,
        }),
        _ => None,
    }
}

pub(crate) fn encode_place((step, is_evaluation): (u64, bool), payload: &mut Vec<u8>) {
    payload.extend(step.to_le_bytes());
    payload.push(u8::from(is_evaluation));
}

pub(crate) fn decode_place(rest: &mut &[u8]) -> Option<(u64, bool)> {
    let step = number(rest)?;
    let [is_evaluation] = take(rest)?;
    Some((step, is_evaluation != 0))
}

pub(crate) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, others) = rest.split_first_chunk()?;
    *rest = others;
    Some(*head)
}

pub(crate) fn number(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests;
