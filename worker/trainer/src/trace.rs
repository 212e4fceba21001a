//! The running hash of the samples that a job read, and how it is found again without training.
//!
//! ```text
//! shard(step, s) = BLAKE3(row numbers of its samples, in order)          in a note beside each contribution
//! trace(0)       = BLAKE3("muster trace 1")
//! trace(step+1)  = BLAKE3(trace(step), step, shard(step, 0), shard(step, 1), ...)
//! ```
//! All numbers are little-endian u64. The trainer folds what the ranks' notes say they read; a
//! [`Replay`] folds what they had to read, and counts it.

use muster_cluster::job::JobSpec;
use muster_cluster::{ShardId, Step};

use crate::data::Dataset;
use crate::permutation::SampleOrder;

/// The trace before the first step.
pub(crate) fn start() -> [u8; 32] {
    blake3::hash(b"muster trace 1").into()
}

/// What one shard of a step adds: the digest of the rows that its samples are.
pub(crate) fn of_shard(dataset: &Dataset, ids: &[u64]) -> [u8; 32] {
    let mut digest = blake3::Hasher::new();
    for &id in ids {
        digest.update(&dataset.row(id).to_le_bytes());
    }
    digest.finalize().into()
}

/// The trace behind a step, from the digests of its shards in shard order.
pub(crate) fn behind(
    trace: [u8; 32],
    step: Step,
    shards: impl IntoIterator<Item = [u8; 32]>,
) -> [u8; 32] {
    let mut next = blake3::Hasher::new();
    next.update(&trace);
    next.update(&step.0.to_le_bytes());
    for shard in shards {
        next.update(&shard);
    }
    next.finalize().into()
}

/// A sample that a step reads although its epoch had it already.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("step {step} reads row {row} of the data in shard {shard}, which epoch {epoch} had before")]
pub struct ReadTwice {
    /// The step, by the number of updates before it.
    pub step: Step,
    /// The shard of it.
    pub shard: ShardId,
    /// The row of the data file, from 0.
    pub row: u64,
    /// The epoch, from 0.
    pub epoch: u64,
}

/// The steps of a job as its data and its seed have them, without a model: the trace, and a count
/// of every sample of every epoch. Steps run over the ends of epochs, so that no tail of one is
/// dropped; the last epoch of a job may be begun and not ended.
#[derive(Debug)]
pub struct Replay<'a> {
    dataset: &'a Dataset,
    order: SampleOrder,
    num_shards: u32,
    step: Step,
    trace: [u8; 32],
    num_whole_epochs: u64,
    /// The samples that the present epoch had, and how many they are.
    had: Vec<bool>,
    num_had: u64,
}

impl<'a> Replay<'a> {
    /// Before the first step. `None` where there is nothing to train on.
    #[must_use]
    pub fn new(spec: &JobSpec, dataset: &'a Dataset) -> Option<Self> {
        let (train, num_samples) = (&spec.train, dataset.train_len());
        (num_samples > 0).then(|| Self {
            dataset,
            order: SampleOrder::new(
                train.seed,
                num_samples,
                train.global_batch_size,
                train.logical_shards,
            ),
            num_shards: train.logical_shards,
            step: Step(0),
            trace: start(),
            num_whole_epochs: 0,
            had: vec![false; dataset.train_len() as usize],
            num_had: 0,
        })
    }

    /// The next step.
    ///
    /// # Errors
    /// When an epoch has a sample twice; it cannot go on then.
    pub fn advance(&mut self) -> Result<(), ReadTwice> {
        let mut shards = Vec::new();
        for shard in (0..self.num_shards).map(ShardId) {
            let ids = self.order.ids(self.step.0, shard);
            for &id in &ids {
                self.count(shard, id)?;
            }
            shards.push(of_shard(self.dataset, &ids));
        }
        self.trace = behind(self.trace, self.step, shards);
        self.step = self.step.next();
        Ok(())
    }

    /// An epoch in which no sample comes twice, and that has as many as there are, has each once.
    fn count(&mut self, shard: ShardId, id: u64) -> Result<(), ReadTwice> {
        if std::mem::replace(&mut self.had[id as usize], true) {
            return Err(ReadTwice {
                step: self.step,
                shard,
                row: self.dataset.row(id),
                epoch: self.num_whole_epochs,
            });
        }
        self.num_had += 1;
        if self.num_had == self.dataset.train_len() {
            self.num_whole_epochs += 1;
            self.num_had = 0;
            self.had.fill(false);
        }
        Ok(())
    }

    /// How many steps there were.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// The running hash behind them, in hex.
    #[must_use]
    pub fn trace(&self) -> String {
        blake3::Hash::from(self.trace).to_hex().to_string()
    }

    /// The epochs in which every sample was read exactly once.
    #[must_use]
    pub fn num_whole_epochs(&self) -> u64 {
        self.num_whole_epochs
    }

    /// How many samples of the epoch behind those were read, each once.
    #[must_use]
    pub fn num_had(&self) -> u64 {
        self.num_had
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trainer::tests::{ADAMW, job, run, trainer};

    #[test]
    fn a_replay_finds_the_trace_of_every_step_without_a_model() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = job(folder.path(), ADAMW);
        let dataset = Dataset::load(&spec.data).expect("good rows");
        let (mut trainer, mut replay) = (
            trainer(&spec),
            Replay::new(&spec, &dataset).expect("samples"),
        );
        assert_eq!(replay.trace(), trainer.trace());
        for step in 1..=25 {
            run(&mut trainer, 1);
            replay.advance().expect("each sample once");
            assert_eq!(
                (replay.step(), replay.trace()),
                (Step(step), trainer.trace())
            );
        }
        // 25 steps of 16 samples are ten epochs of 40.
        assert_eq!((replay.num_whole_epochs(), replay.num_had()), (10, 0));
        replay.advance().expect("each sample once");
        assert_eq!((replay.num_whole_epochs(), replay.num_had()), (10, 16));
    }

    #[test]
    fn a_replay_with_another_seed_is_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut spec = job(folder.path(), ADAMW);
        let dataset = Dataset::load(&spec.data).expect("good rows");
        let of = |spec: &JobSpec| {
            let mut replay = Replay::new(spec, &dataset).expect("samples");
            replay.advance().expect("each sample once");
            replay.trace()
        };
        let first = of(&spec);
        spec.train.seed += 1;
        assert_ne!(of(&spec), first);
    }

    #[test]
    fn a_sample_that_comes_twice_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let spec = job(folder.path(), ADAMW);
        let dataset = Dataset::load(&spec.data).expect("good rows");
        let mut replay = Replay::new(&spec, &dataset).expect("samples");
        // As if the first step had read what the second shard of it reads.
        let id = replay.order.ids(0, ShardId(1))[0];
        replay.count(ShardId(3), id).expect("for the first time");
        let twice = replay.advance().expect_err("it was read");
        assert_eq!(
            twice,
            ReadTwice {
                step: Step(0),
                shard: ShardId(1),
                row: dataset.row(id),
                epoch: 0
            }
        );
    }
}
