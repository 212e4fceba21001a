//! Processes of an earlier daemon, and what is said of them.

use super::*;

/// A worker whose process 7 an earlier daemon started as this.
fn adopting(key: v1::RankKey) -> Agent {
    let mut agent = Agent::new(v1::RegisterWorker::default());
    last(&mut agent, [Input::Adopted { key, pid: 77 }]);
    agent
}

#[test]
fn a_process_that_came_back_is_introduced_with_what_it_repeats() {
    let mut agent = adopting(key(1, 2));
    let back = [
        Input::RankReturned(key(2, 0)),
        report(key(2, 0), ready("127.0.0.1:4000")),
        report(key(2, 0), part(5)),
    ];
    assert_eq!(last(&mut agent, back), [], "nobody listens yet");
    let (ranks, rest) = heard_anew(&mut agent);
    assert_eq!(ranks, [runs(key(2, 0), "127.0.0.1:4000")]);
    assert_eq!(rest, [reported(key(2, 0), part(5))]);
    assert_eq!(
        last(&mut agent, [assignment(key(2, 0))]),
        [],
        "it has that assignment"
    );
    assert_eq!(
        last(&mut agent, [assignment(key(3, 1))]),
        [assigned(key(3, 1))]
    );
}

#[test]
fn an_assignment_that_was_lost_with_a_daemon_is_said_again() {
    // The daemon noted that it passed generation 3 on, and the process never heard of it.
    let mut agent = adopting(key(3, 1));
    last(&mut agent, [Input::Connected]);
    let told = last(&mut agent, [Input::RankReturned(key(2, 0))]);
    let started = v1::RankStarted {
        key: Some(key(2, 0)),
        pid: 77,
    };
    assert_eq!(
        told,
        [Output::ToCoordinator(ToCoordinator::Started(started))],
        "so that the coordinator knows what it is"
    );
    assert_eq!(
        last(&mut agent, [assignment(key(3, 1))]),
        [assigned(key(3, 1))]
    );
}

#[test]
fn a_process_that_is_late_to_come_back_hears_what_waited_for_it() {
    let mut agent = adopting(key(2, 0));
    last(&mut agent, [Input::Connected, assignment(key(3, 1))]);
    assert_eq!(last(&mut agent, [order(key(3, 1), stop())]), []);
    let told = last(&mut agent, [Input::RankReturned(key(2, 0))]);
    let stop = ToRank::Order(order_of(key(3, 1), stop()));
    assert_eq!(told, [assigned(key(3, 1)), Output::ToRank(key(3, 1), stop)]);
}

#[test]
fn a_process_whose_first_assignment_was_lost_gets_it_from_a_coordinator_that_does_not_hear_of_it() {
    let mut agent = adopting(key(1, 2));
    assert_eq!(last(&mut agent, [Input::RankConnected(key(1, 2))]), []);
    assert_eq!(heard_anew(&mut agent), (Vec::new(), Vec::new()));
    let told = last(&mut agent, [assignment(key(1, 2))]);
    let started = v1::RankStarted {
        key: Some(key(1, 2)),
        pid: 77,
    };
    assert_eq!(
        told,
        [
            assigned(key(1, 2)),
            Output::ToCoordinator(ToCoordinator::Started(started))
        ]
    );
    assert_eq!(last(&mut agent, [assignment(key(1, 2))]), [], "once");
}

#[test]
fn a_process_that_the_coordinator_believes_assigned_and_is_not_is_ended() {
    let mut agent = adopting(key(1, 2));
    last(&mut agent, [Input::Connected]);
    assert_eq!(
        last(&mut agent, [Input::RankConnected(key(1, 2))]),
        [Output::Kill(key(1, 2))]
    );
    assert_eq!(
        last(&mut agent, [exited(key(1, 2))]),
        [told_exit(key(1, 2))]
    );
}

#[test]
fn a_process_that_ended_while_nobody_looked_is_told_and_forgotten_on_demand() {
    let mut agent = adopting(key(1, 2));
    assert_eq!(last(&mut agent, [exited(key(1, 2))]), []);
    let (ranks, rest) = heard_anew(&mut agent);
    assert_eq!((ranks, rest), (Vec::new(), vec![told_exit(key(1, 2))]));
    assert_eq!(
        last(&mut agent, [assignment(key(2, 0))]),
        [],
        "no other process takes its place"
    );
    assert!(agent.knows(&place(&key(1, 2))));
    last(&mut agent, [end(7)]);
    assert!(!agent.knows(&place(&key(1, 2))));
}
