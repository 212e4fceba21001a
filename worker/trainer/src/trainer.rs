//! The state of a job on one rank, and the step that moves it:
//! `state = update(state, reduced(contributions))`.
//!
//! ```text
//!   contribute(shard) for own shards --> (reduced over all ranks, elsewhere) --> apply(reduced, notes)
//!         reads arena, samples                                    moves arena, optimizer, step, trace
//! ```
//!
//! Nothing here knows how many ranks there are: a shard's contribution depends on the state, the
//! step and the shard's number alone. Not here: the files of a checkpoint ([`crate::checkpoint`]).

mod error;
mod share;
mod sharing;
mod snapshot;
mod update;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use muster_cluster::job::spec::{NotFinitePolicy, ScheduleSpec, StopSpec};
use muster_cluster::job::{Identity, JobSpec};
use muster_cluster::{ShardId, Step};

pub use self::error::Error;
pub use self::snapshot::{Head, Snapshot};
use self::update::place;
use crate::arena::{Arena, Layout};
use crate::checkpoint::{self, CheckpointError};
use crate::data::Dataset;
use crate::finite::{Fault, NotFinite};
use crate::learner::{Learner, Metrics};
use crate::notes::ShardNote;
use crate::optimizer::{Placed, State};
use crate::permutation::{self, SampleOrder};
use crate::rng::ShardRng;
use crate::schedule;
use crate::shares::{self, Cut};
use crate::trace;
use crate::vector::{DeviceError, Vector, View};

/// Held-out samples in one evaluation chunk. It decides the bits of an evaluation.
const SAMPLES_PER_EVAL_CHUNK: u64 = 64;

/// A model in training: parameters, optimizer, data, and how far it is.
pub struct Trainer {
    learner: Box<dyn Learner>,
    dataset: Dataset,
    layout: Layout,
    cut: Cut,
    arena: Arena,
    optimizer: Placed,
    order: SampleOrder,
    schedule: ScheduleSpec,
    learning_rate: f64,
    clip_norm: Option<f64>,
    not_finite: NotFinitePolicy,
    seed: u64,
    num_shards: u32,
    total_steps: u64,
    step: Step,
    trace: [u8; 32],
    identity: String,
    reading: Duration,
}

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// The number of steps made, this one and those that were skipped included.
    pub step: Step,
    /// Why no update was made, where the job skips such steps.
    pub skipped: Option<Fault>,
    /// The mean of each metric over the global batch.
    pub means: BTreeMap<String, f64>,
    /// The global norm of the gradient, before clipping; NaN for a step that was skipped.
    pub grad_norm: f64,
    /// The learning rate that was used.
    pub learning_rate: f64,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("num_elements", &self.layout.len())
            .field("step", &self.step)
            .field("total_steps", &self.total_steps)
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

impl Trainer {
    /// The initial state of a job: values drawn from its seed, no step applied.
    ///
    /// # Errors
    /// [`Error::Unfit`] where the data and the job do not go together, [`Error::WrongInit`] for a
    /// learner that contradicts itself.
    pub fn new(spec: &JobSpec, learner: Box<dyn Learner>, dataset: Dataset) -> Result<Self, Error> {
        let train = &spec.train;
        let num_samples = dataset.train_len();
        if num_samples == 0 || dataset.heldout_len() == 0 {
            return Err(Error::Unfit(format!(
                "data.holdout = {} leaves {num_samples} samples to train and {} to evaluate; \
                 each needs one at least",
                spec.data.holdout,
                dataset.heldout_len()
            )));
        }
        let total_steps =
            permutation::total_steps(train.stop, num_samples, train.global_batch_size).ok_or_else(
                || {
                    let epochs = match train.stop {
                        StopSpec::Epochs(number) | StopSpec::Steps(number) => number,
                    };
                    Error::Unfit(format!(
                        "train.epochs = {epochs} is more steps than can be counted"
                    ))
                },
            )?;
        let layout = learner.layout();
        let values = learner.init(train.seed);
        if values.len() != layout.len() {
            return Err(Error::WrongInit {
                expected: layout.len(),
                found: values.len(),
            });
        }
        check_names(&layout)?;
        if let Some(not_finite) = NotFinite::find(&values) {
            return Err(Error::Unfit(format!(
                "the model's initial values are not finite: {}",
                not_finite.describe(&layout)
            )));
        }
        let identity = Identity::of(spec).digest();
        let (arena, optimizer) = place(learner.device(), values, &spec.optimizer, &layout)?;
        Ok(Self {
            optimizer,
            order: SampleOrder::new(
                train.seed,
                num_samples,
                train.global_batch_size,
                train.logical_shards,
            ),
            schedule: spec.schedule,
            learning_rate: spec.optimizer.learning_rate,
            clip_norm: train.clip_norm,
            not_finite: train.not_finite,
            seed: train.seed,
            num_shards: train.logical_shards,
            step: Step(0),
            trace: trace::start(),
            arena,
            learner,
            dataset,
            total_steps,
            cut: Cut::new(layout.len()),
            layout,
            identity,
            reading: Duration::ZERO,
        })
    }

    /// The length of the arena, and so of every contribution.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.layout.len()
    }

    /// Whether the state is on a device.
    #[must_use]
    pub fn is_on_device(&self) -> bool {
        matches!(self.arena, Vector::Device(_))
    }

    /// The device that the state is on, a plain one.
    #[must_use]
    pub fn tensor_device(&self) -> Option<burn::tensor::Device> {
        match &self.arena {
            Vector::Host(_) => None,
            Vector::Device(tensor) => Some(tensor.device()),
        }
    }

    /// The number of updates applied so far.
    #[must_use]
    pub fn step(&self) -> Step {
        self.step
    }

    /// Where the job ends.
    #[must_use]
    pub fn total_steps(&self) -> u64 {
        self.total_steps
    }

    /// What one logical shard adds to the next step, written into `out`, or where the arena is on a
    /// device put into its place.
    ///
    /// # Errors
    /// When there is no such shard, `out` is not as long as the arena, or the learner refuses the
    /// samples.
    pub fn contribute(&mut self, shard: ShardId, out: &mut Vector) -> Result<ShardNote, Error> {
        if shard.0 >= self.num_shards {
            return Err(Error::NoSuchShard {
                shard,
                num_shards: self.num_shards,
            });
        }
        if !self.is_on_device() {
            self.check_len(out.len())?;
        }
        let begun = Instant::now();
        let ids = self.order.ids(self.step.0, shard);
        let batch = self.dataset.batch(&ids);
        self.reading += begun.elapsed();
        let rng = ShardRng::new(self.seed, self.step.0, shard.0);
        let metrics = if let (None, Vector::Host(out)) = (self.learner.device(), &mut *out) {
            self.learner.contribute(&self.arena, &batch, &rng, out)
        } else {
            let learner = &mut self.learner;
            let vector = learner.contribute_on_device(&self.arena, &batch, &rng);
            vector.map(|(vector, metrics)| {
                *out = Vector::Device(vector);
                metrics
            })
        };
        let metrics = metrics.map_err(|source| Error::Learner {
            step: self.step,
            shard,
            source,
        })?;
        self.check_len(out.len())?;
        Ok(ShardNote {
            shard,
            metrics,
            digest: trace::of_shard(&self.dataset, &ids),
            not_finite: self.not_finite(out)?,
        })
    }

    /// The rows of the data, counted from 0, that a shard of any step reads; none where there is no
    /// such shard.
    #[must_use]
    pub fn rows(&self, step: Step, shard: ShardId) -> Vec<u64> {
        if shard.0 >= self.num_shards {
            return Vec::new();
        }
        let ids = self.order.ids(step.0, shard);
        ids.into_iter().map(|id| self.dataset.row(id)).collect()
    }

    /// How long contributions spent reading samples since this was last asked.
    pub fn take_reading_time(&mut self) -> Duration {
        std::mem::take(&mut self.reading)
    }

    /// Makes the next step from the sum of all shards' contributions and their notes, which are in
    /// shard order. It moves the parameters whose optimizer state is kept here; those of other
    /// shares are to be taken over from elsewhere before anything is computed with them.
    ///
    /// A step whose gradient is not finite makes no update. Where the job skips such steps, this one
    /// counts all the same: its samples are read, and the schedule and the optimizer's count of
    /// updates go on with it, so that the state needs no number beside that of the step.
    ///
    /// # Errors
    /// When the vector or the notes are not those of a whole step, or a value is not finite and the
    /// job is to stop then; nothing was applied.
    pub fn apply<'a>(
        &mut self,
        reduced: impl Into<View<'a>>,
        notes: &[ShardNote],
    ) -> Result<StepReport, Error> {
        let reduced = reduced.into();
        self.check_len(reduced.len())?;
        self.check_notes(notes)?;
        // Divided, not multiplied by a rounded 1/L: each mean has one rounding.
        let facts = self.facts(reduced, self.num_shards as f32)?;
        let skipped = self.fault(facts.not_finite, notes);
        if let (Some(fault), NotFinitePolicy::Stop) = (&skipped, self.not_finite) {
            return Err(Error::NotFinite {
                step: self.step,
                fault: fault.clone(),
            });
        }
        let learning_rate =
            self.learning_rate * schedule::factor(&self.schedule, self.total_steps, self.step.0);
        let grad_norm = match skipped {
            None => {
                self.update(reduced, facts.norm, learning_rate)?;
                facts.norm
            }
            Some(_) => f64::NAN,
        };
        let mut metrics = Metrics::default();
        for note in notes {
            metrics.add(&note.metrics);
        }
        let digests = notes.iter().map(|note| note.digest);
        self.trace = trace::behind(self.trace, self.step, digests);
        self.step = self.step.next();
        Ok(StepReport {
            step: self.step,
            skipped,
            means: metrics.means(),
            grad_norm,
            learning_rate,
        })
    }

    /// The number of chunks that the held-out samples are evaluated in, for any number of ranks.
    #[must_use]
    pub fn num_eval_chunks(&self) -> u32 {
        u32::try_from(self.dataset.heldout_len().div_ceil(SAMPLES_PER_EVAL_CHUNK))
            .unwrap_or(u32::MAX)
    }

    /// The metrics of one chunk of the held-out samples with the parameters as they are.
    ///
    /// # Errors
    /// When there is no such chunk, or the learner refuses the samples.
    pub fn evaluate_chunk(&mut self, chunk: u32) -> Result<Metrics, Error> {
        let num_chunks = self.num_eval_chunks();
        if chunk >= num_chunks {
            return Err(Error::NoSuchChunk { chunk, num_chunks });
        }
        let start = u64::from(chunk) * SAMPLES_PER_EVAL_CHUNK;
        let end = (start + SAMPLES_PER_EVAL_CHUNK).min(self.dataset.heldout_len());
        let batch = self.dataset.heldout_batch(start..end);
        self.learner
            .evaluate(&self.arena, &batch)
            .map_err(|source| Error::Evaluation {
                step: self.step,
                chunk,
                source,
            })
    }

    /// BLAKE3 of the parameters and buffers, in hex.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn arena_hash(&self) -> Result<String, DeviceError> {
        Ok(self.arena.hash()?.to_hex().to_string())
    }

    /// BLAKE3 of the optimizer's state, in hex; `None` where not all of it is kept here.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn optimizer_hash(&self) -> Result<Option<String>, DeviceError> {
        Ok(self.optimizer.state()?.hash())
    }

    /// The running hash of the samples that were read, per shard in shard order, in hex.
    #[must_use]
    pub fn trace(&self) -> String {
        snapshot::hex(self.trace)
    }

    /// The digest of the job's identity, in hex.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// A copy of the state, to be written elsewhere.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn snapshot(&self) -> Result<Snapshot, DeviceError> {
        self.snapshot_of(true, &shares::all().collect())
    }

    /// A copy of the parameters, if they are wanted, and of these shares of the optimizer's state,
    /// as far as they are kept here.
    ///
    /// # Errors
    /// When the device cannot be read.
    pub fn snapshot_of(
        &self,
        with_parameters: bool,
        wanted: &BTreeSet<u32>,
    ) -> Result<Snapshot, DeviceError> {
        let mut kept = self.optimizer.kept();
        kept.retain(|share| wanted.contains(share));
        let mut shares = BTreeMap::new();
        for share in kept {
            if let Some(values) = self.optimizer.share(share)? {
                shares.insert(share, values.into_owned());
            }
        }
        let arena = with_parameters.then(|| self.arena.host()).transpose()?;
        Ok(Snapshot {
            step: self.step,
            trace: self.trace,
            layout: self.layout.clone(),
            arena: arena.map(Cow::into_owned),
            optimizer: State {
                vectors: self.optimizer.vectors(),
                shares,
            },
        })
    }

    /// How many values the state has that is kept here: the arena's, and the optimizer's.
    #[must_use]
    pub fn num_state_values(&self) -> usize {
        self.layout.len() + self.optimizer.num_values()
    }

    /// Takes over the state that the files of a checkpoint hold, by their logical names, as far as
    /// it is kept here. `identity` is the digest of the job that they must be of.
    ///
    /// # Errors
    /// When a file is not one of ours, or not of this job, model, optimizer, or not of the same
    /// step as the others, or when one is missing; nothing was changed then.
    pub fn restore(
        &mut self,
        files: &BTreeMap<String, Vec<u8>>,
        identity: &str,
    ) -> Result<(), CheckpointError> {
        let (vectors, kept) = (self.optimizer.vectors(), self.optimizer.kept());
        let restored = checkpoint::decode(files, &self.layout, vectors, &kept, identity)?;
        self.arena.set(restored.arena);
        self.optimizer.take(restored.shares.into_iter().collect());
        self.step = restored.step;
        self.trace = restored.trace;
        Ok(())
    }

    fn check_len(&self, found: usize) -> Result<(), Error> {
        let expected = self.layout.len();
        if found == expected {
            Ok(())
        } else {
            Err(Error::WrongLength {
                step: self.step,
                expected,
                found,
            })
        }
    }

    fn check_notes(&self, notes: &[ShardNote]) -> Result<(), Error> {
        if notes.iter().map(|note| note.shard.0).eq(0..self.num_shards) {
            return Ok(());
        }
        let found: Vec<_> = notes.iter().map(|note| note.shard.to_string()).collect();
        let found = if found.is_empty() {
            "none".to_owned()
        } else {
            found.join(", ")
        };
        Err(Error::WrongNotes {
            step: self.step,
            last: self.num_shards.saturating_sub(1),
            found,
        })
    }
}

/// An entry's name is the name of its tensor in checkpoint files.
fn check_names(layout: &Layout) -> Result<(), Error> {
    let mut seen = BTreeSet::new();
    let bad = layout.entries().iter().find(|entry| {
        let name = entry.name.as_str();
        name.is_empty() || name == "__metadata__" || !seen.insert(name)
    });
    bad.map_or(Ok(()), |entry| {
        Err(Error::Unfit(format!(
            "the model's layout has a second entry {:?}, or it is no name; each needs its own",
            entry.name
        )))
    })
}

#[cfg(test)]
pub(crate) mod tests;
