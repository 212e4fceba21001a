//! What a worker does with ranks and streams that come and go.

use super::*;

fn key(generation: u64, rank: u32) -> v1::RankKey {
    v1::RankKey {
        job: "job".to_owned(),
        history: 1,
        generation,
        rank,
    }
}

fn assignment(generation: u64, rank: u32) -> Input {
    let assignment = v1::Assignment {
        job: "job".to_owned(),
        history: 1,
        generation,
        rank,
        ..Default::default()
    };
    Input::FromCoordinator(FromCoordinator::Assignment(assignment))
}

fn report(key: v1::RankKey, report: Report) -> Input {
    Input::FromRank(v1::RankReport {
        key: Some(key),
        report: Some(report),
    })
}

fn exited(key: v1::RankKey) -> v1::RankExited {
    v1::RankExited {
        key: Some(key),
        reason: "signal 9".to_owned(),
        log_tail: String::new(),
    }
}

fn order(key: v1::RankKey, order: Order) -> Input {
    Input::FromCoordinator(FromCoordinator::Order(v1::RankOrder {
        key: Some(key),
        order: Some(order),
    }))
}

fn part(step: u64) -> Report {
    Report::CheckpointPart(v1::CheckpointPart {
        step,
        ..Default::default()
    })
}

/// Handles inputs; returns what the last one led to.
fn last(agent: &mut Agent, inputs: impl IntoIterator<Item = Input>) -> Vec<Output> {
    let mut outputs = Vec::new();
    for input in inputs {
        outputs.clear();
        agent.handle(input, &mut outputs);
    }
    outputs
}

/// A worker that is connected and runs rank 0 of generation 1, which listens.
fn running() -> Agent {
    let mut agent = Agent::new(v1::RegisterWorker {
        worker: "a".to_owned(),
        ..Default::default()
    });
    let ready = Report::Ready(v1::Ready {
        address: "127.0.0.1:4000".to_owned(),
    });
    let inputs = [
        Input::Connected,
        assignment(1, 0),
        Input::Started {
            key: key(1, 0),
            pid: 77,
        },
        Input::RankConnected(key(1, 0)),
        report(key(1, 0), ready),
    ];
    last(&mut agent, inputs);
    agent
}

#[test]
fn a_rank_gets_its_assignment_first_and_the_orders_that_came_meanwhile() {
    let mut agent = Agent::new(v1::RegisterWorker::default());
    let started = last(&mut agent, [Input::Connected, assignment(1, 0)]);
    assert_eq!(started, [Output::Start(key(1, 0))]);
    let early = last(
        &mut agent,
        [order(key(1, 0), Order::Stop(v1::StopOrder {}))],
    );
    assert_eq!(early, []);
    let told = last(&mut agent, [Input::RankConnected(key(1, 0))]);
    let [Output::ToRank(_, first), Output::ToRank(_, second)] = &told[..] else {
        panic!("{told:?}")
    };
    assert!(matches!(first, v1::to_rank::Message::Assignment(_)));
    assert!(matches!(second, v1::to_rank::Message::Order(_)));
}

#[test]
fn a_new_stream_hears_again_what_an_old_one_may_have_lost() {
    let mut agent = running();
    let (one, two) = (part(1), part(2));
    let done = Report::Done(v1::Done {
        step: 2,
        ..Default::default()
    });
    last(
        &mut agent,
        [report(key(1, 0), one), report(key(1, 0), two.clone())],
    );
    let committed = v1::CheckpointCommitted {
        step: 1,
        keep: Vec::new(),
    };
    last(
        &mut agent,
        [
            order(key(1, 0), Order::Committed(committed)),
            Input::Disconnected,
        ],
    );
    assert_eq!(
        last(&mut agent, [report(key(1, 0), done.clone())]),
        [],
        "nobody listens"
    );
    let again = last(&mut agent, [Input::Connected]);
    let Output::ToCoordinator(ToCoordinator::Hello(hello)) = &again[0] else {
        panic!("{again:?}")
    };
    assert_eq!(hello.ranks[0].address, "127.0.0.1:4000");
    assert_eq!(hello.ranks[0].pid, 77);
    let reports: Vec<_> = again[1..]
        .iter()
        .map(|output| match output {
            Output::ToCoordinator(ToCoordinator::Report(report)) => report.report.clone().unwrap(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(reports, [two, done]);
}

#[test]
fn an_assignment_that_comes_again_starts_nothing_even_after_the_rank_ended() {
    let mut agent = running();
    assert_eq!(last(&mut agent, [assignment(1, 0)]), []);
    let ended = last(&mut agent, [Input::Exited(exited(key(1, 0)))]);
    assert_eq!(
        ended,
        [Output::ToCoordinator(ToCoordinator::Exited(exited(key(
            1, 0
        ))))]
    );
    assert_eq!(last(&mut agent, [assignment(1, 0)]), []);
    let again = last(&mut agent, [Input::Disconnected, Input::Connected]);
    assert_eq!(
        again.last(),
        Some(&Output::ToCoordinator(ToCoordinator::Exited(exited(key(
            1, 0
        )))))
    );
    // A newer world makes it old news.
    assert_eq!(
        last(&mut agent, [assignment(2, 0)]),
        [Output::Start(key(2, 0))]
    );
    let again = last(&mut agent, [Input::Disconnected, Input::Connected]);
    assert_eq!(again.len(), 1, "{again:?}");
}

#[test]
fn a_newer_world_and_a_revocation_end_older_ranks_and_nobody_hears_of_it() {
    let mut agent = running();
    let started = last(&mut agent, [assignment(2, 1)]);
    assert_eq!(started, [Output::Kill(key(1, 0)), Output::Start(key(2, 1))]);
    assert_eq!(last(&mut agent, [Input::Exited(exited(key(1, 0)))]), []);
    let other = v1::Revoke {
        job: "other".to_owned(),
        generation: 9,
    };
    assert_eq!(
        last(
            &mut agent,
            [Input::FromCoordinator(FromCoordinator::Revoke(other))]
        ),
        []
    );
    let revoke = v1::Revoke {
        job: "job".to_owned(),
        generation: 2,
    };
    assert_eq!(
        last(
            &mut agent,
            [Input::FromCoordinator(FromCoordinator::Revoke(revoke))]
        ),
        [Output::Kill(key(2, 1))]
    );
    assert_eq!(
        last(&mut agent, [assignment(1, 0)]),
        [],
        "an older world is not started"
    );
    last(&mut agent, [Input::Exited(exited(key(2, 1)))]);
    for generation in [1, 2] {
        let before = agent.num_refused();
        assert_eq!(
            last(&mut agent, [assignment(generation, 0)]),
            [],
            "nor when all have ended"
        );
        assert_eq!(agent.num_refused(), before + 1);
    }
    assert_eq!(
        last(&mut agent, [assignment(3, 0)]),
        [Output::Start(key(3, 0))]
    );
}

#[test]
fn messages_of_ranks_that_are_not_here_are_counted_and_passed_to_nobody() {
    let mut agent = running();
    let strangers = [
        report(key(7, 0), part(1)),
        report(
            v1::RankKey {
                history: 9,
                ..key(1, 0)
            },
            part(1),
        ),
        Input::FromRank(v1::RankReport {
            key: None,
            report: Some(part(1)),
        }),
        order(key(7, 0), Order::Stop(v1::StopOrder {})),
        Input::Exited(exited(key(7, 0))),
    ];
    let before = agent.num_refused();
    for stranger in strangers {
        assert_eq!(last(&mut agent, [stranger]), []);
    }
    assert_eq!(agent.num_refused() - before, 5);
}

#[test]
fn a_dismissed_rank_ends_without_a_report_and_a_shutdown_ends_all() {
    let mut agent = running();
    last(
        &mut agent,
        [order(key(1, 0), Order::Dismiss(v1::Dismiss {}))],
    );
    assert_eq!(last(&mut agent, [Input::Exited(exited(key(1, 0)))]), []);
    assert_eq!(agent.running().count(), 0);
    let mut agent = running();
    let ended = last(&mut agent, [Input::Shutdown]);
    assert_eq!(ended, [Output::Kill(key(1, 0))]);
    let told = last(&mut agent, [Input::Exited(exited(key(1, 0)))]);
    assert_eq!(
        told,
        [Output::ToCoordinator(ToCoordinator::Exited(exited(key(
            1, 0
        ))))]
    );
}
