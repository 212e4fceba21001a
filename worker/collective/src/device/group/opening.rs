//! What the ranks tell each other before a reduction: what each of them is about to reduce.
//!
//! Transfers between devices carry no headers. Two ranks that meant different operations would
//! wait for each other for ever, or add up what does not belong together; so they compare first.

use crate::error::Error;
use crate::world::World;

use super::running::Plan;
use crate::device::Mode;

/// What all ranks of an operation must say alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opening {
    step: u64,
    num_elements: u64,
    bucket_elements: u64,
    num_shards: u32,
    mode: u8,
    /// Of who holds what.
    holdings: [u8; 16],
}

const BYTES: usize = 8 + 8 + 8 + 4 + 1 + 16;

impl Opening {
    pub(super) fn of(plan: &Plan) -> Self {
        let operation = plan.operation();
        let mut hasher = blake3::Hasher::new();
        for (run, holder) in plan.schedule().leaves() {
            for number in [run.start, run.end, holder.0] {
                hasher.update(&number.to_le_bytes());
            }
        }
        let mut holdings = [0; 16];
        hasher.finalize_xof().fill(&mut holdings);
        Self {
            step: operation.step.0,
            num_elements: operation.num_elements as u64,
            bucket_elements: operation.bucket_elements as u64,
            num_shards: operation.num_shards,
            mode: match operation.mode {
                Mode::Canonical => 0,
                Mode::Fast => 1,
            },
            holdings,
        }
    }

    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BYTES);
        for number in [self.step, self.num_elements, self.bucket_elements] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.num_shards.to_le_bytes());
        bytes.push(self.mode);
        bytes.extend(self.holdings);
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (step, bytes) = bytes.split_first_chunk()?;
        let (num_elements, bytes) = bytes.split_first_chunk()?;
        let (bucket_elements, bytes) = bytes.split_first_chunk()?;
        let (num_shards, bytes) = bytes.split_first_chunk()?;
        let (mode, bytes) = bytes.split_first()?;
        Some(Self {
            step: u64::from_le_bytes(*step),
            num_elements: u64::from_le_bytes(*num_elements),
            bucket_elements: u64::from_le_bytes(*bucket_elements),
            num_shards: u32::from_le_bytes(*num_shards),
            mode: *mode,
            holdings: bytes.try_into().ok()?,
        })
    }

    /// Where `theirs` is another operation, in words.
    fn difference(&self, theirs: &Self) -> Option<String> {
        let told = |what: &str, theirs: &dyn std::fmt::Display, ours: &dyn std::fmt::Display| {
            format!("it is at {what} {theirs} where this rank is at {what} {ours}")
        };
        let (step, num_elements) = (theirs.step, theirs.num_elements);
        if step != self.step {
            Some(told("step", &step, &self.step))
        } else if num_elements != self.num_elements {
            let ours = self.num_elements;
            Some(format!(
                "it reduces {num_elements} elements where this rank reduces {ours}"
            ))
        } else if theirs != self {
            Some(format!(
                "it reduces in another way: {theirs:?} where this rank has {self:?}"
            ))
        } else {
            None
        }
    }
}

/// Compares what all ranks said, by rank.
pub(super) fn agree(plan: &Plan, openings: &[Vec<u8>]) -> Result<(), Error> {
    let ours = Opening::of(plan);
    for (rank, bytes) in plan.world().ranks().zip(openings) {
        let what = match Opening::from_bytes(bytes) {
            Some(theirs) => ours.difference(&theirs),
            None => Some(format!(
                "{} bytes that open no reduction over device memory",
                bytes.len()
            )),
        };
        if let Some(what) = what {
            return Err(Error::Protocol { rank, what });
        }
    }
    debug_assert_eq!(openings.len(), World::len(&plan.world()));
    Ok(())
}
