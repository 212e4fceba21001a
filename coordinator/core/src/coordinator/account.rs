//! How a submission spends its time: steps run, and steps that count.

use std::collections::{BTreeMap, BTreeSet};

use muster_proto::event::{Event, What};

use super::{Coordinator, JobName, Output};
use crate::goodput::Goodput;

/// What a job did since it was last submitted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    submitted_s: f64,
    pub(super) steps_run: u64,
    pub(crate) goodput: Goodput,
    /// The steps that made no update, of those that the state has seen.
    skipped: BTreeSet<u64>,
    /// The newest step event: what is not above it, in its history, was told before.
    history: u64,
    step: u64,
    loss: f64,
    total_steps: u64,
    /// The history and step of the newest evaluation.
    evaluated: (u64, u64),
    /// The ranks of this history and their processes that were told of.
    ranks: BTreeSet<(u32, u32)>,
    /// The ranks of the newest world whose loss was told.
    lost: BTreeSet<u32>,
    /// How many steps the records of each generation say were applied.
    pub(crate) reached: BTreeMap<u64, u64>,
    /// The hash of the ledger up to each generation, as its event tells.
    pub(crate) worlds: BTreeMap<u64, String>,
    /// The hash of every manifest that was committed, by history and step.
    pub(crate) committed: BTreeMap<(u64, u64), String>,
    /// The newest entry of the log that an event tells of.
    index: u64,
    /// How many events the job's stream has.
    num_events: u64,
    /// The position of the newest submission.
    pub(super) first_event: u64,
}

/// How far a job is, as its step events tell.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) step: u64,
    pub(crate) total_steps: u64,
    pub(crate) loss: f64,
}

impl Account {
    pub(super) fn progress(&self) -> Progress {
        Progress {
            step: self.step,
            total_steps: self.total_steps,
            loss: self.loss,
        }
    }

    /// Seconds since the submission.
    pub(super) fn wall_s(&self, now_s: f64) -> f64 {
        (now_s - self.submitted_s).max(0.0)
    }

    /// How many of the first `step` steps made no update.
    pub(super) fn num_skipped(&self, step: u64) -> u64 {
        self.skipped.range(..=step).count() as u64
    }

    fn take(&mut self, event: &Event) {
        self.num_events += 1;
        self.goodput.take(event);
        if let What::Generation {
            generation,
            ledger_hash,
            ..
        } = &event.what
        {
            self.lost.clear();
            self.worlds.insert(*generation, ledger_hash.clone());
        }
        match &event.what {
            What::Submitted { .. } => {
                *self = Account {
                    submitted_s: event.time,
                    steps_run: 0,
                    first_event: self.num_events - 1,
                    ranks: BTreeSet::new(),
                    ..std::mem::take(self)
                };
            }
            // A world in the same history goes on where the last one was: nothing is void, and
            // records of the last one may still come.
            What::Generation { from_step, .. } if event.history != self.history => {
                self.skipped.split_off(&(from_step + 1));
                self.ranks.clear();
                self.history = event.history;
                self.step = *from_step;
            }
            What::Step {
                step,
                loss,
                total_steps,
                generation,
                skipped,
                ..
            } => {
                self.steps_run += 1;
                if skipped.is_some() {
                    self.skipped.insert(*step);
                }
                self.reached.insert(*generation, *step);
                (self.history, self.step, self.loss, self.total_steps) =
                    (event.history, *step, *loss, *total_steps);
            }
            What::Evaluated { step, .. } => self.evaluated = (event.history, *step),
            What::Rank { rank, pid, .. } => {
                self.ranks.insert((*rank, *pid));
            }
            What::Lost { rank, .. } => {
                self.lost.insert(*rank);
            }
            What::Checkpoint {
                step,
                manifest_hash,
                ..
            } => {
                self.committed
                    .insert((event.history, *step), manifest_hash.clone());
            }
            _ => {}
        }
    }

    /// Whether the stream tells already what this event tells.
    fn knows(&self, index: Option<u64>, event: &Event) -> bool {
        if let Some(index) = index {
            return index <= self.index;
        }
        match &event.what {
            What::Step { step, .. } => (event.history, *step) <= (self.history, self.step),
            What::Evaluated { step, .. } => (event.history, *step) <= self.evaluated,
            What::Rank { rank, pid, .. } => self.ranks.contains(&(*rank, *pid)),
            // A new leader hears of it once more, as long as no other world was made.
            What::Lost { rank, .. } => self.lost.contains(rank),
            _ => false,
        }
    }
}

impl Coordinator {
    /// Books an event that is part of its job's stream.
    pub(super) fn account_for(&mut self, index: Option<u64>, event: &Event) {
        if let Ok(job) = JobName::new(&event.job) {
            let account = self.accounts.entry(job).or_default();
            account.index = index.unwrap_or(0).max(account.index);
            account.take(event);
        }
    }

    /// Makes an event part of its job's stream, unless it is there already: a record that came
    /// twice, or an entry of the log that was applied by the process before this one.
    pub(super) fn publish(&mut self, index: Option<u64>, event: Event, outputs: &mut Vec<Output>) {
        let account = JobName::new(&event.job)
            .ok()
            .and_then(|job| self.accounts.get(&job));
        if account.is_some_and(|account| account.knows(index, &event)) {
            return;
        }
        self.account_for(index, &event);
        outputs.push(Output::Event { index, event });
    }
}
