//! What a rank measures of itself, and the records of steps that tell of it.

use std::time::{Duration, Instant, SystemTime};

use muster_cluster::ids::RankId;
use muster_proto::v1;
use muster_trainer::StepReport;
use v1::step_record::Record;

use super::Work;
use crate::note::Pace;

/// What a rank did since the step before, measured.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    pub(super) contributing: Duration,
    pub(super) num_contributed: u32,
    pub(super) evaluating: Duration,
    /// Waiting for the files of the snapshot before.
    pub(super) snapshot: Duration,
    /// The update of the step before.
    update: Duration,
    /// Whom the reduction of the step before waited for longest.
    pub(super) awaited: Option<(RankId, Duration)>,
}

/// Where the time of a step went that its contributions did not take.
pub(crate) struct Times {
    pub(super) contributed: Instant,
    pub(super) reduced: Instant,
    /// What each rank measured of itself, by rank.
    pub(super) paces: Vec<Pace>,
}

impl Times {
    /// Of a step that others made.
    pub(crate) fn of_nothing() -> Self {
        let now = Instant::now();
        Self {
            contributed: now,
            reduced: now,
            paces: Vec::new(),
        }
    }
}

impl Work<'_> {
    /// What this rank measured of itself.
    pub(super) fn pace(&mut self) -> Pace {
        let spent = &self.spent;
        let awaited = spent.awaited.unwrap_or_default();
        Pace {
            shard: micros(spent.contributing)
                .checked_div(spent.num_contributed)
                .unwrap_or_default(),
            data: micros(self.trainer.take_reading_time()),
            checkpoint: micros(spent.snapshot),
            update: micros(spent.update),
            awaited: awaited.0.0,
            awaited_for: micros(awaited.1),
        }
    }

    /// The record of a step that was applied just now, for what this process was then.
    pub(crate) fn record_of(
        &mut self,
        report: StepReport,
        times: &Times,
        key: v1::RankKey,
    ) -> v1::StepRecord {
        let end = Instant::now();
        let wall = end - std::mem::replace(&mut self.since, end);
        let next = Spent {
            update: end - times.reduced,
            awaited: self.spent.awaited,
            ..Spent::default()
        };
        let spent = std::mem::replace(&mut self.spent, next);
        let batch = f64::from(self.spec.train.global_batch_size);
        let mut metrics = report.means;
        let paces = || times.paces.iter();
        let data_us: f64 = paces().map(|pace| f64::from(pace.data)).sum();
        let checkpoint_us = paces().map(|pace| pace.checkpoint).max();
        let applied = Record::Applied(v1::StepApplied {
            step: report.step.0,
            loss: metrics.remove("loss").unwrap_or_default(),
            metrics,
            samples_per_s: batch / wall.as_secs_f64().max(f64::MIN_POSITIVE),
            learning_rate: report.learning_rate,
            grad_norm: report.grad_norm,
            wall_ms: millis(wall),
            contribute_ms: millis(spent.contributing),
            reduce_ms: millis(times.reduced - times.contributed),
            update_ms: millis(end - times.reduced),
            total_steps: self.rules.total_steps,
            data_ms: data_us / f64::from(size(times.paces.len()).max(1)) / 1000.0,
            checkpoint_ms: f64::from(checkpoint_us.unwrap_or_default()) / 1000.0,
            evaluate_ms: millis(spent.evaluating),
            paces: paces().map(Into::into).collect(),
            skipped: report
                .skipped
                .map(|fault| fault.to_string())
                .unwrap_or_default(),
        });
        record(applied, key)
    }
}

pub(super) fn record(record: Record, key: v1::RankKey) -> v1::StepRecord {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let time = since_epoch.map(|time| time.as_secs_f64());
    v1::StepRecord {
        key: Some(key),
        time: time.unwrap_or_default(),
        record: Some(record),
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn size(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
