//! What holds for any sequence of commands, and the few answers that the planner's scenarios do
//! not show: retries, older lives of a worker, and what is proposed twice.

mod properties;

use std::sync::Arc;

use super::{Answer, Effect, Refusal};
use crate::command::{Command, OutcomeKind, Stamped, StopWhy};
use crate::ids::{Generation, History, Incarnation, JobName, ProcessId, Step};
use crate::state::{ClusterState, Finish, Job, Part, Phase, Placement, Poison, Seat, World};
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
    Command::submit(submission(name, &[]))
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
            process: job.map_or(ProcessId(1), |job| job.newest_process.next()),
            worker: worker("w1"),
            incarnation: Incarnation(1),
            device: crate::Device::Cpu,
            shards: Run::new(0, 8),
        }],
        finish: None,
        shares: Vec::new(),
    }
}

fn known<'a>(state: &'a ClusterState, name: &str) -> Option<&'a Job> {
    state.jobs.get(&job(name)).map(Arc::as_ref)
}

fn start(state: &mut ClusterState, name: &str, progressed: bool) -> Answer {
    let world = world(known(state, name), 0, 0, 0);
    apply(state, start_world(name, world, progressed))
}

fn start_world(name: &str, world: World, progressed: bool) -> Command {
    Command::StartWorld {
        job: job(name),
        world,
        reason: "a test".to_owned(),
        predecessor_progressed: progressed,
        poison: None,
    }
}

/// A world of these processes that heals the job's.
fn healing(job: &Job, processes: &[u64]) -> World {
    let rank = |process: &u64| Placement {
        process: ProcessId(*process),
        worker: worker("w1"),
        incarnation: Incarnation(1),
        device: crate::Device::Cpu,
        shards: Run::new(0, 8),
    };
    World {
        history: job.history,
        generation: job.generation.next(),
        first_step: Step(7),
        ranks: processes.iter().map(rank).collect(),
        finish: Some(Finish {
            evaluated: false,
            parts: vec![Part::default(); processes.len()],
            moves: Vec::new(),
            gather: false,
        }),
        shares: Vec::new(),
    }
}

fn start_standby(state: &mut ClusterState, name: &str, process: u64) -> Answer {
    let command = Command::StartStandby {
        job: job(name),
        process: ProcessId(process),
        seat: Seat {
            worker: worker("w1"),
            incarnation: Incarnation(1),
            device: crate::Device::Cpu,
        },
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
    let planned = world(known(&state, "a"), 0, 0, 0);
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
        poison: None,
    };
    apply(&mut state, late).unwrap_err();
    assert_eq!(state.jobs[&job("a")].history, History(2));
}

#[test]
fn a_world_is_healed_by_its_ranks_and_the_processes_that_waited_and_by_nobody_else() {
    let mut state = ClusterState::default();
    apply(&mut state, submit("a")).unwrap();
    start_standby(&mut state, "a", 1).unwrap_err();
    start(&mut state, "a", false).unwrap();
    start_standby(&mut state, "a", 3).unwrap_err();
    start_standby(&mut state, "a", 2).unwrap();
    start_standby(&mut state, "a", 3).unwrap();
    assert_eq!(state.busy_slots()[&worker("w1")], 3);

    let fits = healing(&state.jobs[&job("a")], &[1, 2]);
    let mut refused = Vec::new();
    for wrong in [&[1, 4][..], &[1, 1], &[2, 1, 2]] {
        refused.push(healing(&state.jobs[&job("a")], wrong));
    }
    let mut partless = fits.clone();
    partless.finish = Some(Finish {
        evaluated: false,
        parts: Vec::new(),
        moves: Vec::new(),
        gather: false,
    });
    let mut stale = fits.clone();
    stale.generation = Generation(1);
    let mut fallen_back = fits.clone();
    fallen_back.history = History(2);
    refused.extend([partless, stale, fallen_back]);
    for world in refused {
        apply(&mut state, start_world("a", world, true)).unwrap_err();
    }

    apply(&mut state, start_world("a", fits, true)).unwrap();
    let known = &state.jobs[&job("a")];
    let waiting: Vec<_> = known.standbys.keys().collect();
    assert_eq!(waiting, [&ProcessId(3)], "who entered waits no more");
    assert_eq!(known.newest_process, ProcessId(3));
    assert_eq!(
        (known.history, known.generation),
        (History(1), Generation(2))
    );

    let planned = healing(known, &[1, 3]);
    let end = Command::EndStandby {
        job: job("a"),
        process: ProcessId(3),
        reason: "signal 9".to_owned(),
    };
    apply(&mut state, end).unwrap();
    apply(&mut state, start_world("a", planned, true)).unwrap_err();
}

#[test]
fn a_fallback_forgets_who_waited_and_keeps_what_is_known_of_a_shard_that_kills() {
    let mut state = ClusterState::default();
    apply(&mut state, submit("a")).unwrap();
    start(&mut state, "a", false).unwrap();
    start_standby(&mut state, "a", 2).unwrap();
    let poison = Poison {
        step: Step(9),
        shards: vec![Run::new(3, 4)],
        num_worlds: 2,
    };
    let command = Command::StartWorld {
        job: job("a"),
        world: world(known(&state, "a"), 0, 0, 0),
        reason: "a test".to_owned(),
        predecessor_progressed: true,
        poison: Some(poison.clone()),
    };
    apply(&mut state, command).unwrap();
    let known = &state.jobs[&job("a")];
    assert!(known.standbys.is_empty());
    assert_eq!(known.poison, Some(poison));
}

#[test]
fn worlds_without_a_step_are_counted_unless_a_lost_rank_explains_it() {
    let mut state = ClusterState::default();
    apply(&mut state, submit("a")).unwrap();
    start(&mut state, "a", false).unwrap();
    start_standby(&mut state, "a", 2).unwrap();
    let mut counts = Vec::new();
    for (processes, progressed) in [
        (&[1, 2][..], false),
        (&[1, 2], false),
        (&[2], false),
        (&[2], false),
        (&[2], true),
    ] {
        let world = healing(&state.jobs[&job("a")], processes);
        apply(&mut state, start_world("a", world, progressed)).unwrap();
        counts.push(state.jobs[&job("a")].num_fruitless_worlds);
    }
    assert_eq!(counts, [1, 2, 2, 3, 0]);
}

#[test]
fn a_job_is_scaled_between_its_fewest_ranks_and_its_shards() {
    let mut state = ClusterState::default();
    let set = ["workers.min=2", "workers.max=4"];
    apply(&mut state, Command::submit(submission("a", &set))).unwrap();
    let mut scale = |max| apply(&mut state, Command::Scale { job: job("a"), max });
    assert!(matches!(
        scale(1),
        Err(Refusal::BadScale {
            min: 2,
            shards: 8,
            ..
        })
    ));
    assert!(matches!(scale(9), Err(Refusal::BadScale { .. })));
    assert_eq!(
        scale(8),
        Ok(Effect::Scaled {
            job: job("a"),
            max: 8
        })
    );
    assert_eq!(state.jobs[&job("a")].spec.workers.max, 8);
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
fn a_damaged_checkpoint_counts_no_more_unless_it_is_the_only_one() {
    let mut state = ClusterState::default();
    apply(&mut state, submit("a")).unwrap();
    start(&mut state, "a", false).unwrap();
    for step in [10, 20] {
        let manifest = manifest(History(1), Generation(1), step);
        let job = job("a");
        apply(&mut state, Command::CommitManifest { job, manifest }).unwrap();
    }
    let reject = |step| Command::RejectManifest {
        job: job("a"),
        history: History(1),
        step: Step(step),
        reason: "params is cut short".to_owned(),
    };
    apply(&mut state, reject(20)).unwrap();
    assert_eq!(state.jobs[&job("a")].committed_step(), Step(10));
    // Said once more it changes nothing, and the last one stays.
    apply(&mut state, reject(20)).unwrap();
    let refusal = apply(&mut state, reject(10)).unwrap_err();
    assert!(
        matches!(refusal, Refusal::OnlyCheckpoint { step: Step(10), .. }),
        "{refusal}"
    );
    assert_eq!(state.jobs[&job("a")].committed_step(), Step(10));
}
