//! What comes after the world that it belongs to is over, and still counts; and worlds that never
//! begin, or do not answer.

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

#[test]
fn a_job_whose_ranks_are_not_prepared_stops_at_once() {
    let mut bench = Bench::new();
    let a = bench.hello("a", 1, Vec::new());
    let b = bench.hello("b", 1, Vec::new());
    bench.request(1, submit());
    bench.pass(3_000, &[a, b]);
    let [rank_a, rank_b] = [a, b].map(|session| bench.assigned(session).unwrap().key());
    for (session, key) in [(a, &rank_a), (b, &rank_b)] {
        let started = v1::RankStarted {
            key: Some(key.clone()),
            pid: pid_of(key),
        };
        bench.say(session, From::Started(started));
    }
    bench.ready(a, &rank_a);
    let stop = Command::Stop {
        job: JobName::new(JOB).unwrap(),
        why: StopWhy::Cancelled,
    };
    bench.request(2, stop);
    assert_eq!(bench.coordinator.job_view(JOB).unwrap().state, "cancelled");
    assert!(is_ended(&bench.sent_to(a)) && is_ended(&bench.sent_to(b)));
}

#[test]
fn a_rank_that_does_not_answer_is_killed_where_the_others_are_too_few() {
    let (mut bench, ranks) = running();
    let [(a, rank_a), (b, rank_b)] = ranks;
    bench.step(&rank_a, 1);
    bench.sent_to(b);
    bench.report(a, &rank_a, closed(Some(1), &[1], "lost rank 1"));
    assert!(!is_ended(&bench.sent_to(b)), "it may answer yet");
    bench.pass(2_500, &[a, b]);
    let ends = bench
        .sent_to(b)
        .into_iter()
        .filter_map(|message| match message {
            To::End(end) => Some((end.process, end.is_awaited)),
            _ => None,
        });
    assert_eq!(ends.collect::<Vec<_>>(), [(rank_b.process, true)]);
    bench.say(b, exited(&rank_b, "signal 9"));
    let standby = bench.assigned(b).unwrap();
    assert_eq!(standby.generation, 0, "another one is started in its place");
    bench.ready(b, &standby.key());
    assert_eq!(bench.assigned(b).unwrap().generation, 2);
}
