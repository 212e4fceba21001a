//! Snapshots: all that the log leads to comes back from the bytes, also from those of a file that was
//! recorded when the format was new (`UPDATE_EXPECT=1` records it again).

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
        why: muster_cluster::command::StopWhy::Cancelled,
    };
    bench.request(8, unknown);
    bench
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
    let refused = back.state.answer_to([8; 16]).unwrap().unwrap_err();
    assert!(refused.to_string().contains("no job is named \"nobody\""));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "it reads and records a file")]
fn a_recorded_snapshot_is_still_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/snapshot-1.bin");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata")).unwrap();
        std::fs::write(path, eventful().coordinator.snapshot().encode()).unwrap();
    }
    let recorded = Snapshot::decode(&std::fs::read(path).unwrap()).unwrap();
    let job = &recorded.state.jobs[&JobName::new(JOB).unwrap()];
    assert_eq!((job.generation.0, job.committed_step().0), (2, 2));
    assert_eq!(
        recorded.accounts[&JobName::new(JOB).unwrap()]
            .progress()
            .step,
        2
    );
    assert!(recorded.state.draining.contains(&worker("b")));
    assert_eq!(recorded.members().iter().count(), 1);
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
