//! A process that waits: whom it is told to follow, when it enters, and what people see of it meanwhile.

use super::*;

fn following(step: Option<u64>, reached: &[u64], unreached: Option<u64>) -> Report {
    let unreached = unreached.map(|process| v1::Unreached {
        process,
        reason: "it does not answer".to_owned(),
    });
    Report::Following(v1::Following {
        step,
        reached: reached.to_vec(),
        unreached: unreached.into_iter().collect(),
        bytes_taken: 12,
        bytes_total: 48,
    })
}

fn follow(messages: Vec<To>) -> Option<v1::Follow> {
    let mut orders = orders(messages).into_iter();
    orders.find_map(|order| match order {
        Order::Follow(follow) => Some(follow),
        _ => None,
    })
}

fn numbers(feeds: &[v1::Feed]) -> Vec<u64> {
    feeds.iter().map(|feed| feed.process).collect()
}

#[test]
fn a_process_enters_when_it_follows_and_reaches_every_rank_and_people_see_why_not_before() {
    let (mut bench, [(a, rank_a), (b, _)]) = running();
    bench.step(&rank_a, 1);
    let c = bench.hello("c", 1, Vec::new());
    bench.pass(50, &[a, b, c]);
    let messages = bench.sent_to(c);
    let standby = messages.iter().find_map(|message| match message {
        To::Assignment(assignment) => Some(assignment.key()),
        _ => None,
    });
    let standby = standby.unwrap();
    let told = follow(messages).unwrap();
    assert_eq!((numbers(&told.ranks), told.others), (vec![1, 2], vec![]));
    assert_eq!(told.ranks[1].address, feed_of(2));
    bench.ready(c, &standby);
    bench.report(c, &standby, following(None, &[1], Some(2)));
    let view = bench.coordinator.job_view(JOB).unwrap().standbys;
    let shown = (view[0].state.as_str(), view[0].reason.as_str());
    assert_eq!(
        shown,
        ("takes the state", "does not reach b: it does not answer")
    );
    assert_eq!((view[0].bytes_taken, view[0].bytes_total), (12, 48));
    // It follows, but a rank of the world would wait for it in vain.
    bench.report(c, &standby, following(Some(1), &[1], Some(2)));
    bench.pass(50, &[a, b, c]);
    let is_pause = |order: &Order| matches!(order, Order::Pause(_));
    assert!(!orders(bench.sent_to(a)).iter().any(is_pause));
    // A process that comes later is told of the one before, and calls it.
    let d = bench.hello("d", 1, Vec::new());
    bench.pass(50, &[a, b, c, d]);
    let told = follow(bench.sent_to(d)).unwrap();
    assert_eq!(
        (numbers(&told.ranks), numbers(&told.others)),
        (vec![1, 2], vec![3])
    );
    bench.report(c, &standby, following(Some(1), &[1, 2], None));
    let [Order::Pause(pause)] = &orders(bench.sent_to(a))[..] else {
        panic!("the world is to close behind a step")
    };
    assert_eq!(pause.reason, "a rank on c enters");
    let view = bench.coordinator.job_view(JOB).unwrap().standbys;
    assert_eq!(
        (view[0].state.as_str(), view[0].reason.as_str()),
        ("follows", "")
    );
}

#[test]
fn a_new_leader_tells_whom_to_follow_and_hears_again_who_does() {
    let (mut bench, [(a, rank_a), (b, rank_b)]) = running();
    bench.step(&rank_a, 1);
    let c = bench.hello("c", 1, Vec::new());
    bench.pass(50, &[a, b, c]);
    let standby = bench.assigned(c).unwrap().key();
    bench.ready(c, &standby);
    bench = bench.restart();
    let runs = |key: &v1::RankKey| v1::RunningRank {
        key: Some(key.clone()),
        pid: pid_of(key),
        address: address_of(key),
        feed: feed_of(key.process),
    };
    let a = bench.hello("a", 1, vec![runs(&rank_a)]);
    let b = bench.hello("b", 1, vec![runs(&rank_b)]);
    let c = bench.hello("c", 1, vec![runs(&standby)]);
    bench.pass(50, &[a, b, c]);
    let told = follow(bench.sent_to(c)).unwrap();
    assert_eq!(numbers(&told.ranks), [1, 2]);
    bench.report(c, &standby, following(Some(1), &[1, 2], None));
    let is_pause = |order: &Order| matches!(order, Order::Pause(_));
    assert!(orders(bench.sent_to(a)).iter().any(is_pause));
}
