//! What a rank tells all others with its part of a step; see `worker/rank/src/note.rs`.

use muster_cluster::ids::ProcessId;
use muster_worker_core::feed::Ticket;

use super::model::ShardNote;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Note {
    pub(crate) stop: bool,
    pub(crate) pause: Option<String>,
    pub(crate) acked: (u64, bool),
    pub(crate) tickets: Vec<Ticket>,
    pub(crate) shards: Vec<ShardNote>,
}

impl Note {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let pause = self.pause.clone().unwrap_or_default();
        let mut words = vec![
            u64::from(self.stop) + 2 * u64::from(self.pause.is_some()),
            self.acked.0,
            u64::from(self.acked.1),
            pause.len() as u64,
            self.tickets.len() as u64,
        ];
        for ticket in &self.tickets {
            let (part, parts) = (u64::from(ticket.part), u64::from(ticket.parts));
            words.extend([ticket.process.0, ticket.attempt, part, parts]);
        }
        for (shard, digest) in &self.shards {
            words.extend([u64::from(*shard), *digest]);
        }
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(pause.bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)))
            .collect();
        let len = usize::try_from(words[3]).unwrap_or_default();
        let pause = &bytes[bytes.len() - len..];
        let num_words = (bytes.len() - len) / 8;
        let num_tickets = usize::try_from(words[4]).unwrap_or_default();
        let (tickets, shards) = words[5..num_words].split_at(4 * num_tickets);
        let tickets = tickets.chunks_exact(4).map(|words| Ticket {
            process: ProcessId(words[0]),
            attempt: words[1],
            part: u8::try_from(words[2]).unwrap_or(u8::MAX),
            parts: u8::try_from(words[3]).unwrap_or(u8::MAX),
        });
        let shards = shards.chunks_exact(2);
        Self {
            stop: words[0] & 1 != 0,
            pause: (words[0] & 2 != 0).then(|| String::from_utf8_lossy(pause).into_owned()),
            acked: (words[1], words[2] != 0),
            tickets: tickets.collect(),
            shards: shards
                .map(|pair| (u32::try_from(pair[0]).unwrap_or(u32::MAX), pair[1]))
                .collect(),
        }
    }

    pub(crate) fn merge(notes: &[Vec<u8>]) -> Self {
        let mut all = Self::default();
        for note in notes.iter().map(|bytes| Self::decode(bytes)) {
            all.stop |= note.stop;
            all.pause = all.pause.or(note.pause);
            all.acked = all.acked.max(note.acked);
            all.tickets.extend(note.tickets);
            all.shards.extend(note.shards);
        }
        all.shards.sort_unstable();
        all
    }
}
