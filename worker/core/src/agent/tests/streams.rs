//! What a worker makes of the end of a stream, and what a new one hears again.

use super::*;

#[test]
fn a_stream_that_another_one_replaced_ends_without_the_worker() {
    let mut agent = running(key(1, 0));
    let refused = |superseded| {
        let reason = "why".to_owned();
        Input::FromCoordinator(FromCoordinator::Refused(v1::Refused { reason, superseded }))
    };
    assert_eq!(last(&mut agent, [refused(true)]), []);
    assert_eq!(
        last(&mut agent, [refused(false)]),
        [Output::Refused("why".to_owned())]
    );
}

#[test]
fn a_new_stream_hears_again_that_a_world_closed_until_the_process_enters_another() {
    let mut agent = running(key(1, 2));
    let said = closed();
    // What changes nothing takes the place of nothing.
    let mentioned = Report::CheckpointUnwritten(v1::CheckpointUnwritten::default());
    let reports = [&said, &mentioned].map(|said| report(key(1, 2), said.clone()));
    let inputs = [Input::Disconnected].into_iter().chain(reports);
    assert_eq!(last(&mut agent, inputs), [], "nobody listens");
    for _ in 0..2 {
        let (ranks, rest) = heard_anew(&mut agent);
        assert_eq!(ranks, [runs(key(1, 2), "127.0.0.1:4000")]);
        assert_eq!(rest, [reported(key(1, 2), said.clone())]);
    }
    last(&mut agent, [assignment(key(2, 0))]);
    assert_eq!(heard_anew(&mut agent).1, []);
}

#[test]
fn a_new_stream_does_not_hear_what_a_dead_process_held() {
    let mut agent = running(key(1, 2));
    let inputs = [report(key(1, 2), closed()), exited(key(1, 2))];
    last(&mut agent, inputs);
    assert_eq!(heard_anew(&mut agent), (vec![], vec![told_exit(key(1, 2))]));
}

#[test]
fn what_an_older_world_reports_is_passed_on_and_changes_nothing() {
    let mut agent = running(key(1, 2));
    last(&mut agent, [assignment(key(2, 0))]);
    for late in [
        closed(),
        done(4),
        Report::CheckpointDamaged(v1::CheckpointDamaged::default()),
    ] {
        assert_eq!(
            last(&mut agent, [report(key(1, 2), late.clone())]),
            [reported(key(1, 2), late)]
        );
    }
    assert_eq!(heard_anew(&mut agent).1, []);
    // It takes part in no later world either.
    let failed = Report::Failed(v1::Failed::default());
    last(&mut agent, [report(key(1, 2), failed.clone())]);
    last(&mut agent, [assignment(key(3, 0))]);
    assert_eq!(heard_anew(&mut agent).1, [reported(key(3, 0), failed)]);
}

#[test]
fn an_address_counts_whichever_world_it_was_told_in() {
    let mut agent = running(key(0, 0));
    let late = report(key(0, 0), ready("127.0.0.1:4001"));
    last(&mut agent, [assignment(key(2, 0)), late]);
    let (ranks, _) = heard_anew(&mut agent);
    assert_eq!(ranks, [runs(key(2, 0), "127.0.0.1:4001")]);
}

#[test]
fn a_new_stream_hears_again_what_an_old_one_may_have_lost() {
    let mut agent = running(key(1, 0));
    let inputs = [
        report(key(1, 0), part(1)),
        report(key(1, 0), part(2)),
        report(key(1, 0), part(2)),
        order(key(1, 0), committed(1)),
        Input::Disconnected,
    ];
    last(&mut agent, inputs);
    assert_eq!(
        last(&mut agent, [report(key(1, 0), done(2))]),
        [],
        "nobody listens"
    );
    let (ranks, rest) = heard_anew(&mut agent);
    assert_eq!(ranks, [runs(key(1, 0), "127.0.0.1:4000")]);
    assert_eq!(
        rest,
        [reported(key(1, 0), part(2)), reported(key(1, 0), done(2))]
    );
}

#[test]
fn parts_of_a_checkpoint_survive_a_world_but_not_a_history() {
    let mut agent = running(key(1, 2));
    let late = report(key(1, 2), part(8));
    last(
        &mut agent,
        [
            report(key(1, 2), part(4)),
            assignment(key(2, 0)),
            late.clone(),
        ],
    );
    let (_, rest) = heard_anew(&mut agent);
    assert_eq!(
        rest,
        [reported(key(2, 0), part(4)), reported(key(2, 0), part(8))]
    );
    // The order is for the history, so it may name the older world.
    last(&mut agent, [order(key(1, 2), committed(4))]);
    let (_, rest) = heard_anew(&mut agent);
    assert_eq!(rest, [reported(key(2, 0), part(8))]);
    let fallen_back = in_history(2, key(3, 0));
    last(&mut agent, [assignment(fallen_back), late]);
    assert_eq!(heard_anew(&mut agent).1, []);
}
