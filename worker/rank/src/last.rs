//! The last step that a rank made, as it gives it to those that are one behind: to ranks of its next
//! world, and to processes that follow.

use muster_proto::v1;
use muster_trainer::ShardNote;

use crate::feed::wire::{decode_place, encode_place, number, take};
use crate::heal::{decode_records, encode_records};
use crate::held::Reduced;

/// The last step's reduced vector, for ranks that were not as fast.
#[derive(Debug)]
pub(crate) struct Last {
    /// The step that it completed.
    pub(crate) step: u64,
    pub(crate) vector: Reduced,
    /// The notes of all shards, in their order.
    pub(crate) notes: Vec<ShardNote>,
    /// For those that follow, who keep records as the ranks do.
    pub(crate) story: Story,
}

/// What is told of a step beside its result.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Story {
    /// The world that made the step.
    pub(crate) generation: u64,
    /// The newest record that is known to be durable.
    pub(crate) acked: (u64, bool),
    /// The record of the evaluation before it, if there was one.
    pub(crate) evaluation: Option<v1::StepRecord>,
}

impl Story {
    /// ```text
    /// generation: u64, acked step: u64, acked evaluation: u8, length of records: u32, records
    /// ```
    pub(crate) fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.generation.to_le_bytes());
        encode_place(self.acked, bytes);
        let records = encode_records(self.evaluation.as_slice());
        let length = u32::try_from(records.len()).expect("a record is a few numbers");
        bytes.extend(length.to_le_bytes());
        bytes.extend(records);
    }

    /// Takes it from the front of `rest`.
    pub(crate) fn decode(rest: &mut &[u8]) -> Option<Self> {
        let generation = number(rest)?;
        let acked = decode_place(rest)?;
        let length = usize::try_from(u32::from_le_bytes(take(rest)?)).ok()?;
        let (records, others) = rest.split_at_checked(length)?;
        *rest = others;
        Some(Self {
            generation,
            acked,
            evaluation: decode_records(records)?.pop(),
        })
    }
}
