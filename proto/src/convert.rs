//! What Raft replicates, from the vocabulary to the wire and back. Bytes that make no sense are an
//! error with a name, never a panic.

mod layout;
mod peers;
mod spec;
mod state;
mod worker;
mod world;

use std::path::PathBuf;

use muster_cluster::Device;
use muster_cluster::command::{Command, Outcome, OutcomeKind, Stamped, StopWhy, Submission};
use muster_cluster::ids::{Generation, History, Incarnation, JobName, ProcessId, Step, WorkerName};
use muster_cluster::state::{FileRef, Manifest, Seat};
use prost::Message;

use crate::v1;

pub use layout::{layout, runs_of};
pub use peers::{addresses, peers};
pub use spec::{spec_from, spec_to};
pub use state::{
    answered, job_bytes, job_of, job_state, job_state_of, member, member_bytes, remembered,
    snapshot, snapshot_bytes,
};
pub use worker::{node, register};
pub use world::{placements, runs, shards};

/// A message that is not one of ours, or lacks what it must have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// The bytes are no message.
    #[error("the bytes are no message of this version: {0}")]
    Undecodable(String),
    /// A field is missing.
    #[error("the message has no {0}")]
    Missing(&'static str),
    /// A field makes no sense.
    #[error("the message's {what} makes no sense: {why}")]
    Senseless {
        /// Which field.
        what: &'static str,
        /// Why not.
        why: String,
    },
}

fn senseless(what: &'static str) -> impl Fn(muster_cluster::ids::BadName) -> BadMessage {
    move |error| BadMessage::Senseless {
        what,
        why: error.to_string(),
    }
}

/// A job's name from the wire.
///
/// # Errors
/// Where the text is no name.
pub fn job_name(text: &str) -> Result<JobName, BadMessage> {
    JobName::new(text).map_err(senseless("job"))
}

/// A worker's name from the wire.
///
/// # Errors
/// Where the text is no name.
pub fn worker_name(text: &str) -> Result<WorkerName, BadMessage> {
    WorkerName::new(text).map_err(senseless("worker"))
}

/// An entry of the replicated log.
#[derive(Clone, Debug, PartialEq)]
pub enum LogEntry {
    /// A change of the replicated state.
    Command(Stamped),
    /// What the leader observed.
    Records(v1::Records),
    /// A member of the group showed itself.
    Seen(v1::Member),
}

impl LogEntry {
    /// The entry as bytes.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        use v1::log_entry::Entry as Wire;
        let entry = match self {
            LogEntry::Command(stamped) => Wire::Command(stamped_command(&stamped)),
            LogEntry::Records(records) => Wire::Records(records),
            LogEntry::Seen(member) => Wire::Seen(v1::MemberSeen {
                member: Some(member),
            }),
        };
        v1::LogEntry { entry: Some(entry) }.encode_to_vec()
    }

    /// An entry from bytes.
    ///
    /// # Errors
    /// [`BadMessage`], which names what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadMessage> {
        use v1::log_entry::Entry as Wire;
        let message = v1::LogEntry::decode(bytes)
            .map_err(|error| BadMessage::Undecodable(error.to_string()))?;
        Ok(match message.entry.ok_or(BadMessage::Missing("entry"))? {
            Wire::Command(command) => LogEntry::Command(stamped(command)?),
            Wire::Records(records) => LogEntry::Records(records),
            Wire::Seen(seen) => LogEntry::Seen(seen.member.ok_or(BadMessage::Missing("member"))?),
        })
    }
}

fn stamped_command(stamped: &Stamped) -> v1::StampedCommand {
    use v1::stamped_command::Command as Wire;
    let command = match &stamped.command {
        Command::Submit { submission, .. } => Wire::Submit(submission.into()),
        Command::Stop { job, why } => Wire::Stop(v1::Stop {
            job: job.to_string(),
            why: match why {
                StopWhy::Interrupted => v1::StopWhy::Interrupted.into(),
                StopWhy::Cancelled => v1::StopWhy::Cancelled.into(),
            },
        }),
        Command::RegisterWorker { worker, node } => Wire::RegisterWorker(register(worker, node)),
        Command::StartWorld {
            job,
            world,
            reason,
            predecessor_progressed,
            poison,
        } => Wire::StartWorld(v1::StartWorld {
            job: job.to_string(),
            world: Some(world.into()),
            reason: reason.clone(),
            predecessor_progressed: *predecessor_progressed,
            poison: poison.as_ref().map(Into::into),
        }),
        Command::StartStandby { job, process, seat } => Wire::StartStandby(v1::StartStandby {
            job: job.to_string(),
            process: process.0,
            worker: seat.worker.to_string(),
            incarnation: seat.incarnation.0,
            cuda: seat.device.cuda(),
        }),
        Command::EndStandby {
            job,
            process,
            reason,
        } => Wire::EndStandby(v1::EndStandby {
            job: job.to_string(),
            process: process.0,
            reason: reason.clone(),
        }),
        Command::Scale { job, max } => Wire::Scale(v1::Scale {
            job: job.to_string(),
            max: *max,
        }),
        Command::Drain { worker, drains } => Wire::Drain(v1::Drain {
            worker: worker.to_string(),
            drains: *drains,
        }),
        Command::Distrust {
            job,
            generation,
            worker,
            reason,
        } => Wire::Distrust(v1::Distrust {
            job: job.to_string(),
            generation: generation.0,
            worker: worker.to_string(),
            reason: reason.clone(),
        }),
        Command::AbandonState { job } => Wire::AbandonState(v1::AbandonState {
            job: job.to_string(),
        }),
        Command::CommitManifest { job, manifest } => Wire::CommitManifest(v1::CommitManifest {
            job: job.to_string(),
            manifest: Some(manifest.into()),
        }),
        Command::RejectManifest {
            job,
            history,
            step,
            reason,
        } => Wire::RejectManifest(v1::RejectManifest {
            job: job.to_string(),
            history: history.0,
            step: step.0,
            reason: reason.clone(),
        }),
        Command::Finish {
            job,
            generation,
            outcome,
        } => Wire::Finish(finish(job, *generation, outcome)),
    };
    let request_id = stamped
        .request
        .map(|request| request.to_vec())
        .unwrap_or_default();
    let spec = match &stamped.command {
        Command::Submit { spec, .. } => spec.as_deref().map(spec_to),
        _ => None,
    };
    v1::StampedCommand {
        stamp_ms: stamped.stamp_ms,
        request_id,
        command: Some(command),
        spec,
    }
}

fn stamped(message: v1::StampedCommand) -> Result<Stamped, BadMessage> {
    use v1::stamped_command::Command as Wire;
    let request = request_id(&message.request_id)?;
    let command = match message.command.ok_or(BadMessage::Missing("command"))? {
        Wire::Submit(submit) => {
            let submission = Submission::from(submit);
            let spec = message.spec.map(|spec| spec_from(spec, &submission));
            let spec = spec.transpose()?.map(Box::new);
            Command::Submit { submission, spec }
        }
        Wire::Stop(stop) => Command::Stop {
            job: job_name(&stop.job)?,
            why: stop_why(stop.why)?,
        },
        Wire::RegisterWorker(worker) => Command::RegisterWorker {
            worker: worker_name(&worker.worker)?,
            node: node(worker)?,
        },
        Wire::StartWorld(start) => Command::StartWorld {
            job: job_name(&start.job)?,
            world: start
                .world
                .ok_or(BadMessage::Missing("world"))?
                .try_into()?,
            reason: start.reason,
            predecessor_progressed: start.predecessor_progressed,
            poison: start.poison.map(TryInto::try_into).transpose()?,
        },
        Wire::StartStandby(start) => Command::StartStandby {
            job: job_name(&start.job)?,
            process: ProcessId(start.process),
            seat: Seat {
                worker: worker_name(&start.worker)?,
                incarnation: Incarnation(start.incarnation),
                device: Device::of(start.cuda),
            },
        },
        Wire::EndStandby(end) => Command::EndStandby {
            job: job_name(&end.job)?,
            process: ProcessId(end.process),
            reason: end.reason,
        },
        Wire::Scale(scale) => Command::Scale {
            job: job_name(&scale.job)?,
            max: scale.max,
        },
        Wire::Drain(drain) => Command::Drain {
            worker: worker_name(&drain.worker)?,
            drains: drain.drains,
        },
        Wire::Distrust(distrust) => Command::Distrust {
            job: job_name(&distrust.job)?,
            generation: Generation(distrust.generation),
            worker: worker_name(&distrust.worker)?,
            reason: distrust.reason,
        },
        Wire::AbandonState(abandon) => Command::AbandonState {
            job: job_name(&abandon.job)?,
        },
        Wire::CommitManifest(commit) => Command::CommitManifest {
            job: job_name(&commit.job)?,
            manifest: commit
                .manifest
                .ok_or(BadMessage::Missing("manifest"))?
                .into(),
        },
        Wire::RejectManifest(reject) => Command::RejectManifest {
            job: job_name(&reject.job)?,
            history: History(reject.history),
            step: Step(reject.step),
            reason: reject.reason,
        },
        Wire::Finish(finish) => Command::Finish {
            job: job_name(&finish.job)?,
            generation: Generation(finish.generation),
            outcome: outcome(finish)?,
        },
    };
    Ok(Stamped {
        stamp_ms: message.stamp_ms,
        request,
        command,
    })
}

/// A client's request id: 16 bytes, or none at all.
///
/// # Errors
/// Where it has another length.
pub fn request_id(bytes: &[u8]) -> Result<Option<[u8; 16]>, BadMessage> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let id = bytes.try_into().map_err(|_| BadMessage::Senseless {
        what: "request id",
        why: format!("expected 16 bytes, found {}", bytes.len()),
    })?;
    Ok(Some(id))
}

/// Why a job is told to stop, from the wire.
///
/// # Errors
/// Where the number is none of ours.
pub fn stop_why(number: i32) -> Result<StopWhy, BadMessage> {
    match v1::StopWhy::try_from(number) {
        Ok(v1::StopWhy::Interrupted) => Ok(StopWhy::Interrupted),
        Ok(v1::StopWhy::Cancelled) => Ok(StopWhy::Cancelled),
        _ => Err(BadMessage::Senseless {
            what: "reason to stop",
            why: format!("{number} is none"),
        }),
    }
}

/// A job's end for the wire.
#[must_use]
pub fn finish(job: &JobName, generation: Generation, outcome: &Outcome) -> v1::Finish {
    let kind = match outcome.kind {
        OutcomeKind::Completed => v1::OutcomeKind::Completed,
        OutcomeKind::Interrupted => v1::OutcomeKind::Interrupted,
        OutcomeKind::Cancelled => v1::OutcomeKind::Cancelled,
        OutcomeKind::Failed => v1::OutcomeKind::Failed,
    };
    v1::Finish {
        job: job.to_string(),
        generation: generation.0,
        kind: kind.into(),
        reason: outcome.reason.clone(),
        step: outcome.step.0,
        arena_hash: outcome.arena_hash.clone(),
        optimizer_hash: outcome.optimizer_hash.clone(),
        trace: outcome.trace.clone(),
        metrics: outcome.metrics.clone(),
        peak_memory_bytes: outcome.peak_memory_bytes.clone(),
    }
}

/// A job's end from the wire.
///
/// # Errors
/// Where the kind is none of ours.
pub fn outcome(message: v1::Finish) -> Result<Outcome, BadMessage> {
    let kind = match v1::OutcomeKind::try_from(message.kind) {
        Ok(v1::OutcomeKind::Completed) => OutcomeKind::Completed,
        Ok(v1::OutcomeKind::Interrupted) => OutcomeKind::Interrupted,
        Ok(v1::OutcomeKind::Cancelled) => OutcomeKind::Cancelled,
        Ok(v1::OutcomeKind::Failed) => OutcomeKind::Failed,
        _ => {
            return Err(BadMessage::Senseless {
                what: "outcome",
                why: format!("{} is none", message.kind),
            });
        }
    };
    Ok(Outcome {
        kind,
        reason: message.reason,
        step: Step(message.step),
        arena_hash: message.arena_hash,
        optimizer_hash: message.optimizer_hash,
        trace: message.trace,
        metrics: message.metrics,
        peak_memory_bytes: message.peak_memory_bytes,
    })
}

impl From<&Submission> for v1::Submit {
    fn from(submission: &Submission) -> Self {
        Self {
            draft: submission.draft.clone(),
            base_dir: submission.base_dir.to_string_lossy().into_owned(),
            data_digest: submission.data_digest.clone(),
            fresh: submission.fresh,
        }
    }
}

impl From<v1::Submit> for Submission {
    fn from(message: v1::Submit) -> Self {
        Self {
            draft: message.draft,
            base_dir: PathBuf::from(message.base_dir),
            data_digest: message.data_digest,
            fresh: message.fresh,
        }
    }
}

impl From<&FileRef> for v1::FileRef {
    fn from(file: &FileRef) -> Self {
        Self {
            name: file.name.clone(),
            bytes: file.bytes,
            hash: file.hash.clone(),
        }
    }
}

impl From<v1::FileRef> for FileRef {
    fn from(message: v1::FileRef) -> Self {
        Self {
            name: message.name,
            bytes: message.bytes,
            hash: message.hash,
        }
    }
}

impl From<&Manifest> for v1::Manifest {
    fn from(manifest: &Manifest) -> Self {
        Self {
            history: manifest.history.0,
            generation: manifest.generation.0,
            step: manifest.step.0,
            part: manifest.part,
            folder: manifest.folder.clone(),
            files: manifest.files.iter().map(Into::into).collect(),
            arena_hash: manifest.arena_hash.clone(),
            optimizer_hash: manifest.optimizer_hash.clone(),
            trace: manifest.trace.clone(),
        }
    }
}

impl From<v1::Manifest> for Manifest {
    fn from(message: v1::Manifest) -> Self {
        Self {
            history: History(message.history),
            generation: Generation(message.generation),
            step: Step(message.step),
            part: message.part,
            folder: message.folder,
            files: message.files.into_iter().map(Into::into).collect(),
            arena_hash: message.arena_hash,
            optimizer_hash: message.optimizer_hash,
            trace: message.trace,
        }
    }
}
