//! A job as understood, for the log and for snapshots: as one build understood it, every other build
//! takes it from here.

use std::path::{Path, PathBuf};

use muster_cluster::command::Submission;
use muster_cluster::job::JobSpec;
use muster_cluster::job::spec::{
    CheckpointSpec, DataFormat, DataSpec, DeviceSpec, ModelSpec, NotFinitePolicy, OptimizerKind,
    OptimizerSpec, Precision, Recompute, Reduction, Redundancy, ScheduleKind, ScheduleSpec,
    StopSpec, TrainSpec, WorkersSpec,
};
use v1::job_spec::Model;
use v1::optimizer_spec::Kind as Optimizer;
use v1::schedule_spec::Kind as Schedule;
use v1::train_spec::Stop;

use super::state::nonsense;
use super::{BadMessage, job_name};
use crate::v1;

/// A job as understood, for the wire. The digest of its data goes with the submission.
#[must_use]
pub fn spec_to(spec: &JobSpec) -> v1::JobSpec {
    // Every field is named, so that a new one cannot be forgotten here.
    let JobSpec {
        name,
        model,
        data,
        train,
        optimizer,
        schedule,
        workers,
        checkpoint,
    } = spec;
    let model = match model.clone() {
        ModelSpec::Mlp { hidden, dropout } => Model::Mlp(v1::MlpSpec { hidden, dropout }),
        ModelSpec::Cnn {
            channels,
            hidden,
            dropout,
        } => Model::Cnn(v1::CnnSpec {
            channels,
            hidden,
            dropout,
        }),
        ModelSpec::Gpt {
            layers,
            heads,
            width,
            context,
            dropout,
        } => Model::Gpt(v1::GptSpec {
            layers,
            heads,
            width,
            context,
            dropout,
        }),
        ModelSpec::Resnet { width } => Model::Resnet(v1::ResnetSpec { width }),
    };
    let DataSpec {
        source,
        format,
        shape,
        num_classes,
        scale,
        holdout,
        digest: _,
    } = data;
    v1::JobSpec {
        name: name.to_string(),
        model: Some(model),
        data: Some(v1::DataSpec {
            source: text(source),
            shape: shape.clone(),
            num_classes: *num_classes,
            scale: *scale,
            holdout: *holdout,
            format: match format {
                DataFormat::Csv => String::new(),
                DataFormat::Text | DataFormat::Tokens => format.name().to_owned(),
            },
        }),
        train: Some(train_to(train)),
        optimizer: Some(optimizer_to(optimizer)),
        schedule: Some(schedule_to(schedule)),
        workers: Some(workers_to(*workers)),
        checkpoint: Some(checkpoint_to(checkpoint)),
    }
}

/// A job as understood, from the wire; the digest of its data is the submission's.
///
/// # Errors
/// [`BadMessage`], which names what is wrong.
pub fn spec_from(message: v1::JobSpec, submission: &Submission) -> Result<JobSpec, BadMessage> {
    let model = match message.model.ok_or(BadMessage::Missing("model"))? {
        Model::Mlp(v1::MlpSpec { hidden, dropout }) => ModelSpec::Mlp { hidden, dropout },
        Model::Cnn(v1::CnnSpec {
            channels,
            hidden,
            dropout,
        }) => ModelSpec::Cnn {
            channels,
            hidden,
            dropout,
        },
        Model::Gpt(v1::GptSpec {
            layers,
            heads,
            width,
            context,
            dropout,
        }) => ModelSpec::Gpt {
            layers,
            heads,
            width,
            context,
            dropout,
        },
        Model::Resnet(v1::ResnetSpec { width }) => ModelSpec::Resnet { width },
    };
    let data = message.data.ok_or(BadMessage::Missing("data"))?;
    let train = message.train.ok_or(BadMessage::Missing("train"))?;
    let optimizer = message.optimizer.ok_or(BadMessage::Missing("optimizer"))?;
    let schedule = message.schedule.ok_or(BadMessage::Missing("schedule"))?;
    let workers = message.workers.ok_or(BadMessage::Missing("workers"))?;
    let checkpoint = message
        .checkpoint
        .ok_or(BadMessage::Missing("checkpoint"))?;
    let spec = JobSpec {
        name: job_name(&message.name)?,
        model,
        data: DataSpec {
            source: PathBuf::from(data.source),
            format: format(&data.format)?,
            shape: data.shape,
            num_classes: data.num_classes,
            scale: data.scale,
            holdout: data.holdout,
            digest: submission.data_digest.clone(),
        },
        train: train_from(&train)?,
        optimizer: optimizer_from(&optimizer)?,
        schedule: schedule_from(&schedule)?,
        workers: workers_from(&workers)?,
        checkpoint: CheckpointSpec {
            folder: checkpoint.folder.map(PathBuf::from),
            every_steps: checkpoint.every_steps,
            keep: checkpoint.keep,
        },
    };
    // What is divided by, and what is cut out of it.
    let (shards, WorkersSpec { min, max, .. }) = (spec.train.logical_shards, spec.workers);
    if shards == 0 || min > max || max > shards {
        let why = format!("{min} to {max} workers share {shards} shards");
        return Err(nonsense("job", why));
    }
    Ok(spec)
}

fn train_to(train: &TrainSpec) -> v1::TrainSpec {
    let TrainSpec {
        seed,
        global_batch_size,
        logical_shards,
        stop,
        clip_norm,
        not_finite,
        evaluate_every_steps,
        audit_every,
        precision,
        reduction,
        recompute,
    } = *train;
    v1::TrainSpec {
        seed,
        global_batch_size,
        logical_shards,
        stop: Some(match stop {
            StopSpec::Steps(steps) => Stop::Steps(steps),
            StopSpec::Epochs(epochs) => Stop::Epochs(epochs),
        }),
        clip_norm,
        not_finite: not_finite.name().to_owned(),
        evaluate_every_steps,
        audit_every,
        precision: match precision {
            Precision::F32 => String::new(),
            Precision::Bf16 => precision.name().to_owned(),
        },
        reduction: match reduction {
            Reduction::Canonical => String::new(),
            Reduction::Fast => reduction.name().to_owned(),
        },
        recompute: match recompute {
            Recompute::None => String::new(),
            Recompute::Blocks => recompute.name().to_owned(),
        },
    }
}

fn train_from(train: &v1::TrainSpec) -> Result<TrainSpec, BadMessage> {
    let policies = [NotFinitePolicy::Skip, NotFinitePolicy::Stop];
    let policy = policies
        .into_iter()
        .find(|policy| policy.name() == train.not_finite);
    Ok(TrainSpec {
        seed: train.seed,
        global_batch_size: train.global_batch_size,
        logical_shards: train.logical_shards,
        stop: match train.stop.ok_or(BadMessage::Missing("end"))? {
            Stop::Steps(steps) => StopSpec::Steps(steps),
            Stop::Epochs(epochs) => StopSpec::Epochs(epochs),
        },
        clip_norm: train.clip_norm,
        not_finite: policy.ok_or_else(|| none("policy", &train.not_finite))?,
        evaluate_every_steps: train.evaluate_every_steps,
        audit_every: train.audit_every,
        precision: precision(&train.precision)?,
        reduction: reduction(&train.reduction)?,
        recompute: recompute(&train.recompute)?,
    })
}

fn optimizer_to(optimizer: &OptimizerSpec) -> v1::OptimizerSpec {
    let adam = |beta1, beta2, epsilon| v1::AdamSpec {
        beta1,
        beta2,
        epsilon,
    };
    v1::OptimizerSpec {
        kind: Some(match optimizer.kind {
            OptimizerKind::Sgd { momentum } => Optimizer::Sgd(v1::SgdSpec { momentum }),
            OptimizerKind::Adam {
                beta1,
                beta2,
                epsilon,
            } => Optimizer::Adam(adam(beta1, beta2, epsilon)),
            OptimizerKind::AdamW {
                beta1,
                beta2,
                epsilon,
            } => Optimizer::AdamW(adam(beta1, beta2, epsilon)),
        }),
        learning_rate: optimizer.learning_rate,
        weight_decay: optimizer.weight_decay,
    }
}

fn optimizer_from(optimizer: &v1::OptimizerSpec) -> Result<OptimizerSpec, BadMessage> {
    let kind = optimizer.kind.ok_or(BadMessage::Missing("optimizer"))?;
    Ok(OptimizerSpec {
        kind: match kind {
            Optimizer::Sgd(v1::SgdSpec { momentum }) => OptimizerKind::Sgd { momentum },
            Optimizer::Adam(v1::AdamSpec {
                beta1,
                beta2,
                epsilon,
            }) => OptimizerKind::Adam {
                beta1,
                beta2,
                epsilon,
            },
            Optimizer::AdamW(v1::AdamSpec {
                beta1,
                beta2,
                epsilon,
            }) => OptimizerKind::AdamW {
                beta1,
                beta2,
                epsilon,
            },
        },
        learning_rate: optimizer.learning_rate,
        weight_decay: optimizer.weight_decay,
    })
}

fn schedule_to(schedule: &ScheduleSpec) -> v1::ScheduleSpec {
    v1::ScheduleSpec {
        warmup_steps: schedule.warmup_steps,
        kind: Some(match schedule.kind {
            ScheduleKind::Constant => Schedule::Constant(v1::ConstantSchedule {}),
            ScheduleKind::Cosine {
                decay_steps,
                final_factor,
            } => Schedule::Cosine(v1::CosineSchedule {
                decay_steps,
                final_factor,
            }),
        }),
    }
}

fn schedule_from(schedule: &v1::ScheduleSpec) -> Result<ScheduleSpec, BadMessage> {
    Ok(ScheduleSpec {
        warmup_steps: schedule.warmup_steps,
        kind: match schedule.kind.ok_or(BadMessage::Missing("schedule"))? {
            Schedule::Constant(v1::ConstantSchedule {}) => ScheduleKind::Constant,
            Schedule::Cosine(v1::CosineSchedule {
                decay_steps,
                final_factor,
            }) => ScheduleKind::Cosine {
                decay_steps,
                final_factor,
            },
        },
    })
}

fn workers_to(workers: WorkersSpec) -> v1::WorkersSpec {
    let WorkersSpec {
        min,
        max,
        spares,
        redundancy,
        device,
    } = workers;
    v1::WorkersSpec {
        min,
        max,
        spares,
        redundancy: redundancy.name().to_owned(),
        device: device.to_string(),
    }
}

fn workers_from(workers: &v1::WorkersSpec) -> Result<WorkersSpec, BadMessage> {
    let device: Option<DeviceSpec> = workers.device.parse().ok();
    Ok(WorkersSpec {
        min: workers.min,
        max: workers.max,
        spares: workers.spares,
        redundancy: redundancy(&workers.redundancy)?,
        device: device.ok_or_else(|| none("device", &workers.device))?,
    })
}

/// What the bytes of the data are, by the name that a job file writes.
fn format(name: &str) -> Result<DataFormat, BadMessage> {
    match name {
        "" => Ok(DataFormat::Csv),
        "text" => Ok(DataFormat::Text),
        "tokens" => Ok(DataFormat::Tokens),
        _ => Err(none("format", name)),
    }
}

/// In which numbers the model computes, by the name that a job file writes.
fn precision(name: &str) -> Result<Precision, BadMessage> {
    match name {
        "" => Ok(Precision::F32),
        "bf16" => Ok(Precision::Bf16),
        _ => Err(none("precision", name)),
    }
}

/// In which order ranks sum, by the name that a job file writes.
fn reduction(name: &str) -> Result<Reduction, BadMessage> {
    match name {
        "" => Ok(Reduction::Canonical),
        "fast" => Ok(Reduction::Fast),
        _ => Err(none("reduction", name)),
    }
}

/// What is computed again, by the name that a job file writes.
fn recompute(name: &str) -> Result<Recompute, BadMessage> {
    match name {
        "" => Ok(Recompute::None),
        "blocks" => Ok(Recompute::Blocks),
        _ => Err(none("recompute", name)),
    }
}

/// How many ranks keep the optimizer's state, by the name that a job file writes.
pub(super) fn redundancy(name: &str) -> Result<Redundancy, BadMessage> {
    let all = [Redundancy::Full, Redundancy::Shadow, Redundancy::None];
    let mut all = all.into_iter();
    all.find(|redundancy| redundancy.name() == name)
        .ok_or_else(|| none("redundancy", name))
}

fn checkpoint_to(checkpoint: &CheckpointSpec) -> v1::CheckpointSpec {
    v1::CheckpointSpec {
        folder: checkpoint.folder.as_deref().map(text),
        every_steps: checkpoint.every_steps,
        keep: checkpoint.keep,
    }
}

/// A path as text: that of a job is made of texts.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn none(what: &'static str, name: &str) -> BadMessage {
    nonsense(what, format!("{name:?} is none"))
}

#[cfg(test)]
mod tests;
