//! What comes after the world that it belongs to is over, and still counts.

use super::*;

#[test]
fn a_rank_that_cannot_go_on_says_so_for_every_world_of_its_history() {
    let (mut bench, ranks) = running();
    let [(a, rank_a), (b, rank_b)] = ranks;
    bench.step(&rank_a, 1);
    bench.say(b, exited(&rank_b, "signal 9"));
    bench.report(a, &rank_a, closed(Some(1), &[1], "rank 1 is gone"));
    let standby = bench.assigned(b).unwrap().key();
    bench.ready(b, &standby);
    assert_eq!(bench.assigned(a).unwrap().generation, 2);
    // It was said before the assignment came.
    let failed = v1::Failed {
        message: "the data has changed".to_owned(),
        ..v1::Failed::default()
    };
    bench.report(a, &rank_a, Report::Failed(failed));
    let view = bench.coordinator.job_view(JOB).unwrap();
    assert_eq!(view.state, "failed");
    assert!(view.reason.contains("the data has changed"), "{view:?}");
}

#[test]
fn the_end_of_a_process_that_no_job_has_is_taken_note_of() {
    let (mut bench, ranks) = running();
    let [(a, rank_a), (b, rank_b)] = ranks;
    bench.step(&rank_a, 1);
    // Its machine is silent; the others go on without it.
    bench.report(a, &rank_a, closed(Some(1), &[1], "lost rank 1"));
    bench.input(Input::WorkerGone { session: b });
    let c = bench.hello("c", 1, Vec::new());
    bench.pass(10_000, &[a, c]);
    let standby = bench.assigned(c).unwrap().key();
    bench.ready(c, &standby);
    assert_eq!(bench.assigned(a).unwrap().generation, 2);
    // It comes back in the same life, and tells of an end that nobody waits for.
    let b = bench.hello("b", 1, Vec::new());
    bench.sent_to(b);
    bench.say(b, exited(&rank_b, "signal 9"));
    assert!(is_ended(&bench.sent_to(b)), "it need not tell it again");
}
