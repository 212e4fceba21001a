//! The life of a rank as a machine: which world it is part of, what it does at each step boundary,
//! what it holds of the step it is at, and which of its reports may go out. It computes nothing, and
//! knows neither sockets nor files nor models.
//!
//! ```text
//!            enter              begin_apply
//! Waiting -----------> Open <---------------> Applying
//!    ^                  |        applied         |
//!    |  enter           | close                  | applied, when close came meanwhile
//!    +---- Closed <-----+------------------------+
//! ```
//!
//! While a process waits it may follow the steps of its job, each by [`RankMachine::begin_follow`] and
//! [`RankMachine::followed`]: a close that comes between the two is done behind the step, as one that
//! comes while a rank applies.
//!
//! A rank that has closed a generation applies nothing of it afterwards, whatever completes: what it
//! reported then stays true until it enters a newer one.

mod holdings;
mod plan;
mod records;
mod snapshots;

use std::collections::{BTreeMap, VecDeque};

use muster_cluster::tree::Run;
use muster_proto::v1;
use v1::rank_report::Report;

use holdings::Holdings;
pub use plan::{RankPlan, Rules};
pub use records::Place;
use records::Records;
use snapshots::Snapshots;

/// What a rank does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// One more step.
    Step,
    /// Evaluate the held-out samples, together with the other ranks.
    Evaluate,
    /// Take a snapshot, and write its files of it beside training.
    Checkpoint {
        /// Whether the work ends behind it: this one may not be missing.
        is_last: bool,
    },
    /// Go on without the checkpoint that is due: those before it wait for the coordinator.
    LeaveOut,
    /// No more steps.
    End {
        /// Whether that is because it was told to stop.
        stopped: bool,
    },
}

/// Why a generation is closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// The peers that are missed.
    pub lost: Vec<u32>,
    /// The ranks whose results are wrong, this one perhaps among them.
    pub suspects: Vec<u32>,
    /// In words.
    pub reason: String,
    /// Whether all ranks close behind this step, as they were told.
    pub paused: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// It is in no world; the number of the one it is to enter, if it is known.
    Waiting { generation: u64 },
    /// The same, and it moves one step on, or takes a state over; the cause to close behind it.
    Following {
        generation: u64,
        close: Option<Cause>,
    },
    /// It works.
    Open,
    /// It moves from one step to the next; the cause to close behind it, if one came.
    Applying { close: Option<Cause> },
    /// It waits for a newer world.
    Closed,
}

/// The machine.
#[derive(Debug)]
pub struct RankMachine {
    rules: Rules,
    plan: RankPlan,
    phase: Phase,
    holdings: Holdings,
    stopping: bool,
    /// The state is a checkpoint's, and what follows that step was done before.
    restored: Option<u64>,
    snapshots: Snapshots,
    metrics: BTreeMap<String, f64>,
    records: Records,
    /// Durable files whose report waits.
    parts: VecDeque<v1::CheckpointPart>,
    done: Option<v1::Done>,
    closed: Option<v1::Closed>,
}

impl RankMachine {
    /// A process that was assigned to a world, or to none yet (0), and is not prepared.
    #[must_use]
    pub fn new(generation: u64) -> Self {
        Self {
            rules: Rules {
                total_steps: 0,
                checkpoint_every: 1,
                checkpoint_keep: 1,
                evaluate_every: None,
                num_files: 0,
                is_shared: false,
            },
            plan: RankPlan::default(),
            phase: Phase::Waiting { generation },
            holdings: Holdings::default(),
            stopping: false,
            restored: None,
            snapshots: Snapshots::default(),
            metrics: BTreeMap::new(),
            records: Records::default(),
            parts: VecDeque::new(),
            done: None,
            closed: None,
        }
    }

    /// The process knows its job; where it has a state, the number of steps that state has seen:
    /// a committed checkpoint, or 0 for initial values.
    pub fn prepared(&mut self, rules: Rules, state: Option<u64>) {
        self.rules = rules;
        if let Some(step) = state {
            self.restored = Some(step);
            self.snapshots.restored(step);
            self.holdings.restart(step);
        }
    }

    /// It has taken the state of another rank over, but for what ranks share. A close that came since
    /// [`Self::begin_apply`] or [`Self::begin_follow`] is reported now, with the state that is there.
    pub fn received(&mut self, step: u64) {
        self.holdings.restart(step);
        self.holdings.partial = self.rules.is_shared;
        self.settle();
    }

    /// A close that had to wait is done.
    fn settle(&mut self) {
        let close = match std::mem::replace(&mut self.phase, Phase::Open) {
            Phase::Applying { close } => close,
            Phase::Following { generation, close } => {
                self.phase = Phase::Waiting { generation };
                if close.is_some() {
                    self.plan.generation = generation;
                }
                close
            }
            other => {
                self.phase = other;
                None
            }
        };
        if let Some(cause) = close {
            self.shut(cause);
        }
    }

    /// It keeps these shares of the optimizer's state, as they are at its step.
    pub fn keeps(&mut self, shares: Vec<Run>) {
        self.holdings.kept = shares;
    }

    /// It is to keep only these shares of those that it keeps: `false` where the world is closed, and
    /// what was reported has to stay.
    pub fn gives_up_all_but(&mut self, shares: Vec<Run>) -> bool {
        let is_open = self.phase == Phase::Open;
        if is_open {
            self.holdings.kept = shares;
        }
        is_open
    }

    /// It has all parameters of its step.
    pub fn gathered(&mut self) {
        self.holdings.partial = false;
    }

    /// Whether a process that waits may move one step on, or take a state over. Where it may,
    /// [`Self::followed`] or [`Self::received`] comes next. It may not once it has closed the world
    /// that it was to enter: what it holds is reported.
    pub fn begin_follow(&mut self) -> bool {
        let Phase::Waiting { generation } = self.phase else {
            return false;
        };
        let close = None;
        self.phase = Phase::Following { generation, close };
        true
    }

    /// It has applied the step that comes next.
    pub fn followed(&mut self) {
        self.holdings.advance(false);
        self.settle();
    }

    /// How many steps its state has seen, if it has one.
    #[must_use]
    pub fn state(&self) -> Option<u64> {
        self.holdings.step
    }

    /// It takes over, from a rank that is at its step, the records of the steps up to it that are not known to be
    /// durable: should all die who made them, it is the one that sends them.
    pub fn inherited(&mut self, records: Vec<v1::StepRecord>) {
        for record in records {
            self.records.push(record);
        }
    }

    /// It is to enter this world, and can be told of it; what it was part of is over.
    pub fn assigned(&mut self, generation: u64) {
        if generation <= self.generation() {
            return;
        }
        let cause = || Cause {
            reason: "a newer world begins".to_owned(),
            ..Cause::default()
        };
        match &mut self.phase {
            Phase::Applying { close } => {
                close.get_or_insert_with(cause);
            }
            Phase::Following { .. } => {
                let close = None;
                self.phase = Phase::Following { generation, close };
            }
            Phase::Open | Phase::Closed | Phase::Waiting { .. } => {
                self.closed = None;
                self.done = None;
                self.phase = Phase::Waiting { generation };
            }
        }
    }

    /// Enters a world; `false` where that world is closed already, or is not newer than the last.
    pub fn enter(&mut self, plan: RankPlan) -> bool {
        let is_newer = match self.phase {
            Phase::Waiting { generation } => plan.generation >= generation,
            Phase::Closed => plan.generation > self.plan.generation,
            Phase::Open | Phase::Applying { .. } | Phase::Following { .. } => false,
        };
        if !is_newer {
            return false;
        }
        let was_first = self.plan.rank == 0 && self.plan.size > 0;
        if plan.rank == 0 && !was_first {
            // Whoever was rank 0 may have died with records that nobody else sent.
            self.records.send_all_again();
        }
        self.snapshots.enter(&plan, &self.rules);
        if let Some(evaluated) = plan.healed {
            self.restored = None;
            self.holdings.evaluated = evaluated;
        }
        // Who is told to stop says so again: all ranks end behind the same step.
        self.stopping = false;
        self.plan = plan;
        self.phase = Phase::Open;
        self.closed = None;
        true
    }

    /// The number of the world that it is part of, or was last.
    #[must_use]
    pub fn generation(&self) -> u64 {
        match self.phase {
            Phase::Waiting { generation } | Phase::Following { generation, .. } => generation,
            _ => self.plan.generation,
        }
    }

    /// Its place in that world.
    #[must_use]
    pub fn plan(&self) -> RankPlan {
        self.plan
    }

    /// Whether it works in its world.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open | Phase::Applying { .. })
    }

    /// Closes a generation: nothing more of it is applied, and what the rank holds is reported. One
    /// that it is not in, or has closed before, is not closed again.
    pub fn close(&mut self, generation: u64, cause: Cause) {
        if generation != self.generation() || generation == 0 {
            return;
        }
        match &mut self.phase {
            Phase::Closed => {}
            Phase::Applying { close } | Phase::Following { close, .. } => {
                close.get_or_insert(cause);
            }
            Phase::Waiting { .. } => {
                self.plan.generation = generation;
                self.shut(cause);
            }
            Phase::Open => self.shut(cause),
        }
    }

    fn shut(&mut self, cause: Cause) {
        self.phase = Phase::Closed;
        // A world that did not get to its end has none to report.
        self.done = None;
        self.closed = Some(v1::Closed {
            lost: cause.lost,
            suspects: cause.suspects,
            reason: cause.reason,
            holdings: Some(self.holdings.message()),
            paused: cause.paused,
        });
    }

    /// What to do at this step boundary. Says the same until it is done.
    #[must_use]
    pub fn next(&self) -> Next {
        let step = self.step();
        let is_last = step >= self.rules.total_steps;
        let is_due = |every: u64| step > 0 && step.is_multiple_of(every.max(1));
        let wants_evaluation = is_last
            || (self.restored != Some(step) && self.rules.evaluate_every.is_some_and(is_due));
        if wants_evaluation && !self.holdings.evaluated {
            return Next::Evaluate;
        }
        let ends = is_last || self.stopping;
        if self.snapshots.wants(step, ends, &self.rules) {
            return match self.snapshots.is_full(&self.rules) && !ends {
                true => Next::LeaveOut,
                false => Next::Checkpoint { is_last: ends },
            };
        }
        if ends {
            Next::End { stopped: !is_last }
        } else {
            Next::Step
        }
    }

    /// How many steps are applied; 0 while there is no state.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.holdings.step.unwrap_or_default()
    }

    /// Whether it has computed, or computes, the contribution of this shard to the step it is at.
    pub fn holds(&self) -> &[Run] {
        self.holdings.shards()
    }

    /// A shard's contribution is begun, which is as good as held: `false` where the world is
    /// closed, and nothing is to be begun.
    pub fn begin_shard(&mut self, shard: u32) -> bool {
        let is_open = self.phase == Phase::Open;
        if is_open {
            self.holdings.add(shard);
        }
        is_open
    }

    /// Its contributions to the step it is at are forgotten: they are not what is to be summed.
    pub fn drop_contributions(&mut self) {
        self.holdings.clear();
    }

    /// Whether the step may be applied, or another rank's state be taken over. Where it may,
    /// [`Self::applied`] or [`Self::received`] follows.
    pub fn begin_apply(&mut self) -> bool {
        let is_open = self.phase == Phase::Open;
        if is_open {
            self.phase = Phase::Applying { close: None };
        }
        is_open
    }

    /// The step was applied. `stop`: some rank's note said that it was told to stop, so that all
    /// ranks end behind this step; `pause`: the same for closing the world behind it.
    pub fn applied(&mut self, stop: bool, pause: Option<String>) {
        self.holdings.advance(self.rules.is_shared);
        self.stopping |= stop;
        if let (Phase::Applying { close }, Some(reason)) = (&mut self.phase, pause) {
            close.get_or_insert(Cause {
                reason,
                paused: true,
                ..Cause::default()
            });
        }
        self.settle();
    }

    /// The evaluation of this step is done.
    pub fn evaluated(&mut self, metrics: BTreeMap<String, f64>) {
        self.holdings.evaluated = true;
        self.metrics = metrics;
    }

    /// The means of the last evaluation.
    #[must_use]
    pub fn metrics(&self) -> &BTreeMap<String, f64> {
        &self.metrics
    }

    /// The snapshot of this step is taken; its files follow.
    pub fn snapped(&mut self) {
        self.snapshots.taken(self.holdings.step);
    }

    /// The checkpoint of this step is left out.
    pub fn left_out(&mut self) {
        self.snapshots.left_out(self.holdings.step);
    }

    /// A step, or its evaluation, is done. Every rank keeps the record until it is acknowledged;
    /// rank 0 sends it.
    pub fn record(&mut self, record: v1::StepRecord) {
        self.records.push(record);
    }

    /// The records to be sent now, each once.
    pub fn take_records(&mut self) -> Vec<v1::StepRecord> {
        let is_first = self.plan.rank == 0 && self.plan.size > 0;
        if is_first {
            self.records.take_unsent()
        } else {
            Vec::new()
        }
    }

    /// What was sent may have been lost on the way: all that is not acknowledged is sent again.
    pub fn send_records_again(&mut self) {
        self.records.send_all_again();
    }

    /// A record, and all before it, are durable at the coordinator.
    pub fn acked(&mut self, place: Place) {
        self.records.acked(place);
    }

    /// The same, where all ranks learn it with this step. What they do at a boundary may depend on that
    /// alone: a checkpoint that one of them leaves out is none.
    pub fn all_acked(&mut self, place: Place) {
        self.acked(place);
        self.snapshots.recorded(place.0);
    }

    /// The newest record that is known to be durable.
    #[must_use]
    pub fn last_acked(&self) -> Place {
        self.records.last_acked()
    }

    /// The records that are not acknowledged, for a rank that takes the state over.
    pub fn unacked(&self) -> impl Iterator<Item = &v1::StepRecord> {
        self.records.kept()
    }

    /// How many records are not acknowledged.
    #[must_use]
    pub fn num_unacked(&self) -> usize {
        self.records.len()
    }

    /// One of this rank's files of a checkpoint is durable.
    pub fn part_written(&mut self, part: v1::CheckpointPart) {
        self.parts.push_back(part);
    }

    /// The checkpoint of a step counts, and with it all before it.
    pub fn committed(&mut self, step: u64) {
        self.snapshots.committed(step);
    }

    /// No more steps are run: what to report when the last checkpoint counts.
    pub fn ended(&mut self, done: v1::Done) {
        if self.is_open() {
            self.done = Some(done);
        }
    }

    /// The reports that may go out now, each once. A checkpoint counts only when the records of all
    /// of its steps are durable, since nobody runs those steps again: rank 0, which has a file of
    /// every checkpoint, sees to it. And the end is reported when its checkpoint counts.
    pub fn take_reports(&mut self) -> Vec<Report> {
        let mut reports: Vec<Report> = self.closed.take().map(Report::Closed).into_iter().collect();
        let recorded = self.records.first().filter(|_| self.plan.rank == 0);
        let is_recorded = |step: u64| recorded.is_none_or(|(unacked, _)| step < unacked);
        while let Some(part) = self.parts.pop_front_if(|part| is_recorded(part.step)) {
            reports.push(Report::CheckpointPart(part));
        }
        let snapshots = &self.snapshots;
        let is_over = |done: &mut v1::Done| snapshots.counts(done.step) && is_recorded(done.step);
        reports.extend(self.done.take_if(is_over).map(Report::Done));
        reports
    }
}

#[cfg(test)]
mod tests;
