//! Ranks that have different results of one shard: what becomes of the worker that is wrong, and of a
//! job of which nobody can tell.

use super::*;

/// A rank closed its world, since `suspect` computes wrongly.
fn accuses(suspect: u32, holds: &[v1::Shards]) -> Report {
    let reason = format!("what rank {suspect} computes is not what the others do");
    let Report::Closed(mut said) = closed(Some(1), &[], &reason) else {
        unreachable!("that is what it is")
    };
    said.suspects = vec![suspect];
    if let Some(holdings) = &mut said.holdings {
        holdings.shards = holds.to_vec();
    }
    Report::Closed(said)
}

fn distrusted(bench: &Bench) -> Vec<(String, String)> {
    let view = bench.coordinator.job_view(JOB).unwrap();
    let views = view.distrusted.into_iter();
    views.map(|one| (one.worker, one.reason)).collect()
}

#[test]
fn a_worker_that_computes_wrongly_is_told_of_once_and_used_no_more_by_any_leader() {
    let (mut bench, [(a, rank_a), (b, rank_b)]) = running();
    bench.step(&rank_a, 1);
    let (first, second) = (
        v1::Shards { start: 0, end: 4 },
        v1::Shards { start: 4, end: 8 },
    );
    bench.report(a, &rank_a, accuses(1, &[first]));
    // The one who is wrong has seen the same hashes, and says the same of itself.
    bench.report(b, &rank_b, accuses(1, &[second]));
    let expected = [(
        "b".to_owned(),
        "rank 0: what rank 1 computes is not what the others do".to_owned(),
    )];
    assert_eq!(distrusted(&bench), expected);
    let is_distrust = |kind: &&String| *kind == "distrusted";
    assert_eq!(bench.story().iter().filter(is_distrust).count(), 1);
    let why = bench.coordinator.job_view(JOB).unwrap().reason;
    assert!(why.contains("1 of at least 2 are there"), "{why}");
    // The device of b is free once its rank is ended, and still the next process is another worker's.
    bench.say(b, exited(&rank_b, "signal 9"));
    bench.sent_to(b);
    let c = bench.hello("c", 1, Vec::new());
    bench.pass(50, &[a, b, c]);
    assert!(bench.assigned(c).is_some());
    assert!(bench.assigned(b).is_none());

    let mut bench = bench.restart();
    assert_eq!(distrusted(&bench), expected, "the log has it");
    assert_eq!(bench.story().iter().filter(is_distrust).count(), 1);
    // A new submission trusts all again.
    let why = StopWhy::Cancelled;
    let job = muster_cluster::ids::JobName::new(JOB).unwrap();
    bench.request(2, Command::Stop { job, why });
    let a = bench.hello("a", 2, Vec::new());
    let b = bench.hello("b", 2, Vec::new());
    bench.pass(50, &[a, b]);
    let state = bench.coordinator.job_view(JOB).unwrap().state;
    assert_eq!(state, "cancelled", "both came back as new processes");
    bench.request(3, submit());
    assert_eq!(distrusted(&bench), []);
    bench.pass(3_000, &[a, b]);
    assert!(bench.assigned(b).is_some());
}

#[test]
fn where_nobody_can_tell_who_is_wrong_the_job_ends_and_names_the_workers_of_both() {
    let (mut bench, [(a, rank_a), _]) = running();
    bench.step(&rank_a, 1);
    let failed = v1::Failed {
        message: "two ranks have different results".to_owned(),
        ranks: vec![0, 1, 7],
    };
    bench.report(a, &rank_a, Report::Failed(failed));
    let view = bench.coordinator.job_view(JOB).unwrap();
    assert_eq!(view.state, "failed");
    assert_eq!(
        view.reason,
        "rank 0: two ranks have different results (rank 0 on a, rank 1 on b)"
    );
    assert_eq!(distrusted(&bench), []);
}
