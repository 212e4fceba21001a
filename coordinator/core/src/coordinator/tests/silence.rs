//! Silence proves no death, of a worker or of the coordinator's own making.

use super::*;

#[test]
fn a_silent_worker_is_left_out_only_when_a_peer_closed_the_world() {
    let (mut bench, ranks) = running();
    let [(a, rank_a), _] = ranks;
    bench.pass(20_000, &[a]);
    assert!(!bench.story().contains(&"finished".to_owned()));
    assert_eq!(
        bench.coordinator.job_view(JOB).unwrap().generation,
        1,
        "silence proves nothing"
    );
    let reason = "lost rank 1: nothing came from it for too long";
    bench.report(a, &rank_a, closed(Some(4), &[1], reason));
    let wait = bench.coordinator.job_view(JOB).unwrap().reason;
    assert!(wait.contains("1 of at least 2 are there"), "{wait}");
    // Its worker comes back as a new process, and a new rank takes the state over.
    let b = bench.hello("b", 2, Vec::new());
    bench.pass(3_000, &[a, b]);
    let standby = bench.assigned(b).unwrap();
    assert_eq!(standby.generation, 0);
    bench.ready(b, &standby.key());
    let assigned = bench.assigned(b).unwrap();
    assert_eq!((assigned.generation, assigned.first_step), (2, 4));
    // No exit was seen, and yet people are told that it is lost: once, not again by the next leader.
    let lost = |bench: &Bench| -> Vec<(u32, String)> {
        let events = bench.events.iter();
        let lost = events.filter_map(|event| match &event.what {
            What::Lost { rank, worker, .. } => Some((*rank, worker.clone())),
            _ => None,
        });
        lost.collect()
    };
    assert_eq!(lost(&bench), [(1, "b".to_owned())]);
    assert_eq!(lost(&bench.restart()).len(), 1);
}

#[test]
fn a_coordinator_that_was_held_up_blames_nobody() {
    let (mut bench, ranks) = running();
    let [(a, rank_a), (b, rank_b)] = ranks;
    bench.now.monotonic_ms += 60_000;
    bench.input(Input::Tick);
    bench.report(a, &rank_a, closed(Some(4), &[1], "lost rank 1"));
    bench.pass(500, &[a]);
    let view = bench.coordinator.job_view(JOB).unwrap();
    assert!(
        view.reason.contains("waits for what rank 1 on b holds"),
        "{view:?}"
    );
    // It is heard again in time, and all go on.
    bench.report(b, &rank_b, closed(Some(4), &[0], "lost rank 0"));
    let assigned = bench.assigned(b).unwrap();
    assert_eq!((assigned.generation, assigned.process), (2, 2));
}
