//! What can be asked of the replicated state. Each is one entry of the log, stamped by the leader
//! that proposed it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::device::{Device, Gpu};
use crate::ids::{Generation, History, Incarnation, JobName, ProcessId, Step, WorkerName};
use crate::job::{Error, JobDraft, JobSpec};
use crate::state::{Manifest, Poison, Seat, World};

/// A command with the time and the request it came with.
#[derive(Clone, Debug, PartialEq)]
pub struct Stamped {
    /// Milliseconds since the epoch on the proposing leader's clock.
    pub stamp_ms: u64,
    /// Chosen by a client, so that a retry is applied once.
    pub request: Option<RequestId>,
    /// What to do.
    pub command: Command,
}

/// Sixteen random bytes of a client's.
pub type RequestId = [u8; 16];

/// A change of the replicated state.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// A user wants a job to run, or to go on.
    Submit {
        /// The job as submitted.
        submission: Submission,
        /// The job as the leader that proposed it understood it, so that every replica takes it the same
        /// way, whatever its build reads in the text. `None` from a client, and in entries of older
        /// builds, which are understood where they are applied.
        spec: Option<Box<JobSpec>>,
    },
    /// A user wants a job to end at the next step boundary, behind a checkpoint.
    Stop {
        /// Which job.
        job: JobName,
        /// Why.
        why: StopWhy,
    },
    /// A worker is there, with these devices.
    RegisterWorker {
        /// Its name.
        worker: WorkerName,
        /// What it is.
        node: Node,
    },
    /// A job gets a new world.
    StartWorld {
        /// Which job.
        job: JobName,
        /// The world; its generation is one above the job's.
        world: World,
        /// Why, in one sentence.
        reason: String,
        /// Whether the world before this one applied a step, or was closed on purpose.
        predecessor_progressed: bool,
        /// What is known by now of a shard that kills ranks again and again.
        poison: Option<Poison>,
    },
    /// A job gets a process that is to enter a later world.
    StartStandby {
        /// Which job.
        job: JobName,
        /// The process; its number is one above the job's newest.
        process: ProcessId,
        /// Where it runs.
        seat: Seat,
    },
    /// A process that has not entered a world is no more, or not wanted any longer.
    EndStandby {
        /// Which job.
        job: JobName,
        /// Which process.
        process: ProcessId,
        /// Why, in one sentence.
        reason: String,
    },
    /// A user wants a job to run with another number of workers.
    Scale {
        /// Which job.
        job: JobName,
        /// The most ranks of its next worlds.
        max: u32,
    },
    /// An operator wants a node free, or gives it back.
    Drain {
        /// Which node.
        worker: WorkerName,
        /// Whether its ranks leave; `false` gives it back.
        drains: bool,
    },
    /// A worker computes wrongly, and the job uses it no more.
    Distrust {
        /// Which job.
        job: JobName,
        /// The generation that found it out; of an older one it is refused.
        generation: Generation,
        /// Which worker.
        worker: WorkerName,
        /// How that is known, in one sentence.
        reason: String,
    },
    /// An operator says that the ranks of a job's world that are missed will not come back, nor what
    /// they hold.
    AbandonState {
        /// Which job.
        job: JobName,
    },
    /// Every file of a checkpoint is durable.
    CommitManifest {
        /// Which job.
        job: JobName,
        /// The list of its files.
        manifest: Manifest,
    },
    /// A committed checkpoint turned out to be damaged. The only one that a job has stays.
    RejectManifest {
        /// Which job.
        job: JobName,
        /// The manifest's history.
        history: History,
        /// The manifest's step.
        step: Step,
        /// What was found.
        reason: String,
    },
    /// A job is over.
    Finish {
        /// Which job.
        job: JobName,
        /// The generation that ended it; an older one is refused.
        generation: Generation,
        /// How it ended.
        outcome: Outcome,
    },
}

impl Command {
    /// A submission as a client asks for it.
    #[must_use]
    pub fn submit(submission: Submission) -> Self {
        let spec = None;
        Command::Submit { submission, spec }
    }

    /// The job that it names; `None` where it is about no job, or about one that was not understood yet.
    #[must_use]
    pub fn job(&self) -> Option<JobName> {
        match self {
            Command::Submit { spec, .. } => spec.as_ref().map(|spec| spec.name.clone()),
            Command::Stop { job, .. }
            | Command::StartWorld { job, .. }
            | Command::StartStandby { job, .. }
            | Command::EndStandby { job, .. }
            | Command::Scale { job, .. }
            | Command::Distrust { job, .. }
            | Command::AbandonState { job }
            | Command::CommitManifest { job, .. }
            | Command::RejectManifest { job, .. }
            | Command::Finish { job, .. } => Some(job.clone()),
            Command::RegisterWorker { .. } | Command::Drain { .. } => None,
        }
    }
}

/// A job as submitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// The canonical text of the draft.
    pub draft: String,
    /// What relative paths in it refer to.
    pub base_dir: PathBuf,
    /// BLAKE3 of the data source, in hex.
    pub data_digest: String,
    /// Start over, whatever was there under this name.
    pub fresh: bool,
}

impl Submission {
    /// Understands the job.
    ///
    /// # Errors
    /// What is wrong with it, as [`JobDraft::parse`] and [`JobDraft::check`] say.
    pub fn check(&self) -> Result<JobSpec, Error> {
        JobDraft::parse(&self.draft, "the submitted job", "", &[])?
            .check(&self.base_dir, &self.data_digest)
    }
}

/// Why a job is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopWhy {
    /// The user interrupted a run in the foreground.
    Interrupted,
    /// The user cancelled the job.
    Cancelled,
}

/// What decides the bits of a computation beside the job: other processors, libraries or builds
/// may round differently, so a canonical job runs in one class.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NumericsClass {
    /// BLAKE3 of the program, in hex.
    pub build: String,
    /// BLAKE3 of the results of a fixed computation, in hex.
    pub canary: String,
    /// The C and maths libraries.
    pub libc: String,
    /// The processor's features.
    pub cpu: String,
    /// Of what a GPU computes: its model, driver and compute capability. Empty for processors.
    pub gpu: String,
}

impl NumericsClass {
    /// The first part in which two classes differ, in words.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Option<&'static str> {
        if self.build != other.build {
            Some("another build of the program")
        } else if self.gpu.is_empty() != other.gpu.is_empty() {
            Some("another kind of device")
        } else if self.gpu != other.gpu {
            Some("another GPU or driver")
        } else if self.cpu != other.cpu {
            Some("other processor features")
        } else if self.libc != other.libc {
            Some("another C library")
        } else if self.canary != other.canary {
            Some("other results of the canary computation")
        } else {
            None
        }
    }
}

/// A machine's worker, as it registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Which life of the worker.
    pub incarnation: Incarnation,
    /// How many ranks it can hold at once on its processors.
    pub num_devices: u32,
    /// Its GPUs, by index; each holds one rank at once.
    pub gpus: Vec<Gpu>,
    /// What decides the bits of its processors.
    pub class: NumericsClass,
    /// Where its ranks are reached.
    pub host: String,
}

impl Node {
    /// What decides the bits of a rank on one of its devices; `None` where it has no such GPU.
    #[must_use]
    pub fn class_on(&self, device: Device) -> Option<&NumericsClass> {
        match device {
            Device::Cpu => Some(&self.class),
            Device::Cuda(index) => {
                let gpu = self.gpus.iter().find(|gpu| gpu.index == index);
                gpu.map(|gpu| &gpu.class)
            }
        }
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// In one word.
    pub kind: OutcomeKind,
    /// In one sentence; may be empty.
    pub reason: String,
    /// How many steps its state has seen.
    pub step: Step,
    /// BLAKE3 of the parameters, in hex.
    pub arena_hash: String,
    /// BLAKE3 of the optimizer's state, in hex.
    pub optimizer_hash: String,
    /// The running hash of the samples that were read, in hex.
    pub trace: String,
    /// The last evaluation.
    pub metrics: BTreeMap<String, f64>,
    /// The most resident memory of each rank that was there at the end, by rank; 0 where not known.
    pub peak_memory_bytes: Vec<u64>,
}

impl From<StopWhy> for OutcomeKind {
    /// How a job ends that was told to stop.
    fn from(why: StopWhy) -> Self {
        match why {
            StopWhy::Interrupted => OutcomeKind::Interrupted,
            StopWhy::Cancelled => OutcomeKind::Cancelled,
        }
    }
}

/// How a job ended, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutcomeKind {
    /// It ran to its end.
    Completed,
    /// The user interrupted it; the same submission goes on from its last checkpoint.
    Interrupted,
    /// The user cancelled it; the same submission goes on from its last checkpoint.
    Cancelled,
    /// It could not go on.
    Failed,
}

impl OutcomeKind {
    /// The word for people and scripts.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            OutcomeKind::Completed => "completed",
            OutcomeKind::Interrupted => "interrupted",
            OutcomeKind::Cancelled => "cancelled",
            OutcomeKind::Failed => "failed",
        }
    }
}
