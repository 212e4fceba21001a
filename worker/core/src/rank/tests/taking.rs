//! What a process holds that it did not compute: states, shares and steps of others.

use super::*;

#[test]
fn a_state_that_is_taken_over_when_its_world_closes_is_reported() {
    let mut machine = RankMachine::new(0);
    machine.prepared(RULES, None);
    assert!(machine.enter(healed(2, 3, 0)));
    assert!(machine.begin_apply());
    machine.close(2, cause("rank 1 is gone"));
    assert_eq!(machine.take_reports(), [], "it is about to have a state");
    machine.received(3);
    assert_eq!(closed(&mut machine), holdings(3, &[], false));
    assert!(!machine.begin_apply());
}

#[test]
fn records_are_taken_over_with_the_state_they_led_to() {
    let mut old = rank_at(0);
    for place in [(1, false), (2, false), (3, false)] {
        old.record(record(place));
    }
    old.acked((1, false));
    let mut young = RankMachine::new(0);
    young.prepared(RULES, None);
    assert!(young.enter(RankPlan {
        rank: 1,
        ..healed(2, 3, 0)
    }));
    young.inherited(old.unacked().cloned().collect());
    young.received(3);
    young.record(record((4, false)));
    assert_eq!(young.take_records(), [], "rank 0 sends them");
    young.close(2, cause("rank 0 is gone"));
    assert!(young.enter(healed(3, 4, 0)));
    let expected = [(2, false), (3, false), (4, false)].map(record);
    assert_eq!(young.take_records(), expected);
}

#[test]
fn a_rank_of_a_shared_state_lacks_parameters_until_it_has_gathered_them() {
    let rules = Rules {
        is_shared: true,
        ..RULES
    };
    let mut machine = RankMachine::new(1);
    machine.prepared(rules, Some(0));
    machine.keeps(vec![Run::new(0, 16)]);
    assert!(machine.enter(PLAN));
    for is_gathered in [true, false] {
        assert!(machine.begin_apply());
        machine.applied(false, None);
        if is_gathered {
            machine.gathered();
        }
    }
    machine.close(1, Cause::default());
    let holdings = closed(&mut machine);
    let kept = vec![v1::Shards { start: 0, end: 16 }];
    assert_eq!(
        (holdings.step, holdings.partial, holdings.kept),
        (Some(2), true, kept)
    );

    // The state of another rank comes without values: those of shares and parameters follow.
    machine.assigned(2);
    assert!(machine.enter(healed(2, 5, 0)));
    assert!(machine.begin_apply());
    machine.received(5);
    machine.keeps(vec![Run::new(3, 4)]);
    machine.close(2, Cause::default());
    let holdings = closed(&mut machine);
    let kept = vec![v1::Shards { start: 3, end: 4 }];
    assert_eq!(
        (holdings.step, holdings.partial, holdings.kept),
        (Some(5), true, kept)
    );
}

#[test]
fn a_rank_gives_up_no_share_that_it_has_reported() {
    let mut machine = RankMachine::new(1);
    machine.prepared(RULES, Some(0));
    machine.keeps(vec![Run::new(0, 32)]);
    assert!(machine.enter(PLAN));
    assert!(machine.gives_up_all_but(vec![Run::new(0, 16)]));
    machine.close(1, Cause::default());
    assert!(!machine.gives_up_all_but(vec![Run::new(0, 8)]));
    let kept = vec![v1::Shards { start: 0, end: 16 }];
    assert_eq!(closed(&mut machine).kept, kept);
}

#[test]
fn a_process_that_follows_reports_what_it_holds_and_holds_what_it_reported() {
    let mut machine = RankMachine::new(0);
    machine.prepared(RULES, None);
    assert!(machine.begin_follow());
    machine.received(4);
    // A step is being applied when it is told of a world, and that this one is closed.
    assert!(machine.begin_follow());
    machine.assigned(2);
    machine.close(2, cause("rank 0 is gone"));
    assert_eq!(machine.take_reports(), [], "not in the middle of a step");
    machine.followed();
    assert_eq!(closed(&mut machine).step, Some(5));
    // Another one arrives: it is too late for it.
    assert!(!machine.begin_follow());
    assert_eq!(machine.state(), Some(5));
    assert!(!machine.enter(healed(2, 5, 0)), "that world is closed");
    // The next one may come before it has said so.
    machine.assigned(3);
    assert!(machine.begin_follow());
    machine.close(3, cause("rank 1 is gone"));
    machine.assigned(4);
    machine.followed();
    assert_eq!(
        machine.take_reports(),
        [],
        "nobody asks for world 3 any more"
    );
    assert!(machine.enter(healed(4, 6, 0)));
}
