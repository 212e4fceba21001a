//! What Raft replicates: jobs, worlds, manifests and nodes. Heartbeats, ranks' progress and
//! metrics are not here: they are the leader's observation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::answered::Answered;
use crate::command::{Node, NumericsClass, Outcome, OutcomeKind, StopWhy, Submission};
use crate::device::Device;
use crate::ids::{Generation, History, Incarnation, JobName, ProcessId, RankId, Step, WorkerName};
use crate::job::{Identity, JobSpec};
use crate::shares::{Holders, Move, NUM_SHARES};
use crate::tree::Run;

/// Everything that survives the loss of a coordinator.
#[derive(Clone, Debug, Default)]
pub struct ClusterState {
    /// The jobs by name. A copy of the state shares those that have not changed since. Who keeps a state
    /// for long may take those out that are over, and put one back before a command that names it.
    pub jobs: BTreeMap<JobName, Arc<Job>>,
    /// The jobs that have not ended.
    pub(crate) open: BTreeSet<JobName>,
    /// Every worker that ever registered, by name.
    pub nodes: BTreeMap<WorkerName, Node>,
    /// The workers that an operator wants free: they get no ranks, and those they have leave at a
    /// step boundary.
    pub draining: BTreeSet<WorkerName>,
    /// The latest stamp; it never goes back.
    pub stamp_ms: u64,
    /// The answers to the last requests, so that a retry gets the first answer.
    pub answered: Answered,
}

/// One job.
#[derive(Clone, Debug)]
pub struct Job {
    /// As submitted.
    pub submission: Submission,
    /// As understood.
    pub spec: JobSpec,
    /// Where it is.
    pub phase: Phase,
    /// Its line of committed steps.
    pub history: History,
    /// The number of its newest world.
    pub generation: Generation,
    /// Its newest world, while it runs.
    pub world: Option<World>,
    /// Processes that are to enter a later world: joiners and hot spares.
    pub standbys: BTreeMap<ProcessId, Seat>,
    /// The number of the newest process.
    pub newest_process: ProcessId,
    /// The workers that it uses no more until it is submitted again, each with the reason.
    pub distrusted: BTreeMap<WorkerName, String>,
    /// What kills ranks at one step again and again, if anything does.
    pub poison: Option<Poison>,
    /// The world whose missed ranks an operator has given up, with what they hold.
    pub abandoned: Option<Generation>,
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
    /// The first step it runs. A world that does not heal another starts it from the manifest of
    /// that step, or from initial values where it is 0.
    pub first_step: Step,
    /// One placement a rank, by rank.
    pub ranks: Vec<Placement>,
    /// How the first step is finished that the world before began; `None` for a world of new
    /// processes.
    pub finish: Option<Finish>,
    /// Who keeps which share of the optimizer's state; empty where every rank keeps all of it.
    pub shares: Vec<Holders>,
}

impl World {
    /// Whether a process of the job is a rank of it.
    #[must_use]
    pub fn has(&self, process: ProcessId) -> bool {
        self.ranks.iter().any(|rank| rank.process == process)
    }
}

/// Where one rank runs, and what it computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Which process of the job it is.
    pub process: ProcessId,
    /// On which worker.
    pub worker: WorkerName,
    /// In which life of that worker.
    pub incarnation: Incarnation,
    /// On which of the worker's devices.
    pub device: Device,
    /// Its logical shards; of a world that heals, from its second step on.
    pub shards: Run,
}

/// Where a process runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seat {
    /// On which worker.
    pub worker: WorkerName,
    /// In which life of that worker.
    pub incarnation: Incarnation,
    /// On which of its devices.
    pub device: Device,
}

/// How a world gets through the step that the world before it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Whether every rank has the evaluation that follows the steps so far.
    pub evaluated: bool,
    /// What each rank does, by rank.
    pub parts: Vec<Part>,
    /// Shares of the optimizer's state that are copied before the step.
    pub moves: Vec<Move>,
    /// Whether some rank lacks parameters that the holders of shares have.
    pub gather: bool,
}

/// One rank's part in finishing a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The shards it brings into the sum: those it has a contribution of, and those it computes.
    pub shards: Vec<Run>,
    /// What it is given before, if it is not at the step yet.
    pub heal: Option<Heal>,
}

/// What a rank needs to be at the step that its world finishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heal {
    /// It is one step behind, and applies the reduced vector that another rank still has.
    Reduced {
        /// Who has it.
        from: RankId,
    },
    /// It takes the whole state over; where the optimizer's is shared, all but the values.
    State {
        /// Who sends it, each an equal share.
        from: Vec<RankId>,
    },
}

/// Deaths in a row at one step of ranks that all had one of these shards to compute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Poison {
    /// The step that does not end.
    pub step: Step,
    /// What all of the dead had to compute.
    pub shards: Vec<Run>,
    /// How many worlds in a row it broke.
    pub num_worlds: u32,
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
        let mut hasher = Fields::default();
        hasher.numbers(&[
            self.history.0,
            self.step.0,
            u64::from(self.part),
            self.files.len() as u64,
        ]);
        for file in &self.files {
            hasher.text(&file.name);
            hasher.text(&file.hash);
        }
        hasher.text(&self.arena_hash);
        hasher.text(&self.optimizer_hash);
        hasher.text(&self.trace);
        hasher.hex()
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
    /// [`LedgerEntry::hash_behind`] the entry before it.
    pub hash: String,
}

impl LedgerEntry {
    /// BLAKE3 over the entry and the hash of the one before it, in hex: names a ledger up to here.
    #[must_use]
    pub fn hash_behind(&self, before: &str) -> String {
        let mut hasher = Fields::default();
        hasher.text(before);
        let numbers = [
            self.history.0,
            self.generation.0,
            self.first_step.0,
            self.stamp_ms,
            self.ranks.len() as u64,
        ];
        hasher.numbers(&numbers);
        for rank in &self.ranks {
            let run = rank.shards;
            hasher.text(rank.worker.as_str());
            let (process, life) = (rank.process.0, rank.incarnation.0);
            hasher.numbers(&[process, life, run.start.into(), run.end.into()]);
            // Ledgers from before there were GPUs keep their hashes.
            if let Device::Cuda(_) = rank.device {
                hasher.text(&rank.device.to_string());
            }
        }
        let class = self.class.as_ref();
        let parts = class.map(|class| [&class.build, &class.canary, &class.libc, &class.cpu]);
        parts.iter().flatten().for_each(|part| hasher.text(part));
        let gpu = class.map(|class| &class.gpu);
        gpu.into_iter()
            .filter(|gpu| !gpu.is_empty())
            .for_each(|gpu| hasher.text(gpu));
        hasher.text(&self.reason);
        hasher.hex()
    }
}

/// Hashes fields one behind the other, so that none can be taken for a part of another.
#[derive(Default)]
struct Fields(blake3::Hasher);

impl Fields {
    fn numbers(&mut self, numbers: &[u64]) {
        for number in numbers {
            self.0.update(&number.to_le_bytes());
        }
    }

    fn text(&mut self, text: &str) {
        self.numbers(&[text.len() as u64]);
        self.0.update(text.as_bytes());
    }

    fn hex(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

impl Job {
    /// What decides its bits. It follows from the spec, and is large beside it.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity::of(&self.spec)
    }

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
            peak_memory_bytes: Vec::new(),
        }
    }

    /// Whether it holds devices.
    #[must_use]
    pub fn has_world(&self) -> bool {
        self.world.is_some()
    }

    /// Whether it has ended, or rests.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Ended(_))
    }

    /// The worker and the device of each of its processes. One that takes the place of a process that
    /// has ended has the same as that one until the next world.
    pub fn held(&self) -> impl Iterator<Item = (&WorkerName, Device)> {
        let ranks = self.world.iter().flat_map(|world| &world.ranks);
        let standbys = self.standbys.values();
        let standbys = standbys.map(|seat| (&seat.worker, seat.device));
        ranks
            .map(|rank| (&rank.worker, rank.device))
            .chain(standbys)
    }

    /// Whether a process is part of its world, or waits to be.
    #[must_use]
    pub fn has_process(&self, process: ProcessId) -> bool {
        let is_rank = |world: &World| world.has(process);
        self.standbys.contains_key(&process) || self.world.as_ref().is_some_and(is_rank)
    }

    /// It is over, or rests.
    pub(crate) fn end(&mut self, outcome: Outcome) {
        self.phase = Phase::Ended(outcome);
        self.world = None;
        self.standbys.clear();
    }

    /// Whether `world` goes on from the last checkpoint, with processes of its own. One that
    /// replaces another world falls back, so each history has one world of this kind.
    pub(crate) fn is_followed_by(&self, world: &World) -> bool {
        let history = if self.has_world() {
            self.history.next()
        } else {
            self.history
        };
        let mut newest = self.newest_process;
        self.is_kept_in(world)
            && world.history == history
            && world.first_step == self.committed_step()
            && world.ranks.iter().all(|rank| {
                newest = newest.next();
                rank.process == newest
            })
    }

    /// Whether every share of the optimizer's state has its holders in `world`.
    fn is_kept_in(&self, world: &World) -> bool {
        let size = world.ranks.len();
        let is_rank = |rank: RankId| (rank.0 as usize) < size;
        let num_shares = if self.spec.workers.redundancy.is_shared() {
            NUM_SHARES as usize
        } else {
            0
        };
        world.shares.len() == num_shares
            && world.shares.iter().all(|holders| {
                is_rank(holders.owner)
                    && holders.shadow.is_none_or(is_rank)
                    && holders.shadow != Some(holders.owner)
            })
    }

    /// Whether `world` goes on with the state of the job's world: its ranks are of that world, or
    /// waited to enter it, and each has its part. Its first step may be one that the last world was
    /// past, where those who had applied it are gone; applied again it gives the same bits.
    pub(crate) fn is_healed_by(&self, world: &World) -> bool {
        let mut members = BTreeSet::new();
        let is_whole = |finish: &Finish| finish.parts.len() == world.ranks.len();
        self.is_kept_in(world)
            && world.history == self.history
            && self.has_world()
            && world.finish.as_ref().is_some_and(is_whole)
            && world
                .ranks
                .iter()
                .all(|rank| self.has_process(rank.process) && members.insert(rank.process))
    }
}
