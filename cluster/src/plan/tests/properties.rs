//! What holds after any sequence of events: every decision fits the state it was made from, no
//! device is given twice, every world is whole, and every job that waits knows why.

use proptest::prelude::*;

use crate::command::{Command, OutcomeKind, Stamped, StopWhy};
use crate::ids::{Incarnation, RankId};
use crate::plan::{Observed, Patience, Watch, plan};
use crate::state::{ClusterState, Phase, World};
use crate::testing::{job, manifest, node, outcome, submission, worker};

/// Something that happens to one of four jobs or four workers, `dice` deciding the details.
type Event = (u8, u8, u32);

#[derive(Default)]
struct Cluster {
    state: ClusterState,
    observed: Observed,
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
        let known = self.state.jobs.get(&name).cloned();
        let watch = self.observed.worlds.get_mut(&name);
        let rank = RankId(dice % 5);
        match kind {
            0..=2 => {
                let last = self.state.nodes.get(&machine);
                let incarnation = last.map_or(1, |node| node.incarnation.0 + 1);
                let devices = if dice.is_multiple_of(17) {
                    u32::MAX
                } else {
                    dice % 4
                };
                let build = if dice.is_multiple_of(5) { "b2" } else { "b1" };
                let node = node(incarnation, devices, build);
                self.observed.silent_since_ms.remove(&machine);
                self.observed
                    .connected
                    .insert(machine.clone(), Incarnation(incarnation));
                self.apply(Command::RegisterWorker {
                    worker: machine,
                    node,
                });
            }
            3 => {
                if self.observed.connected.remove(&machine).is_some() {
                    self.observed.silent_since_ms.insert(machine, self.now_ms);
                }
            }
            4..=6 => {
                let (min, more) = (1 + dice % 3, dice / 3 % 4);
                let (min, max) = (
                    format!("workers.min={min}"),
                    format!("workers.max={}", min + more),
                );
                self.apply(Command::Submit(submission(name.as_str(), &[&min, &max])));
            }
            7 => drop(watch.map(|watch| watch.gone.insert(rank, "signal 9".to_owned()))),
            8 => {
                let how = (self.now_ms, "no frame".to_owned());
                drop(watch.map(|watch| watch.missed.insert(rank, how)));
            }
            9 => drop(watch.map(|watch| watch.progressed = true)),
            10 => {
                let why = StopWhy::Cancelled;
                self.apply(Command::Stop { job: name, why });
            }
            11 => {
                if let Some(known) = known {
                    let step = known.committed_step().0 + 1;
                    let manifest = manifest(known.history, known.generation, step);
                    self.apply(Command::CommitManifest {
                        job: name,
                        manifest,
                    });
                }
            }
            12 => {
                if let Some(last) = known.as_ref().and_then(|known| known.latest_manifest()) {
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
            13 => {
                if let Some(known) = known {
                    let (generation, step) = (known.generation, known.committed_step().0);
                    let outcome = outcome(OutcomeKind::Completed, step);
                    self.apply(Command::Finish {
                        job: name,
                        generation,
                        outcome,
                    });
                }
            }
            _ => self.now_ms += u64::from(dice % 3_000),
        }
    }

    /// Carries decisions out until there is nothing to decide: what one job gives back may serve
    /// another one in the next round.
    fn settle(&mut self) -> Result<(), TestCaseError> {
        const MAX_ROUNDS: usize = 8;
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
        let mut placed = Vec::new();
        for command in decided.commands {
            if let Command::StartWorld { job, world, .. } = &command {
                self.check_world(&self.state.jobs[job].spec, world)?;
                placed.extend(world.ranks.iter().map(|rank| rank.worker.clone()));
                let generation = world.generation;
                let watch = Watch {
                    generation,
                    ..Watch::default()
                };
                self.observed.worlds.insert(job.clone(), watch);
            }
            prop_assert!(self.apply(command.clone()), "refused: {command:?}");
        }
        for worker in placed {
            let busy = self.state.num_busy_devices(&worker);
            prop_assert!(
                busy <= self.state.nodes[&worker].num_devices,
                "{worker} holds {busy}"
            );
        }
        for (name, known) in &self.state.jobs {
            if known.phase == Phase::Queued {
                prop_assert!(
                    decided.waits.contains_key(name),
                    "{name} waits and says nothing"
                );
            }
        }
        for name in decided.waits.into_keys() {
            let watch = self.observed.worlds.entry(name).or_default();
            watch.wanting_since_ms.get_or_insert(self.now_ms);
        }
        Ok(num_decisions)
    }

    fn check_world(&self, spec: &crate::job::JobSpec, world: &World) -> Result<(), TestCaseError> {
        let size = world.ranks.len();
        prop_assert!((spec.workers.min as usize..=spec.workers.max as usize).contains(&size));
        let mut next = 0;
        for rank in &world.ranks {
            prop_assert_eq!(rank.shards.start, next);
            prop_assert!(rank.shards.num_shards() > 0);
            next = rank.shards.end;
            let is_connected = self.observed.connected.get(&rank.worker) == Some(&rank.incarnation);
            prop_assert!(is_connected, "{} is not there", rank.worker);
            let class = &self.state.nodes[&rank.worker].class;
            prop_assert_eq!(Some(class), self.state.class_of(world));
        }
        prop_assert_eq!(next, spec.train.logical_shards);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn any_decision_fits_and_gives_no_device_twice(
        events in prop::collection::vec((0u8..17, 0u8..4, any::<u32>()), 0..80),
    ) {
        let mut cluster = Cluster::default();
        for event in events {
            cluster.happens(event);
            cluster.settle()?;
        }
    }
}
