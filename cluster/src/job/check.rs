//! From a job as written to a job as understood: the one door.
//!
//! Pure: no file is looked at. Each value is checked alone first, and what values must be to each
//! other only when all of them are sound, so that one slip gives one line.

mod readers;

use std::ops::Bound::{self, Excluded, Included};
use std::path::Path;

use super::draft::{JobDraft, Value, resolve};
use super::error::Error;
use super::size;
use super::spec::{
    CheckpointSpec, DataFormat, DataSpec, JobSpec, ModelSpec, NotFinitePolicy, OptimizerKind,
    OptimizerSpec, Precision, Recompute, Reduction, Redundancy, ScheduleKind, ScheduleSpec,
    StopSpec, TrainSpec, WorkersSpec,
};
use crate::ids::JobName;

/// Logical shards of a step: more than any cluster has devices.
const MAX_SHARDS: u32 = 1 << 16;
/// Samples of a step.
const MAX_BATCH: u32 = 1 << 24;
/// Values of one sample.
const MAX_FEATURES: u32 = 1 << 24;
/// The width of a layer, or the number of classes.
const MAX_WIDTH: u32 = 1 << 16;
/// Hidden layers, or convolutions.
const MAX_LAYERS: usize = 16;
/// Transformer blocks, and the heads of one.
const MAX_BLOCKS: u32 = 1024;
/// The tokens of one sample.
const MAX_CONTEXT: u32 = 1 << 16;
/// Token ids are u16.
const MAX_VOCABULARY: u32 = 1 << 16;
/// Steps of a job, so that sums of steps stay far from overflow.
const MAX_STEPS: u64 = 1_000_000_000_000;
/// Passes over the data: with any number of samples, fewer steps than fill 64 bits.
const MAX_EPOCHS: u64 = 1_000_000;

type Numbers = (Bound<f64>, Bound<f64>);
/// What may be zero and must stay below one: dropout, momentum, decays of moments.
const SHARE: Numbers = (Included(0.0), Excluded(1.0));
/// What divides or is compared in f32: neither zero nor infinite there.
const POSITIVE: Numbers = (Included(1e-30), Included(1e30));

impl JobDraft {
    /// Understands the draft. Relative paths are taken from `base_dir`, the job file's folder, an
    /// absolute path; `data_digest` is the BLAKE3 of [`JobDraft::data_source`], in hex.
    ///
    /// # Errors
    /// What is missing, out of range, unknown, at the wrong place or at odds with another value,
    /// each as one line with its place.
    pub fn check(&self, base_dir: &Path, data_digest: &str) -> Result<JobSpec, Error> {
        let mut check = Check {
            draft: self,
            error: Error::default(),
        };
        let name = check.name();
        let model = check.model();
        let spec = JobSpec {
            data: check.data(&model, base_dir, data_digest),
            model,
            train: check.train(),
            optimizer: check.optimizer(),
            schedule: check.schedule(),
            workers: check.workers(),
            checkpoint: check.checkpoint(base_dir),
            name: match name {
                Some(name) => name,
                None => return Err(check.error),
            },
        };
        if check.error.is_empty() {
            check.together(&spec);
        }
        check.error.or(spec)
    }
}

/// A check in progress. Each reader returns what is written, or the default, or, where the value
/// is refused, something harmless: a spec is given out only when nothing was refused.
struct Check<'a> {
    draft: &'a JobDraft,
    error: Error,
}

impl Check<'_> {
    fn name(&mut self) -> Option<JobName> {
        let name = self.draft.name();
        // One character over the limit is as wrong as a thousand, and fits a line.
        let name: String = name.chars().take(64).collect();
        match JobName::new(&name) {
            Ok(name) => Some(name),
            Err(bad) => {
                self.refuse("name", format!("{bad}; write one, e.g. name = \"digits\""));
                None
            }
        }
    }

    fn model(&mut self) -> ModelSpec {
        let family = self.choice("model.family", "model family", None, &ModelSpec::FAMILIES);
        let hidden = self.draft.value("model.hidden");
        let dropout = self.number_or("model.dropout", 0.0, SHARE);
        if let (Some("cnn"), Some(Value::Wholes(_))) = (family, hidden) {
            let message = "model.hidden of \"cnn\" is one width; write e.g. hidden = 64";
            self.refuse("model.hidden", message);
        }
        if let (Some("mlp"), Some(Value::Whole(width))) = (family, hidden) {
            let message = "model.hidden of \"mlp\" is an array of widths";
            self.refuse(
                "model.hidden",
                format!("{message}; write hidden = [{width}]"),
            );
        }
        match family {
            Some("cnn") => ModelSpec::Cnn {
                channels: self.widths("model.channels", &[16, 32], MAX_LAYERS, MAX_WIDTH),
                hidden: self.whole_u32("model.hidden", Some(64), 1..=MAX_WIDTH),
                dropout,
            },
            Some("gpt") => ModelSpec::Gpt {
                layers: self.whole_u32("model.layers", Some(12), 1..=MAX_BLOCKS),
                heads: self.whole_u32("model.heads", Some(12), 1..=MAX_BLOCKS),
                width: self.whole_u32("model.width", Some(768), 1..=MAX_WIDTH),
                context: self.whole_u32("model.context", Some(1024), 1..=MAX_CONTEXT),
                dropout,
            },
            Some("resnet") => ModelSpec::Resnet {
                width: self.whole_u32("model.width", Some(64), 1..=MAX_WIDTH / 8),
            },
            // No family was understood: then the options' place cannot be either.
            _ => ModelSpec::Mlp {
                hidden: self.widths("model.hidden", &[64], MAX_LAYERS, MAX_WIDTH),
                dropout,
            },
        }
    }

    fn data(&mut self, model: &ModelSpec, base_dir: &Path, data_digest: &str) -> DataSpec {
        let source = self.path("data.source", true).unwrap_or_default();
        let format = self.choice(
            "data.format",
            "data format",
            Some("csv"),
            &DataFormat::NAMES,
        );
        let format = match format {
            Some("text") => DataFormat::Text,
            Some("tokens") => DataFormat::Tokens,
            _ => DataFormat::Csv,
        };
        let (shape, num_classes) = match (format, model) {
            // Refused below, by the format.
            (DataFormat::Csv, ModelSpec::Gpt { .. }) => (vec![1], 2),
            (DataFormat::Csv, _) => {
                self.require("data.shape");
                let shape = self.widths("data.shape", &[1], 3, MAX_FEATURES);
                let num_classes = self.whole_u32("data.num_classes", None, 2..=MAX_WIDTH);
                (shape, num_classes)
            }
            (_, model) => {
                let (default, least) = match format {
                    // Every byte is a token of a text.
                    DataFormat::Text => (Some(256), 256),
                    _ => (None, 2),
                };
                let range = least..=MAX_VOCABULARY;
                let vocabulary = self.whole_u32("data.vocabulary", default, range);
                let context = match model {
                    ModelSpec::Gpt { context, .. } => *context,
                    // Refused below, as no other family takes tokens.
                    _ => 1,
                };
                (vec![context], vocabulary)
            }
        };
        DataSpec {
            source: resolve(base_dir, &source),
            format,
            shape,
            num_classes,
            scale: self.number_or("data.scale", 1.0, POSITIVE),
            holdout: self.number_or("data.holdout", 0.2, (Excluded(0.0), Excluded(1.0))),
            digest: data_digest.to_owned(),
        }
    }

    fn train(&mut self) -> TrainSpec {
        let steps = self.optional_whole("train.steps", 1..=MAX_STEPS);
        let epochs = self.optional_whole("train.epochs", 1..=MAX_EPOCHS);
        let stop = match (steps, epochs) {
            (Some(steps), None) => StopSpec::Steps(steps),
            (None, Some(epochs)) => StopSpec::Epochs(epochs),
            (Some(_), Some(_)) => {
                let message = "both epochs and steps say where to stop; remove one of them";
                self.refuse("train.steps", message);
                StopSpec::Steps(1)
            }
            (None, None) => {
                let (place, message) = self.draft.missing("train.epochs");
                self.error
                    .refuse(&place, format!("{message}, or steps = 600"));
                StopSpec::Steps(1)
            }
        };
        // TOML's integers end at 2^63 - 1, and a draft is TOML.
        const MAX_SEED: u64 = i64::MAX.unsigned_abs();
        let not_finite = self.choice(
            "train.not_finite",
            "policy of train.not_finite",
            Some("stop"),
            &NotFinitePolicy::NAMES,
        );
        let precision = self.choice(
            "train.precision",
            "precision",
            Some("f32"),
            &Precision::NAMES,
        );
        let reduction = self.choice(
            "train.reduction",
            "reduction",
            Some("canonical"),
            &Reduction::NAMES,
        );
        let recompute = self.choice(
            "train.recompute",
            "choice of train.recompute",
            Some("none"),
            &Recompute::NAMES,
        );
        TrainSpec {
            seed: self.whole("train.seed", Some(0), 0..=MAX_SEED),
            global_batch_size: self.whole_u32("train.global_batch_size", None, 1..=MAX_BATCH),
            logical_shards: self.whole_u32("train.logical_shards", None, 1..=MAX_SHARDS),
            stop,
            clip_norm: self.optional_number("train.clip_norm", POSITIVE),
            not_finite: match not_finite {
                Some("skip") => NotFinitePolicy::Skip,
                _ => NotFinitePolicy::Stop,
            },
            evaluate_every_steps: self.optional_whole("train.evaluate_every_steps", 1..=MAX_STEPS),
            audit_every: self.optional_whole("train.audit_every", 1..=MAX_STEPS),
            precision: match precision {
                Some("bf16") => Precision::Bf16,
                _ => Precision::F32,
            },
            reduction: match reduction {
                Some("fast") => Reduction::Fast,
                _ => Reduction::Canonical,
            },
            recompute: match recompute {
                Some("blocks") => Recompute::Blocks,
                _ => Recompute::None,
            },
        }
    }

    fn optimizer(&mut self) -> OptimizerSpec {
        let kind = self.choice("optimizer.kind", "optimizer", None, &OptimizerKind::NAMES);
        let momentum = self.number_or("optimizer.momentum", 0.0, SHARE);
        let beta1 = self.number_or("optimizer.beta1", 0.9, SHARE);
        let beta2 = self.number_or("optimizer.beta2", 0.999, SHARE);
        let epsilon = self.number_or("optimizer.epsilon", 1e-8, (Included(1e-30), Included(1.0)));
        let default_decay = if kind == Some("adamw") { 0.01 } else { 0.0 };
        OptimizerSpec {
            kind: match kind {
                Some("adam") => OptimizerKind::Adam {
                    beta1,
                    beta2,
                    epsilon,
                },
                Some("adamw") => OptimizerKind::AdamW {
                    beta1,
                    beta2,
                    epsilon,
                },
                _ => OptimizerKind::Sgd { momentum },
            },
            learning_rate: self.number(
                "optimizer.learning_rate",
                None,
                (Excluded(0.0), Included(1e6)),
            ),
            weight_decay: self.number_or(
                "optimizer.weight_decay",
                default_decay,
                (Included(0.0), Included(1e6)),
            ),
        }
    }

    fn schedule(&mut self) -> ScheduleSpec {
        let kind = self.choice(
            "schedule.kind",
            "schedule",
            Some("constant"),
            &ScheduleKind::NAMES,
        );
        let decay_steps = self.optional_whole("schedule.decay_steps", 1..=MAX_STEPS);
        let final_factor =
            self.number_or("schedule.final_factor", 0.0, (Included(0.0), Included(1.0)));
        ScheduleSpec {
            warmup_steps: self.whole("schedule.warmup_steps", Some(0), 0..=MAX_STEPS),
            kind: match kind {
                Some("cosine") => ScheduleKind::Cosine {
                    decay_steps,
                    final_factor,
                },
                _ => ScheduleKind::Constant,
            },
        }
    }

    fn workers(&mut self) -> WorkersSpec {
        let device = self.device();
        let redundancy = self.choice(
            "workers.redundancy",
            "redundancy",
            Some("full"),
            &Redundancy::NAMES,
        );
        // As many as can have a shard each; a wrong number of shards is refused elsewhere.
        let shards = match self.draft.value("train.logical_shards") {
            Some(Value::Whole(shards)) => u64::try_from(*shards).unwrap_or(1),
            _ => 1,
        };
        WorkersSpec {
            min: self.whole_u32("workers.min", Some(1), 1..=MAX_SHARDS),
            max: self.whole_u32(
                "workers.max",
                Some(shards.clamp(1, u64::from(MAX_SHARDS))),
                1..=MAX_SHARDS,
            ),
            spares: self.whole_u32("workers.spares", Some(0), 0..=MAX_SHARDS),
            redundancy: match redundancy {
                Some("shadow") => Redundancy::Shadow,
                Some("none") => Redundancy::None,
                _ => Redundancy::Full,
            },
            device,
        }
    }

    fn checkpoint(&mut self, base_dir: &Path) -> CheckpointSpec {
        CheckpointSpec {
            folder: self
                .path("checkpoint.folder", false)
                .map(|path| resolve(base_dir, &path)),
            every_steps: self.whole("checkpoint.every_steps", Some(100), 1..=MAX_STEPS),
            keep: self.whole_u32("checkpoint.keep", Some(3), 1..=1000),
        }
    }

    /// What values must be to each other.
    fn together(&mut self, spec: &JobSpec) {
        let JobSpec {
            model,
            data,
            train,
            schedule,
            workers,
            ..
        } = spec;
        let is_gpt = matches!(model, ModelSpec::Gpt { .. });
        if is_gpt != data.format.is_tokens() {
            let (family, format) = (model.family(), data.format.name());
            let expected = match is_gpt {
                true => "a \"gpt\" learns from tokens: write format = \"text\" or \"tokens\"",
                false => "it needs rows of features: write format = \"csv\", or family = \"gpt\"",
            };
            let message = format!("family {family:?} cannot use format = {format:?}; {expected}");
            self.refuse("data.format", message);
            return;
        }
        if let Some((path, message)) = size::fault_of_shape(model, data) {
            self.refuse(path, message);
            return;
        }
        if train.precision != Precision::F32 && !is_gpt {
            let (family, precision) = (model.family(), train.precision.name());
            let message = format!("precision = {precision:?} is not offered by family {family:?}");
            let expected = "only \"gpt\" has it: write precision = \"f32\"";
            self.refuse("train.precision", format!("{message}; {expected}"));
        }
        if train.recompute != Recompute::None && !is_gpt {
            let (family, recompute) = (model.family(), train.recompute.name());
            let message = format!("recompute = {recompute:?} is not offered by family {family:?}");
            let expected = "only \"gpt\" has it: write recompute = \"none\"";
            self.refuse("train.recompute", format!("{message}; {expected}"));
        }
        let (batch, shards) = (train.global_batch_size, train.logical_shards);
        if batch % shards != 0 {
            self.refuse(
                "train.logical_shards",
                format!(
                    "logical_shards = {shards} does not divide global_batch_size = {batch}; {}",
                    nearest_divisors(batch, shards)
                ),
            );
            return;
        }
        if let Some((path, message)) = size::fault_of_size(model, data, train.samples_per_shard()) {
            self.refuse(path, message);
        }
        if workers.max > shards {
            let max = workers.max;
            let message = format!("max = {max} is more than logical_shards = {shards}");
            let expected = "each rank needs a shard: lower max or raise logical_shards";
            self.refuse("workers.max", format!("{message}; {expected}"));
        } else if workers.min > workers.max {
            let WorkersSpec { min, max, .. } = workers;
            let message = format!("min = {min} is more than max = {max}; lower min or raise max");
            self.refuse("workers.min", message);
        }
        if let ScheduleKind::Cosine { decay_steps, .. } = schedule.kind {
            let steps = match train.stop {
                StopSpec::Steps(steps) => Some(steps),
                StopSpec::Epochs(_) => None,
            };
            let warmup = schedule.warmup_steps;
            if let Some(end) = decay_steps.or(steps).filter(|end| *end <= warmup) {
                let message = format!("warmup_steps = {warmup} leaves no step for the decay");
                let expected = format!("expected fewer than the {end} that both take together");
                self.refuse("schedule.warmup_steps", format!("{message}; {expected}"));
            }
        }
    }
}

/// "the nearest that do are 4 and 8": what to write instead of a number of shards that does not
/// divide the batch.
fn nearest_divisors(batch: u32, shards: u32) -> String {
    let divides = |candidate: &u32| batch.is_multiple_of(*candidate);
    let below = (1..shards).rev().find(divides);
    let above = (shards..=batch.min(MAX_SHARDS)).find(divides);
    match (below, above) {
        (Some(below), Some(above)) => format!("the nearest that do are {below} and {above}"),
        (Some(one), None) | (None, Some(one)) => format!("the nearest that does is {one}"),
        (None, None) => "1 does".to_owned(),
    }
}
