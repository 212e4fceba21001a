//! Jobs as their events tell of them, with the sums worked out by hand.

use super::*;

/// An event of history `history` at this second.
fn at(time: f64, history: u64, what: What) -> Event {
    Event {
        time,
        job: "job".to_owned(),
        history,
        what,
    }
}

fn submitted() -> What {
    What::Submitted {
        from_step: 0,
        workers: Some(2),
    }
}

fn world(generation: u64, world_size: u32, from_step: u64) -> What {
    What::Generation {
        generation,
        world_size,
        from_step,
        reason: String::new(),
        ledger_hash: String::new(),
    }
}

/// A step that took a second, `meeting_s` of it before it could begin, and `waits` of it, in
/// milliseconds, for samples and for a snapshot.
fn step(generation: u64, step: u64, meeting_s: f64, waits: (f64, f64)) -> What {
    What::Step {
        step,
        loss: 0.0,
        metrics: BTreeMap::new(),
        samples_per_s: 1.0,
        learning_rate: 1.0,
        grad_norm: 1.0,
        generation,
        skipped: None,
        total_steps: 10,
        wall_ms: 1000.0,
        contribute_ms: 1000.0 - 1000.0 * meeting_s - waits.1,
        reduce_ms: 0.0,
        update_ms: 0.0,
        data_ms: waits.0,
        checkpoint_ms: waits.1,
        evaluate_ms: 0.0,
    }
}

fn lost() -> What {
    What::Lost {
        rank: 1,
        worker: "w".to_owned(),
        reason: "signal 9".to_owned(),
    }
}

fn checkpoint(step: u64) -> What {
    What::Checkpoint {
        step,
        path: String::new(),
        bytes: 0,
        manifest_hash: String::new(),
    }
}

fn books(events: &[Event]) -> Goodput {
    let mut goodput = Goodput::default();
    for event in events {
        goodput.take(event);
    }
    goodput
}

fn now(now_s: f64) -> Standing {
    Standing {
        now_s,
        wanted: 2,
        closed_s: None,
    }
}

#[track_caller]
fn assert_parts(time: RankTime, expected: [f64; 6]) {
    for ((name, found), expected) in time.parts().into_iter().zip(expected) {
        // Sums of a few binary fractions of seconds and of milliseconds.
        assert!((found - expected).abs() < 1e-9, "{name}: {time:#?}");
    }
}

#[test]
fn a_job_without_a_world_counts_the_ranks_that_it_needs() {
    let queued = books(&[at(10.0, 1, submitted())]);
    assert_parts(queued.rank_time(now(13.0)), [0.0, 0.0, 0.0, 0.0, 0.0, 6.0]);
}

#[test]
fn every_second_of_an_undisturbed_job_is_in_one_part() {
    let mut events = vec![
        at(0.0, 1, submitted()),
        at(2.0, 1, world(1, 4, 0)),
        // Rank 0 began at 4 s, and met the others for a quarter of a second.
        at(5.0, 1, step(1, 1, 0.25, (100.0, 0.0))),
        at(6.0, 1, step(1, 2, 0.0, (0.0, 500.0))),
    ];
    let so_far = books(&events).rank_time(now(6.5));
    // The step that runs is useful as far as is known.
    assert_parts(
        so_far,
        [4.0 * (0.65 + 0.5 + 0.5), 0.0, 4.0 * 2.25, 2.0, 0.4, 8.0],
    );
    let evaluated = What::Evaluated {
        step: 2,
        metrics: BTreeMap::new(),
    };
    events.extend([at(7.0, 1, evaluated), at(7.5, 1, checkpoint(2))]);
    let mut ended = books(&events);
    ended.finish(8.0, "completed", 2);
    // Evaluated until 7 s; from there on its last checkpoint kept it.
    let time = ended.rank_time(now(1000.0));
    assert_parts(time, [4.0 * 2.15, 0.0, 9.0, 2.0 + 4.0, 0.4, 8.0]);
    assert!((time.total_s() - (8.0 + 4.0 * 6.0)).abs() < 1e-9);
    assert!((time.goodput() - 8.6 / 32.0).abs() < 1e-9);
}

fn healed() -> Vec<Event> {
    vec![
        at(0.0, 1, submitted()),
        at(0.0, 1, world(1, 4, 0)),
        at(1.0, 1, step(1, 1, 0.0, (0.0, 0.0))),
        at(2.25, 1, lost()),
        at(2.5, 1, world(2, 3, 2)),
        // The record of the last step before the loss comes late.
        at(2.0, 1, step(1, 2, 0.0, (0.0, 0.0))),
        at(4.0, 1, step(2, 3, 0.5, (0.0, 0.0))),
    ]
}

#[test]
fn a_loss_costs_the_wait_for_the_next_world_and_the_healing_in_it() {
    let time = books(&healed()).rank_time(now(4.0));
    // Two steps and a quarter of the interrupted one of four ranks; half a step of three.
    let useful = 4.0 * 2.25 + 3.0 * 0.5;
    let healing = 3.0 * (0.5 + 0.5);
    assert_parts(time, [useful, healing, 4.0 * 0.25, 0.0, 0.0, 0.0]);
    assert!((time.total_s() - (4.0 * 2.5 + 3.0 * 1.5)).abs() < 1e-9);
}

#[test]
fn what_a_leader_sees_in_another_order_comes_to_the_same() {
    let mut events = healed();
    let late = events.remove(5);
    events.insert(3, late);
    let (one, other) = (books(&events), books(&healed()));
    assert_eq!(one.rank_time(now(4.0)), other.rank_time(now(4.0)));
}

#[test]
fn what_a_fallback_voids_is_healing() {
    let mut events = vec![
        at(0.0, 1, submitted()),
        at(0.0, 1, world(1, 2, 0)),
        at(1.0, 1, step(1, 1, 0.0, (0.0, 0.0))),
        at(2.0, 1, step(1, 2, 0.0, (0.0, 0.0))),
        at(2.0, 1, checkpoint(1)),
        at(2.5, 1, lost()),
        at(3.0, 2, world(2, 2, 1)),
        at(6.0, 2, step(2, 2, 0.0, (0.0, 0.0))),
    ];
    let time = books(&events).rank_time(now(6.0));
    // Step 2 and half a step behind it are void; the new processes need two seconds.
    assert_parts(time, [4.0, 3.0, 2.0 * 0.5 + 2.0 * 2.0, 0.0, 0.0, 0.0]);
    // The checkpoint of step 1 turns out damaged, and all is run again.
    events.push(at(6.0, 3, world(3, 2, 0)));
    let time = books(&events).rank_time(now(6.0));
    assert_parts(time, [0.0, 3.0 + 4.0, 5.0, 0.0, 0.0, 0.0]);
}

#[test]
fn a_world_that_is_closed_makes_no_steps() {
    let events = healed()[..3].to_vec();
    let standing = Standing {
        closed_s: Some(1.5),
        ..now(4.0)
    };
    let time = books(&events).rank_time(standing);
    assert_parts(time, [4.0 * 1.5, 0.0, 4.0 * 2.5, 0.0, 0.0, 0.0]);
}

#[test]
fn a_failed_job_keeps_only_what_is_in_its_checkpoint() {
    let mut events = healed();
    events.push(at(4.0, 1, checkpoint(1)));
    let mut failed = books(&events);
    failed.finish(5.0, "failed", 1);
    let time = failed.rank_time(now(9.0));
    // Of steps 2 and 3 all is void, healing included; a quarter of the interrupted one stays.
    let healing = 4.0 + 3.0 * 0.5 + 3.0 * 1.0;
    assert_parts(time, [4.0 * 1.25, healing, 4.0 * 0.25 + 3.0, 0.0, 0.0, 0.0]);
}

#[test]
fn a_new_submission_has_new_books() {
    let mut goodput = books(&healed());
    goodput.take(&at(20.0, 4, submitted()));
    assert_parts(goodput.rank_time(now(21.0)), [0.0, 0.0, 0.0, 0.0, 0.0, 2.0]);
}

#[test]
fn a_clock_that_says_nonsense_breaks_nothing() {
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e300] {
        let mut events = healed();
        let mut wrong = step(2, 4, 0.0, (odd, odd));
        if let What::Step { wall_ms, .. } = &mut wrong {
            *wall_ms = odd;
        }
        events.extend([at(odd, 1, wrong.clone()), at(4.5, 1, wrong)]);
        let time = books(&events).rank_time(now(5.0));
        assert!(
            time.parts().iter().all(|(_, part)| *part >= 0.0),
            "{time:?}"
        );
    }
}
