//! Deaths where each rank keeps shares of the optimizer's state, and a second rank shadows each: at
//! any point of a step, behind an update that others have not heard of, and while shares move.

use muster_tests::{Halts, Point, Sandbox};

use super::{
    AT, DEADLINE, STEPS, check, check_no_step_is_lost, check_updates, first, job, kill,
    killed_with, updates_of,
};

#[test]
fn with_shadows_a_rank_that_is_killed_at_any_point_of_a_step_loses_nothing() {
    for place in ["compute", "sent 7 ", "reduced", "update", "updated"] {
        killed_with("shadow", place, |_: &Halts| {});
    }
    // All have updated their shares, and wait for the parameters that this one has updated.
    killed_with("shadow", "updated", updates_of(&[3, 0, 1]));
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
        let (name, value) = halts.variable();
        let train = job(&sandbox, 4).set("workers.redundancy=shadow");
        let train = train.env(name, &value).start();
        kill(&sandbox, hold.wait(&place, DEADLINE));
        let finished = train.finish();
        check(&sandbox, &finished, &place);
        check_no_step_is_lost(&finished, 1, &place);
        check_updates(&halts, &place);
    }
}

/// A second rank is killed where a share that lost a holder is about to move. Where that was the last
/// holder of another one the job falls back, and says so; else nothing is lost.
#[test]
fn with_shadows_a_second_death_while_shares_move_changes_no_bit() {
    let mut num_kept = 0;
    for rank in 0..3 {
        let (sandbox, halts) = (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new());
        let one = halts.hold(first(2, "compute"));
        let moving = halts.hold(move |point: &Point| {
            (point.generation, point.rank) == (2, rank) && point.place == "move"
        });
        let (name, value) = halts.variable();
        let train = job(&sandbox, 4).set("workers.redundancy=shadow");
        let train = train.env(name, &value).start();
        kill(&sandbox, one.wait("the first", DEADLINE));
        kill(&sandbox, moving.wait("a move", DEADLINE));
        let finished = train.finish();
        let what = format!("rank {rank} while shares move");
        check(&sandbox, &finished, &what);
        let worlds: Vec<_> = finished.of_kind("generation").collect();
        let fallen = worlds.iter().find(|world| world["history"] == 2);
        match fallen {
            None => {
                check_no_step_is_lost(&finished, 2, &what);
                check_updates(&halts, &what);
                num_kept += 1;
            }
            Some(fallen) => {
                let reason = fallen["reason"].as_str().unwrap();
                println!("{what}: {reason}");
                // To the last one that was whole by then: its files are written beside training.
                let told = finished.events.iter().take_while(|event| event != fallen);
                let committed = told.filter(|event| event["event"] == "checkpoint");
                let from = committed
                    .last()
                    .map_or(0.into(), |event| event["step"].clone());
                assert_eq!(fallen["from_step"], from, "{worlds:#?}");
                assert!(reason.contains("with it went share"), "{reason}");
                assert_eq!(finished.steps().last(), Some(&STEPS));
            }
        }
    }
    println!("{num_kept} of 3 kept every share");
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
        let (name, value) = halts.variable();
        let train = job(&sandbox, 3).set("workers.redundancy=shadow");
        let train = train.env(name, &value).start();
        kill(&sandbox, one.wait("the first", DEADLINE));
        kill(&sandbox, giving.wait("a move", DEADLINE));
        let finished = train.finish();
        let what = format!("rank {rank} while a newcomer is given shares");
        check(&sandbox, &finished, &what);
        check_no_step_is_lost(&finished, 2, &what);
        check_updates(&halts, &what);
    }
}
