//! A leader's life with two workers: what it orders, what it tells, and what a restart of either
//! side leaves unsaid.

mod audits;
mod bench;
mod checkpoints;
mod devices;
mod following;
mod joining;
mod late;
mod silence;
mod snapshots;

use muster_cluster::apply::Effect;
use muster_cluster::command::StopWhy;
use muster_proto::convert;
use muster_proto::event::What;
use v1::from_worker::Message as From;
use v1::rank_order::Order;
use v1::rank_report::Report;
use v1::to_worker::Message as To;

use super::*;
use bench::{Bench, address_of, closed, feed_of, part, pid_of, submit};

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
    let ranks = sessions.map(|session| (session, bench.assigned(session).unwrap().key()));
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

fn is_ended(messages: &[To]) -> bool {
    messages.iter().any(|message| matches!(message, To::End(_)))
}

fn exited(key: &v1::RankKey, reason: &str) -> From {
    From::Exited(v1::RankExited {
        key: Some(key.clone()),
        reason: reason.to_owned(),
        ..v1::RankExited::default()
    })
}

/// All ranks die at once; the ranks of the world that starts from the last checkpoint.
fn all_die(bench: &mut Bench, ranks: &[(Session, v1::RankKey)]) -> Vec<(Session, v1::Assignment)> {
    for (session, key) in ranks {
        bench.sent_to(*session);
        bench.say(*session, exited(key, "exit code 1"));
    }
    let sessions: Vec<Session> = ranks.iter().map(|(session, _)| *session).collect();
    bench.pass(3_000, &sessions);
    sessions
        .into_iter()
        .map(|session| (session, bench.assigned(session).unwrap()))
        .collect()
}

#[test]
fn a_job_runs_from_its_submission_to_the_dismissal_of_its_ranks() {
    let (mut bench, ranks) = running();
    let addresses: Vec<String> = ranks.iter().map(|(_, key)| address_of(key)).collect();
    let peers = convert::peers(addresses.iter().map(String::as_str));
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
fn a_rank_that_dies_is_replaced_in_the_same_history() {
    let (mut bench, ranks) = running();
    let [(a, rank_a), (b, rank_b)] = &ranks;
    bench.step(rank_a, 1);
    bench.sent_to(*a);
    bench.sent_to(*b);
    bench.say(*b, exited(rank_b, "signal 9"));
    // The survivor is asked at once what it holds, and a process is started for the dead one.
    let [Order::Close(_)] = &orders(bench.sent_to(*a))[..] else {
        panic!("the world is to be closed")
    };
    let messages = bench.sent_to(*b);
    let [To::Assignment(standby), follow] = &messages[..] else {
        panic!("{messages:?}")
    };
    assert_eq!((standby.generation, standby.process), (0, 3));
    let feed = |process| v1::Feed {
        process,
        address: feed_of(process),
    };
    let expected = v1::Follow {
        ranks: vec![feed(1), feed(2)],
        others: Vec::new(),
    };
    assert_eq!(orders(vec![follow.clone()]), [Order::Follow(expected)]);
    bench.report(*a, rank_a, closed(Some(1), &[], "rank 1 is gone"));
    let why = bench.coordinator.job_view(JOB).unwrap().reason;
    assert!(why.contains("1 of at least 2 are there"), "{why}");
    bench.ready(*b, &standby.key());
    let next = [bench.assigned(*a).unwrap(), bench.assigned(*b).unwrap()];
    for (rank, (assignment, process)) in (0u32..).zip(next.iter().zip([1, 3])) {
        let got = (
            assignment.generation,
            assignment.history,
            assignment.first_step,
        );
        assert_eq!(got, (2, 1, 1), "it goes on where it was");
        assert_eq!((assignment.rank, assignment.process), (rank, process));
        assert!(assignment.source.is_none(), "no checkpoint is read");
        let finish = assignment.finish.as_ref().unwrap();
        assert!(finish.parts[0].heal_from.is_empty());
        assert_eq!(
            finish.parts[1].heal_from,
            [0],
            "the new one takes the state over"
        );
        assert!(finish.parts[1].heal_state);
    }
    let lost = bench.events.iter().find_map(|event| match &event.what {
        What::Lost {
            rank,
            worker,
            reason,
        } => Some((*rank, worker.clone(), reason.clone())),
        _ => None,
    });
    assert_eq!(lost, Some((1, "b".to_owned(), "signal 9".to_owned())));
    // What the dead one's worker still has of it counts for nothing, and is ended.
    bench.report(*b, rank_b, done(2, false));
    assert_eq!(bench.coordinator.num_stale_reports(), 1);
    assert_eq!(bench.acks.len(), 1);
}

#[test]
fn records_of_the_world_before_still_count_and_are_told_once() {
    let (mut bench, ranks) = running();
    let [(a, rank_a), (b, rank_b)] = &ranks;
    bench.step(rank_a, 1);
    bench.say(*b, exited(rank_b, "signal 9"));
    bench.report(*a, rank_a, closed(Some(2), &[], "rank 1 is gone"));
    let standby = bench.assigned(*b).unwrap();
    bench.ready(*b, &standby.key());
    let next = bench.assigned(*a).unwrap().key();
    let story = bench.story();
    // Rank 0 sent the record of step 2 before the world was closed, and sends it again.
    bench.step(rank_a, 2);
    bench.step(&next, 2);
    bench.step(&next, 3);
    assert_eq!(bench.story()[story.len()..], ["step", "step"]);
    assert_eq!(bench.acks.len(), 4);
}

#[test]
fn a_job_falls_back_when_nobody_is_left_who_has_its_state() {
    let (mut bench, ranks) = running();
    bench.step(&ranks[0].1, 1);
    for (session, new) in all_die(&mut bench, &ranks) {
        let old = ranks.iter().find(|(of, _)| *of == session);
        let (_, old) = old.unwrap();
        assert_eq!(
            (new.generation, new.history, new.first_step),
            (old.generation + 1, old.history + 1, 0)
        );
        assert!(new.finish.is_none() && new.process > 2);
    }
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
        let running = v1::RunningRank {
            key: Some(key.clone()),
            pid: pid_of(key),
            address: address_of(key),
            feed: feed_of(key.process),
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
                .all(|message| !matches!(message, To::Assignment(_) | To::End(_)))
        );
        let orders = orders(messages);
        assert!(matches!(
            orders[..],
            [Order::Committed(_), Order::Peers(_)] | [Order::Peers(_), Order::Committed(_)]
        ));
    }
}

#[test]
fn what_is_too_much_between_two_ticks_is_told_with_the_next_one() {
    let (mut bench, sessions) = {
        let mut bench = Bench::new();
        let sessions = ["a", "b"].map(|worker| bench.hello(worker, 1, Vec::new()));
        (bench, sessions)
    };
    bench.request(1, submit());
    bench.pass(3_000, &sessions);
    let keys = sessions.map(|session| bench.assigned(session).unwrap().key());
    bench.coordinator.allowance.num_messages = 1;
    for (session, key) in sessions.iter().zip(&keys) {
        bench.ready(*session, key);
    }
    let mut num_told = || {
        let told = sessions.map(|session| orders(bench.sent_to(session)).len());
        bench.pass(TICK_MS, &sessions);
        told
    };
    assert_eq!(num_told(), [1, 0]);
    assert_eq!(num_told(), [0, 1]);
    assert_eq!(num_told(), [0, 0]);
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
    assert!(is_ended(&bench.sent_to(ranks[0].0)));
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
    let Reply::Applied {
        answer: Ok(Effect::Queued { from, .. }),
        ..
    } = reply
    else {
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
fn a_request_that_is_made_again_before_its_answer_is_told_once() {
    let mut bench = Bench::new();
    let stop = Command::Stop {
        job: JobName::new(JOB).unwrap(),
        why: StopWhy::Cancelled,
    };
    for (request, command) in [(1, submit()), (2, stop)] {
        let twice = [(); 2].map(|()| Input::Request {
            reply_to: ReplyTo(9),
            request: Some([request; 16]),
            command: command.clone(),
        });
        bench.inputs(twice);
        let replies = std::mem::take(&mut bench.replies);
        assert!(
            replies.len() == 2 && replies[0] == replies[1],
            "{replies:?}"
        );
    }
    assert_eq!(bench.story(), ["submitted", "finished"]);
}

#[test]
fn of_two_streams_of_one_worker_the_first_ends_alone() {
    let mut bench = Bench::new();
    let [first, second] = [(); 2].map(|()| bench.hello("a", 1, Vec::new()));
    let refused: Vec<bool> = [first, second]
        .into_iter()
        .flat_map(|session| bench.sent_to(session))
        .filter_map(|message| match message {
            To::Refused(refused) => Some(refused.superseded),
            _ => None,
        })
        .collect();
    assert_eq!(refused, [true], "whoever is at its other end comes back");
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
fn a_leader_that_begins_between_close_and_the_next_world_makes_it() {
    let (mut bench, ranks) = running();
    bench.step(&ranks[0].1, 1);
    let mut bench = bench.restart();
    let mut sessions = Vec::new();
    for ((_, key), worker) in ranks.iter().zip(["a", "b"]) {
        let running = v1::RunningRank {
            key: Some(key.clone()),
            pid: pid_of(key),
            address: address_of(key),
            feed: feed_of(key.process),
        };
        sessions.push(bench.hello(worker, 1, vec![running]));
    }
    // The workers repeat what their ranks said to the leader before.
    bench.report(
        sessions[0],
        &ranks[0].1,
        closed(Some(1), &[1], "lost rank 1"),
    );
    assert!(
        orders(bench.sent_to(sessions[1]))
            .iter()
            .any(|order| matches!(order, Order::Close(_))),
        "the other one is asked"
    );
    bench.report(
        sessions[1],
        &ranks[1].1,
        closed(Some(0), &[], "rank 0 closed"),
    );
    for session in sessions {
        let messages = bench.sent_to(session);
        let assigned = messages.iter().find_map(|message| match message {
            To::Assignment(assignment) => Some(assignment),
            _ => None,
        });
        let assigned = assigned.unwrap();
        assert_eq!((assigned.generation, assigned.first_step), (2, 1));
        let behind = &assigned.finish.as_ref().unwrap().parts[1];
        assert_eq!(
            (&behind.heal_from[..], behind.heal_state),
            (&[0][..], false)
        );
        assert!(matches!(orders(messages)[..], [.., Order::Peers(_)]));
    }
}
