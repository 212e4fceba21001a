//! What is trained: a number per share for its parameters and one for the optimizer's state of it. Each
//! bit of a step depends on all parameters, so that one that is old or of nobody shows in all that
//! follows. And the run that nothing disturbs.

use std::collections::BTreeMap;

use muster_cluster::shares::NUM_SHARES;

use super::super::rng::mix;

pub(super) const NUM_SHARDS: u32 = 8;
pub(super) const TOTAL_STEPS: u64 = 24;
pub(super) const CHECKPOINT_EVERY: u64 = 5;

/// The state of the job after so many steps, as far as one rank has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) step: u64,
    /// By share. Every rank has all of them, but perhaps of an older step.
    pub(super) params: Vec<u64>,
    /// The optimizer's, by the shares that are kept.
    pub(super) kept: BTreeMap<u32, u64>,
}

impl State {
    pub(super) fn initial() -> Self {
        let numbers = |salt: u64| (0..NUM_SHARES).map(move |share| mix(salt + u64::from(share)));
        Self {
            step: 0,
            params: numbers(1_000).collect(),
            kept: (0..NUM_SHARES).zip(numbers(2_000)).collect(),
        }
    }

    /// The contribution of a shard.
    pub(super) fn contribute(&self, shard: u32) -> u64 {
        let fold = |sum: u64, value: &u64| mix(sum.rotate_left(9) ^ value);
        let place = mix(self.step << 8 | u64::from(shard));
        self.params.iter().fold(place, fold)
    }

    /// All contributions, in the order of the shards.
    pub(super) fn reduce(contributions: impl IntoIterator<Item = u64>) -> u64 {
        let fold = |sum: u64, value: u64| mix(sum.rotate_left(5) ^ value);
        contributions.into_iter().fold(3, fold)
    }

    /// The update, of the shares that are kept alone.
    pub(super) fn apply(&mut self, reduced: u64) {
        for (share, value) in &mut self.kept {
            *value = mix(value.rotate_left(7) ^ reduced);
            let parameter = &mut self.params[*share as usize];
            *parameter = mix(parameter.rotate_left(11) ^ *value);
        }
        self.step += 1;
    }
}

/// The state after each step of a run that nothing disturbs, with all shares.
pub(super) fn undisturbed() -> Vec<State> {
    let mut states = vec![State::initial()];
    for _ in 0..TOTAL_STEPS {
        let mut state = states[states.len() - 1].clone();
        let contributions = (0..NUM_SHARDS).map(|shard| state.contribute(shard));
        let reduced = State::reduce(contributions.collect::<Vec<_>>());
        state.apply(reduced);
        states.push(state);
    }
    states
}
