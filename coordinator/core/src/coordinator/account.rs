//! What the events of a job amount to: how far it is, and what of it was told already. It follows
//! from the log alone, so that every replica has the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_proto::event::{Event, What};
use muster_proto::v1;

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
    /// How many events the job's stream has, and in how many bytes.
    num_events: u64,
    pub(crate) num_bytes: u64,
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
    pub(crate) fn progress(&self) -> Progress {
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

    /// The ranks of the newest world whose loss was told.
    pub(super) fn has_lost(&self, rank: u32) -> bool {
        self.lost.contains(&rank)
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
    pub(super) fn knows(&self, event: &Event) -> bool {
        match &event.what {
            What::Step { step, .. } => (event.history, *step) <= (self.history, self.step),
            What::Evaluated { step, .. } => (event.history, *step) <= self.evaluated,
            What::Rank { rank, pid, .. } => self.ranks.contains(&(*rank, *pid)),
            // A new leader hears of it once more, as long as no other world was made.
            What::Lost { rank, .. } => self.has_lost(*rank),
            _ => false,
        }
    }

    /// The account for a snapshot.
    pub(crate) fn to_wire(&self) -> v1::Account {
        let ranks = self.ranks.iter();
        let committed = self.committed.iter();
        v1::Account {
            submitted_s: self.submitted_s,
            steps_run: self.steps_run,
            skipped: self.skipped.iter().copied().collect(),
            history: self.history,
            step: self.step,
            loss: self.loss,
            total_steps: self.total_steps,
            evaluated_history: self.evaluated.0,
            evaluated_step: self.evaluated.1,
            ranks: ranks
                .map(|(rank, pid)| v1::ToldRank {
                    rank: *rank,
                    pid: *pid,
                })
                .collect(),
            lost: self.lost.iter().copied().collect(),
            reached: self.reached.clone(),
            worlds: self.worlds.clone(),
            committed: committed
                .map(|((history, step), hash)| v1::CommittedCheckpoint {
                    history: *history,
                    step: *step,
                    manifest_hash: hash.clone(),
                })
                .collect(),
            num_events: self.num_events,
            num_bytes: self.num_bytes,
            first_event: self.first_event,
            books: Some(self.goodput.to_wire()),
        }
    }

    /// The account from a snapshot.
    pub(crate) fn of_wire(account: v1::Account) -> Self {
        let ranks = account.ranks.into_iter();
        let committed = account.committed.into_iter();
        Self {
            submitted_s: account.submitted_s,
            steps_run: account.steps_run,
            goodput: Goodput::of_wire(account.books.unwrap_or_default()),
            skipped: account.skipped.into_iter().collect(),
            history: account.history,
            step: account.step,
            loss: account.loss,
            total_steps: account.total_steps,
            evaluated: (account.evaluated_history, account.evaluated_step),
            ranks: ranks.map(|told| (told.rank, told.pid)).collect(),
            lost: account.lost.into_iter().collect(),
            reached: account.reached,
            worlds: account.worlds,
            committed: committed
                .map(|one| ((one.history, one.step), one.manifest_hash))
                .collect(),
            num_events: account.num_events,
            num_bytes: account.num_bytes,
            first_event: account.first_event,
        }
    }
}

impl Coordinator {
    /// Makes an event part of its job's stream, unless it is there already, such as a record that
    /// came twice. Called while an entry is applied, and never else.
    pub(super) fn publish(&mut self, event: Event, outputs: &mut Vec<Output>) {
        let Ok(job) = JobName::new(&event.job) else {
            return;
        };
        let account = Arc::make_mut(self.accounts.entry(job).or_default());
        if account.knows(&event) {
            return;
        }
        account.take(&event);
        let line = line_of(&event);
        account.num_bytes += line.len() as u64;
        outputs.push(Output::Event { event, line });
    }
}

/// The line of a job's stream that tells an event, with its end.
fn line_of(event: &Event) -> String {
    let mut line = serde_json::to_string(event).expect("every key is text");
    line.push('\n');
    line
}
