//! What holds after any sequence of events: every decision fits the state it was made from, no
//! device is given twice, every world is whole, a world that heals another loses and repeats
//! nothing that is held, and every job that waits knows why. What ranks report comes from
//! [`super::ranks`].

mod devices;
mod entering;
mod finish;

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::ranks::{Ranks, kept_by};
use crate::command::{Command, OutcomeKind, Stamped, StopWhy};
use crate::ids::{Incarnation, JobName, RankId, WorkerName};
use crate::plan::{Closed, Closing, Observed, Pace, Patience, Standby, Watch, plan};
use crate::state::{ClusterState, Finish, Job, Phase, World};
use crate::testing::{gpus, job, manifest, node, outcome, submission, worker};
use finish::{check_finish, check_shares};

/// Something that happens to one of four jobs or four workers, `dice` deciding the details.
type Event = (u8, u8, u32);

/// How many kinds of events there are.
const NUM_KINDS: u8 = 33;

#[derive(Default)]
struct Cluster {
    state: ClusterState,
    observed: Observed,
    ranks: Ranks,
    now_ms: u64,
}

impl Cluster {
    fn apply(&mut self, command: Command) -> bool {
        let stamped = Stamped {
            stamp_ms: self.now_ms,
            request: None,
            command,
        };
        self.state.apply(stamped).is_ok()
    }

    fn happens(&mut self, (kind, which, dice): Event) {
        let (name, machine) = (job(&format!("j{which}")), worker(&format!("w{which}")));
        match kind {
            0..=3 => self.worker_registers(machine, dice),
            4 => {
                if self.observed.connected.remove(&machine).is_some() {
                    self.observed.silent_since_ms.insert(machine, self.now_ms);
                }
            }
            5 => {
                if self.observed.silent_since_ms.remove(&machine).is_some() {
                    let life = self.state.nodes[&machine].incarnation;
                    self.observed.connected.insert(machine, life);
                }
            }
            6 => {
                let drains = dice.is_multiple_of(2);
                self.apply(Command::Drain {
                    worker: machine,
                    drains,
                });
            }
            7 => self.now_ms += u64::from(dice % 3_000),
            8 => self.now_ms += u64::from(dice % 10) * 100_000,
            _ => self.job_happens(name, kind, dice),
        }
    }

    fn worker_registers(&mut self, machine: WorkerName, dice: u32) {
        let last = self.state.nodes.get(&machine);
        let incarnation = last.map_or(1, |node| node.incarnation.0 + 1);
        let devices = if dice.is_multiple_of(17) {
            u32::MAX
        } else {
            dice % 4
        };
        let build = if dice.is_multiple_of(5) { "b2" } else { "b1" };
        let mut node = node(incarnation, devices, build);
        let model = ["a", "b"][dice as usize / 20 % 2];
        node.gpus = gpus(dice / 4 % 5, model, build);
        self.observed.silent_since_ms.remove(&machine);
        let life = Incarnation(incarnation);
        self.observed.connected.insert(machine.clone(), life);
        self.apply(Command::RegisterWorker {
            worker: machine,
            node,
        });
    }

    fn job_happens(&mut self, name: JobName, kind: u8, dice: u32) {
        if let 9..=12 = kind {
            let (min, more, spares) = (1 + dice % 3, dice / 3 % 4, dice / 12 % 3);
            let redundancy = ["full", "shadow", "none"][dice as usize / 36 % 3];
            let device = ["cpu", "cuda", "auto", "cuda:1"][dice as usize / 108 % 4];
            let set = [
                format!("workers.min={min}"),
                format!("workers.max={}", min + more),
                format!("workers.spares={spares}"),
                format!("workers.redundancy={redundancy:?}"),
                format!("workers.device={device:?}"),
            ];
            let set: Vec<&str> = set.iter().map(String::as_str).collect();
            self.apply(Command::submit(submission(name.as_str(), &set)));
            return;
        }
        let Some(known) = self.state.jobs.get(&name).cloned() else {
            return;
        };
        match kind {
            13 if dice.is_multiple_of(4) => {
                self.apply(Command::AbandonState { job: name });
            }
            13 => {
                let max = 1 + dice % 6;
                self.apply(Command::Scale { job: name, max });
            }
            14 => {
                let why = StopWhy::Cancelled;
                self.apply(Command::Stop { job: name, why });
            }
            15 => {
                let step = known.committed_step().0 + 1;
                let manifest = manifest(known.history, known.generation, step);
                self.apply(Command::CommitManifest {
                    job: name,
                    manifest,
                });
            }
            16 => {
                if let Some(last) = known.latest_manifest() {
                    let (history, step) = (last.history, last.step);
                    let reason = "damaged".to_owned();
                    self.apply(Command::RejectManifest {
                        job: name,
                        history,
                        step,
                        reason,
                    });
                }
            }
            17 => {
                let (generation, step) = (known.generation, known.committed_step().0);
                let outcome = outcome(OutcomeKind::Completed, step);
                self.apply(Command::Finish {
                    job: name,
                    generation,
                    outcome,
                });
            }
            18..=20 => self.standby_happens(&name, &known, kind == 18, dice),
            _ => self.world_happens(&name, &known, kind, dice),
        }
    }

    fn standby_happens(&mut self, name: &JobName, known: &Job, dies: bool, dice: u32) {
        let count = known.standbys.len().max(1);
        let Some((process, seat)) = known.standbys.iter().nth(dice as usize % count) else {
            return;
        };
        let watch = self.observed.worlds.entry(name.clone()).or_default();
        if dies {
            let how = "signal 9".to_owned();
            watch.standby_gone(*process, seat, how, self.now_ms);
        } else {
            let is_gone = matches!(watch.standbys.get(process), Some(Standby::Gone(_)));
            if !is_gone {
                let seen = entering::seen(dice, known);
                watch.standbys.insert(*process, seen);
            }
        }
    }

    fn world_happens(&mut self, name: &JobName, known: &Job, kind: u8, dice: u32) {
        let (Some(world), Some(watch)) = (&known.world, self.observed.worlds.get_mut(name)) else {
            return;
        };
        let rank = RankId(dice % u32::try_from(world.ranks.len()).unwrap());
        match kind {
            21 => drop(watch.gone.insert(rank, "signal 9".to_owned())),
            26 if dice.is_multiple_of(2) => {
                let processes = world.ranks.iter().map(|rank| rank.process);
                let us = (0u32..).map(|rank| 100 + (dice >> rank) % 400);
                let pace = |computing_us| Pace {
                    computing_us,
                    ..Pace::default()
                };
                watch.speed.paces.extend(processes.zip(us.map(pace)));
                watch.speed.num_steps += dice % 64;
            }
            22 => watch.broken = dice.is_multiple_of(4).then(|| "it is broken".to_owned()),
            23..=25 => {
                let is_closed = !watch.closed.is_empty() || !watch.gone.is_empty();
                if !is_closed && self.ranks.run(name, known, dice) {
                    watch.progressed = true;
                }
            }
            26 => self.ranks.compute(name, known, rank, dice),
            27 | 28 => report(watch, &self.ranks, self.now_ms, name, known, rank, dice),
            _ => {
                for rank in (0u32..).map(RankId).take(world.ranks.len()) {
                    report(watch, &self.ranks, self.now_ms, name, known, rank, dice);
                }
            }
        }
    }

    /// Carries decisions out until there is nothing to decide: what one job gives back may serve
    /// another one in the next round.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        const MAX_ROUNDS: usize = 64;
        for _ in 0..MAX_ROUNDS {
            if self.decide()? == 0 {
                return Ok(());
            }
        }
        prop_assert!(false, "the planner does not come to rest");
        Ok(())
    }

    /// Carries the leader's decisions out, holds what must be true of each, and counts them.
    fn decide(&mut self) -> Result<usize, TestCaseError> {
        let patience = Patience::default();
        let decided = plan(&self.state, &self.observed, patience, self.now_ms);
        let num_decisions = decided.commands.len();
        for command in &decided.commands {
            self.check(command)?;
            self.note(command);
            prop_assert!(self.apply(command.clone()), "refused: {command:?}");
            self.check_devices(command)?;
        }
        for (name, known) in &self.state.jobs {
            if known.phase == Phase::Queued {
                prop_assert!(
                    decided.waits.contains_key(name),
                    "{name} waits and says nothing"
                );
            }
        }
        for (name, closing) in &decided.closing {
            if let (Closing::BehindStep(why), None) = (closing, decided.waits.get(name)) {
                self.check_purpose(name, why)?;
            }
        }
        for name in self.state.jobs.keys() {
            let watch = self.observed.worlds.entry(name.clone()).or_default();
            decided.note_in(watch, name, self.now_ms);
        }
        Ok(num_decisions)
    }

    fn check(&self, command: &Command) -> Result<(), TestCaseError> {
        if let Command::StartStandby { job, seat, .. } = command {
            let known = &self.state.jobs[job];
            prop_assert!(!known.distrusted.contains_key(&seat.worker));
            self.check_seat(known, seat)?;
        }
        let Command::StartWorld { job, world, .. } = command else {
            return Ok(());
        };
        let known = &self.state.jobs[job];
        self.check_world(known, world)?;
        self.check_kind(known, world)?;
        match &world.finish {
            None => self.check_new(world),
            Some(finish) => self.check_healed(known, &self.observed.worlds[job], world, finish),
        }
    }

    /// What the leader and the ranks make of a decision.
    fn note(&mut self, command: &Command) {
        match command {
            Command::StartWorld { job, world, .. } => {
                let known = &self.state.jobs[job];
                let watch = self.observed.worlds.entry(job.clone()).or_default();
                *watch = watch.follow(known.world.as_ref(), world, self.now_ms);
                self.ranks.enter(job, world);
            }
            Command::EndStandby { job, process, .. } => {
                let watch = self.observed.worlds.entry(job.clone()).or_default();
                watch.standbys.remove(process);
            }
            _ => {}
        }
    }

    /// A world that is closed on purpose is followed by one of other ranks or shards: else it would be closed
    /// for the same purpose step after step.
    fn check_purpose(&self, name: &JobName, why: &str) -> Result<(), TestCaseError> {
        let known = &self.state.jobs[name];
        let world = known.world.as_ref().expect("only a world is closed");
        let mut observed = self.observed.clone();
        let watch = observed.worlds.get_mut(name).expect("it is watched");
        for rank in (0u32..).map(RankId).take(world.ranks.len()) {
            let closed = Closed {
                why: why.to_owned(),
                paused: true,
                step: Some(world.first_step.next()),
                kept: kept_by(world, rank),
                ..Closed::default()
            };
            watch.closed.insert(rank, closed);
        }
        let decided = plan(&self.state, &observed, Patience::default(), self.now_ms);
        let next = decided.commands.iter().find_map(|command| match command {
            Command::StartWorld { job, world, .. } if job == name => Some(world),
            _ => None,
        });
        let members = |world: &World| -> BTreeSet<_> {
            let ranks = world.ranks.iter();
            ranks.map(|rank| (rank.process, rank.shards)).collect()
        };
        prop_assert!(
            next.is_some_and(|next| members(next) != members(world) || next.shares != world.shares),
            "{name} is closed for nothing: {why}"
        );
        Ok(())
    }

    fn check_world(&self, known: &Job, world: &World) -> Result<(), TestCaseError> {
        let workers = known.spec.workers;
        let min = match known.phase {
            Phase::Stopping(_) => 1,
            _ => {
                let last = known.world.as_ref().filter(|_| world.finish.is_some());
                let last = last.map_or(usize::MAX, |last| last.ranks.len());
                last.min(workers.min as usize)
            }
        };
        // Where all ranks are to leave, one stays until another one has its state.
        let mut ranks = world.ranks.iter();
        let drains = ranks.any(|rank| self.state.draining.contains(&rank.worker));
        let max = workers.max.max(if drains { 2 } else { 1 }) as usize;
        let size = world.ranks.len();
        // Those who leave may be there for one more world, to hand over what only they keep.
        let is_kept = |rank: RankId| world.shares.iter().any(|holders| holders.has(rank));
        let ranks = (0u32..).map(RankId).take(size);
        let num_leaving = ranks
            .filter(|rank| !world.shares.is_empty() && !is_kept(*rank))
            .count();
        prop_assert!((min..=max + num_leaving).contains(&size));
        let processes: BTreeSet<_> = world.ranks.iter().map(|rank| rank.process).collect();
        prop_assert_eq!(processes.len(), size);
        let mut next = 0;
        for rank in &world.ranks {
            prop_assert_eq!(rank.shards.start, next);
            prop_assert!(rank.shards.num_shards() > 0);
            prop_assert!(!known.distrusted.contains_key(&rank.worker));
            next = rank.shards.end;
        }
        prop_assert_eq!(next, known.spec.train.logical_shards);
        prop_assert_eq!(world.generation, known.generation.next());
        Ok(())
    }

    fn check_new(&self, world: &World) -> Result<(), TestCaseError> {
        for rank in &world.ranks {
            let life = self.observed.connected.get(&rank.worker);
            prop_assert_eq!(
                life,
                Some(&rank.incarnation),
                "{} is not there",
                rank.worker
            );
            prop_assert!(!self.state.draining.contains(&rank.worker));
            let class = self.state.nodes[&rank.worker].class_on(rank.device);
            prop_assert!(class.is_some());
            prop_assert_eq!(class, self.state.class_of(world));
        }
        Ok(())
    }

    fn check_healed(
        &self,
        known: &Job,
        watch: &Watch,
        world: &World,
        finish: &Finish,
    ) -> Result<(), TestCaseError> {
        prop_assert_eq!(world.history, known.history);
        let mut reports = Vec::new();
        for rank in &world.ranks {
            let report = report_of(known, watch, rank.process);
            if report.is_none() {
                let draining = &self.state.draining;
                entering::check(draining, known, watch, world, rank)?;
                let life = self.observed.connected.get(&rank.worker);
                prop_assert_eq!(life, Some(&rank.incarnation));
            }
            reports.push(report.cloned().unwrap_or_default());
        }
        check_finish(world.first_step, &reports, finish)?;
        check_shares(world, &reports, finish)
    }
}

/// A rank says that it closed its world, if it did not before.
fn report(
    watch: &mut Watch,
    ranks: &Ranks,
    now_ms: u64,
    name: &JobName,
    known: &Job,
    rank: RankId,
    dice: u32,
) {
    if watch.gone.contains_key(&rank) || watch.closed.contains_key(&rank) {
        return;
    }
    let mut closed = ranks.closed(name, known, rank);
    closed.paused = dice.is_multiple_of(3);
    if dice.is_multiple_of(5) {
        closed.lost = vec![RankId(dice / 5 % 7)];
    }
    if dice.is_multiple_of(7) {
        closed.suspects = vec![RankId(dice / 7 % 5)];
    }
    watch.closed.insert(rank, closed);
    watch.closing_since_ms.get_or_insert(now_ms);
}

/// What a process reported as a rank of the job's world; it is not gone.
fn report_of<'a>(
    known: &Job,
    watch: &'a Watch,
    process: crate::ids::ProcessId,
) -> Option<&'a Closed> {
    let mut ranks = (0u32..).map(RankId).zip(&known.world.as_ref()?.ranks);
    let (rank, _) = ranks.find(|(_, placement)| placement.process == process)?;
    let report = watch.closed.get(&rank);
    report.filter(|_| !watch.gone.contains_key(&rank))
}

fn events(max: usize) -> impl Strategy<Value = Vec<Event>> {
    prop::collection::vec((0..NUM_KINDS, 0u8..4, any::<u32>()), 0..max)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1024) })]

    #[test]
    fn any_decision_fits_and_gives_no_device_twice(events in events(120)) {
        let mut cluster = Cluster::default();
        for event in events {
            cluster.happens(event);
            cluster.settle()?;
        }
    }

    /// The same with one job on one or two workers, so that its worlds heal often.
    #[test]
    fn a_job_that_heals_again_and_again_loses_nothing(events in events(120), is_shared in any::<bool>(), on_gpus in any::<bool>()) {
        let mut cluster = Cluster::default();
        cluster.worker_registers(worker("w0"), 11);
        cluster.worker_registers(worker("w1"), 19);
        let redundancy = if is_shared { "workers.redundancy='shadow'" } else { "workers.redundancy='full'" };
        let device = if on_gpus { "workers.device='cuda'" } else { "workers.device='cpu'" };
        let set = ["workers.min=1", "workers.max=5", "workers.spares=1", redundancy, device];
        cluster.apply(Command::submit(submission("j0", &set)));
        for (kind, which, dice) in events {
            let kind = if kind < 18 && !dice.is_multiple_of(8) { 18 + kind % 15 } else { kind };
            cluster.happens((kind, which % 2 * u8::from(kind < 9), dice));
            cluster.settle()?;
        }
    }
}
