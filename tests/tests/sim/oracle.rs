//! What must hold whatever happens. A violation is a sentence; the first one ends a run.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use muster_cluster::command::OutcomeKind;
use muster_cluster::state::{Job, Phase, World};
use muster_proto::event::What;

use replicas::Replicas;

use super::coordinator::Line;
use super::model::{EVALUATE_EVERY, State, TOTAL_STEPS, undisturbed};

pub(crate) mod replicas;

/// What was last seen of the job.
#[derive(Clone, Debug, Default)]
struct Seen {
    generation: u64,
    history: u64,
    num_submissions: u64,
    committed: Option<u64>,
    world: Option<World>,
}

#[derive(Debug)]
pub(crate) struct Oracle {
    states: Vec<State>,
    violations: Vec<String>,
    /// The newest step that each process applied, or was given, in each history.
    applied: BTreeMap<(u32, u64), u64>,
    evaluations: BTreeMap<u64, String>,
    worlds: BTreeMap<u64, World>,
    seen: Seen,
    pub(crate) counts: Counts,
    pub(crate) replicas: Replicas,
}

/// How much a run saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) worlds: u64,
    pub(crate) fallbacks: u64,
    pub(crate) steps: u64,
    pub(crate) heals: u64,
    pub(crate) faults: u64,
    /// Ranks that entered a world at its step, a step behind it, and without its state.
    pub(crate) level: u64,
    pub(crate) behind: u64,
    pub(crate) without: u64,
    // Of the control plane.
    pub(crate) elections: u64,
    pub(crate) snapshots: u64,
    pub(crate) snapshots_sent: u64,
    pub(crate) restores: u64,
    pub(crate) restarts: u64,
    pub(crate) partitions: u64,
    pub(crate) lost_disks: u64,
    pub(crate) members: u64,
    pub(crate) moves: u64,
    pub(crate) transfers: u64,
    pub(crate) reads: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.worlds += other.worlds;
        self.fallbacks += other.fallbacks;
        self.steps += other.steps;
        self.heals += other.heals;
        self.faults += other.faults;
        self.level += other.level;
        self.behind += other.behind;
        self.without += other.without;
        self.elections += other.elections;
        self.snapshots += other.snapshots;
        self.snapshots_sent += other.snapshots_sent;
        self.restores += other.restores;
        self.restarts += other.restarts;
        self.partitions += other.partitions;
        self.lost_disks += other.lost_disks;
        self.members += other.members;
        self.moves += other.moves;
        self.transfers += other.transfers;
        self.reads += other.reads;
    }
}

impl Oracle {
    pub(crate) fn new() -> Self {
        Self {
            states: undisturbed(),
            violations: Vec::new(),
            applied: BTreeMap::new(),
            evaluations: BTreeMap::new(),
            worlds: BTreeMap::new(),
            seen: Seen::default(),
            counts: Counts::default(),
            replicas: Replicas::default(),
        }
    }

    pub(crate) fn blame(&mut self, violation: String) {
        self.violations.push(violation);
    }

    pub(crate) fn violation(&self) -> Option<&String> {
        self.violations.first()
    }

    /// What the replicas did wrong is wrong.
    pub(crate) fn gather(&mut self) {
        self.violations.extend(self.replicas.take_violations());
        self.counts.elections = self.replicas.num_elections;
        self.counts.reads = self.replicas.num_reads;
    }

    fn check_state(&mut self, who: &str, state: &State) {
        let step = usize::try_from(state.step).unwrap_or(usize::MAX);
        if self.states.get(step) != Some(state) {
            self.blame(format!(
                "{who} has another state after step {} than the undisturbed run",
                state.step
            ));
        }
    }

    /// A process applied a step, and is in this state now.
    pub(crate) fn applied(&mut self, pid: u32, history: u64, state: &State) {
        self.counts.steps += 1;
        self.check_state(&format!("process {pid}"), state);
        let last = self.applied.insert((pid, history), state.step);
        if last.is_some_and(|last| last + 1 != state.step) {
            self.blame(format!(
                "process {pid} applied step {} of history {history} after it was at {last:?}",
                state.step
            ));
        }
    }

    /// A process was given a state, or read it from files.
    pub(crate) fn received(&mut self, pid: u32, history: u64, state: &State) {
        self.check_state(&format!("process {pid}"), state);
        let last = self.applied.insert((pid, history), state.step);
        if last.is_some_and(|last| last > state.step) {
            self.blame(format!(
                "process {pid} went back from {last:?} to step {} in history {history}",
                state.step
            ));
        }
    }

    /// A process enters a world, and lacks nothing (0), a step (1) or the state (2).
    pub(crate) fn enters(&mut self, lack: u8) {
        match lack {
            0 => self.counts.level += 1,
            1 => self.counts.behind += 1,
            _ => self.counts.without += 1,
        }
    }

    /// A process that follows takes another state over, perhaps one of a step before: it may have been
    /// ahead of all who are left.
    pub(crate) fn rewound(&mut self, pid: u32, history: u64) {
        self.applied.remove(&(pid, history));
    }

    /// Ranks agree on an evaluation.
    pub(crate) fn evaluated(&mut self, step: u64, metrics: &BTreeMap<String, f64>) {
        let metrics = format!("{metrics:?}");
        let first = self.evaluations.entry(step).or_insert(metrics.clone());
        if *first != metrics {
            let violation = format!("evaluations after step {step} differ: {first} and {metrics}");
            self.blame(violation);
        }
    }

    /// A coordinator knows of a world: so does every other one, and no other of its generation.
    pub(crate) fn check_world(&mut self, job: &Job) {
        let Some(world) = &job.world else { return };
        let generation = job.generation.0;
        let known = self.worlds.entry(generation);
        if known.or_insert_with(|| world.clone()) != world {
            self.blame(format!("there are two worlds of generation {generation}"));
        }
    }

    /// The state behind an entry that nobody was at before. `holder` finds a process of a world that lives with a state
    /// of it that is above the last checkpoint.
    pub(crate) fn observe(
        &mut self,
        job: &Job,
        durable: &[Line],
        holder: impl Fn(&World) -> Option<String>,
    ) {
        let (generation, history) = (job.generation.0, job.history.0);
        let last = self.seen.clone();
        if generation < last.generation || history < last.history {
            self.blame(format!(
                "generation {} and history {} became {generation} and {history}",
                last.generation, last.history
            ));
        }
        if let Some(world) = &job.world
            && last.generation != generation
        {
            self.counts.worlds += 1;
            self.counts.heals += u64::from(world.finish.is_some());
        }
        let fell_back = history > last.history && job.num_submissions == last.num_submissions;
        if fell_back && last.history > 0 {
            self.counts.fallbacks += 1;
            let held = last.world.as_ref().and_then(holder);
            if let Some(who) = held {
                let why = job.ledger.last().map(|entry| entry.reason.clone());
                self.blame(format!(
                    "the job fell back to history {history} while {who} lives: {why:?}"
                ));
            }
        }
        let committed = job.latest_manifest().map(|manifest| manifest.step.0);
        if committed < last.committed {
            self.blame(format!(
                "the checkpoint of step {:?} counts no more, and nobody damaged it",
                last.committed
            ));
        }
        if committed > last.committed {
            self.committed(job, durable);
        }
        if let Phase::Ended(outcome) = &job.phase {
            // Faults may well kill whoever has the same shard five times: then that is the end.
            let is_by_chance = outcome.reason.contains("worlds in a row");
            if outcome.kind == OutcomeKind::Failed && !is_by_chance {
                self.blame(format!("the job failed: {}", outcome.reason));
            }
            if outcome.kind == OutcomeKind::Completed {
                let end = &self.states[self.states.len() - 1];
                let end = (
                    TOTAL_STEPS,
                    end.arena_hash(),
                    end.optimizer_hash(),
                    end.trace_text(),
                );
                let got = (
                    outcome.step.0,
                    outcome.arena_hash.clone(),
                    outcome.optimizer_hash.clone(),
                    outcome.trace.clone(),
                );
                if end != got {
                    self.blame(format!("the job ended as {got:?}, not as {end:?}"));
                }
            }
        }
        self.seen = Seen {
            generation,
            history,
            num_submissions: job.num_submissions,
            committed,
            world: job.world.clone(),
        };
    }

    /// A checkpoint counts: so do all records up to it.
    fn committed(&mut self, job: &Job, durable: &[Line]) {
        let Some(manifest) = job.latest_manifest() else {
            return;
        };
        let (history, step) = (manifest.history.0, manifest.step.0);
        let mut from = None;
        let mut newest = 0;
        let mut evaluated = None;
        let events = durable.iter().map(|(event, _)| event);
        for event in events.filter(|event| event.history == history) {
            match &event.what {
                What::Generation { from_step, .. } => from = from.or(Some(*from_step)),
                What::Step { step, .. } => newest = *step,
                What::Evaluated { step, .. } => evaluated = Some(*step),
                _ => {}
            }
        }
        if newest < step && from.is_some_and(|from| from < step) {
            self.blame(format!(
                "the checkpoint of step {step} counts, and the records of history {history} that are durable end at {newest}"
            ));
        }
        let is_due = step.is_multiple_of(EVALUATE_EVERY) || step == TOTAL_STEPS;
        if is_due && evaluated < Some(step) && from.is_some_and(|from| from < step) {
            self.blame(format!(
                "the checkpoint of step {step} counts without the record of its evaluation"
            ));
        }
        let state = self.states.get(usize::try_from(step).unwrap_or(usize::MAX));
        let expected = state.map(|state| (state.arena_hash(), state.trace_text()));
        if expected != Some((manifest.arena_hash.clone(), manifest.trace.clone())) {
            self.blame(format!("the checkpoint of step {step} is of another run"));
        }
    }

    /// The streams of events, as the disk has them: each step of a history once, and no gap.
    pub(crate) fn check_events(&mut self, durable: &[Line]) {
        let mut at: BTreeMap<u64, u64> = BTreeMap::new();
        let mut evaluated: BTreeMap<u64, u64> = BTreeMap::new();
        for (event, _) in durable {
            let history = event.history;
            match &event.what {
                What::Generation { from_step, .. } => {
                    at.entry(history).or_insert(*from_step);
                }
                What::Step { step, .. } => {
                    let last = at.insert(history, *step);
                    if last.is_none_or(|last| last + 1 != *step) {
                        self.blame(format!(
                            "step {step} of history {history} is told behind {last:?}"
                        ));
                    }
                }
                What::Evaluated { step, .. } => {
                    let last = evaluated.insert(history, *step);
                    if last.is_some_and(|last| last >= *step) {
                        self.blame(format!(
                            "the evaluation of step {step} of history {history} is told behind {last:?}"
                        ));
                    }
                }
                _ => {}
            }
        }
    }
}
