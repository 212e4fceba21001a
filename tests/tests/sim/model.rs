//! What is trained: five numbers whose every bit depends on every bit of each reduction, so that a
//! sum in another order, a shard too many or a step twice shows in all that follows. And the run
//! that nothing disturbs, computed without ranks.

use std::collections::BTreeMap;

use muster_cluster::shares::{NUM_SHARES, optimizer_hash};
use muster_cluster::tree::{self, Run};

use super::rng::mix;

pub(crate) const NUM_SHARDS: u32 = 8;
pub(crate) const NUM_ELEMENTS: usize = 5;
pub(crate) const NUM_CHUNKS: u32 = 3;
pub(crate) const TOTAL_STEPS: u64 = 70;
pub(crate) const CHECKPOINT_EVERY: u64 = 6;
pub(crate) const CHECKPOINT_KEEP: u32 = 2;
pub(crate) const EVALUATE_EVERY: u64 = 5;

/// The state of the job after so many steps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct State {
    pub(crate) step: u64,
    pub(crate) arena: Vec<f32>,
    pub(crate) optimizer: Vec<f32>,
    pub(crate) trace: u64,
}

/// What a shard says beside its contribution: its number, and what it read.
pub(crate) type ShardNote = (u32, u64);

/// From -1 to 1, of a number's bits.
#[expect(clippy::cast_precision_loss, reason = "24 bits fit into an f32")]
fn unit(bits: u64) -> f32 {
    (mix(bits) >> 40) as f32 / 8_388_608.0 - 1.0
}

impl State {
    pub(crate) fn initial() -> Self {
        let values = |salt: u64| (0..NUM_ELEMENTS as u64).map(|at| unit(salt + at)).collect();
        Self {
            step: 0,
            arena: values(100),
            optimizer: values(200),
            trace: 7,
        }
    }

    /// The contribution of a shard: magnitudes from 1e-3 to 1e3.
    pub(crate) fn contribute(&self, shard: u32) -> (Vec<f32>, ShardNote) {
        let place = mix(self.step << 8 | u64::from(shard));
        let values = (0u64..).zip(&self.arena).map(|(at, value)| {
            let bits = mix(place ^ u64::from(value.to_bits()) << 8 ^ at);
            let exponent = i32::try_from(bits % 7).unwrap_or_default() - 3;
            unit(bits) * 10f32.powi(exponent)
        });
        (values.collect(), (shard, mix(place ^ 0x7ace)))
    }

    /// The update.
    pub(crate) fn apply(&mut self, reduced: &[f32], notes: &[ShardNote]) {
        for (at, value) in reduced.iter().enumerate() {
            let bits = u64::from(value.to_bits());
            self.optimizer[at] = unit(u64::from(self.optimizer[at].to_bits()) << 32 | bits);
            self.arena[at] = unit(u64::from(self.arena[at].to_bits()) << 32 ^ bits << 1 ^ 1);
        }
        for (shard, digest) in notes {
            self.trace = mix(self.trace.rotate_left(5) ^ digest ^ u64::from(*shard));
        }
        self.step += 1;
    }

    /// What one chunk of the held-out samples amounts to.
    #[expect(clippy::cast_precision_loss, reason = "any number will do")]
    pub(crate) fn evaluate(&self, chunk: u32) -> f64 {
        let fold = |sum: u64, value: &f32| mix(sum ^ u64::from(value.to_bits()));
        (self.arena.iter().fold(u64::from(chunk), fold) >> 12) as f64 / 1e9
    }

    /// The mean over all chunks, in their order.
    pub(crate) fn metrics(chunks: &BTreeMap<u32, f64>) -> BTreeMap<String, f64> {
        BTreeMap::from([("loss".to_owned(), chunks.values().sum::<f64>())])
    }

    /// All that another rank needs but the head.
    pub(crate) fn values(&self) -> Vec<f32> {
        [&self.arena[..], &self.optimizer[..]].concat()
    }

    pub(crate) fn of_values(step: u64, trace: u64, values: &[f32]) -> Self {
        let (arena, optimizer) = values.split_at(NUM_ELEMENTS);
        let (arena, optimizer) = (arena.to_vec(), optimizer.to_vec());
        Self {
            step,
            arena,
            optimizer,
            trace,
        }
    }

    pub(crate) fn arena_hash(&self) -> String {
        hash(&self.arena)
    }

    pub(crate) fn optimizer_hash(&self) -> String {
        optimizer_hash(&[self.digest(); NUM_SHARES as usize])
    }

    /// As if all shares of the optimizer's state were the same.
    pub(crate) fn share_digests(&self) -> BTreeMap<u32, Vec<u8>> {
        let digest = self.digest();
        (0..NUM_SHARES)
            .map(|share| (share, digest.to_vec()))
            .collect()
    }

    fn digest(&self) -> [u8; 32] {
        let mut digest = [0; 32];
        digest[..16].copy_from_slice(hash(&self.optimizer).as_bytes());
        digest
    }

    pub(crate) fn trace_text(&self) -> String {
        format!("{:016x}", self.trace)
    }
}

pub(crate) fn hash(values: &[f32]) -> String {
    let fold = |sum: u64, value: &f32| mix(sum.rotate_left(7) ^ u64::from(value.to_bits()));
    format!("{:016x}", values.iter().fold(1, fold))
}

/// The state after each step of a run that nothing disturbs.
pub(crate) fn undisturbed() -> Vec<State> {
    let mut states = vec![State::initial()];
    for _ in 0..TOTAL_STEPS {
        let mut state = states[states.len() - 1].clone();
        let mut leaf = |node: Run| (node.num_shards() == 1).then(|| state.contribute(node.start).0);
        let mut add = |left: Vec<f32>, right: Vec<f32>| {
            let pairs = left.iter().zip(&right);
            pairs.map(|(left, right)| left + right).collect()
        };
        let sum = tree::fold(Run::new(0, NUM_SHARDS), &mut leaf, &mut add);
        let notes: Vec<ShardNote> = (0..NUM_SHARDS).map(|s| state.contribute(s).1).collect();
        state.apply(&sum.expect("all shards are there"), &notes);
        states.push(state);
    }
    states
}
