//! What a rank tells all others with its part of a step.
//!
//! ```text
//! note   = flags: u8 (1 stop, 2 pause, 4 brings what is audited, 8 audits it, 16 tickets), acked step: u64,
//!          acked evaluation: u8, pace, pause's reason (u16 length, UTF-8) if it pauses,
//!          the 32 bytes of each hash that it has of the audited shard,
//!          tickets (u16 count) if there are any, shard notes
//! pace   = six times u32, in the order of the fields below
//! ticket = process: u64, attempt: u64, part: u8, parts: u8
//! ```
//! All numbers are little-endian.

use muster_cluster::ids::ProcessId;
use muster_proto::v1;
use muster_trainer::{NoteError, ShardNote};
use muster_worker_core::audit::Hash;
use muster_worker_core::feed::Ticket;

/// One rank's note, or what those of all ranks amount to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Note {
    /// It was told to stop: all end behind this step.
    pub(crate) stop: bool,
    /// It was told to close the world behind this step, and why.
    pub(crate) pause: Option<String>,
    /// The newest record that is known to be durable.
    pub(crate) acked: (u64, bool),
    /// What each rank measured of itself; of one rank's note, one.
    pub(crate) paces: Vec<Pace>,
    /// The hash of the audited shard, of the rank that brings it and of the one that audits it.
    pub(crate) audit: [Option<Hash>; 2],
    /// Of those who want a share of its state.
    pub(crate) tickets: Vec<Ticket>,
    /// Of the shards it brings.
    pub(crate) shards: Vec<ShardNote>,
}

/// What a rank measured of itself, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pace {
    /// The contribution of one shard, in the mean; 0 where it computed none.
    pub(crate) shard: u32,
    /// Of all its contributions, reading samples.
    pub(crate) data: u32,
    /// Before the step, waiting until a snapshot could be taken.
    pub(crate) checkpoint: u32,
    /// The update of the step before.
    pub(crate) update: u32,
    /// The peer that it waited for longest while it reduced the step before, and for how long.
    pub(crate) awaited: u32,
    pub(crate) awaited_for: u32,
}

/// Bytes that are no note.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadNote {
    #[error("a rank's note ends early")]
    Truncated,
    #[error("a rank's note holds a bad shard note")]
    Shard(#[from] NoteError),
}

const STOP: u8 = 1;
const PAUSE: u8 = 2;
const AUDIT: [u8; 2] = [4, 8];
const TICKETS: u8 = 16;

impl Note {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut flags = u8::from(self.stop) * STOP + u8::from(self.pause.is_some()) * PAUSE;
        for (hash, flag) in self.audit.iter().zip(AUDIT) {
            flags += u8::from(hash.is_some()) * flag;
        }
        flags += u8::from(!self.tickets.is_empty()) * TICKETS;
        let mut out = vec![flags];
        out.extend(self.acked.0.to_le_bytes());
        out.push(u8::from(self.acked.1));
        for number in self.paces.first().copied().unwrap_or_default().numbers() {
            out.extend(number.to_le_bytes());
        }
        if let Some(reason) = &self.pause {
            let length = u16::try_from(reason.len()).unwrap_or(u16::MAX);
            out.extend(length.to_le_bytes());
            out.extend(&reason.as_bytes()[..usize::from(length)]);
        }
        for hash in self.audit.iter().flatten() {
            out.extend(hash);
        }
        if !self.tickets.is_empty() {
            let count = u16::try_from(self.tickets.len()).unwrap_or(u16::MAX);
            out.extend(count.to_le_bytes());
            for ticket in &self.tickets[..usize::from(count)] {
                out.extend(ticket.process.0.to_le_bytes());
                out.extend(ticket.attempt.to_le_bytes());
                out.extend([ticket.part, ticket.parts]);
            }
        }
        for shard in &self.shards {
            shard.encode(&mut out);
        }
        out
    }

    fn decode(mut bytes: &[u8]) -> Result<Self, BadNote> {
        let [flags] = take(&mut bytes)?;
        let step = u64::from_le_bytes(take(&mut bytes)?);
        let [evaluated] = take(&mut bytes)?;
        let mut note = Self {
            stop: flags & STOP != 0,
            acked: (step, evaluated != 0),
            paces: vec![Pace::decode(&mut bytes)?],
            ..Self::default()
        };
        if flags & PAUSE != 0 {
            let length = usize::from(u16::from_le_bytes(take(&mut bytes)?));
            let (reason, rest) = bytes.split_at_checked(length).ok_or(BadNote::Truncated)?;
            note.pause = Some(String::from_utf8_lossy(reason).into_owned());
            bytes = rest;
        }
        for (hash, flag) in note.audit.iter_mut().zip(AUDIT) {
            if flags & flag != 0 {
                *hash = Some(take(&mut bytes)?);
            }
        }
        if flags & TICKETS != 0 {
            for _ in 0..u16::from_le_bytes(take(&mut bytes)?) {
                let process = ProcessId(u64::from_le_bytes(take(&mut bytes)?));
                let attempt = u64::from_le_bytes(take(&mut bytes)?);
                let [part, parts] = take(&mut bytes)?;
                note.tickets.push(Ticket {
                    process,
                    attempt,
                    part,
                    parts,
                });
            }
        }
        while !bytes.is_empty() {
            note.shards.push(ShardNote::decode(&mut bytes)?);
        }
        Ok(note)
    }

    /// What the notes of all ranks say together, the shards in their order.
    pub(crate) fn merge(notes: &[Vec<u8>]) -> Result<Self, BadNote> {
        let mut all = Self::default();
        for bytes in notes {
            let note = Self::decode(bytes)?;
            all.stop |= note.stop;
            all.pause = all.pause.or(note.pause);
            all.acked = all.acked.max(note.acked);
            all.paces.extend(note.paces);
            for (hash, said) in all.audit.iter_mut().zip(note.audit) {
                *hash = hash.or(said);
            }
            all.tickets.extend(note.tickets);
            all.shards.extend(note.shards);
        }
        all.shards.sort_by_key(|note| note.shard);
        Ok(all)
    }
}

impl From<&Pace> for v1::RankPace {
    fn from(pace: &Pace) -> Self {
        Self {
            shard_us: pace.shard,
            update_us: pace.update,
            awaited: pace.awaited,
            awaited_us: pace.awaited_for,
        }
    }
}

impl Pace {
    fn numbers(self) -> [u32; 6] {
        let Self {
            shard,
            data,
            checkpoint,
            update,
            awaited,
            awaited_for,
        } = self;
        [shard, data, checkpoint, update, awaited, awaited_for]
    }

    fn decode(bytes: &mut &[u8]) -> Result<Self, BadNote> {
        let mut next = || Ok::<u32, BadNote>(u32::from_le_bytes(take(bytes)?));
        Ok(Self {
            shard: next()?,
            data: next()?,
            checkpoint: next()?,
            update: next()?,
            awaited: next()?,
            awaited_for: next()?,
        })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], BadNote> {
    let (head, rest) = bytes.split_first_chunk().ok_or(BadNote::Truncated)?;
    *bytes = rest;
    Ok(*head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_trainer::{Metrics, ShardId};

    #[test]
    fn notes_of_all_ranks_come_together_in_the_order_of_the_shards() {
        let shard = |number: u32| ShardNote {
            shard: ShardId(number),
            metrics: Metrics::default(),
            digest: [number as u8; 32],
            not_finite: None,
        };
        let pace = |shard| Pace {
            shard,
            awaited: 2,
            awaited_for: 9,
            ..Pace::default()
        };
        let ticket = |part: u8| Ticket {
            process: ProcessId(9),
            attempt: 2,
            part,
            parts: 2,
        };
        let first = Note {
            acked: (7, true),
            paces: vec![pace(1)],
            audit: [Some([3; 32]), None],
            tickets: vec![ticket(1)],
            shards: vec![shard(2), shard(0)],
            ..Note::default()
        };
        let second = Note {
            stop: true,
            pause: Some("worker w2 is drained".to_owned()),
            acked: (7, false),
            paces: vec![pace(2)],
            audit: [None, Some([4; 32])],
            tickets: vec![ticket(0)],
            shards: vec![shard(1)],
        };
        let merged = Note::merge(&[first.encode(), second.encode()]).expect("two good notes");
        let expected = Note {
            stop: true,
            pause: second.pause.clone(),
            acked: (7, true),
            paces: vec![pace(1), pace(2)],
            audit: [Some([3; 32]), Some([4; 32])],
            tickets: vec![ticket(1), ticket(0)],
            shards: vec![shard(0), shard(1), shard(2)],
        };
        assert_eq!(merged, expected);
        let bytes = second.encode();
        for end in 0..bytes.len() {
            let cut = Note::merge(&[bytes[..end].to_vec()]);
            assert!(
                cut.is_err() || end == 10 + 24 + 2 + 20 + 32 + 2 + 18,
                "cut at {end}: {cut:?}"
            );
        }
    }
}
