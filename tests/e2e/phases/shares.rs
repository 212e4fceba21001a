//! Deaths where each rank keeps shares of the optimizer's state, and a second rank shadows each: at
//! any point of a step, behind an update that others have not heard of, and while shares move.

use muster_tests::{Halts, Point, Sandbox};

use super::{
    AT, DEADLINE, EVERY, check, check_healed, first, job, killed_with, nothing, updates_of,
    wait_for_checkpoint, worlds,
};

#[test]
fn with_shadows_a_rank_that_is_killed_at_any_point_of_a_step_loses_nothing() {
    assert_eq!(killed_with("shadow", "compute", nothing), 1);
    assert_eq!(killed_with("shadow", "sent 6 ", nothing), 2);
    assert_eq!(killed_with("shadow", "sent 7 ", updates_of(&[3])), 0);
    for place in ["reduced", "update", "updated"] {
        killed_with("shadow", place, nothing);
    }
    // All have updated their shares, and wait for the parameters that this one has updated.
    assert_eq!(killed_with("shadow", "updated", updates_of(&[3, 0, 1])), 0);
}

/// The rank has told some of the others of the parameters that it has updated, or none of them.
#[test]
fn with_shadows_a_rank_that_is_killed_while_it_tells_its_parameters_loses_nothing() {
    for frames in [0, 1, 2] {
        let place = match frames {
            0 => "gather".to_owned(),
            frames => format!("sent {frames} "),
        };
        let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
        // The update counts already: the step is the next one, before its first reduction.
        let hold = halts.hold({
            let place = place.clone();
            move |point| {
                (point.generation, point.rank, point.step) == (1, 2, AT + 1)
                    && point.place.starts_with(&place)
            }
        });
        let train = job(&sandbox, 4).set("workers.redundancy=shadow");
        let train = train.halted_by(&halts).start();
        let killed = sandbox.kill_held(hold.wait(&place, DEADLINE));
        let finished = train.finish();
        check_healed(&sandbox, &finished, &halts, &[&killed], &place);
    }
}

/// Of four ranks the first two keep every even share, and the other two every odd one. When rank 2 dies,
/// rank 3, who is rank 2 of the next world then, is alone with the odd ones, and gives copies to the
/// others. A second rank is killed where the shares are about to move: whoever has copies of all that
/// it had, nothing is lost. Where it was the last holder, the job falls back, and says so.
#[test]
fn with_shadows_a_second_death_while_shares_move_costs_steps_where_it_takes_the_last_copy() {
    for (rank, is_last_holder) in [(0, false), (1, false), (2, true)] {
        let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
        let one = halts.hold(first(2, "compute"));
        let moving = halts.hold(move |point: &Point| {
            (point.generation, point.rank) == (2, rank) && point.place == "move"
        });
        let train = job(&sandbox, 4).set("workers.redundancy=shadow");
        let train = train.halted_by(&halts).start();
        let one = one.wait("the first", DEADLINE);
        wait_for_checkpoint(&train);
        let killed = [
            sandbox.kill_held(one),
            sandbox.kill_held(moving.wait("a move", DEADLINE)),
        ];
        let finished = train.finish();
        let what = format!("rank {rank} while shares move");
        if is_last_holder {
            check(&sandbox, &finished, &what);
            let worlds = worlds(&finished);
            assert_eq!(worlds[..3], [(1, 0), (1, AT), (2, EVERY)], "{worlds:?}");
            let fallen = finished.of_kind("generation").nth(2).unwrap();
            let reason = fallen["reason"].as_str().unwrap();
            let lost = "with it went share 1 of the optimizer's state; falls back to step 8";
            assert!(reason.contains(lost), "{reason}");
            assert_eq!(finished.histories(), [1, 2], "{what}");
        } else {
            let killed: Vec<&Point> = killed.iter().collect();
            check_healed(&sandbox, &finished, &halts, &killed, &what);
        }
    }
}

/// Two ranks have everything when a third one enters, which is given its shares. One of the two is
/// killed while it gives: what the other one does not have to keep any more is still there.
#[test]
fn with_shadows_a_death_while_a_newcomer_is_given_shares_loses_nothing() {
    for rank in 0..2 {
        let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
        let one = halts.hold(first(2, "compute"));
        let giving = halts.hold(move |point: &Point| {
            (point.generation, point.rank) == (3, rank) && point.place == "move"
        });
        let train = job(&sandbox, 3).set("workers.redundancy=shadow");
        let train = train.halted_by(&halts).start();
        let killed = [
            sandbox.kill_held(one.wait("the first", DEADLINE)),
            sandbox.kill_held(giving.wait("a move", DEADLINE)),
        ];
        let finished = train.finish();
        let what = format!("rank {rank} while a newcomer is given shares");
        let killed: Vec<&Point> = killed.iter().collect();
        check_healed(&sandbox, &finished, &halts, &killed, &what);
    }
}
