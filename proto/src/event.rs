//! A job's events as scripts read them: one JSON object a line, documented in `docs/events.md` and
//! kept stable. Fields are only ever added.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::v1;

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
        /// BLAKE3 of the job's ledger up to this world, in hex.
        #[serde(default)]
        ledger_hash: String,
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
        /// Milliseconds of `contribute_ms` that were spent reading samples, in the mean over the
        /// ranks.
        #[serde(deserialize_with = "number::one", default)]
        data_ms: f64,
        /// Milliseconds before the step in which a snapshot could not be taken yet, on the rank
        /// that waited longest.
        #[serde(deserialize_with = "number::one", default)]
        checkpoint_ms: f64,
        /// Milliseconds before the step that were spent evaluating.
        #[serde(deserialize_with = "number::one", default)]
        evaluate_ms: f64,
        /// Why it made no update, in one sentence, where the job skips such steps.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        skipped: Option<String>,
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
    /// A rank could not write its files of a checkpoint, and the job went on without it.
    Unwritten {
        /// After so many steps.
        step: u64,
        /// The rank's number.
        rank: u32,
        /// On which worker.
        worker: String,
        /// Which file, and what the system said.
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
    /// A worker was found to compute wrongly, and the job uses it no more.
    Distrusted {
        /// Which worker.
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
        /// How many steps of its state made no update.
        #[serde(default)]
        steps_skipped: u64,
        /// BLAKE3 of the parameters, in hex.
        arena_hash: String,
        /// BLAKE3 of the optimizer's state, in hex.
        optimizer_hash: String,
        /// The running hash of the samples that were read, in hex.
        trace: String,
        /// The last evaluation.
        #[serde(deserialize_with = "number::many")]
        metrics: BTreeMap<String, f64>,
        /// The most resident memory of each rank that was there at the end, by rank; 0 where not known.
        #[serde(default)]
        peak_memory_bytes: Vec<u64>,
        /// The share of `rank_time` that was useful.
        #[serde(deserialize_with = "number::one")]
        goodput: f64,
        /// Where the time of its ranks went since the submission.
        #[serde(default)]
        rank_time: RankTime,
        /// Seconds since the submission.
        #[serde(deserialize_with = "number::one")]
        wall_s: f64,
        /// One sentence; may be empty.
        reason: String,
        /// Where its last checkpoint is; empty where there is none.
        path: String,
    },
}

/// Where the time of a job's ranks went, in rank-seconds: one rank that is there for two seconds is
/// as much as two that are there for one. Every moment of a rank is in one of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankTime {
    /// Steps that count, and evaluations.
    pub useful_s: f64,
    /// What losses cost, but for the wait for the next world.
    pub healing_s: f64,
    /// No world could make steps.
    pub waiting_for_world_s: f64,
    /// A snapshot could not be taken yet, or the last checkpoint did not count yet.
    pub waiting_for_checkpoint_s: f64,
    /// Reading samples.
    pub data_s: f64,
    /// Before the first world was made.
    pub queued_s: f64,
}

impl RankTime {
    /// All of it, each part with its name for people.
    #[must_use]
    pub fn parts(&self) -> [(&'static str, f64); 6] {
        [
            ("useful", self.useful_s),
            ("healing", self.healing_s),
            ("waiting for a world", self.waiting_for_world_s),
            ("waiting for a checkpoint", self.waiting_for_checkpoint_s),
            ("data", self.data_s),
            ("queued", self.queued_s),
        ]
    }

    /// All of it together.
    #[must_use]
    pub fn total_s(&self) -> f64 {
        self.parts().iter().map(|(_, seconds)| seconds).sum()
    }

    /// The share of it that was useful; 0 where there is none.
    #[must_use]
    pub fn goodput(&self) -> f64 {
        let total_s = self.total_s();
        if total_s > 0.0 {
            self.useful_s / total_s
        } else {
            0.0
        }
    }
}

impl From<v1::RankTime> for RankTime {
    fn from(time: v1::RankTime) -> Self {
        Self {
            useful_s: time.useful_s,
            healing_s: time.healing_s,
            waiting_for_world_s: time.waiting_for_world_s,
            waiting_for_checkpoint_s: time.waiting_for_checkpoint_s,
            data_s: time.data_s,
            queued_s: time.queued_s,
        }
    }
}

impl From<RankTime> for v1::RankTime {
    fn from(time: RankTime) -> Self {
        Self {
            useful_s: time.useful_s,
            healing_s: time.healing_s,
            waiting_for_world_s: time.waiting_for_world_s,
            waiting_for_checkpoint_s: time.waiting_for_checkpoint_s,
            data_s: time.data_s,
            queued_s: time.queued_s,
        }
    }
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
