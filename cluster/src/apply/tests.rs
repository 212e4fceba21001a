//! What holds for any sequence of commands, and the few answers that the planner's scenarios do
//! not show: retries, older lives of a worker, and what is proposed twice.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{Answer, Effect, MAX_ANSWERED, Refusal};
use crate::command::{Command, OutcomeKind, Stamped, StopWhy};
use crate::ids::{Generation, History, Incarnation, JobName, Step};
use crate::state::{ClusterState, Job, Phase, Placement, World};
use crate::testing::{job, manifest, node, outcome, submission, worker};
use crate::tree::Run;

fn apply(state: &mut ClusterState, command: Command) -> Answer {
    state.apply(Stamped {
        stamp_ms: 0,
        request: None,
        command,
    })
}

fn submit(name: &str) -> Command {
    Command::Submit(submission(name, &[]))
}

/// A world that fits the job as it is, but for what the arguments add.
fn world(job: Option<&Job>, add_generation: u64, add_history: u64, add_step: u64) -> World {
    let history = job.map_or(1, |job| job.history.0 + u64::from(job.has_world()));
    let generation = job.map_or(1, |job| job.generation.0 + 1);
    let step = job.map_or(0, |job| job.committed_step().0);
    World {
        history: History(history.wrapping_add(add_history)),
        generation: Generation(generation.wrapping_add(add_generation)),
        first_step: Step(step.wrapping_add(add_step)),
        ranks: vec![Placement {
            worker: worker("w1"),
            incarnation: Incarnation(1),
            shards: Run::new(0, 8),
        }],
    }
}

fn start(state: &mut ClusterState, name: &str, progressed: bool) -> Answer {
    let world = world(state.jobs.get(&job(name)), 0, 0, 0);
    let command = Command::StartWorld {
        job: job(name),
        world,
        reason: "a test".to_owned(),
        predecessor_progressed: progressed,
    };
    apply(state, command)
}

fn finish(name: &str, generation: u64, kind: OutcomeKind) -> Command {
    Command::Finish {
        job: job(name),
        generation: Generation(generation),
        outcome: outcome(kind, 0),
    }
}

#[test]
fn an_end_told_twice_does_not_end_the_job_that_was_submitted_again() {
    let mut state = ClusterState::default();
    apply(&mut state, submit("a")).unwrap();
    start(&mut state, "a", false).unwrap();
    let end = finish("a", 1, OutcomeKind::Interrupted);
    apply(&mut state, end.clone()).unwrap();
    apply(&mut state, submit("a")).unwrap();
    let refusal = apply(&mut state, end).unwrap_err();
    assert!(matches!(refusal, Refusal::Stale { .. }), "{refusal}");
    assert_eq!(state.jobs[&job("a")].phase, Phase::Queued);
}

#[test]
fn a_world_planned_before_the_job_was_submitted_again_does_not_take_its_history_back() {
    let mut state = ClusterState::default();
    apply(&mut state, submit("a")).unwrap();
    let planned = world(state.jobs.get(&job("a")), 0, 0, 0);
    let stop = Command::Stop {
        job: job("a"),
        why: StopWhy::Cancelled,
    };
    apply(&mut state, stop).unwrap();
    apply(&mut state, submit("a")).unwrap();
    assert_eq!(state.jobs[&job("a")].history, History(2));
    let late = Command::StartWorld {
        job: job("a"),
        world: planned,
        reason: "planned before the stop".to_owned(),
        predecessor_progressed: false,
    };
    apply(&mut state, late).unwrap_err();
    assert_eq!(state.jobs[&job("a")].history, History(2));
}

#[test]
fn an_older_life_of_a_worker_is_refused_and_a_newer_one_replaces_it() {
    let mut state = ClusterState::default();
    let mut register = |incarnation| {
        let command = Command::RegisterWorker {
            worker: worker("w1"),
            node: node(incarnation, 1, "b1"),
        };
        apply(&mut state, command)
    };
    assert_eq!(register(2), Ok(Effect::Registered));
    assert_eq!(register(3), Ok(Effect::Registered));
    let refusal = register(2).unwrap_err().to_string();
    assert!(refusal.contains("--name"), "{refusal}");
}

#[test]
fn checkpoints_beyond_those_to_keep_are_forgotten_oldest_first() {
    let mut state = ClusterState::default();
    apply(&mut state, submit("a")).unwrap();
    start(&mut state, "a", false).unwrap();
    for step in [10, 20, 30] {
        let manifest = manifest(History(1), Generation(1), step);
        let job = job("a");
        apply(&mut state, Command::CommitManifest { job, manifest }).unwrap();
    }
    let kept: Vec<u64> = state.jobs[&job("a")]
        .manifests
        .iter()
        .map(|manifest| manifest.step.0)
        .collect();
    assert_eq!(kept, [20, 30]);
}

#[test]
fn the_oldest_answers_are_forgotten_first() {
    let mut state = ClusterState::default();
    let request = |number: usize| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        id
    };
    for number in 0..=MAX_ANSWERED {
        let stop = Command::Stop {
            job: job("nobody"),
            why: StopWhy::Cancelled,
        };
        let stamped = Stamped {
            stamp_ms: 0,
            request: Some(request(number)),
            command: stop,
        };
        state.apply(stamped).unwrap_err();
    }
    assert_eq!(state.answer_to(request(0)), None);
    assert!(state.answer_to(request(1)).is_some());
    assert!(state.answer_to(request(MAX_ANSWERED)).is_some());
}

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
        0u8..12,
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
        let known = state.jobs.get(&name);
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
                Command::Submit(submission)
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
        for action in actions {
            let _ = state.apply(action.stamped(&state));
        }
        for job in state.jobs.values() {
            let generations: Vec<u64> = job.ledger.iter().map(|entry| entry.generation.0).collect();
            let expected: Vec<u64> = (1..=job.generation.0).collect();
            prop_assert_eq!(generations, expected);
            let histories: BTreeSet<History> = job.ledger.iter().map(|entry| entry.history).collect();
            prop_assert_eq!(histories.len(), job.ledger.len());
            let runs = matches!(job.phase, Phase::Running | Phase::Stopping(_));
            prop_assert_eq!(job.has_world(), runs);
            if let Some(world) = &job.world {
                prop_assert_eq!((world.generation, world.history), (job.generation, job.history));
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
        let answer = state.apply(stamped.clone());
        between.truncate(20);
        for action in between {
            let _ = state.apply(action.stamped(&state));
        }
        let jobs = format!("{:?} {:?}", state.jobs, state.nodes);
        prop_assert_eq!(state.apply(stamped), answer);
        prop_assert_eq!(format!("{:?} {:?}", state.jobs, state.nodes), jobs);
    }
}
