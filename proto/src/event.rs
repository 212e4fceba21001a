//! A job's events as scripts read them: one JSON object a line, documented in `docs/events.md` and
//! kept stable. Fields are only ever added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An event with its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Seconds since the epoch.
    pub time: f64,
    /// Which job.
    pub job: String,
    /// The job's line of committed steps.
    pub history: u64,
    /// What happened.
    #[serde(flatten)]
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum What {
    /// A job was submitted, or submitted again.
    Submitted {
        /// The step it goes on from.
        from_step: u64,
        /// The most ranks it may have.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        workers: Option<u32>,
    },
    /// A job has a new world.
    Generation {
        /// Its number.
        generation: u64,
        /// How many ranks it has.
        world_size: u32,
        /// The step it starts from.
        from_step: u64,
        /// Why it was made.
        reason: String,
    },
    /// A rank's process runs.
    Rank {
        /// Its number.
        rank: u32,
        /// On which worker.
        worker: String,
        /// Its process id there.
        pid: u32,
        /// In which world.
        generation: u64,
    },
    /// A step was applied.
    Step {
        /// How many steps are applied now.
        step: u64,
        /// The mean loss over the global batch, before the update.
        loss: f64,
        /// The other metrics of the batch.
        metrics: BTreeMap<String, f64>,
        /// Samples of the whole world in a second.
        samples_per_s: f64,
        /// The learning rate of this step.
        learning_rate: f64,
        /// The gradient's norm before clipping.
        grad_norm: f64,
        /// In which world.
        generation: u64,
        /// How many steps the job has.
        total_steps: u64,
        /// Milliseconds since the step before it, on rank 0.
        wall_ms: f64,
        /// Milliseconds of it that were spent computing contributions.
        contribute_ms: f64,
        /// Milliseconds of it that were spent reducing.
        reduce_ms: f64,
        /// Milliseconds of it that were spent updating.
        update_ms: f64,
    },
    /// The held-out samples were evaluated.
    Evaluated {
        /// After so many steps.
        step: u64,
        /// The means over the held-out samples.
        metrics: BTreeMap<String, f64>,
    },
    /// A checkpoint was committed.
    Checkpoint {
        /// After so many steps.
        step: u64,
        /// Its folder.
        path: String,
        /// The sizes of its files together.
        bytes: u64,
        /// BLAKE3 of its manifest, in hex.
        manifest_hash: String,
    },
    /// A committed checkpoint was found damaged and counts no more.
    Damaged {
        /// After so many steps.
        step: u64,
        /// Which file, and what is wrong with it.
        reason: String,
    },
    /// A rank was lost.
    Lost {
        /// Its number.
        rank: u32,
        /// On which worker.
        worker: String,
        /// How that is known.
        reason: String,
    },
    /// The job is over, or rests. The last event of a submission.
    Finished {
        /// `completed`, `interrupted`, `cancelled` or `failed`.
        state: String,
        /// How many steps the state has seen.
        step: u64,
        /// How many steps were run since the submission, those that were run again included.
        steps_run: u64,
        /// BLAKE3 of the parameters, in hex.
        arena_hash: String,
        /// BLAKE3 of the optimizer's state, in hex.
        optimizer_hash: String,
        /// The running hash of the samples that were read, in hex.
        trace: String,
        /// The last evaluation.
        metrics: BTreeMap<String, f64>,
        /// The share of the time since the submission that went into steps that count.
        goodput: f64,
        /// Seconds since the submission.
        wall_s: f64,
        /// One sentence; may be empty.
        reason: String,
        /// Where its last checkpoint is; empty where there is none.
        path: String,
    },
}

impl What {
    /// Whether it closes a submission.
    #[must_use]
    pub fn is_last(&self) -> bool {
        matches!(self, What::Finished { .. })
    }
}
