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
        #[serde(deserialize_with = "number::one")]
        loss: f64,
        /// The other metrics of the batch.
        #[serde(deserialize_with = "number::many")]
        metrics: BTreeMap<String, f64>,
        /// Samples of the whole world in a second.
        #[serde(deserialize_with = "number::one")]
        samples_per_s: f64,
        /// The learning rate of this step.
        #[serde(deserialize_with = "number::one")]
        learning_rate: f64,
        /// The gradient's norm before clipping.
        #[serde(deserialize_with = "number::one")]
        grad_norm: f64,
        /// In which world.
        generation: u64,
        /// How many steps the job has.
        total_steps: u64,
        /// Milliseconds since the step before it, on rank 0.
        #[serde(deserialize_with = "number::one")]
        wall_ms: f64,
        /// Milliseconds of it that were spent computing contributions.
        #[serde(deserialize_with = "number::one")]
        contribute_ms: f64,
        /// Milliseconds of it that were spent reducing.
        #[serde(deserialize_with = "number::one")]
        reduce_ms: f64,
        /// Milliseconds of it that were spent updating.
        #[serde(deserialize_with = "number::one")]
        update_ms: f64,
    },
    /// The held-out samples were evaluated.
    Evaluated {
        /// After so many steps.
        step: u64,
        /// The means over the held-out samples.
        #[serde(deserialize_with = "number::many")]
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
        #[serde(deserialize_with = "number::many")]
        metrics: BTreeMap<String, f64>,
        /// The share of the time since the submission that went into steps that count.
        #[serde(deserialize_with = "number::one")]
        goodput: f64,
        /// Seconds since the submission.
        #[serde(deserialize_with = "number::one")]
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

/// JSON has no NaN and no infinities: they are written as `null`, and read as NaN.
mod number {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer};

    pub(super) fn one<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
    }

    pub(super) fn many<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let numbers: BTreeMap<String, Option<f64>> = BTreeMap::deserialize(from)?;
        Ok(numbers
            .into_iter()
            .map(|(name, number)| (name, number.unwrap_or(f64::NAN)))
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_json_has_no_number_for_comes_back() {
        let what = What::Evaluated {
            step: 3,
            metrics: BTreeMap::from([("loss".to_owned(), f64::NAN)]),
        };
        let event = Event {
            time: 1.5,
            job: "job".to_owned(),
            history: 1,
            what,
        };
        let text = serde_json::to_string(&event).unwrap();
        assert_eq!(
            text,
            r#"{"time":1.5,"job":"job","history":1,"event":"evaluated","step":3,"metrics":{"loss":null}}"#
        );
        let back: Event = serde_json::from_str(&text).unwrap();
        let What::Evaluated { metrics, .. } = back.what else {
            panic!("{back:?}")
        };
        assert!(metrics["loss"].is_nan());
    }
}
