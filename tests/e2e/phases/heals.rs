//! What strikes while a death is being healed: a second death among those that heal, of the one who
//! gives or who is given a state, and of the coordinator. And the deaths that nothing is left of.

use muster_tests::{Finished, Halts, Point, Sandbox, Signal, Train, eventually, processes_of};

use super::{
    AT, DEADLINE, EVERY, STEPS, check, check_healed, first, job, wait_for_checkpoint, worlds,
};

/// A place of a rank of the second world.
fn second(rank: u64, place: &'static str) -> impl Fn(&Point) -> bool + Send + Clone {
    move |point| (point.generation, point.rank) == (2, rank) && point.place.starts_with(place)
}

/// Any rank of the second world that comes there first.
fn healing(place: &'static str) -> impl Fn(&Point) -> bool + Send + Clone {
    move |point| point.generation == 2 && point.place.starts_with(place)
}

fn sandbox_and_halts() -> (Sandbox, Halts) {
    (Sandbox::new(env!("CARGO_BIN_EXE_muster")), Halts::new())
}

fn start<'a>(sandbox: &'a Sandbox, halts: &Halts, num_workers: u32) -> Train<'a> {
    job(sandbox, num_workers).halted_by(halts).start()
}

/// A job that two ranks have to be in: another process enters as soon as it is prepared, and is given
/// the state in its first world.
fn start_with_two<'a>(sandbox: &'a Sandbox, halts: &Halts) -> Train<'a> {
    let job = job(sandbox, 2).set("workers.min=2");
    job.halted_by(halts).start()
}

/// Where a rank of the first world was last.
fn point_of(halts: &Halts, rank: u64) -> Point {
    let mut passed = halts.passed().into_iter();
    let of_rank = passed.rfind(|point| (point.generation, point.rank) == (1, rank));
    of_rank.unwrap()
}

fn pid_of_coordinator(sandbox: &Sandbox) -> u32 {
    eventually(DEADLINE, "a coordinator", || {
        let mut processes = processes_of(sandbox).into_iter();
        processes.find_map(|(pid, line)| line.contains("muster coordinator").then_some(pid))
    })
}

/// Kills the coordinator, and waits until that one is gone: what is said now, nobody hears.
fn kill_coordinator(sandbox: &Sandbox) {
    let pid = pid_of_coordinator(sandbox);
    sandbox.kill(pid, Signal::KILL);
    eventually(DEADLINE, "the end of the coordinator", || {
        let left = processes_of(sandbox);
        left.iter().all(|(one, _)| *one != pid).then_some(())
    });
}

#[test]
fn a_second_death_among_those_that_heal_the_first_loses_nothing() {
    for place in ["meet", "met", "compute", "reduced", "update"] {
        let (sandbox, halts) = sandbox_and_halts();
        let (one, other) = (halts.hold(first(2, "compute")), halts.hold(healing(place)));
        let train = start(&sandbox, &halts, 4);
        let one = sandbox.kill_held(one.wait("the first", DEADLINE));
        let other = sandbox.kill_held(other.wait("the second", DEADLINE));
        let finished = train.finish();
        check_healed(&sandbox, &finished, &halts, &[&one, &other], place);
    }
}

/// Two of four have applied the step, and one of them gives the others what they lack: that one
/// dies, and the other gives it. Or there was only one, and the step is done again, with the shards
/// that the other two still have.
#[test]
fn a_rank_that_is_killed_while_it_gives_the_reduced_vector_on_loses_nothing() {
    for (place, ahead, new_rank, again) in
        [("sent 8 ", &[3, 0][..], 0, 0), ("sent 7 ", &[3][..], 2, 4)]
    {
        let (sandbox, halts) = sandbox_and_halts();
        let one = halts.hold(first(2, place));
        let giver = halts.hold(second(new_rank, "met"));
        let train = start(&sandbox, &halts, 4);
        let one = one.wait("the first", DEADLINE);
        for rank in ahead {
            halts.wait_for("the update", DEADLINE, first(*rank, "updated"));
        }
        let one = sandbox.kill_held(one);
        let giver = sandbox.kill_held(giver.wait("the giver", DEADLINE));
        let finished = train.finish();
        let killed = [&one, &giver];
        let num_again = check_healed(&sandbox, &finished, &halts, &killed, place);
        assert_eq!(num_again, again, "{place}");
    }
}

/// Of two ranks one is killed; when another process enters in its place, both of their world are held
/// where they have met, and the state is on its way.
fn killed_while_a_state_is_given(of_newcomer: bool) -> Finished {
    let (sandbox, halts) = sandbox_and_halts();
    let one = halts.hold(first(1, "compute"));
    let (giver, taker) = (halts.hold(second(0, "met")), halts.hold(second(1, "met")));
    let train = start_with_two(&sandbox, &halts);
    let one = one.wait("the first", DEADLINE);
    // Both of them write a part of it.
    wait_for_checkpoint(&train);
    let one = sandbox.kill_held(one);
    let (giver, taker) = (
        giver.wait("the giver", DEADLINE),
        taker.wait("the taker", DEADLINE),
    );
    assert_eq!((giver.point.process, taker.point.process), (1, 3));
    let (other, held) = if of_newcomer {
        (sandbox.kill_held(taker), giver)
    } else {
        (sandbox.kill_held(giver), taker)
    };
    drop(held);
    let finished = train.finish();
    if of_newcomer {
        check_healed(&sandbox, &finished, &halts, &[&one, &other], "the taker");
    } else {
        check(&sandbox, &finished, "the giver");
    }
    finished
}

#[test]
fn a_newcomer_that_is_killed_while_it_is_given_the_state_loses_nothing() {
    killed_while_a_state_is_given(true);
}

#[test]
fn where_the_last_holder_is_killed_the_job_falls_back_and_says_so() {
    let finished = killed_while_a_state_is_given(false);
    let worlds = worlds(&finished);
    assert_eq!(worlds[..3], [(1, 0), (1, AT), (2, EVERY)], "{worlds:?}");
    let fallen = finished.of_kind("generation").nth(2).unwrap();
    let reason = fallen["reason"].as_str().unwrap();
    let (gone, to) = ("is gone: signal 9", format!("falls back to step {EVERY}"));
    assert!(reason.contains(gone) && reason.contains(&to), "{reason}");
}

#[test]
fn when_all_ranks_are_killed_the_job_goes_on_from_the_last_checkpoint_by_itself() {
    let (sandbox, halts) = sandbox_and_halts();
    let hold = halts.hold(|point| point.step == EVERY + 4 && point.place == "reduce");
    let train = start(&sandbox, &halts, 4);
    let held = hold.wait("the step", DEADLINE);
    wait_for_checkpoint(&train);
    // At once, as far as anyone can tell: who is stopped says nothing of another one's death.
    for signal in [Signal::STOP, Signal::KILL] {
        for rank in 0..4 {
            sandbox.kill(point_of(&halts, rank).pid, signal);
        }
    }
    drop(held);
    let finished = train.finish();
    check(&sandbox, &finished, "all ranks");
    let worlds = worlds(&finished);
    assert_eq!(worlds[..2], [(1, 0), (2, EVERY)], "{worlds:?}");
    assert_eq!(finished.of_kind("lost").count(), 4);
}

/// One rank is in the middle of its update, and says what it holds when that is done: until then no
/// other world can begin. The coordinator dies in between, and the rank goes on before or after the
/// next one serves.
#[test]
fn a_coordinator_that_is_killed_between_the_revoke_and_the_next_world_loses_nothing() {
    for serves_first in [false, true] {
        let (sandbox, halts) = sandbox_and_halts();
        let hold = halts.hold(first(3, "update"));
        let train = start(&sandbox, &halts, 4);
        let held = hold.wait("the update", DEADLINE);
        let one = point_of(&halts, 2);
        sandbox.kill(one.pid, Signal::KILL);
        halts.wait_for("the revoke", DEADLINE, |point| {
            point.rank == 3 && point.place == "told to close"
        });
        kill_coordinator(&sandbox);
        if serves_first {
            let _ = pid_of_coordinator(&sandbox);
        }
        drop(held);
        let finished = train.finish();
        let what = "between the revoke and the next world";
        check_healed(&sandbox, &finished, &halts, &[&one], what);
    }
}

#[test]
fn a_coordinator_that_is_killed_in_the_middle_of_a_heal_loses_nothing() {
    for place in ["meet", "met", "compute", "reduced", "update"] {
        let (sandbox, halts) = sandbox_and_halts();
        let (one, other) = (halts.hold(first(2, "compute")), halts.hold(healing(place)));
        let train = start(&sandbox, &halts, 4);
        let one = sandbox.kill_held(one.wait("the first", DEADLINE));
        let held = other.wait("the heal", DEADLINE);
        kill_coordinator(&sandbox);
        drop(held);
        let finished = train.finish();
        check_healed(&sandbox, &finished, &halts, &[&one], place);
    }
}

/// A rank's process is there and has not reached its worker's daemon, which is killed.
#[test]
fn a_daemon_that_is_killed_while_it_starts_a_rank_is_followed_by_one_that_does_not_lose_it() {
    for replaces in [false, true] {
        let (sandbox, halts) = sandbox_and_halts();
        let process = if replaces { 3 } else { 2 };
        let begin = halts.hold(move |point| point.process == process && point.place == "begin");
        let one = replaces.then(|| halts.hold(first(1, "compute")));
        let train = start_with_two(&sandbox, &halts);
        if let Some(one) = one {
            sandbox.kill_held(one.wait("the first", DEADLINE));
        }
        let held = begin.wait("the new rank", DEADLINE);
        let daemon = parent_of(held.point.pid);
        sandbox.kill(daemon, Signal::KILL);
        eventually(DEADLINE, "the end of the daemon", || {
            (parent_of(held.point.pid) != daemon).then_some(())
        });
        drop(held);
        let finished = train.finish();
        check(&sandbox, &finished, "a daemon");
        let steps = finished.of_kind("step").count() as u64;
        assert_eq!(
            (steps, &finished.end()["steps_run"]),
            (STEPS, &STEPS.into())
        );
    }
}

fn parent_of(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let mut lines = status.lines();
    let parent = lines.find_map(|line| line.strip_prefix("PPid:")).unwrap();
    parent.trim().parse().unwrap()
}
