//! The leader: the product's state, planner, and watch on a world, without a log and with one job.

use std::collections::{BTreeMap, BTreeSet};

use muster_cluster::command::{Command, Node, Outcome, OutcomeKind, Stamped, Submission};
use muster_cluster::ids::{Generation, Incarnation, JobName, ProcessId, RankId, Step, WorkerName};
use muster_cluster::job::JobDraft;
use muster_cluster::plan::{Closing, Observed, Patience, plan};
use muster_cluster::state::{ClusterState, Job, Phase, World};
use muster_coordinator_core::ranks::WorldWatch;
use muster_proto::{convert, v1};
use v1::rank_report::Report;

use super::Profile;
use super::model::{CHECKPOINT_EVERY, NUM_SHARDS, TOTAL_STEPS};
use super::oracle::Oracle;
use super::rank::{Assigned, Order, Said};

/// What comes of a decision.
#[derive(Debug)]
pub(super) enum Output {
    Start(ProcessId, WorkerName, Box<Assigned>),
    Tell(ProcessId, Order),
    /// A process does not answer, or is not wanted any more.
    End {
        process: ProcessId,
        is_awaited: bool,
    },
    Log(String),
}

/// What a process was told, each by the generation.
#[derive(Debug, Default)]
struct Told {
    assigned: Option<Generation>,
    close: Option<Generation>,
    pause: Option<Generation>,
    kill: Option<Generation>,
    committed: Option<Step>,
}

#[derive(Debug)]
pub(super) struct Leader {
    name: JobName,
    state: ClusterState,
    observed: Observed,
    watch: WorldWatch,
    closing: Option<Closing>,
    stuck: BTreeSet<ProcessId>,
    told: BTreeMap<ProcessId, Told>,
    last_world: Option<World>,
}

impl Leader {
    pub(super) fn new(profile: &Profile) -> Self {
        let (min, max, spares) = (profile.min, profile.max, profile.spares);
        let redundancy = profile.redundancy;
        let text = format!(
            r#"
            name = "shares"
            [model]
            family = "mlp"
            hidden = [8]
            [data]
            source = "digits.csv.gz"
            shape = [64]
            num_classes = 10
            [train]
            global_batch_size = 64
            logical_shards = {NUM_SHARDS}
            steps = {TOTAL_STEPS}
            [optimizer]
            kind = "sgd"
            learning_rate = 0.1
            [workers]
            min = {min}
            max = {max}
            spares = {spares}
            redundancy = "{redundancy}"
            [checkpoint]
            every_steps = {CHECKPOINT_EVERY}
            keep = 2
            "#
        );
        let draft = JobDraft::parse(&text, "shares.toml", "shares", &[]).expect("a draft");
        let mut leader = Self {
            name: JobName::new("shares").expect("a name"),
            state: ClusterState::default(),
            observed: Observed::default(),
            watch: WorldWatch::default(),
            closing: None,
            stuck: BTreeSet::new(),
            told: BTreeMap::new(),
            last_world: None,
        };
        leader.apply(
            Command::submit(Submission {
                draft: draft.to_toml(),
                base_dir: "/jobs".into(),
                data_digest: "d1be57".to_owned(),
                fresh: false,
            }),
            0,
        );
        leader
    }

    /// What the log makes of a command.
    pub(super) fn apply(&mut self, command: Command, now_ms: u64) {
        let stamped = Stamped {
            stamp_ms: now_ms,
            request: None,
            command,
        };
        self.state.apply(stamped).expect("a command that fits");
    }

    pub(super) fn add_worker(&mut self, now_ms: u64) {
        let number = self.state.nodes.len() + 1;
        let worker = WorkerName::new(&format!("w{number}")).expect("a name");
        let incarnation = Incarnation(1);
        self.observed.connected.insert(worker.clone(), incarnation);
        let node = Node {
            incarnation,
            num_devices: 1,
            gpus: Vec::new(),
            class: muster_cluster::command::NumericsClass::default(),
            host: "127.0.0.1".to_owned(),
        };
        self.apply(Command::RegisterWorker { worker, node }, now_ms);
    }

    pub(super) fn drain(&mut self, worker: WorkerName, drains: bool, now_ms: u64) {
        self.apply(Command::Drain { worker, drains }, now_ms);
    }

    pub(super) fn scale(&mut self, max: u32, now_ms: u64) {
        let job = self.name.clone();
        self.apply(Command::Scale { job, max }, now_ms);
    }

    pub(super) fn workers(&self) -> Vec<WorkerName> {
        self.state.nodes.keys().cloned().collect()
    }

    pub(super) fn job(&self) -> &Job {
        &self.state.jobs[&self.name]
    }

    /// How the job ended, if it did.
    pub(super) fn end(&self) -> Option<&Outcome> {
        match &self.job().phase {
            Phase::Ended(outcome) => Some(outcome),
            Phase::Queued | Phase::Running | Phase::Stopping(_) => None,
        }
    }

    /// The newest world of the job, whether or not it has ended.
    pub(super) fn last_world(&self) -> Option<&World> {
        self.last_world.as_ref()
    }

    /// Takes what a process says, or what its worker says of it.
    pub(super) fn hear(&mut self, process: u64, said: Said, now_ms: u64, oracle: &mut Oracle) {
        let (process, job) = (ProcessId(process), &self.state.jobs[&self.name]);
        let ranks = (0u32..).map(RankId);
        let ranks = job
            .world
            .iter()
            .flat_map(|world| ranks.clone().zip(&world.ranks));
        let mut ranks = ranks.filter(|(_, placement)| placement.process == process);
        let rank = ranks.next().map(|(rank, _)| rank);
        let seat = job.standbys.get(&process).cloned();
        match (said, rank, seat) {
            (Said::Ready, rank, seat) if rank.is_some() || seat.is_some() => {
                let ready = v1::Ready::default();
                self.watch.listens(process, ready, rank.is_none());
            }
            (Said::Exited, Some(rank), _) => {
                self.watch.watch.closed.remove(&rank);
                self.watch.watch.gone.insert(rank, "signal 9".to_owned());
            }
            (Said::Exited, None, Some(seat)) => {
                let how = "signal 9".to_owned();
                self.watch.watch.standby_gone(process, &seat, how, now_ms);
            }
            (Said::Applied(generation), Some(_), _) => {
                self.watch.watch.progressed |= Generation(generation) == job.generation;
            }
            (Said::Report(generation, report), Some(rank), _) => {
                let is_current = Generation(generation) == job.generation;
                match *report {
                    Report::Closed(closed) if is_current => {
                        let taken = self.watch.closes(rank, closed, now_ms);
                        taken.expect("holdings that make sense");
                    }
                    Report::CheckpointPart(part) => {
                        if let Err(disagreement) = self.watch.take_part(part) {
                            oracle.blame(disagreement);
                        }
                    }
                    Report::Done(done) if is_current => {
                        self.watch.done.insert(process, done);
                    }
                    _ => {}
                }
            }
            _ => {}
        }
    }

    /// What follows from what is known.
    pub(super) fn decide(&mut self, now_ms: u64, oracle: &mut Oracle) -> Vec<Output> {
        let mut outputs = Vec::new();
        if self.end().is_some() {
            return outputs;
        }
        self.commit(now_ms);
        self.finish(now_ms, oracle);
        let name = self.name.clone();
        let watch = self.watch.watch.clone();
        self.observed.worlds.insert(name.clone(), watch);
        let mut plan = plan(&self.state, &self.observed, Patience::default(), now_ms);
        plan.note_in(&mut self.watch.watch, &name, now_ms);
        self.closing = plan.closing.remove(&name);
        self.stuck = plan.stuck.remove(&name).unwrap_or_default();
        if let Some(command) = plan.commands.into_iter().next() {
            self.closing = None;
            self.stuck.clear();
            outputs.push(Output::Log(format!("leader: {command:?}")));
            self.prepare(&command, now_ms, oracle);
            self.apply(command, now_ms);
        }
        self.drive(&mut outputs);
        outputs
    }

    fn commit(&mut self, now_ms: u64) {
        let job = &self.state.jobs[&self.name];
        let committed = job.latest_manifest().map(|manifest| manifest.step);
        if let Some(manifest) = self.watch.manifest(job.history, committed) {
            let job = self.name.clone();
            self.apply(Command::CommitManifest { job, manifest }, now_ms);
        }
    }

    /// The job is over when all ranks of its world have ended.
    fn finish(&mut self, now_ms: u64, oracle: &mut Oracle) {
        let job = &self.state.jobs[&self.name];
        let size = job.world.as_ref().map(|world| world.ranks.len());
        match size.and_then(|size| self.watch.end(size)) {
            Some(Ok(done)) => {
                let outcome = Outcome {
                    step: Step(done.step),
                    ..job.rest(OutcomeKind::Completed, String::new())
                };
                let command = Command::Finish {
                    job: self.name.clone(),
                    generation: job.generation,
                    outcome,
                };
                self.apply(command, now_ms);
            }
            Some(Err(disagreement)) => oracle.blame(disagreement),
            None => {}
        }
    }

    /// What changes in the watch with a command.
    fn prepare(&mut self, command: &Command, now_ms: u64, oracle: &mut Oracle) {
        match command {
            Command::StartWorld { world, reason, .. } => {
                let old = self.state.jobs[&self.name].world.clone();
                oracle.made(old.as_ref(), world, reason);
                self.last_world = Some(world.clone());
                let watch = std::mem::take(&mut self.watch);
                self.watch = watch.follow(old.as_ref(), world, now_ms);
            }
            Command::EndStandby { process, .. } => self.watch.forget(*process),
            _ => {}
        }
    }

    /// Says what has not been said.
    fn drive(&mut self, outputs: &mut Vec<Output>) {
        let job = &self.state.jobs[&self.name];
        for (process, seat) in &job.standbys {
            let told = self.told.entry(*process).or_default();
            if told.assigned.replace(Generation(0)).is_none() {
                let assigned = Assigned {
                    assignment: v1::Assignment::default(),
                    processes: Vec::new(),
                };
                let worker = seat.worker.clone();
                outputs.push(Output::Start(*process, worker, Box::new(assigned)));
            }
        }
        if let Some(world) = &job.world {
            for (rank, placement) in (0u32..).zip(&world.ranks) {
                let (process, generation) = (placement.process, world.generation);
                let is_started = self.told.contains_key(&process);
                let told = self.told.entry(process).or_default();
                let is_new =
                    |told: &mut Option<Generation>| told.replace(generation) != Some(generation);
                if is_new(&mut told.assigned) {
                    let assigned = Box::new(assigned(job, world, rank));
                    outputs.push(match is_started {
                        true => Output::Tell(process, Order::Assigned(assigned)),
                        false => Output::Start(process, placement.worker.clone(), assigned),
                    });
                }
                match &self.closing {
                    Some(Closing::Now(why)) if is_new(&mut told.close) => {
                        let order = Order::Close(generation.0, why.clone());
                        outputs.push(Output::Tell(process, order));
                    }
                    Some(Closing::BehindStep(why)) if is_new(&mut told.pause) => {
                        let order = Order::Pause(generation.0, why.clone());
                        outputs.push(Output::Tell(process, order));
                    }
                    _ => {}
                }
                if self.stuck.contains(&process) && is_new(&mut told.kill) {
                    let is_awaited = true;
                    outputs.push(Output::End {
                        process,
                        is_awaited,
                    });
                }
                let committed = job.latest_manifest();
                let committed = committed.filter(|one| one.history == world.history);
                if let Some(step) = committed.map(|manifest| manifest.step)
                    && told.committed < Some(step)
                {
                    told.committed = Some(step);
                    outputs.push(Output::Tell(process, Order::Committed(step.0)));
                }
            }
        }
        self.told.retain(|process, _| {
            let is_wanted = job.has_process(*process);
            if !is_wanted {
                let (process, is_awaited) = (*process, false);
                outputs.push(Output::End {
                    process,
                    is_awaited,
                });
            }
            is_wanted
        });
    }
}

fn assigned(job: &Job, world: &World, rank: u32) -> Assigned {
    let runs: Vec<_> = world.ranks.iter().map(|rank| rank.shards).collect();
    Assigned {
        assignment: v1::Assignment {
            history: world.history.0,
            generation: world.generation.0,
            rank,
            process: world.ranks[rank as usize].process.0,
            layout: convert::layout(&runs),
            first_step: world.first_step.0,
            finish: world.finish.as_ref().map(Into::into),
            committed_step: job.committed_step().0,
            state_shares: world.shares.iter().map(Into::into).collect(),
            ..v1::Assignment::default()
        },
        processes: world.ranks.iter().map(|rank| rank.process.0).collect(),
    }
}
