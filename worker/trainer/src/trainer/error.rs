//! Why a step was not made.

use muster_cluster::{ShardId, Step};

use crate::finite::Fault;
use crate::learner::LearnerError;
use crate::vector::DeviceError;

/// What the trainer refuses; the state is as it was before the call.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// The job and its data or model do not go together.
    #[error("{0}")]
    Unfit(String),
    /// A learner's layout and its initial values differ in length.
    #[error("the model's layout has {expected} elements and its initial values have {found}")]
    WrongInit {
        /// As the layout says.
        expected: usize,
        /// As initialised.
        found: usize,
    },
    /// The learner refused its samples.
    #[error("step {step}, shard {shard}: the model refused the samples")]
    Learner {
        /// The step.
        step: Step,
        /// The logical shard.
        shard: ShardId,
        /// What it said.
        #[source]
        source: LearnerError,
    },
    /// The learner refused held-out samples.
    #[error("evaluation after step {step}, chunk {chunk}: the model refused the samples")]
    Evaluation {
        /// Updates applied.
        step: Step,
        /// The chunk of held-out samples.
        chunk: u32,
        /// What it said.
        #[source]
        source: LearnerError,
    },
    /// The device that holds the state could not be read; the rank cannot go on.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No such logical shard.
    #[error("there is no logical shard {shard}; the job has {num_shards}")]
    NoSuchShard {
        /// As asked for.
        shard: ShardId,
        /// `train.logical_shards`.
        num_shards: u32,
    },
    /// No such chunk of held-out samples.
    #[error("there is no evaluation chunk {chunk}; the job has {num_chunks}")]
    NoSuchChunk {
        /// As asked for.
        chunk: u32,
        /// As there are.
        num_chunks: u32,
    },
    /// A vector is not as long as the arena.
    #[error("step {step}: a vector has {found} elements, and the arena {expected}")]
    WrongLength {
        /// The step.
        step: Step,
        /// The arena's length.
        expected: usize,
        /// The vector's.
        found: usize,
    },
    /// The notes are not those of every shard, once each, in order.
    #[error("step {step}: expected a note of each shard 0 to {last} in order, found {found}")]
    WrongNotes {
        /// The step.
        step: Step,
        /// The last shard.
        last: u32,
        /// The shards of the notes, as text.
        found: String,
    },
    /// The gradient holds NaN or an infinity, and the job is to stop then.
    #[error(
        "step {step} was not applied: {fault}. Look for bad values in the data, lower \
         optimizer.learning_rate, set train.clip_norm, or leave such steps out with \
         train.not_finite = \"skip\""
    )]
    NotFinite {
        /// The step.
        step: Step,
        /// Where.
        fault: Fault,
    },
}
