//! What a worker does with processes, worlds and streams that come and go.

mod adoption;
mod streams;

use super::*;

/// Process 7 as a rank of a world.
fn key(generation: u64, rank: u32) -> v1::RankKey {
    v1::RankKey {
        job: "job".to_owned(),
        history: 1,
        generation,
        rank,
        process: 7,
    }
}

fn of(process: u64, key: v1::RankKey) -> v1::RankKey {
    v1::RankKey { process, ..key }
}

fn in_history(history: u64, key: v1::RankKey) -> v1::RankKey {
    v1::RankKey { history, ..key }
}

fn assignment_of(key: v1::RankKey) -> v1::Assignment {
    v1::Assignment {
        job: key.job,
        history: key.history,
        generation: key.generation,
        rank: key.rank,
        process: key.process,
        ..Default::default()
    }
}

fn assignment(key: v1::RankKey) -> Input {
    Input::FromCoordinator(FromCoordinator::Assignment(assignment_of(key)))
}

/// What the process hears of it.
fn assigned(key: v1::RankKey) -> Output {
    let assignment = assignment_of(key.clone());
    Output::ToRank(key, ToRank::Assignment(assignment))
}

fn order_of(key: v1::RankKey, order: Order) -> v1::RankOrder {
    v1::RankOrder {
        key: Some(key),
        order: Some(order),
    }
}

fn order(key: v1::RankKey, order: Order) -> Input {
    Input::FromCoordinator(FromCoordinator::Order(order_of(key, order)))
}

fn close() -> Order {
    Order::Close(v1::Close {
        reason: "rank 1 is lost".to_owned(),
    })
}

fn stop() -> Order {
    Order::Stop(v1::StopOrder {})
}

fn committed(step: u64) -> Order {
    Order::Committed(v1::CheckpointCommitted {
        step,
        keep: Vec::new(),
    })
}

fn dismiss() -> Order {
    Order::Dismiss(v1::Dismiss {})
}

fn end(process: u64) -> Input {
    Input::FromCoordinator(FromCoordinator::End(v1::EndProcess {
        is_awaited: false,
        job: "job".to_owned(),
        process,
    }))
}

fn report_of(key: v1::RankKey, report: Report) -> v1::RankReport {
    v1::RankReport {
        key: Some(key),
        report: Some(report),
    }
}

fn report(key: v1::RankKey, report: Report) -> Input {
    Input::FromRank(report_of(key, report))
}

/// What the coordinator hears of it.
fn reported(key: v1::RankKey, report: Report) -> Output {
    Output::ToCoordinator(ToCoordinator::Report(report_of(key, report)))
}

fn ready(address: &str) -> Report {
    Report::Ready(v1::Ready {
        address: address.to_owned(),
        feed: address.to_owned(),
    })
}

fn closed() -> Report {
    Report::Closed(v1::Closed {
        lost: vec![1],
        ..Default::default()
    })
}

fn part(step: u64) -> Report {
    Report::CheckpointPart(v1::CheckpointPart {
        step,
        ..Default::default()
    })
}

fn done(step: u64) -> Report {
    Report::Done(v1::Done {
        step,
        ..Default::default()
    })
}

fn started(key: v1::RankKey) -> Input {
    Input::Started { key, pid: 77 }
}

fn exit_of(key: v1::RankKey) -> v1::RankExited {
    v1::RankExited {
        key: Some(key),
        reason: "signal 9".to_owned(),
        log_tail: "bye".to_owned(),
    }
}

fn exited(key: v1::RankKey) -> Input {
    Input::Exited(exit_of(key))
}

/// What the coordinator hears of it.
fn told_exit(key: v1::RankKey) -> Output {
    Output::ToCoordinator(ToCoordinator::Exited(exit_of(key)))
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

/// What a new stream hears: the processes that run, and what follows.
fn heard_anew(agent: &mut Agent) -> (Vec<v1::RunningRank>, Vec<Output>) {
    let mut outputs = last(agent, [Input::Disconnected, Input::Connected]);
    let Output::ToCoordinator(ToCoordinator::Hello(hello)) = outputs.remove(0) else {
        panic!("a stream begins with something else than a hello")
    };
    (hello.ranks, outputs)
}

fn runs(key: v1::RankKey, address: &str) -> v1::RunningRank {
    v1::RunningRank {
        key: Some(key),
        pid: 77,
        address: address.to_owned(),
        feed: address.to_owned(),
    }
}

/// A worker that is connected, and whose process 7 runs as this and listens.
fn running(key: v1::RankKey) -> Agent {
    let mut agent = Agent::new(v1::RegisterWorker {
        worker: "a".to_owned(),
        ..Default::default()
    });
    let inputs = [
        Input::Connected,
        assignment(key.clone()),
        started(key.clone()),
        Input::RankConnected(key.clone()),
        report(key, ready("127.0.0.1:4000")),
    ];
    last(&mut agent, inputs);
    agent
}

#[test]
fn a_process_gets_its_assignment_first_and_the_orders_that_came_meanwhile() {
    let mut agent = Agent::new(v1::RegisterWorker::default());
    let starts = last(&mut agent, [Input::Connected, assignment(key(1, 0))]);
    assert_eq!(starts, [Output::Start(key(1, 0), None)]);
    assert_eq!(last(&mut agent, [order(key(1, 0), stop())]), []);
    let told = last(&mut agent, [Input::RankConnected(key(1, 0))]);
    let stop = ToRank::Order(order_of(key(1, 0), stop()));
    assert_eq!(told, [assigned(key(1, 0)), Output::ToRank(key(1, 0), stop)]);
}

#[test]
fn an_assignment_moves_a_running_process_to_the_next_world_without_a_restart() {
    let mut agent = running(key(1, 2));
    assert_eq!(
        last(&mut agent, [assignment(key(2, 0))]),
        [assigned(key(2, 0))]
    );
    let (ranks, rest) = heard_anew(&mut agent);
    assert_eq!(
        ranks,
        [runs(key(2, 0), "127.0.0.1:4000")],
        "a process listens at one address through all of its worlds"
    );
    assert_eq!(rest, []);
}

#[test]
fn a_process_that_has_not_connected_gets_only_the_newest_assignment() {
    let mut agent = Agent::new(v1::RegisterWorker::default());
    last(
        &mut agent,
        [
            Input::Connected,
            assignment(key(0, 0)),
            order(key(0, 0), close()),
        ],
    );
    assert_eq!(last(&mut agent, [assignment(key(3, 1))]), []);
    assert_eq!(
        last(&mut agent, [started(key(0, 0))]),
        [Output::ToCoordinator(ToCoordinator::Started(
            v1::RankStarted {
                key: Some(key(3, 1)),
                pid: 77
            }
        ))],
        "it is told as what it is at present"
    );
    assert_eq!(
        last(&mut agent, [Input::RankConnected(key(0, 0))]),
        [assigned(key(3, 1))]
    );
}

#[test]
fn an_assignment_of_the_same_or_an_older_world_is_ignored() {
    for present in [key(0, 0), key(2, 0)] {
        let mut agent = running(present.clone());
        for repeated in [present.clone(), key(0, 0)] {
            assert_eq!(last(&mut agent, [assignment(repeated)]), []);
        }
        let (ranks, _) = heard_anew(&mut agent);
        assert_eq!(ranks, [runs(present, "127.0.0.1:4000")]);
    }
}

#[test]
fn an_order_of_another_world_is_refused_unless_it_is_for_the_history() {
    let mut agent = running(key(1, 2));
    last(&mut agent, [assignment(key(2, 0))]);
    let peers = Order::Peers(v1::Peers::default());
    let pause = Order::Pause(v1::Pause::default());
    for refused in [close(), peers, pause] {
        let before = agent.num_refused();
        assert_eq!(
            last(&mut agent, [order(key(1, 2), refused.clone())]),
            [],
            "{refused:?}"
        );
        assert_eq!(agent.num_refused(), before + 1, "{refused:?}");
    }
    for lasting in [stop(), committed(3), dismiss()] {
        let other = in_history(9, key(1, 2));
        let before = agent.num_refused();
        assert_eq!(last(&mut agent, [order(other, lasting.clone())]), []);
        assert_eq!(agent.num_refused(), before + 1, "{lasting:?}");
        let of_process = ToRank::Order(order_of(key(1, 2), lasting.clone()));
        assert_eq!(
            last(&mut agent, [order(key(1, 2), lasting)]),
            [Output::ToRank(key(2, 0), of_process)]
        );
    }
}

#[test]
fn an_exit_is_reported_as_what_the_process_was_until_it_is_ended() {
    let mut agent = running(key(1, 2));
    last(&mut agent, [assignment(key(2, 0))]);
    assert_eq!(
        last(&mut agent, [exited(key(1, 2))]),
        [told_exit(key(2, 0))]
    );
    assert_eq!(agent.running().count(), 0);
    assert_eq!(last(&mut agent, [assignment(key(3, 0))]), []);
    for _ in 0..2 {
        assert_eq!(heard_anew(&mut agent), (vec![], vec![told_exit(key(2, 0))]));
    }
    assert_eq!(last(&mut agent, [end(7)]), []);
    assert_eq!(heard_anew(&mut agent), (vec![], vec![]));
}

#[test]
fn a_standby_that_is_ended_is_killed_and_nobody_hears_of_it() {
    let mut agent = running(key(0, 0));
    assert_eq!(last(&mut agent, [end(7)]), [Output::Kill(key(0, 0))]);
    assert_eq!(heard_anew(&mut agent), (vec![], vec![]));
    for late in [
        assignment(key(1, 0)),
        report(key(0, 0), closed()),
        exited(key(0, 0)),
    ] {
        assert_eq!(last(&mut agent, [late]), []);
    }
    assert_eq!(agent.running().count(), 0);
    assert_eq!(heard_anew(&mut agent), (vec![], vec![]));
}

#[test]
fn a_process_that_is_ended_before_it_runs_is_never_heard_of() {
    let mut agent = Agent::new(v1::RegisterWorker::default());
    let inputs = [Input::Connected, assignment(key(1, 0)), end(7)];
    assert_eq!(last(&mut agent, inputs), [Output::Kill(key(1, 0))]);
    for input in [started(key(1, 0)), exited(key(1, 0))] {
        assert_eq!(last(&mut agent, [input]), []);
    }
}

#[test]
fn an_end_and_an_assignment_concern_no_other_process() {
    let mut agent = running(key(1, 0));
    let other = of(8, key(2, 0));
    assert_eq!(
        last(&mut agent, [assignment(other.clone())]),
        [Output::Start(other.clone(), None)]
    );
    assert_eq!(last(&mut agent, [end(9)]), []);
    let elsewhere = v1::EndProcess {
        is_awaited: false,
        job: "other".to_owned(),
        process: 7,
    };
    assert_eq!(
        last(
            &mut agent,
            [Input::FromCoordinator(FromCoordinator::End(elsewhere))]
        ),
        []
    );
    let running: Vec<_> = agent.running().cloned().collect();
    assert_eq!(running, [key(1, 0), other]);
}

#[test]
fn messages_of_processes_that_are_not_here_are_counted_and_passed_to_nobody() {
    let mut agent = running(key(1, 0));
    let stranger = of(9, key(1, 0));
    let nameless = v1::RankReport {
        key: None,
        report: Some(part(1)),
    };
    let empty = v1::RankOrder {
        key: Some(key(1, 0)),
        order: None,
    };
    let strangers = [
        report(stranger.clone(), part(1)),
        Input::FromRank(nameless),
        order(stranger.clone(), stop()),
        Input::FromCoordinator(FromCoordinator::Order(empty)),
        started(stranger.clone()),
        Input::RankConnected(stranger.clone()),
        exited(stranger),
    ];
    let count = strangers.len();
    for stranger in strangers {
        assert_eq!(last(&mut agent, [stranger]), []);
    }
    assert_eq!(agent.num_refused(), count as u64);
}

#[test]
fn a_dismissed_process_ends_without_a_report() {
    let mut agent = running(key(1, 0));
    last(&mut agent, [order(key(1, 0), dismiss())]);
    assert_eq!(last(&mut agent, [exited(key(1, 0))]), []);
    assert_eq!(agent.running().count(), 0);
    // It ends just before it is dismissed.
    let mut agent = running(key(1, 0));
    last(&mut agent, [exited(key(1, 0))]);
    assert_eq!(last(&mut agent, [order(key(1, 0), dismiss())]), []);
    assert_eq!(heard_anew(&mut agent), (vec![], vec![]));
}

#[test]
fn a_shutdown_ends_all_and_their_exits_are_told() {
    let mut agent = running(key(1, 0));
    let other = of(8, key(0, 0));
    last(&mut agent, [assignment(other.clone())]);
    assert_eq!(
        last(&mut agent, [Input::Shutdown]),
        [Output::Kill(key(1, 0)), Output::Kill(other)]
    );
    assert_eq!(
        last(&mut agent, [exited(key(1, 0))]),
        [told_exit(key(1, 0))]
    );
}
