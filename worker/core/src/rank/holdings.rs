//! What a rank has of the step it is at: what other ranks need not do again when one dies.

use muster_cluster::tree::{self, Run};
use muster_proto::{convert, v1};

/// See above. The vectors themselves are elsewhere.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    /// How many steps are applied; `None` while there is no state.
    pub(super) step: Option<u64>,
    /// The shards whose contributions are there, or are being computed.
    shards: Vec<Run>,
    /// Whether the reduced vector of the step before is kept.
    reduced: bool,
    /// Whether the evaluation that follows the steps so far is done.
    pub(super) evaluated: bool,
    /// The shares of the optimizer's state that are kept, where ranks share it.
    pub(super) kept: Vec<Run>,
    /// Whether parameters are lacking that the last step made.
    pub(super) partial: bool,
}

impl Holdings {
    /// A state from elsewhere, of which nothing else is here.
    pub(super) fn restart(&mut self, step: u64) {
        *self = Self {
            step: Some(step),
            // What its world says of the evaluation holds.
            evaluated: self.evaluated,
            ..Self::default()
        };
    }

    pub(super) fn shards(&self) -> &[Run] {
        &self.shards
    }

    pub(super) fn add(&mut self, shard: u32) {
        self.shards.push(Run::new(shard, shard + 1));
        self.shards = tree::union(&self.shards);
    }

    pub(super) fn clear(&mut self) {
        self.shards.clear();
    }

    /// The step was applied: its contributions may go, and its reduced vector is kept. `partial`:
    /// only to the parameters whose optimizer state is kept here.
    pub(super) fn advance(&mut self, partial: bool) {
        self.step = self.step.map(|step| step + 1);
        self.partial = partial;
        self.shards.clear();
        self.reduced = true;
        self.evaluated = false;
    }

    pub(super) fn message(&self) -> v1::Holdings {
        v1::Holdings {
            step: self.step,
            shards: convert::shards(&self.shards),
            reduced: self.reduced,
            evaluated: self.evaluated,
            kept: convert::shards(&self.kept),
            partial: self.partial,
        }
    }
}
