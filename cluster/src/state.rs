//! What Raft replicates: jobs, worlds, manifests and nodes. Heartbeats, ranks' progress and
//! metrics are not here: they are the leader's observation.

use std::collections::{BTreeMap, VecDeque};

use crate::apply::Answer;
use crate::command::{Node, NumericsClass, Outcome, OutcomeKind, RequestId, StopWhy, Submission};
use crate::ids::{Generation, History, Incarnation, JobName, Step, WorkerName};
use crate::job::{Identity, JobSpec};
use crate::tree::Run;

/// Everything that survives the loss of a coordinator.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// Every job by name.
    pub jobs: BTreeMap<JobName, Job>,
    /// Every worker that ever registered, by name.
    pub nodes: BTreeMap<WorkerName, Node>,
    /// The latest stamp; it never goes back.
    pub stamp_ms: u64,
    /// The answers to the last requests, so that a retry gets the first answer.
    pub(crate) answered: VecDeque<(RequestId, Answer)>,
}

/// One job.
#[derive(Clone, Debug)]
pub struct Job {
    /// As submitted.
    pub submission: Submission,
    /// As understood.
    pub spec: JobSpec,
    /// What decides its bits.
    pub identity: Identity,
    /// Where it is.
    pub phase: Phase,
    /// Its line of committed steps.
    pub history: History,
    /// The number of its newest world.
    pub generation: Generation,
    /// Its newest world, while it runs.
    pub world: Option<World>,
    /// Committed checkpoints, oldest first, at most `checkpoint.keep`.
    pub manifests: Vec<Manifest>,
    /// Which generation ran which steps with which world.
    pub ledger: Vec<LedgerEntry>,
    /// Worlds in a row that applied no step.
    pub num_fruitless_worlds: u32,
    /// How many times it was submitted, resumptions included.
    pub num_submissions: u64,
    /// When it was last submitted.
    pub submitted_ms: u64,
}

/// Where a job is.
///
/// ```text
/// submit -> Queued -> Running -> Ended(completed | failed)
///              ^         |  ^        |
///              |   stop  v  |        | submit (not after completed)
///              |      Stopping -> Ended(interrupted | cancelled)
///              +---------------------+
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// It waits for a world.
    Queued,
    /// It has a world.
    Running,
    /// It has a world that is to end at the next step boundary.
    Stopping(StopWhy),
    /// It is over, or rests.
    Ended(Outcome),
}

impl Phase {
    /// The word for people and scripts.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Phase::Queued => "queued",
            Phase::Running => "running",
            Phase::Stopping(_) => "stopping",
            Phase::Ended(outcome) => outcome.kind.as_str(),
        }
    }
}

/// The ranks of a job at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// The line of steps it continues.
    pub history: History,
    /// Its number.
    pub generation: Generation,
    /// The first step it runs; where above 0, from the manifest of that step.
    pub first_step: Step,
    /// One placement a rank, by rank.
    pub ranks: Vec<Placement>,
}

/// Where one rank runs, and what it computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// On which worker.
    pub worker: WorkerName,
    /// In which life of that worker.
    pub incarnation: Incarnation,
    /// Its logical shards.
    pub shards: Run,
}

/// The files of a checkpoint: the state after `step` steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The line of steps it belongs to.
    pub history: History,
    /// The world that wrote it.
    pub generation: Generation,
    /// How many steps the state has seen.
    pub step: Step,
    /// Which part of a partitioned model; 0 while models are whole.
    pub part: u32,
    /// The folder of the files.
    pub folder: String,
    /// The files.
    pub files: Vec<FileRef>,
    /// BLAKE3 of the parameters, in hex.
    pub arena_hash: String,
    /// BLAKE3 of the optimizer's state, in hex.
    pub optimizer_hash: String,
    /// The running hash of the samples that were read, in hex.
    pub trace: String,
}

impl Manifest {
    /// BLAKE3 over the manifest, in hex: names a checkpoint whole.
    #[must_use]
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let numbers = [
            self.history.0,
            self.step.0,
            u64::from(self.part),
            self.files.len() as u64,
        ];
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        let mut text = |text: &str| {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        for file in &self.files {
            text(&file.name);
            text(&file.hash);
        }
        text(&self.arena_hash);
        text(&self.optimizer_hash);
        text(&self.trace);
        hasher.finalize().to_hex().to_string()
    }

    /// The sizes of its files together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// One durable file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileRef {
    /// Its name in its folder.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// BLAKE3 of its bytes, in hex.
    pub hash: String,
}

/// One world, as it was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerEntry {
    /// The line of steps it continued.
    pub history: History,
    /// Its number.
    pub generation: Generation,
    /// The first step it ran.
    pub first_step: Step,
    /// Who ran it, by rank.
    pub ranks: Vec<Placement>,
    /// What decided its bits beside the job, as its workers were registered then.
    pub class: Option<NumericsClass>,
    /// Why it was made.
    pub reason: String,
    /// When.
    pub stamp_ms: u64,
}

impl Job {
    /// The newest checkpoint; a world without one starts from initial values.
    #[must_use]
    pub fn latest_manifest(&self) -> Option<&Manifest> {
        self.manifests.last()
    }

    /// The step that the next world would start from.
    #[must_use]
    pub fn committed_step(&self) -> Step {
        self.latest_manifest()
            .map_or(Step(0), |manifest| manifest.step)
    }

    /// How it ends where nothing is left but its last checkpoint.
    #[must_use]
    pub fn rest(&self, kind: OutcomeKind, reason: String) -> Outcome {
        let manifest = self.latest_manifest();
        let text = |get: fn(&Manifest) -> &String| manifest.map(get).cloned().unwrap_or_default();
        Outcome {
            kind,
            reason,
            step: self.committed_step(),
            arena_hash: text(|manifest| &manifest.arena_hash),
            optimizer_hash: text(|manifest| &manifest.optimizer_hash),
            trace: text(|manifest| &manifest.trace),
            metrics: BTreeMap::new(),
        }
    }

    /// Whether it holds devices.
    #[must_use]
    pub fn has_world(&self) -> bool {
        self.world.is_some()
    }
}
