//! How a submission spends its time: steps run, and steps that count.

use std::collections::BTreeMap;

use muster_proto::event::{Event, What};

use super::{Coordinator, JobName};

/// What a job did since it was last submitted.
#[derive(Clone, Debug, Default)]
pub(super) struct Account {
    submitted_s: f64,
    pub(super) steps_run: u64,
    /// Milliseconds of each applied step above the last checkpoint that was fallen back to.
    useful_ms: BTreeMap<u64, f64>,
    /// The newest step event: what is not above it, in its history, was told before.
    pub(super) history: u64,
    pub(super) step: u64,
    pub(super) loss: f64,
    pub(super) total_steps: u64,
    /// How many events the job's stream has.
    pub(super) num_events: u64,
}

impl Account {
    /// The share of the time since the submission that went into steps that count.
    pub(super) fn goodput(&self, now_s: f64) -> (f64, f64) {
        let wall_s = (now_s - self.submitted_s).max(0.0);
        let useful_s = self.useful_ms.values().sum::<f64>() / 1000.0;
        let goodput = if wall_s > 0.0 { (useful_s / wall_s).min(1.0) } else { 0.0 };
        (goodput, wall_s)
    }

    fn take(&mut self, event: &Event) {
        self.num_events += 1;
        match &event.what {
            What::Submitted { .. } => {
                let kept = Account { num_events: self.num_events, ..Account::default() };
                *self = Account { submitted_s: event.time, total_steps: self.total_steps, loss: self.loss, ..kept };
            }
            What::Generation { from_step, .. } => {
                self.useful_ms.split_off(&(from_step + 1));
                self.history = event.history;
                self.step = *from_step;
            }
            What::Step { step, loss, wall_ms, total_steps, .. } => {
                self.steps_run += 1;
                self.useful_ms.insert(*step, *wall_ms);
                (self.history, self.step, self.loss, self.total_steps) = (event.history, *step, *loss, *total_steps);
            }
            _ => {}
        }
    }
}

impl Coordinator {
    /// Books an event that is, or is about to be, part of its job's stream.
    pub(super) fn account_for(&mut self, event: &Event) {
        if let Ok(job) = JobName::new(&event.job) {
            self.accounts.entry(job).or_default().take(event);
        }
    }
}
