//! What crosses between two ranks of a new world that come together; see [`super`] for its bytes.

use std::sync::Arc;

use muster_cluster::ids::{RankId, Step};
use muster_collective::Group;
use muster_proto::v1;
use muster_trainer::{Head, ShardNote};
use muster_worker_core::rank::Cause;
use prost::Message as _;

use super::{Lack, Meeting, Received, Window};
use crate::feed::share;
use crate::held::Reduced;
use crate::last::{Last, Story};
use crate::shared::{Shared, Trouble};
use crate::work::{closed_by, failed};

/// One rank's part in it, once all are connected.
pub(super) struct Exchange<'a> {
    pub(super) meeting: &'a Meeting,
    pub(super) shared: &'a Shared,
    pub(super) window: &'a Window,
}

impl Exchange<'_> {
    fn closed(&self, error: &muster_collective::Error) -> Trouble {
        closed_by(self.shared, self.meeting.world.generation.0, error)
    }

    fn broken(&self, reason: String) -> Trouble {
        let cause = Cause {
            reason,
            ..Cause::default()
        };
        self.shared.close(self.meeting.world.generation.0, cause);
        Trouble::Closed
    }

    fn send(&self, group: &mut Group, to: RankId, bytes: Vec<u8>) -> Result<(), Trouble> {
        let sent = group.send(to, bytes, self.meeting.timeout);
        sent.map_err(|error| self.closed(&error))
    }

    fn send_vector(&self, group: &mut Group, to: RankId, values: &[f32]) -> Result<(), Trouble> {
        let sent = group.send_vector(to, values, self.meeting.timeout);
        sent.map_err(|error| self.closed(&error))
    }

    fn recv(&self, group: &mut Group, from: RankId) -> Result<Vec<u8>, Trouble> {
        let bytes = group.recv(from, self.meeting.timeout);
        bytes.map_err(|error| self.closed(&error))
    }

    fn recv_vector(
        &self,
        group: &mut Group,
        from: RankId,
        len: usize,
    ) -> Result<Vec<f32>, Trouble> {
        let values = group.recv_vector(from, len, self.meeting.timeout);
        values.map_err(|error| self.closed(&error))
    }

    pub(super) fn give_reduced(
        &self,
        group: &mut Group,
        to: RankId,
        last: &Last,
    ) -> Result<(), Trouble> {
        self.send(group, to, encode_reduced(last))?;
        let vector = last.vector.view().host().map_err(|error| failed(&error))?;
        self.send_vector(group, to, &vector)
    }

    pub(super) fn take_reduced(&self, group: &mut Group, from: RankId) -> Result<Last, Trouble> {
        let head = self.recv(group, from)?;
        let vector = self.recv_vector(group, from, self.meeting.num_elements)?;
        let (step, story, notes) = decode_reduced(&head)
            .ok_or_else(|| self.broken(format!("rank {from} sent a bad head")))?;
        Ok(Last {
            step,
            vector: Reduced::Host(Arc::new(vector)),
            notes,
            story,
        })
    }

    pub(super) fn give_what_it_lacks(
        &self,
        group: &mut Group,
        to: RankId,
        place: usize,
        count: usize,
    ) -> Result<(), Trouble> {
        let records = &self.meeting.records;
        loop {
            match Lack::of(&self.recv(group, to)?) {
                Some(Lack::Nothing) if place == 0 => {
                    return self.send(group, to, encode_records(records));
                }
                Some(Lack::Nothing) => return Ok(()),
                Some(Lack::Reduced) => match &self.meeting.last {
                    None => self.send(group, to, vec![0])?,
                    Some(last) => {
                        self.send(group, to, vec![1])?;
                        self.give_reduced(group, to, last)?;
                        return self.send(group, to, encode_records(records));
                    }
                },
                Some(Lack::State) => {
                    let (head, values) = self
                        .window
                        .look(share(self.meeting.num_state_values, place, count))
                        .ok_or(Trouble::Closed)?;
                    self.send(group, to, encode_state(head, &values, records))?;
                    return self.send_vector(group, to, &values);
                }
                None => return Err(self.broken(format!("rank {to} does not say what it lacks"))),
            }
        }
    }

    pub(super) fn take_what_is_lacking(
        &self,
        group: &mut Group,
        from: &[RankId],
    ) -> Result<Received, Trouble> {
        let (Some(first), mut lack) = (from.first(), self.meeting.lack) else {
            return Err(self.broken("nobody gives what is lacking".to_owned()));
        };
        if lack == Lack::Reduced {
            self.send(group, *first, vec![lack as u8])?;
            if self.recv(group, *first)? == [1] {
                let last = self.take_reduced(group, *first)?;
                let records = self.take_records(group, *first)?;
                for giver in &from[1..] {
                    self.send(group, *giver, vec![Lack::Nothing as u8])?;
                }
                return Ok(Received::Reduced { last, records });
            }
            lack = Lack::State;
        }
        for giver in from {
            self.send(group, *giver, vec![lack as u8])?;
        }
        if lack == Lack::Nothing {
            return Ok(Received::Records(self.take_records(group, *first)?));
        }
        self.take_state(group, from)
    }

    fn take_records(
        &self,
        group: &mut Group,
        from: RankId,
    ) -> Result<Vec<v1::StepRecord>, Trouble> {
        let bytes = self.recv(group, from)?;
        decode_records(&bytes).ok_or_else(|| self.broken(format!("rank {from} sent bad records")))
    }

    fn take_state(&self, group: &mut Group, from: &[RankId]) -> Result<Received, Trouble> {
        let mut whole = None;
        let mut records = Vec::new();
        let mut shares = Vec::new();
        for (place, giver) in from.iter().enumerate() {
            let head = self.recv(group, *giver)?;
            let share = share(self.meeting.num_state_values, place, from.len());
            let values = self.recv_vector(group, *giver, share.len())?;
            let sent = decode_state(&head, &values).filter(|(head, _)| {
                // All of them are at the same step of the same samples.
                whole.is_none_or(|whole| whole == *head)
            });
            let (head, kept) = sent.ok_or_else(|| {
                self.broken(format!("the state that rank {giver} sent is not whole"))
            })?;
            whole = Some(head);
            // They have the same but for those that were acknowledged meanwhile.
            if kept.len() > records.len() {
                records = kept;
            }
            shares.push(values);
        }
        let head = whole.ok_or_else(|| self.broken("nobody sends a state".to_owned()))?;
        Ok(Received::State {
            head,
            shares,
            records,
        })
    }
}

impl Lack {
    fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0] => Some(Lack::Nothing),
            [1] => Some(Lack::Reduced),
            [2] => Some(Lack::State),
            _ => None,
        }
    }
}

fn encode_reduced(last: &Last) -> Vec<u8> {
    let mut head = last.step.to_le_bytes().to_vec();
    last.story.encode(&mut head);
    for note in &last.notes {
        note.encode(&mut head);
    }
    head
}

fn encode_state(head: Head, values: &[f32], records: &[v1::StepRecord]) -> Vec<u8> {
    let mut bytes = head.step.0.to_le_bytes().to_vec();
    bytes.extend(head.trace);
    bytes.extend(hash(values));
    bytes.extend(encode_records(records));
    bytes
}

pub(crate) fn encode_records(records: &[v1::StepRecord]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for record in records {
        let record = record.encode_to_vec();
        let length = u32::try_from(record.len()).expect("a record is a few numbers");
        bytes.extend(length.to_le_bytes());
        bytes.extend(record);
    }
    bytes
}

pub(crate) fn decode_records(mut bytes: &[u8]) -> Option<Vec<v1::StepRecord>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (record, others) = rest.split_at_checked(length)?;
        records.push(v1::StepRecord::decode(record).ok()?);
        bytes = others;
    }
    Some(records)
}

/// BLAKE3 of values as they lie in memory, which is little-endian on every machine that we run on.
fn hash(values: &[f32]) -> [u8; 32] {
    blake3::hash(bytemuck::cast_slice(values)).into()
}

fn decode_reduced(head: &[u8]) -> Option<(u64, Story, Vec<ShardNote>)> {
    let (step, mut rest) = head.split_first_chunk()?;
    let story = Story::decode(&mut rest)?;
    let mut notes = Vec::new();
    while !rest.is_empty() {
        notes.push(ShardNote::decode(&mut rest).ok()?);
    }
    Some((u64::from_le_bytes(*step), story, notes))
}

/// The head of a state and its records, if its values are those that were sent.
fn decode_state(head: &[u8], values: &[f32]) -> Option<(Head, Vec<v1::StepRecord>)> {
    let (step, rest) = head.split_first_chunk()?;
    let (trace, rest) = rest.split_first_chunk()?;
    let (sent, records): (&[u8; 32], _) = rest.split_first_chunk()?;
    let head = Head {
        step: Step(u64::from_le_bytes(*step)),
        trace: *trace,
    };
    (hash(values) == *sent).then_some((head, decode_records(records)?))
}
