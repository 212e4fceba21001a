//! What commands lead to: an effect, or a refusal that says what to do.

use crate::ids::{Generation, History, JobName, Step, WorkerName};
use crate::job::Change;

/// What a command led to.
pub type Answer = Result<Effect, Refusal>;

/// What a command changed.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// A job is queued; `from` is the step it goes on from.
    Queued {
        /// Which job.
        job: JobName,
        /// The step that its first world starts from.
        from: Step,
    },
    /// The job ran to its end before; nothing was changed.
    AlreadyFinished {
        /// Which job.
        job: JobName,
        /// Its last step.
        step: Step,
    },
    /// The job runs now; nothing was changed but the range of its workers, which counts from its
    /// next world on.
    AlreadyRunning {
        /// Which job.
        job: JobName,
    },
    /// The job ends at the next step boundary.
    Stopping {
        /// Which job.
        job: JobName,
        /// Whether it rests already, since it had no world.
        at_rest: bool,
    },
    /// A worker is known.
    Registered,
    /// A job has a new world.
    WorldStarted {
        /// Which job.
        job: JobName,
    },
    /// A job has another process, which waits to enter a world.
    StandbyStarted,
    /// A process of a job is forgotten.
    StandbyEnded,
    /// A job's next worlds have another size.
    Scaled {
        /// Which job.
        job: JobName,
        /// The most ranks it has.
        max: u32,
    },
    /// A node is to be free, or is given back.
    Drained {
        /// Which node.
        worker: WorkerName,
        /// Whether its ranks leave.
        drains: bool,
    },
    /// A job uses a worker no more.
    Distrusted {
        /// Which job.
        job: JobName,
        /// Which worker.
        worker: WorkerName,
    },
    /// What the missed ranks of a job's world hold is waited for no longer.
    StateAbandoned {
        /// Which job.
        job: JobName,
    },
    /// A checkpoint counts.
    ManifestCommitted {
        /// Which job.
        job: JobName,
        /// Its step.
        step: Step,
    },
    /// A damaged checkpoint counts no more.
    ManifestRejected {
        /// Which job.
        job: JobName,
        /// Its step.
        step: Step,
    },
    /// A job is over.
    Finished {
        /// Which job.
        job: JobName,
    },
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The same request was refused before, in these words.
    #[error("{0}")]
    Earlier(String),
    /// No job has this name.
    #[error("no job is named {0:?}; `muster ps` lists the jobs")]
    UnknownJob(String),
    /// The draft is no job.
    #[error("{0}")]
    BadJob(String),
    /// The name is taken by a job with other bits.
    #[error(
        "job {job} exists and differs: {}; submit under another name, or start over with --fresh",
        list(changes)
    )]
    OtherIdentity {
        /// Which job.
        job: JobName,
        /// What differs.
        changes: Vec<Change>,
    },
    /// `--fresh` was asked for while the job runs.
    #[error("job {0} is running; cancel it before starting over with --fresh")]
    StillRunning(JobName),
    /// The job is over.
    #[error("job {job} has ended ({how}); there is nothing to stop")]
    AlreadyEnded {
        /// Which job.
        job: JobName,
        /// How.
        how: &'static str,
    },
    /// It speaks for a world that is no longer.
    #[error("{what} of generation {got} is refused: job {job} is at generation {current}")]
    Stale {
        /// Which job.
        job: JobName,
        /// What was asked for.
        what: &'static str,
        /// The generation it came from.
        got: Generation,
        /// The job's.
        current: Generation,
    },
    /// It belongs to another line of steps, or is not above the last committed step.
    #[error(
        "the manifest of step {step} in history {history} is refused: job {job} is at step {committed} of history {current}"
    )]
    StaleManifest {
        /// Which job.
        job: JobName,
        /// The manifest's history.
        history: History,
        /// The manifest's step.
        step: Step,
        /// The job's history.
        current: History,
        /// The job's last committed step.
        committed: Step,
    },
    /// It is all that a job has of its past.
    #[error(
        "the checkpoint of step {step} is the only one of job {job}, and is not given up; --fresh starts over"
    )]
    OnlyCheckpoint {
        /// Which job.
        job: JobName,
        /// The checkpoint's step.
        step: Step,
    },
    /// A job cannot have so many workers.
    #[error(
        "job {job} cannot have {max} workers: expected {min} to {shards}, its workers.min and its logical_shards"
    )]
    BadScale {
        /// Which job.
        job: JobName,
        /// As asked for.
        max: u32,
        /// The fewest.
        min: u32,
        /// The most.
        shards: u32,
    },
    /// A job waits for nobody's state.
    #[error(
        "job {0} waits for no rank that is missed, so there is no state to abandon; `muster show {0}` says what it does"
    )]
    NothingToAbandon(JobName),
    /// No worker has this name.
    #[error("no worker is named {0}; `muster nodes` lists them")]
    UnknownWorker(WorkerName),
    /// An older life of a worker speaks.
    #[error(
        "worker {worker} is registered by a newer process; stop one of the two, or name them differently with --name"
    )]
    OlderIncarnation {
        /// Which worker.
        worker: String,
    },
}

fn list(changes: &[Change]) -> String {
    changes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}
