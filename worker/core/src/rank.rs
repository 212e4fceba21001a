//! The life of a rank as a machine: what it does at each step boundary, and which of its reports
//! may go out. It computes nothing, and knows neither sockets nor files nor models.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_proto::v1;
use v1::rank_report::Report;

/// What a rank is told once, as finished numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankPlan {
    /// Its number.
    pub rank: u32,
    /// How many ranks the world has; at least 1.
    pub size: u32,
    /// How many steps its state has seen when it begins. That state is a committed checkpoint, or
    /// the initial one.
    pub first_step: u64,
    /// How many steps the job has.
    pub total_steps: u64,
    /// A checkpoint after every so many steps; at least 1.
    pub checkpoint_every: u64,
    /// An evaluation after every so many steps; always one at the end.
    pub evaluate_every: Option<u64>,
    /// How many files a checkpoint has.
    pub num_files: u32,
}

impl RankPlan {
    /// The files of a checkpoint that this rank writes.
    pub fn files(&self) -> impl Iterator<Item = u32> + use<> {
        let (rank, size) = (self.rank, self.size.max(1));
        (0..self.num_files).filter(move |file| file % size == rank)
    }

    /// The chunks of an evaluation that a rank of this world computes.
    pub fn chunks(&self, rank: u32, num_chunks: u32) -> impl Iterator<Item = u32> + use<> {
        let size = self.size.max(1);
        (0..num_chunks).filter(move |chunk| chunk % size == rank)
    }
}

/// What a rank does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// One more step.
    Step,
    /// Evaluate the held-out samples, together with the other ranks.
    Evaluate,
    /// Take a snapshot, and write its files of it beside training.
    Checkpoint,
    /// No more steps.
    End {
        /// Whether that is because it was told to stop.
        stopped: bool,
    },
}

/// A record that is not acknowledged, by its place in the stream: an evaluation follows its step.
type Place = (u64, bool);

/// The machine.
#[derive(Debug)]
pub struct RankMachine {
    plan: RankPlan,
    step: u64,
    stopping: bool,
    evaluated: Option<u64>,
    /// The newest step whose state is a checkpoint, or is becoming one.
    snapped: Option<u64>,
    metrics: BTreeMap<String, f64>,
    unacked: BTreeSet<Place>,
    /// Durable files whose report waits.
    parts: VecDeque<v1::CheckpointPart>,
    committed: Option<u64>,
    done: Option<v1::Done>,
}

impl RankMachine {
    /// A rank whose state is at `plan.first_step`.
    #[must_use]
    pub fn new(plan: RankPlan) -> Self {
        let from_checkpoint = (plan.first_step > 0).then_some(plan.first_step);
        Self {
            plan,
            step: plan.first_step,
            stopping: false,
            evaluated: None,
            snapped: from_checkpoint,
            metrics: BTreeMap::new(),
            unacked: BTreeSet::new(),
            parts: VecDeque::new(),
            committed: from_checkpoint,
            done: None,
        }
    }

    /// What to do at this step boundary. Says the same until it is done.
    #[must_use]
    pub fn next(&self) -> Next {
        let step = self.step;
        let is_last = step >= self.plan.total_steps;
        let is_due = |every: u64| step > 0 && step.is_multiple_of(every.max(1));
        let wants_evaluation = is_last
            || (step > self.plan.first_step && self.plan.evaluate_every.is_some_and(is_due));
        if wants_evaluation && self.evaluated != Some(step) {
            return Next::Evaluate;
        }
        let wants_checkpoint = is_last || self.stopping || is_due(self.plan.checkpoint_every);
        if wants_checkpoint && self.snapped != Some(step) {
            return Next::Checkpoint;
        }
        if is_last || self.stopping {
            Next::End { stopped: !is_last }
        } else {
            Next::Step
        }
    }

    /// How many steps are applied.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// The step that comes next was applied. `stop`: some rank's note said that it was told to
    /// stop, so that all ranks end behind this step.
    pub fn stepped(&mut self, stop: bool) {
        self.step += 1;
        self.stopping |= stop;
    }

    /// The evaluation of this step is done.
    pub fn evaluated(&mut self, metrics: BTreeMap<String, f64>) {
        self.evaluated = Some(self.step);
        self.metrics = metrics;
    }

    /// The means of the last evaluation.
    #[must_use]
    pub fn metrics(&self) -> &BTreeMap<String, f64> {
        &self.metrics
    }

    /// The snapshot of this step is taken; its files follow.
    pub fn snapped(&mut self) {
        self.snapped = Some(self.step);
    }

    /// A record is on its way.
    pub fn recorded(&mut self, step: u64, is_evaluation: bool) {
        self.unacked.insert((step, is_evaluation));
    }

    /// A record, and all before it, are durable at the coordinator.
    pub fn acked(&mut self, step: u64, is_evaluation: bool) {
        self.unacked.retain(|place| *place > (step, is_evaluation));
    }

    /// How many records are not acknowledged.
    #[must_use]
    pub fn num_unacked(&self) -> usize {
        self.unacked.len()
    }

    /// One of this rank's files of a checkpoint is durable.
    pub fn part_written(&mut self, part: v1::CheckpointPart) {
        self.parts.push_back(part);
    }

    /// The checkpoint of a step counts, and with it all before it.
    pub fn committed(&mut self, step: u64) {
        self.committed = self.committed.max(Some(step));
    }

    /// No more steps are run: what to report when the last checkpoint counts.
    pub fn ended(&mut self, done: v1::Done) {
        self.done = Some(done);
    }

    /// The reports that may go out now, each once. A checkpoint counts only when the records of all
    /// of its steps are durable, since nobody runs those steps again; and the end is reported when
    /// its checkpoint counts.
    pub fn take_reports(&mut self) -> Vec<Report> {
        let recorded = self.unacked.first().map(|(step, _)| *step);
        let is_recorded = |step: u64| recorded.is_none_or(|unacked| step < unacked);
        let mut reports = Vec::new();
        while let Some(part) = self.parts.pop_front_if(|part| is_recorded(part.step)) {
            reports.push(Report::CheckpointPart(part));
        }
        let committed = self.committed;
        let is_over = |done: &mut v1::Done| committed >= Some(done.step) && is_recorded(done.step);
        reports.extend(self.done.take_if(is_over).map(Report::Done));
        reports
    }
}

#[cfg(test)]
mod tests;
