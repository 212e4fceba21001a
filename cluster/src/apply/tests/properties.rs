//! What holds for any sequence of commands.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// One command, in part relative to the state that it meets.
#[derive(Clone, Debug)]
struct Action {
    kind: u8,
    job: bool,
    fresh: bool,
    seed: u8,
    /// Mostly 0, so that the command fits.
    off: [u64; 3],
    stamp_ms: u64,
    request: Option<u8>,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let off = || prop_oneof![6 => Just(0u64), 1 => Just(u64::MAX), 1 => 1u64..3, 1 => any::<u64>()];
    let action = (
        0u8..20,
        any::<bool>(),
        prop::bool::weighted(0.2),
        0u8..5,
        [off(), off(), off()],
        any::<u64>(),
        prop::option::weighted(0.3, 0u8..8),
    );
    let action = action.prop_map(|(kind, job, fresh, seed, off, stamp_ms, request)| Action {
        kind,
        job,
        fresh,
        seed,
        off,
        stamp_ms,
        request,
    });
    prop::collection::vec(action, 0..60)
}

impl Action {
    fn job(&self) -> JobName {
        job(if self.job { "a" } else { "b" })
    }

    fn command(&self, state: &ClusterState) -> Command {
        let name = self.job();
        let known = state.jobs.get(&name).map(AsRef::as_ref);
        let [off0, off1, off2] = self.off;
        let generation = known.map_or(0, |job| job.generation.0).wrapping_add(off0);
        let history = History(known.map_or(1, |job| job.history.0).wrapping_add(off1));
        let committed = known.map_or(0, |job| job.committed_step().0);
        match self.kind {
            0 | 1 => {
                let set = format!("train.seed={}", self.seed / 4);
                let mut submission = submission(name.as_str(), &[&set]);
                submission.fresh = self.fresh;
                if off2 == u64::MAX {
                    submission.draft.truncate(usize::from(self.seed) * 20);
                }
                Command::submit(submission)
            }
            2 => Command::Stop {
                job: name,
                why: if self.fresh {
                    StopWhy::Interrupted
                } else {
                    StopWhy::Cancelled
                },
            },
            3 => Command::RegisterWorker {
                worker: worker("w1"),
                node: node(off0, u32::MAX, "b1"),
            },
            4..=6 => Command::StartWorld {
                world: world(known, off0, off1, off2),
                job: name,
                reason: String::new(),
                predecessor_progressed: self.fresh,
                poison: None,
            },
            7..=9 => Command::CommitManifest {
                manifest: manifest(
                    history,
                    Generation(generation),
                    committed
                        .wrapping_add(u64::from(self.seed))
                        .wrapping_add(off2),
                ),
                job: name,
            },
            10 => Command::RejectManifest {
                job: name,
                history,
                step: Step(committed.wrapping_add(off2)),
                reason: String::new(),
            },
            11..=13 => {
                let processes: Vec<u64> = known.map_or(Vec::new(), |known| {
                    let ranks = known.world.iter().flat_map(|world| &world.ranks);
                    let ranks = ranks.map(|rank| rank.process.0);
                    let all = ranks.chain(known.standbys.keys().map(|process| process.0));
                    all.skip(usize::from(self.seed / 3)).collect()
                });
                let mut world = world(known, off0, off1, off2);
                if let Some(known) = known {
                    world = healing(known, &processes);
                    world.generation.0 = world.generation.0.wrapping_add(off0);
                    world.history.0 = world.history.0.wrapping_add(off1);
                }
                start_world(name.as_str(), world, self.fresh)
            }
            14 => Command::StartStandby {
                process: ProcessId(
                    known
                        .map_or(1, |known| known.newest_process.next().0)
                        .wrapping_add(off0),
                ),
                seat: Seat {
                    worker: worker("w1"),
                    incarnation: Incarnation(1),
                    device: crate::Device::Cpu,
                },
                job: name,
            },
            15 => Command::EndStandby {
                process: ProcessId(u64::from(self.seed)),
                job: name,
                reason: String::new(),
            },
            16 => Command::Scale {
                job: name,
                max: u32::from(self.seed),
            },
            17 => Command::Drain {
                worker: worker("w1"),
                drains: self.fresh,
            },
            18 => Command::Distrust {
                job: name,
                generation: Generation(generation),
                worker: worker("w1"),
                reason: String::new(),
            },
            _ => Command::Finish {
                job: name,
                generation: Generation(generation),
                outcome: outcome(
                    if self.fresh {
                        OutcomeKind::Completed
                    } else {
                        OutcomeKind::Failed
                    },
                    committed,
                ),
            },
        }
    }

    fn stamped(&self, state: &ClusterState) -> Stamped {
        Stamped {
            stamp_ms: self.stamp_ms,
            request: self.request.map(|number| [number; 16]),
            command: self.command(state),
        }
    }
}

/// What may never go back, by job.
fn numbers(state: &ClusterState) -> BTreeMap<JobName, (History, Generation, u64, usize)> {
    let numbers = |job: &Job| {
        let (submissions, worlds) = (job.num_submissions, job.ledger.len());
        (job.history, job.generation, submissions, worlds)
    };
    let jobs = state.jobs.iter();
    jobs.map(|(name, job)| (name.clone(), numbers(job)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn no_command_panics_and_what_must_not_go_back_does_not(actions in actions()) {
        let mut state = ClusterState::default();
        for action in actions {
            let before = state.clone();
            let stamped = action.stamped(&state);
            let is_rejection = matches!(stamped.command, Command::RejectManifest { .. });
            let answer = state.apply(stamped);
            prop_assert!(state.stamp_ms >= before.stamp_ms);
            prop_assert!(state.stamp_ms >= action.stamp_ms);
            if answer.is_err() {
                prop_assert_eq!(format!("{:?}", state.jobs), format!("{:?}", before.jobs));
            }
            let (old, new) = (numbers(&before), numbers(&state));
            for (name, old) in old {
                let new = new[&name];
                prop_assert!(new.0 >= old.0 && new.1 >= old.1 && new.2 >= old.2 && new.3 >= old.3);
                // The only thing that takes a committed step back within a history is the finding
                // that it never was whole.
                let (before, after) = (&before.jobs[&name], &state.jobs[&name]);
                if new.0 == old.0 && !is_rejection {
                    prop_assert!(after.committed_step() >= before.committed_step());
                }
            }
        }
    }

    #[test]
    fn a_generation_and_a_history_have_at_most_one_world(actions in actions()) {
        let mut state = ClusterState::default();
        let mut num_healed: BTreeMap<JobName, usize> = BTreeMap::new();
        for action in actions {
            let stamped = action.stamped(&state);
            let name = action.job();
            let num_worlds =
                |state: &ClusterState| state.jobs.get(&name).map(|job| job.ledger.len());
            let before = num_worlds(&state);
            let heals = matches!(
                &stamped.command,
                Command::StartWorld { world, .. } if world.finish.is_some()
            );
            let _ = state.apply(stamped);
            // A retry gets its first answer and starts nothing, so answers cannot be counted.
            if heals && num_worlds(&state) != before {
                *num_healed.entry(name).or_default() += 1;
            }
        }
        for (name, job) in &state.jobs {
            let generations: Vec<u64> = job.ledger.iter().map(|entry| entry.generation.0).collect();
            let expected: Vec<u64> = (1..=job.generation.0).collect();
            prop_assert_eq!(generations, expected);
            // But for those that heal the one before.
            let histories: BTreeSet<History> = job.ledger.iter().map(|entry| entry.history).collect();
            let num_healed = num_healed.get(name).copied().unwrap_or_default();
            prop_assert_eq!(histories.len() + num_healed, job.ledger.len());
            let runs = matches!(job.phase, Phase::Running | Phase::Stopping(_));
            prop_assert_eq!(job.has_world(), runs);
            if let Some(world) = &job.world {
                prop_assert_eq!((world.generation, world.history), (job.generation, job.history));
                prop_assert!(world.ranks.iter().all(|rank| !job.standbys.contains_key(&rank.process)));
                prop_assert!(world.ranks.iter().all(|rank| rank.process <= job.newest_process));
            }
            let manifests: Vec<_> = job.manifests.iter().map(|known| known.step).collect();
            prop_assert!(manifests.is_sorted() && manifests.len() <= 2);
        }
    }

    #[test]
    fn the_same_commands_give_the_same_state_and_answers(actions in actions()) {
        let (mut one, mut other) = (ClusterState::default(), ClusterState::default());
        for action in actions {
            let stamped = action.stamped(&one);
            prop_assert_eq!(one.apply(stamped.clone()), other.apply(stamped));
        }
        prop_assert_eq!(format!("{one:?}"), format!("{other:?}"));
    }

    #[test]
    fn a_request_is_applied_once_whatever_came_in_between(
        before in actions(),
        mut between in actions(),
        action in actions().prop_filter_map("one", |actions| actions.into_iter().next()),
    ) {
        let mut state = ClusterState::default();
        for action in before {
            let _ = state.apply(action.stamped(&state));
        }
        let mut stamped = action.stamped(&state);
        stamped.request = Some([255; 16]);
        let words = |answer: Answer| answer.map_err(|refusal| refusal.to_string());
        let answer = words(state.apply(stamped.clone()));
        between.truncate(20);
        for action in between {
            let _ = state.apply(action.stamped(&state));
        }
        let jobs = format!("{:?} {:?}", state.jobs, state.nodes);
        prop_assert_eq!(words(state.apply(stamped)), answer);
        prop_assert_eq!(format!("{:?} {:?}", state.jobs, state.nodes), jobs);
    }
}
