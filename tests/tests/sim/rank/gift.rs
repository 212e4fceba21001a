//! What one rank gives another, as bytes: the reduced vector of a step, or a whole state with the
//! records that are not acknowledged; see `worker/rank/src/heal.rs`.

use muster_proto::{frame, v1};

use super::super::model::{NUM_SHARDS, ShardNote, State, hash};
use super::work::{Last, Story};

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    let words = bytes.chunks_exact(8);
    words.filter_map(|word| Some(u64::from_le_bytes(word.try_into().ok()?)))
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let words = bytes.chunks_exact(4);
    let floats = words.filter_map(|word| Some(f32::from_le_bytes(word.try_into().ok()?)));
    floats.collect()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

impl Last {
    pub(super) fn encode(&self) -> [Vec<u8>; 2] {
        let (story, num_notes) = (&self.story, self.notes.len() as u64);
        let (acked, evaluated) = story.acked;
        let head = [
            self.step,
            story.generation,
            acked,
            evaluated.into(),
            num_notes,
        ];
        let notes = self.notes.iter();
        let notes = notes.flat_map(|(shard, digest)| [u64::from(*shard), *digest]);
        let head = head.into_iter().chain(notes).flat_map(u64::to_le_bytes);
        let records = encode_records(story.evaluation.as_slice());
        [head.chain(records).collect(), bytes_of(&self.vector)]
    }

    pub(super) fn decode(heard: &[Vec<u8>]) -> Self {
        let (head, rest) = heard[0].split_at(40);
        let head: Vec<u64> = words(head).collect();
        let (notes, records) = rest.split_at(16 * usize::try_from(head[4]).unwrap());
        let notes: Vec<u64> = words(notes).collect();
        let note =
            |pair: &[u64]| -> ShardNote { (u32::try_from(pair[0]).unwrap_or(NUM_SHARDS), pair[1]) };
        Self {
            step: head[0],
            notes: notes.chunks_exact(2).map(note).collect(),
            vector: floats(&heard[1]).into(),
            story: Story {
                generation: head[1],
                acked: (head[2], head[3] != 0),
                evaluation: decode_records(records).pop(),
            },
        }
    }
}

/// Every giver sends all of it, where the product sends an equal share; and with it the records that
/// are not acknowledged.
pub(super) fn encode_state(state: &State, records: &[v1::StepRecord]) -> [Vec<u8>; 2] {
    let head = [state.step, state.trace];
    let head: Vec<u8> = head.into_iter().flat_map(u64::to_le_bytes).collect();
    let values = state.values();
    let head = [head, hash(&values).into_bytes(), encode_records(records)].concat();
    [head, bytes_of(&values)]
}

pub(super) fn encode_records(records: &[v1::StepRecord]) -> Vec<u8> {
    let records = records.iter().flat_map(|record| {
        let record = v1::from_rank::Message::Record(record.clone());
        let message = Some(record);
        frame::encode(&v1::FromRank { message })
    });
    records.collect()
}

pub(super) fn decode_records(mut rest: &[u8]) -> Vec<v1::StepRecord> {
    let mut records = Vec::new();
    while let Ok(Some(message)) = frame::read::<v1::FromRank>(&mut rest) {
        if let Some(v1::from_rank::Message::Record(record)) = message.message {
            records.push(record);
        }
    }
    records
}

pub(super) fn decode_state(heard: &[Vec<u8>]) -> Option<(State, Vec<v1::StepRecord>)> {
    let mut records = Vec::new();
    let mut states = heard.chunks_exact(2).map(|pair| {
        let (head, sent) = pair[0].split_at(16);
        let (sent, rest) = sent.split_at(16);
        records = decode_records(rest);
        let head: Vec<u64> = words(head).collect();
        let values = floats(&pair[1]);
        let is_whole = hash(&values).as_bytes() == sent;
        is_whole.then(|| State::of_values(head[0], head[1], &values))
    });
    let first = states.next()??;
    let is_whole = states.all(|state| state.as_ref() == Some(&first));
    drop(states);
    is_whole.then_some((first, records))
}
