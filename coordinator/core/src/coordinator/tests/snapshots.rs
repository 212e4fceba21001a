//! Snapshots: all that the log leads to comes back from the bytes, also from those of a file that was
//! recorded when the format was new (`UPDATE_EXPECT=1` records it again).

use muster_cluster::command::Submission;
use muster_cluster::ids::Step;

use super::*;
use crate::Snapshot;

/// A cluster in which much has happened.
fn eventful() -> Bench {
    let (mut bench, ranks) = running();
    bench.step(&ranks[0].1, 1);
    bench.step(&ranks[0].1, 2);
    bench.checkpoint(&ranks, 2);
    bench.step(&ranks[0].1, 3);
    all_die(&mut bench, &ranks);
    let drain = Command::Drain {
        worker: worker("b"),
        drains: true,
    };
    bench.request(7, drain);
    let unknown = Command::Stop {
        job: JobName::new("nobody").unwrap(),
        why: StopWhy::Cancelled,
    };
    bench.request(8, unknown);
    bench.request(9, submit_as("over"));
    bench.request(10, cancel("over"));
    bench
}

fn submit_as(name: &str) -> Command {
    let Command::Submit { submission, .. } = submit() else {
        unreachable!("it submits");
    };
    let draft = submission.draft.replace(JOB, name);
    Command::submit(Submission {
        draft,
        ..submission
    })
}

fn cancel(job: &str) -> Command {
    Command::Stop {
        job: JobName::new(job).unwrap(),
        why: StopWhy::Cancelled,
    }
}

fn snapshot_of(bench: &Bench) -> Snapshot {
    Snapshot::decode(&bench.coordinator.snapshot().encode()).unwrap()
}

fn worker(name: &str) -> WorkerName {
    WorkerName::new(name).unwrap()
}

#[test]
fn a_snapshot_comes_back_as_it_was() {
    let bench = eventful();
    let bytes = bench.coordinator.snapshot().encode();
    let back = Snapshot::decode(&bytes).unwrap();
    assert_eq!(back.encode(), bytes);
    assert_eq!(
        format!("{:?}", back.state.jobs),
        format!("{:?}", bench.coordinator.state().jobs)
    );
    let over = JobName::new("over").unwrap();
    assert_eq!(
        format!("{:?}", back.archive.get(&over).unwrap().unwrap()),
        format!("{:?}", bench.coordinator.known(&over).unwrap())
    );
    let refused = back.state.answer_to([8; 16]).unwrap().unwrap_err();
    assert!(refused.to_string().contains("no job is named \"nobody\""));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "it reads and records a file")]
fn a_recorded_snapshot_is_still_read() {
    let folder = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let newest = folder.join("snapshot-2.bin");
        std::fs::write(newest, eventful().coordinator.snapshot().encode()).unwrap();
    }
    // The first version had the jobs that are over among the others, and no specs.
    for file in ["snapshot-1.bin", "snapshot-2.bin"] {
        let recorded = Snapshot::decode(&std::fs::read(folder.join(file)).unwrap()).unwrap();
        let name = JobName::new(JOB).unwrap();
        let job = &recorded.state.jobs[&name];
        assert_eq!((job.generation.0, job.committed_step().0), (2, 2));
        assert_eq!(
            (job.spec.workers.min, job.spec.train.logical_shards),
            (2, 8)
        );
        assert_eq!(recorded.accounts[&name].progress().step, 2);
        assert!(recorded.state.draining.contains(&worker("b")));
        assert_eq!(recorded.members().iter().count(), 1);
        let again = Snapshot::decode(&recorded.encode()).unwrap();
        assert_eq!(
            format!("{:?}", again.state.jobs),
            format!("{:?}", recorded.state.jobs)
        );
    }
}

#[test]
fn a_job_that_is_over_is_shown_and_goes_on_as_if_it_had_stayed() {
    let mut bench = Bench::new();
    bench.request(1, submit());
    bench.request(2, cancel(JOB));
    let name = JobName::new(JOB).unwrap();
    assert!(bench.coordinator.state().jobs.is_empty());
    let view = bench.coordinator.job_view(JOB).unwrap();
    assert_eq!((view.state.as_str(), view.history), ("cancelled", 1));
    assert_eq!(bench.coordinator.job_names(), [&name].into());
    assert_eq!(bench.coordinator.ledger(JOB).unwrap().history, 1);
    assert_eq!(snapshot_of(&bench).event_bytes().count(), 1);

    let Reply::Applied {
        answer: Err(refusal),
        ..
    } = bench.request(3, cancel(JOB))
    else {
        panic!("it has ended");
    };
    assert!(refusal.to_string().contains("cancelled"), "{refusal}");
    let Reply::Applied {
        answer: Ok(answer),
        first_event,
    } = bench.request(4, submit())
    else {
        panic!("it goes on");
    };
    let from = Step(0);
    let job = name.clone();
    assert_eq!(answer, Effect::Queued { job, from });
    assert_eq!(bench.coordinator.state().jobs[&name].num_submissions, 2);
    // Submitted, cancelled, and submitted again.
    assert_eq!(first_event, 2);
}

#[test]
fn an_entry_without_a_spec_leads_to_the_same_state() {
    let Command::Submit { submission, .. } = submit() else {
        unreachable!("it submits");
    };
    let spec = Some(Box::new(submission.check().unwrap()));
    let understood = Command::Submit { submission, spec };
    let state_behind = |submission: Command, last: Command| {
        let command = |command| {
            LogEntry::Command(Stamped {
                stamp_ms: 5,
                request: None,
                command,
            })
        };
        let bench = Bench::behind(vec![command(submission), command(last)]);
        assert!(bench.coordinator.job(&JobName::new(JOB).unwrap()).is_some());
        bench.coordinator.snapshot().encode()
    };
    for last in [cancel("nobody"), cancel(JOB)] {
        let before = state_behind(submit(), last.clone());
        assert_eq!(before, state_behind(understood.clone(), last));
    }
}

#[test]
fn a_coordinator_goes_on_from_a_snapshot_as_from_the_log() {
    let bench = eventful();
    let view = bench.coordinator.job_view(JOB).unwrap();
    let taken = bench.coordinator.taken();
    let recovered = Recovered {
        hard_state: muster_consensus::HardState {
            term: taken.mark.term,
            vote: 1,
            commit: taken.mark.index,
        },
        start: taken.mark,
        entries: Vec::new(),
    };
    let snapshot = Snapshot::decode(&taken.snapshot.encode()).unwrap();
    let options = bench.coordinator.options().clone();
    let coordinator =
        Coordinator::new(options, recovered, Some(snapshot), &mut Vec::new()).unwrap();
    let again = coordinator.job_view(JOB).unwrap();
    let replicated = |view: v1::JobView| {
        (
            view.state,
            view.step,
            view.manifests,
            view.ledger,
            view.loss,
            view.history,
        )
    };
    assert_eq!(replicated(again), replicated(view));
}
