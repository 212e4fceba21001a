//! A leader's life with two workers: what it orders, what it tells, and what a restart of either
//! side leaves unsaid.

mod bench;

use muster_cluster::apply::Effect;
use muster_cluster::command::StopWhy;
use muster_proto::event::What;
use v1::from_worker::Message as From;
use v1::rank_order::Order;
use v1::rank_report::Report;
use v1::to_worker::Message as To;

use super::*;
use bench::{Bench, key_of, part, submit};

const JOB: &str = "digits-mlp";

/// A job that runs on workers a and b; the ranks of its first world.
fn running() -> (Bench, [(Session, v1::RankKey); 2]) {
    let mut bench = Bench::new();
    let (a, b) = (
        bench.hello("a", 1, Vec::new()),
        bench.hello("b", 1, Vec::new()),
    );
    bench.request(1, submit());
    // The job takes four workers, and gathers for a while.
    bench.pass(3_000, &[a, b]);
    let ranks = world_on(&mut bench, [a, b]);
    (bench, ranks)
}

fn world_on(bench: &mut Bench, sessions: [Session; 2]) -> [(Session, v1::RankKey); 2] {
    let ranks = sessions.map(|session| (session, key_of(&bench.assigned(session).unwrap())));
    for (session, key) in &ranks {
        bench.ready(*session, key);
    }
    ranks
}

fn done(step: u64, stopped: bool) -> Report {
    Report::Done(v1::Done {
        step,
        stopped,
        arena_hash: "arena".to_owned(),
        ..v1::Done::default()
    })
}

fn orders(messages: Vec<To>) -> Vec<Order> {
    let order = |message| match message {
        To::Order(order) => order.order,
        _ => None,
    };
    messages.into_iter().filter_map(order).collect()
}

fn is_revoked(messages: &[To]) -> bool {
    messages
        .iter()
        .any(|message| matches!(message, To::Revoke(_)))
}

#[test]
fn a_job_runs_from_its_submission_to_the_dismissal_of_its_ranks() {
    let (mut bench, ranks) = running();
    let peers = v1::Peers {
        addresses: vec!["127.0.0.1:4000".to_owned(), "127.0.0.1:4001".to_owned()],
    };
    for (session, _) in &ranks {
        assert_eq!(
            orders(bench.sent_to(*session)),
            [Order::Peers(peers.clone())]
        );
    }
    bench.step(&ranks[0].1, 1);
    bench.step(&ranks[0].1, 2);
    bench.checkpoint(&ranks, 2);
    let keep = vec!["2.optimizer".to_owned(), "2.params".to_owned()];
    let committed = Order::Committed(v1::CheckpointCommitted { step: 2, keep });
    for (session, key) in &ranks {
        assert_eq!(
            orders(bench.sent_to(*session)),
            std::slice::from_ref(&committed)
        );
        bench.report(*session, key, done(2, false));
    }
    for (session, _) in &ranks {
        assert_eq!(
            orders(bench.sent_to(*session)),
            [Order::Dismiss(v1::Dismiss {})]
        );
    }
    let story = [
        "submitted",
        "generation",
        "rank",
        "rank",
        "step",
        "step",
        "checkpoint",
        "finished",
    ];
    assert_eq!(bench.story(), story);
    let view = bench.coordinator.job_view(JOB).unwrap();
    assert_eq!(
        (view.state.as_str(), view.step, view.total_steps),
        ("completed", 2, 1000)
    );
}

#[test]
fn the_exit_of_a_rank_makes_a_new_world_in_a_new_history() {
    let (mut bench, ranks) = running();
    bench.step(&ranks[0].1, 1);
    let exited = v1::RankExited {
        key: Some(ranks[1].1.clone()),
        reason: "signal 9".to_owned(),
        ..Default::default()
    };
    bench.say(ranks[1].0, From::Exited(exited));
    bench.pass(3_000, &[ranks[0].0, ranks[1].0]);
    for (session, old) in &ranks {
        let messages = bench.sent_to(*session);
        let new = messages.iter().find_map(|message| match message {
            To::Assignment(assignment) => Some(assignment),
            _ => None,
        });
        let new = new.expect("each worker has a rank of the new world");
        assert_eq!(
            (new.generation, new.history, new.first_step),
            (old.generation + 1, old.history + 1, 0)
        );
        assert!(is_revoked(&messages), "the old world's ranks must end");
    }
    let (_, lost) = bench
        .events
        .iter()
        .find(|(_, event)| matches!(event.what, What::Lost { .. }))
        .unwrap();
    assert_eq!(
        lost.what,
        What::Lost {
            rank: 1,
            worker: "b".to_owned(),
            reason: "signal 9".to_owned()
        }
    );
    // What the old world says now changes nothing.
    let num_events = bench.events.len();
    bench.step(&ranks[0].1, 2);
    bench.report(ranks[0].0, &ranks[0].1, done(2, false));
    assert_eq!(bench.events.len(), num_events);
    assert_eq!(bench.coordinator.num_stale_reports(), 1);
    assert_eq!(
        bench.acks.len(),
        2,
        "a stale record is acknowledged, so that nobody keeps it"
    );
}

#[test]
fn a_restarted_coordinator_goes_on_with_the_world_that_runs() {
    let (mut bench, ranks) = running();
    bench.step(&ranks[0].1, 1);
    bench.checkpoint(&ranks, 1);
    let story = bench.story();
    let mut bench = bench.restart();
    assert_eq!(
        bench.story(),
        story,
        "the replay of the log tells nothing twice"
    );
    let mut sessions = Vec::new();
    for (_, key) in &ranks {
        let address = format!("127.0.0.1:{}", 4000 + key.rank);
        let running = v1::RunningRank {
            key: Some(key.clone()),
            pid: 100 + key.rank,
            address,
        };
        let worker = if key.rank == 0 { "a" } else { "b" };
        sessions.push(bench.hello(worker, 1, vec![running]));
    }
    // A record that was not acknowledged comes again, and the next one follows.
    bench.step(&ranks[0].1, 1);
    bench.step(&ranks[0].1, 2);
    assert_eq!(bench.story()[story.len()..], ["step"]);
    assert_eq!(bench.acks.len(), 2);
    for session in sessions {
        let messages = bench.sent_to(session);
        assert!(
            messages
                .iter()
                .all(|message| !matches!(message, To::Assignment(_) | To::Revoke(_)))
        );
        let orders = orders(messages);
        assert!(matches!(
            orders[..],
            [Order::Committed(_), Order::Peers(_)] | [Order::Peers(_), Order::Committed(_)]
        ));
    }
}

#[test]
fn a_damaged_checkpoint_is_rejected_and_the_one_before_it_is_used() {
    let (mut bench, ranks) = running();
    bench.checkpoint(&ranks, 1);
    bench.checkpoint(&ranks, 2);
    let exited = v1::RankExited {
        key: Some(ranks[1].1.clone()),
        reason: "exit code 1".to_owned(),
        ..Default::default()
    };
    bench.say(ranks[1].0, From::Exited(exited));
    bench.pass(3_000, &[ranks[0].0, ranks[1].0]);
    let second = ranks
        .clone()
        .map(|(session, _)| (session, bench.assigned(session).unwrap()));
    assert_eq!(second[0].1.first_step, 2);
    for (session, assignment) in &second {
        let source = assignment.source.as_ref().unwrap();
        let reason = "2.params is damaged".to_owned();
        let damaged = v1::CheckpointDamaged {
            history: source.history,
            step: source.step,
            reason,
        };
        bench.report(
            *session,
            &key_of(assignment),
            Report::CheckpointDamaged(damaged),
        );
    }
    bench.pass(3_000, &[ranks[0].0, ranks[1].0]);
    assert_eq!(bench.assigned(ranks[0].0).unwrap().first_step, 1);
    assert_eq!(
        bench
            .story()
            .iter()
            .filter(|kind| *kind == "damaged")
            .count(),
        1
    );
}

#[test]
fn ranks_that_disagree_on_their_state_fail_the_job() {
    let (mut bench, ranks) = running();
    for ((session, key), arena) in ranks.iter().zip(["this", "that"]) {
        let part = part(1, if key.rank == 0 { "params" } else { "optimizer" }, arena);
        bench.report(*session, key, Report::CheckpointPart(part));
    }
    let view = bench.coordinator.job_view(JOB).unwrap();
    assert_eq!(view.state, "failed");
    assert!(view.reason.contains("disagree"), "{}", view.reason);
    assert!(is_revoked(&bench.sent_to(ranks[0].0)));
}

#[test]
fn a_job_that_is_told_to_stop_rests_and_goes_on_when_it_is_submitted_again() {
    let (mut bench, ranks) = running();
    let stop = Command::Stop {
        job: JobName::new(JOB).unwrap(),
        why: StopWhy::Interrupted,
    };
    bench.request(2, stop);
    for (session, _) in &ranks {
        assert!(orders(bench.sent_to(*session)).contains(&Order::Stop(v1::StopOrder {})));
    }
    bench.checkpoint(&ranks, 5);
    for (session, key) in &ranks {
        bench.report(*session, key, done(5, true));
    }
    assert_eq!(
        bench.coordinator.job_view(JOB).unwrap().state,
        "interrupted"
    );
    let reply = bench.request(3, submit());
    let Reply::Applied(Ok(Effect::Queued { from, .. })) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(from.0, 5);
    bench.pass(3_000, &[ranks[0].0, ranks[1].0]);
    assert_eq!(bench.assigned(ranks[0].0).unwrap().first_step, 5);
}

#[test]
fn a_request_that_is_made_again_gets_the_first_answer() {
    let mut bench = Bench::new();
    let first = bench.request(1, submit());
    assert_eq!(bench.request(1, submit()), first);
    let num_submitted = bench
        .story()
        .iter()
        .filter(|kind| *kind == "submitted")
        .count();
    assert_eq!(num_submitted, 1);
}

#[test]
fn of_two_workers_with_one_name_the_older_is_refused() {
    let mut bench = Bench::new();
    let new = bench.hello("a", 2, Vec::new());
    let old = bench.hello("a", 1, Vec::new());
    assert!(
        bench
            .sent_to(old)
            .iter()
            .any(|message| matches!(message, To::Refused(_)))
    );
    assert!(
        bench
            .sent_to(new)
            .iter()
            .all(|message| !matches!(message, To::Refused(_)))
    );
    let stranger = v1::WorkerHello {
        worker: None,
        ranks: Vec::new(),
    };
    bench.input(Input::Hello {
        session: Session(77),
        hello: stranger,
    });
    assert!(matches!(bench.sent_to(Session(77))[..], [To::Refused(_)]));
}

#[test]
fn a_silent_worker_is_lost_only_when_a_peer_misses_its_rank() {
    let (mut bench, ranks) = running();
    let [(a, rank_a), (_, rank_b)] = ranks;
    bench.pass(20_000, &[a]);
    assert!(!bench.story().contains(&"finished".to_owned()));
    assert_eq!(
        bench.coordinator.job_view(JOB).unwrap().generation,
        1,
        "silence proves nothing"
    );
    let reason = "the connection to rank 1 was closed".to_owned();
    let broken = v1::Broken {
        lost: vec![rank_b.rank],
        reason,
        holdings: None,
    };
    bench.report(a, &rank_a, Report::Broken(broken));
    let wait = bench.coordinator.job_view(JOB).unwrap().reason;
    assert!(
        wait.contains("waits for workers: 1 free, 2 needed"),
        "{wait}"
    );
    let b = bench.hello("b", 2, Vec::new());
    bench.pass(3_000, &[a, b]);
    assert_eq!(bench.assigned(b).unwrap().generation, 2);
}

#[test]
fn a_coordinator_that_was_held_up_blames_nobody() {
    let (mut bench, ranks) = running();
    let [(a, rank_a), (_, rank_b)] = ranks;
    bench.now.monotonic_ms += 60_000;
    bench.input(Input::Tick);
    let broken = v1::Broken {
        lost: vec![rank_b.rank],
        reason: "closed".to_owned(),
        holdings: None,
    };
    bench.report(a, &rank_a, Report::Broken(broken));
    bench.pass(500, &[a]);
    assert_eq!(bench.coordinator.job_view(JOB).unwrap().reason, "");
    bench.pass(2_000, &[a]);
    assert!(!bench.coordinator.job_view(JOB).unwrap().reason.is_empty());
}

#[test]
fn a_world_that_broke_without_a_culprit_waits_for_one_and_then_for_none() {
    let (mut bench, ranks) = running();
    let [(a, rank_a), (b, _)] = ranks;
    let broken = || {
        Report::Broken(v1::Broken {
            lost: Vec::new(),
            reason: "it gave up".to_owned(),
            holdings: None,
        })
    };
    bench.report(a, &rank_a, broken());
    assert_eq!(bench.coordinator.job_view(JOB).unwrap().generation, 1);
    // The culprit shows: its worker is gone, and nobody counts on it.
    bench.input(Input::WorkerGone { session: b });
    bench.pass(5_000, &[a]);
    let view = bench.coordinator.job_view(JOB).unwrap();
    assert!(
        view.generation == 1 && view.reason.contains("1 free, 2 needed"),
        "{view:?}"
    );
    let b = bench.hello("b", 2, Vec::new());
    bench.pass(5_000, &[a, b]);
    let assigned = bench.assigned(b).unwrap();
    assert_eq!(assigned.generation, 2);
    // And where nobody is gone, the world is made anew with all.
    bench.report(b, &key_of(&assigned), broken());
    bench.pass(5_000, &[a, b]);
    assert_eq!(bench.coordinator.job_view(JOB).unwrap().generation, 3);
}
