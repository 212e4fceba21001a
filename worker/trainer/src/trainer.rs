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

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use muster_cluster::job::spec::{NotFinitePolicy, ScheduleSpec, StopSpec};
use muster_cluster::job::{Identity, JobSpec};
use muster_cluster::{ShardId, Step};

pub use self::error::Error;
pub use self::snapshot::{Head, Snapshot};
use crate::arena::{Arena, Layout};
use crate::checkpoint::{self, CheckpointError};
use crate::clip;
use crate::data::Dataset;
use crate::finite::{Fault, NotFinite};
use crate::learner::{Learner, Metrics};
use crate::notes::ShardNote;
use crate::optimizer::{Optimizer, State};
use crate::permutation::{self, SampleOrder};
use crate::rng::ShardRng;
use crate::schedule;
use crate::shares::{self, Cut};
use crate::trace;

/// Held-out samples in one evaluation chunk. It decides the bits of an evaluation.
const SAMPLES_PER_EVAL_CHUNK: u64 = 64;

/// A model in training: parameters, optimizer, data, and how far it is.
pub struct Trainer {
    learner: Box<dyn Learner>,
    dataset: Dataset,
    layout: Layout,
    cut: Cut,
    arena: Arena,
    optimizer: Optimizer,
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
        Ok(Self {
            optimizer: Optimizer::new(&spec.optimizer, &layout),
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
            arena: Arena::Host(values),
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

    /// What one logical shard adds to the next step, written into `out`.
    ///
    /// # Errors
    /// When there is no such shard, `out` is not as long as the arena, or the learner refuses the
    /// samples.
    pub fn contribute(&mut self, shard: ShardId, out: &mut [f32]) -> Result<ShardNote, Error> {
        if shard.0 >= self.num_shards {
            return Err(Error::NoSuchShard {
                shard,
                num_shards: self.num_shards,
            });
        }
        self.check_len(out.len())?;
        let begun = Instant::now();
        let ids = self.order.ids(self.step.0, shard);
        let batch = self.dataset.batch(&ids);
        self.reading += begun.elapsed();
        let rng = ShardRng::new(self.seed, self.step.0, shard.0);
        let metrics = self
            .learner
            .contribute(&self.arena, &batch, &rng, out)
            .map_err(|source| Error::Learner {
                step: self.step,
                shard,
                source,
            })?;
        Ok(ShardNote {
            shard,
            metrics,
            digest: trace::of_shard(&self.dataset, &ids),
            not_finite: NotFinite::find(out),
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
    pub fn apply(&mut self, reduced: &[f32], notes: &[ShardNote]) -> Result<StepReport, Error> {
        self.check_len(reduced.len())?;
        self.check_notes(notes)?;
        let skipped = self.fault(reduced, notes);
        if let (Some(fault), NotFinitePolicy::Stop) = (&skipped, self.not_finite) {
            return Err(Error::NotFinite {
                step: self.step,
                fault: fault.clone(),
            });
        }
        let learning_rate =
            self.learning_rate * schedule::factor(&self.schedule, self.total_steps, self.step.0);
        let grad_norm = match skipped {
            None => self.update(reduced, learning_rate),
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

    /// Moves parameters and optimizer; gives the norm of the gradient.
    fn update(&mut self, reduced: &[f32], learning_rate: f64) -> f64 {
        // Divided, not multiplied by a rounded 1/L: each mean has one rounding.
        let num_shards = self.num_shards as f32;
        let grad_norm = clip::global_norm(&self.layout, reduced, num_shards);
        let factor = self
            .clip_norm
            .and_then(|max_norm| clip::factor(grad_norm, max_norm));
        let t = self.step.next().0;
        let mut gradient = Vec::new();
        let kept: Vec<u32> = self.optimizer.state().shares.keys().copied().collect();
        for share in kept {
            let range = self.cut.range(share);
            gradient.clear();
            gradient.extend(reduced[range.clone()].iter().map(|sum| sum / num_shards));
            if let Some(factor) = factor {
                clip::scale(&self.layout, &mut gradient, range.clone(), factor);
            }
            let parameters = &mut host_mut(&mut self.arena)[range];
            self.optimizer
                .step_share(share, parameters, &gradient, learning_rate, t);
        }
        grad_norm
    }

    /// Why no update can be made from the sum of a step, if so. It follows from what all ranks have,
    /// and one that is given the sum of a step later: all decide alike.
    fn fault(&self, reduced: &[f32], notes: &[ShardNote]) -> Option<Fault> {
        let mut faulty = notes
            .iter()
            .filter_map(|note| Some((note.shard, note.not_finite?)));
        let Some((shard, not_finite)) = faulty.next() else {
            let what = NotFinite::find(reduced)?.describe(&self.layout);
            return Some(Fault::Sum { what });
        };
        let ids = self.order.ids(self.step.0, shard);
        Some(Fault::Contribution {
            shard,
            what: not_finite.describe(&self.layout),
            rows: ids.iter().map(|id| self.dataset.row(*id)).collect(),
            num_others: faulty.count(),
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
    #[must_use]
    pub fn arena_hash(&self) -> String {
        snapshot::arena_hash(host(&self.arena))
    }

    /// BLAKE3 of the optimizer's state, in hex; `None` where not all of it is kept here.
    #[must_use]
    pub fn optimizer_hash(&self) -> Option<String> {
        self.optimizer.state().hash()
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
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        self.snapshot_of(true, &shares::all().collect())
    }

    /// A copy of the parameters, if they are wanted, and of these shares of the optimizer's state,
    /// as far as they are kept here.
    #[must_use]
    pub fn snapshot_of(&self, with_parameters: bool, wanted: &BTreeSet<u32>) -> Snapshot {
        let state = self.optimizer.state();
        let kept = state.shares.iter();
        let kept = kept.filter(|(share, _)| wanted.contains(share));
        Snapshot {
            step: self.step,
            trace: self.trace,
            layout: self.layout.clone(),
            arena: with_parameters.then(|| host(&self.arena).to_vec()),
            optimizer: State {
                vectors: state.vectors,
                shares: kept
                    .map(|(share, values)| (*share, values.clone()))
                    .collect(),
            },
        }
    }

    /// How many values the state has that is kept here: the arena's, and the optimizer's.
    #[must_use]
    pub fn num_state_values(&self) -> usize {
        self.layout.len() + self.optimizer.state().num_values()
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
        let state = self.optimizer.state();
        let restored = checkpoint::decode(files, &self.layout, state, identity)?;
        *host_mut(&mut self.arena) = restored.arena;
        for (share, values) in restored.shares {
            self.optimizer.take(share, values);
        }
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

fn host(arena: &Arena) -> &[f32] {
    let Arena::Host(values) = arena else {
        unreachable!("this trainer keeps its arena on the host")
    };
    values
}

fn host_mut(arena: &mut Arena) -> &mut Vec<f32> {
    let Arena::Host(values) = arena else {
        unreachable!("this trainer keeps its arena on the host")
    };
    values
}

#[cfg(test)]
pub(crate) mod tests;
