//! Which states of a rank become checkpoints: when a snapshot is due, and when it is left out since
//! too many wait for the coordinator.

use std::collections::VecDeque;

use super::{RankPlan, Rules};

#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// The newest step whose state is a checkpoint, is becoming one, or was left out.
    last: Option<u64>,
    /// A checkpoint was due, and did not come to count before the world changed.
    is_overdue: bool,
    /// The steps of this world's snapshots whose records are not durable, as far as all ranks know:
    /// they cannot count yet.
    waiting: VecDeque<u64>,
    /// The step of the newest checkpoint that counts.
    committed: Option<u64>,
}

impl Snapshots {
    /// The state of this step comes from a checkpoint, or from initial values.
    pub(super) fn restored(&mut self, step: u64) {
        self.last = (step > 0).then_some(step);
        self.committed = self.last;
    }

    pub(super) fn enter(&mut self, plan: &RankPlan, rules: &Rules) {
        let committed = (plan.committed > 0).then_some(plan.committed);
        self.committed = self.committed.max(committed);
        // There is a coordinator, or there would be no new world.
        self.waiting.clear();
        if plan.healed.is_some() {
            let step = plan.first_step;
            self.last = committed.filter(|committed| *committed == step);
            let every = rules.checkpoint_every.max(1);
            self.is_overdue = step / every * every > plan.committed;
        }
    }

    /// Whether the state of this step is to become a checkpoint; of the last step of all in any case.
    pub(super) fn wants(&self, step: u64, is_last: bool, rules: &Rules) -> bool {
        let is_due = step > 0 && step.is_multiple_of(rules.checkpoint_every.max(1));
        (is_last || self.is_overdue || is_due) && self.last != Some(step)
    }

    /// Whether more would only fill the disk: none goes before a newer one counts.
    pub(super) fn is_full(&self, rules: &Rules) -> bool {
        self.waiting.len() > rules.checkpoint_keep as usize
    }

    pub(super) fn taken(&mut self, step: Option<u64>) {
        self.left_out(step);
        self.waiting.extend(step);
    }

    pub(super) fn left_out(&mut self, step: Option<u64>) {
        self.last = step;
        self.is_overdue = false;
    }

    /// The records of this step, and of all before it, are durable, as all ranks know.
    pub(super) fn recorded(&mut self, step: u64) {
        while self
            .waiting
            .pop_front_if(|waiting| *waiting <= step)
            .is_some()
        {}
    }

    /// The checkpoint of a step counts, and with it all before it.
    pub(super) fn committed(&mut self, step: u64) {
        self.committed = self.committed.max(Some(step));
    }

    /// Whether the checkpoint of a step counts, or one behind it.
    pub(super) fn counts(&self, step: u64) -> bool {
        self.committed >= Some(step)
    }
}
