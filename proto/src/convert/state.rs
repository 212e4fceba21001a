//! Jobs and answers as a snapshot has them.

use std::collections::BTreeMap;

use muster_cluster::Device;
use muster_cluster::answered::Remembered;
use muster_cluster::apply::Effect;
use muster_cluster::command::{RequestId, StopWhy, Submission};
use muster_cluster::ids::{Generation, History, Incarnation, JobName, ProcessId, Step};
use muster_cluster::job::JobSpec;
use muster_cluster::job::spec::WorkersSpec;
use muster_cluster::state::{Job, LedgerEntry, Phase, Seat};

use prost::encoding::{DecodeContext, decode_key, skip_field};
use prost::{DecodeError, Message as _};

use super::spec::redundancy;
use super::{
    BadMessage, finish, job_name, outcome, placements, request_id, spec_from, spec_to, worker_name,
};
use crate::v1;

/// The number of a snapshot's field `ended`.
const ENDED_TAG: u32 = 9;

/// A snapshot as bytes.
#[must_use]
pub fn snapshot_bytes(snapshot: &v1::Snapshot) -> Vec<u8> {
    snapshot.encode_to_vec()
}

/// A snapshot from bytes, without the jobs that are over: each is given to `ended` as it comes, since all
/// of them at once are large.
///
/// # Errors
/// Where they are none, and what `ended` says.
pub fn snapshot(
    bytes: &[u8],
    mut ended: impl FnMut(v1::EndedJob) -> Result<(), BadMessage>,
) -> Result<v1::Snapshot, BadMessage> {
    let bad = |error: DecodeError| BadMessage::Undecodable(error.to_string());
    let mut snapshot = v1::Snapshot::default();
    let mut left = bytes;
    while !left.is_empty() {
        let before = left;
        let (tag, wire_type) = decode_key(&mut left).map_err(bad)?;
        skip_field(wire_type, tag, &mut left, DecodeContext::default()).map_err(bad)?;
        // The field as a message with nothing else.
        let (field, _) = before.split_at(before.len() - left.len());
        if tag == ENDED_TAG {
            let one = v1::Snapshot::decode(field).map_err(bad)?;
            one.ended.into_iter().try_for_each(&mut ended)?;
        } else {
            snapshot.merge(field).map_err(bad)?;
        }
    }
    Ok(snapshot)
}

/// A member as bytes, for what comes with a change of the group.
#[must_use]
pub fn member_bytes(member: &v1::Member) -> Vec<u8> {
    member.encode_to_vec()
}

/// A member from bytes.
///
/// # Errors
/// Where they are none.
pub fn member(bytes: &[u8]) -> Result<v1::Member, BadMessage> {
    v1::Member::decode(bytes).map_err(|error| BadMessage::Undecodable(error.to_string()))
}

/// A job that is over as bytes, for a snapshot.
#[must_use]
pub fn job_bytes(job: &v1::JobState) -> Vec<u8> {
    job.encode_to_vec()
}

/// A job from the bytes that a snapshot has of one that is over.
///
/// # Errors
/// Where they are none.
pub fn job_state_of(bytes: &[u8]) -> Result<v1::JobState, BadMessage> {
    v1::JobState::decode(bytes).map_err(|error| BadMessage::Undecodable(error.to_string()))
}

/// A job for a snapshot, without what its events amount to.
#[must_use]
pub fn job_state(name: &JobName, job: &Job) -> v1::JobState {
    let phase = match &job.phase {
        Phase::Queued => v1::JobPhase::Queued,
        Phase::Running => v1::JobPhase::Running,
        Phase::Stopping(StopWhy::Interrupted) => v1::JobPhase::Interrupted,
        Phase::Stopping(StopWhy::Cancelled) => v1::JobPhase::Cancelled,
        Phase::Ended(_) => v1::JobPhase::Ended,
    };
    let outcome = match &job.phase {
        Phase::Ended(outcome) => Some(finish(name, job.generation, outcome)),
        _ => None,
    };
    let standby = |(process, seat): (&ProcessId, &Seat)| v1::StartStandby {
        job: String::new(),
        process: process.0,
        worker: seat.worker.to_string(),
        incarnation: seat.incarnation.0,
        cuda: seat.device.cuda(),
    };
    let distrusted = job.distrusted.iter();
    let distrusted = distrusted.map(|(worker, reason)| v1::DistrustedView {
        worker: worker.to_string(),
        reason: reason.clone(),
    });
    v1::JobState {
        name: name.to_string(),
        submission: Some((&job.submission).into()),
        workers: None,
        phase: phase.into(),
        history: job.history.0,
        generation: job.generation.0,
        world: job.world.as_ref().map(Into::into),
        standbys: job.standbys.iter().map(standby).collect(),
        newest_process: job.newest_process.0,
        distrusted: distrusted.collect(),
        poison: job.poison.as_ref().map(Into::into),
        abandoned: job.abandoned.map(|generation| generation.0),
        manifests: job.manifests.iter().map(Into::into).collect(),
        ledger: job.ledger.iter().map(recorded).collect(),
        num_fruitless_worlds: job.num_fruitless_worlds,
        num_submissions: job.num_submissions,
        submitted_ms: job.submitted_ms,
        outcome,
        account: None,
        spec: Some(spec_to(&job.spec)),
    }
}

/// A job from a snapshot.
///
/// # Errors
/// [`BadMessage`], which names what is wrong.
pub fn job_of(message: v1::JobState) -> Result<(JobName, Job), BadMessage> {
    let name = job_name(&message.name)?;
    let submission = message
        .submission
        .ok_or(BadMessage::Missing("submission"))?;
    let submission = Submission::from(submission);
    let spec = match message.spec {
        Some(spec) => spec_from(spec, &submission)?,
        None => understood(&submission, message.workers)?,
    };
    let phase = match (v1::JobPhase::try_from(message.phase), message.outcome) {
        (Ok(v1::JobPhase::Queued), _) => Phase::Queued,
        (Ok(v1::JobPhase::Running), _) => Phase::Running,
        (Ok(v1::JobPhase::Interrupted), _) => Phase::Stopping(StopWhy::Interrupted),
        (Ok(v1::JobPhase::Cancelled), _) => Phase::Stopping(StopWhy::Cancelled),
        (Ok(v1::JobPhase::Ended), Some(finish)) => Phase::Ended(outcome(finish)?),
        (_, _) => return Err(nonsense("phase", format!("{} is none", message.phase))),
    };
    let mut standbys = BTreeMap::new();
    for standby in message.standbys {
        let seat = Seat {
            worker: worker_name(&standby.worker)?,
            incarnation: Incarnation(standby.incarnation),
            device: Device::of(standby.cuda),
        };
        standbys.insert(ProcessId(standby.process), seat);
    }
    let mut distrusted = BTreeMap::new();
    for one in message.distrusted {
        distrusted.insert(worker_name(&one.worker)?, one.reason);
    }
    let ledger = message.ledger.into_iter().map(LedgerEntry::try_from);
    let job = Job {
        submission,
        spec,
        phase,
        history: History(message.history),
        generation: Generation(message.generation),
        world: message.world.map(TryInto::try_into).transpose()?,
        standbys,
        newest_process: ProcessId(message.newest_process),
        distrusted,
        poison: message.poison.map(TryInto::try_into).transpose()?,
        abandoned: message.abandoned.map(Generation),
        manifests: message.manifests.into_iter().map(Into::into).collect(),
        ledger: ledger.collect::<Result<_, _>>()?,
        num_fruitless_worlds: message.num_fruitless_worlds,
        num_submissions: message.num_submissions,
        submitted_ms: message.submitted_ms,
    };
    Ok((name, job))
}

/// The spec of a job in a snapshot that has none.
fn understood(
    submission: &Submission,
    workers: Option<v1::WorkersRange>,
) -> Result<JobSpec, BadMessage> {
    let workers = workers.ok_or(BadMessage::Missing("workers"))?;
    let spec = submission.check();
    let spec = spec.map_err(|error| nonsense("job", error.to_string()))?;
    Ok(JobSpec {
        workers: WorkersSpec {
            min: workers.min,
            max: workers.max,
            spares: workers.spares,
            redundancy: redundancy(&workers.redundancy)?,
            device: spec.workers.device,
        },
        ..spec
    })
}

fn recorded(entry: &LedgerEntry) -> v1::WorldRecord {
    v1::WorldRecord {
        history: entry.history.0,
        generation: entry.generation.0,
        first_step: entry.first_step.0,
        last_step: None,
        ranks: placements(&entry.ranks),
        reason: entry.reason.clone(),
        stamp_ms: entry.stamp_ms,
        class: entry.class.as_ref().map(Into::into),
        told_hash: entry.hash.clone(),
    }
}

/// An answer for a snapshot.
#[must_use]
pub fn answered(stamp_ms: u64, request: RequestId, answer: &Remembered) -> v1::Answered {
    use v1::answered::Answer as Wire;
    let queued = |job: &JobName, step: Step| v1::QueuedAnswer {
        job: job.to_string(),
        step: step.0,
    };
    let answer = match answer {
        Err(refusal) => Wire::Refusal(refusal.clone()),
        Ok(Effect::Queued { job, from }) => Wire::Queued(queued(job, *from)),
        Ok(Effect::AlreadyFinished { job, step }) => Wire::AlreadyFinished(queued(job, *step)),
        Ok(Effect::AlreadyRunning { job }) => Wire::AlreadyRunning(job.to_string()),
        Ok(Effect::Stopping { job, at_rest: true }) => Wire::AtRest(job.to_string()),
        Ok(Effect::Stopping { job, .. }) => Wire::Stopping(job.to_string()),
        Ok(Effect::Scaled { job, max }) => Wire::Scaled(v1::Scale {
            job: job.to_string(),
            max: *max,
        }),
        Ok(Effect::Drained { worker, drains }) => Wire::Drained(v1::Drain {
            worker: worker.to_string(),
            drains: *drains,
        }),
        Ok(Effect::StateAbandoned { job }) => Wire::Abandoned(job.to_string()),
        Ok(
            Effect::Registered
            | Effect::WorldStarted { .. }
            | Effect::StandbyStarted
            | Effect::StandbyEnded
            | Effect::Distrusted { .. }
            | Effect::ManifestCommitted { .. }
            | Effect::ManifestRejected { .. }
            | Effect::Finished { .. },
        ) => Wire::Done(true),
    };
    v1::Answered {
        request_id: request.to_vec(),
        stamp_ms,
        answer: Some(answer),
    }
}

/// An answer from a snapshot: its stamp, its request, and what was answered.
///
/// # Errors
/// [`BadMessage`], which names what is wrong.
pub fn remembered(message: v1::Answered) -> Result<(u64, RequestId, Remembered), BadMessage> {
    use v1::answered::Answer as Wire;
    let request = request_id(&message.request_id)?.ok_or(BadMessage::Missing("request id"))?;
    let answer = match message.answer.ok_or(BadMessage::Missing("answer"))? {
        Wire::Refusal(refusal) => Err(refusal),
        Wire::Queued(queued) => Ok(Effect::Queued {
            job: job_name(&queued.job)?,
            from: Step(queued.step),
        }),
        Wire::AlreadyFinished(finished) => Ok(Effect::AlreadyFinished {
            job: job_name(&finished.job)?,
            step: Step(finished.step),
        }),
        Wire::AlreadyRunning(job) => Ok(Effect::AlreadyRunning {
            job: job_name(&job)?,
        }),
        Wire::Stopping(job) => Ok(Effect::Stopping {
            job: job_name(&job)?,
            at_rest: false,
        }),
        Wire::AtRest(job) => Ok(Effect::Stopping {
            job: job_name(&job)?,
            at_rest: true,
        }),
        Wire::Scaled(scale) => Ok(Effect::Scaled {
            job: job_name(&scale.job)?,
            max: scale.max,
        }),
        Wire::Drained(drain) => Ok(Effect::Drained {
            worker: worker_name(&drain.worker)?,
            drains: drain.drains,
        }),
        Wire::Abandoned(job) => Ok(Effect::StateAbandoned {
            job: job_name(&job)?,
        }),
        Wire::Done(_) => Ok(Effect::Registered),
    };
    Ok((message.stamp_ms, request, answer))
}

pub(super) fn nonsense(what: &'static str, why: String) -> BadMessage {
    BadMessage::Senseless { what, why }
}
