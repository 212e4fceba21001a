//! The order of a rank's deeds, what holds its reports back, and what a closed world keeps it from.

mod taking;

use super::*;
use v1::step_record::Record;

const RULES: Rules = Rules {
    total_steps: 5,
    checkpoint_every: 2,
    checkpoint_keep: 1,
    evaluate_every: Some(3),
    num_files: 2,
    is_shared: false,
};

const PLAN: RankPlan = RankPlan {
    generation: 1,
    rank: 0,
    size: 2,
    first_step: 0,
    healed: None,
    committed: 0,
};

/// A snapshot on the way, and the one behind which the work ends.
const ONE: Next = Next::Checkpoint { is_last: false };
const LAST: Next = Next::Checkpoint { is_last: true };

/// A rank in its first world, with the state of this step.
fn rank_at(step: u64) -> RankMachine {
    let mut machine = RankMachine::new(1);
    machine.prepared(RULES, Some(step));
    assert!(machine.enter(RankPlan {
        first_step: step,
        committed: step,
        ..PLAN
    }));
    machine
}

/// The rank's step is applied.
fn step(machine: &mut RankMachine, stop: bool) {
    assert!(machine.begin_apply());
    machine.applied(stop, None);
}

/// Runs a rank to its end; returns what it did, and after which step.
fn deeds(mut machine: RankMachine, stop_at: Option<u64>) -> Vec<(u64, Next)> {
    let mut deeds = Vec::new();
    loop {
        let next = machine.next();
        deeds.push((machine.step(), next));
        match next {
            Next::Step => {
                let stop = stop_at == Some(machine.step() + 1);
                step(&mut machine, stop);
            }
            Next::Evaluate => machine.evaluated(BTreeMap::new()),
            Next::Checkpoint { .. } => machine.snapped(),
            Next::LeaveOut => machine.left_out(),
            Next::End { .. } => return deeds,
        }
    }
}

fn part(step: u64) -> v1::CheckpointPart {
    v1::CheckpointPart {
        step,
        ..v1::CheckpointPart::default()
    }
}

fn done(step: u64) -> v1::Done {
    v1::Done {
        step,
        ..v1::Done::default()
    }
}

fn record((step, is_evaluation): Place) -> v1::StepRecord {
    let record = if is_evaluation {
        Record::Evaluated(v1::Evaluated {
            step,
            ..v1::Evaluated::default()
        })
    } else {
        Record::Applied(v1::StepApplied {
            step,
            ..v1::StepApplied::default()
        })
    };
    v1::StepRecord {
        record: Some(record),
        ..v1::StepRecord::default()
    }
}

fn cause(reason: &str) -> Cause {
    Cause {
        reason: reason.to_owned(),
        ..Cause::default()
    }
}

/// The one report there is: that the world is closed, and what the rank holds.
fn closed(machine: &mut RankMachine) -> v1::Holdings {
    let reports = machine.take_reports();
    let [Report::Closed(closed)] = &reports[..] else {
        panic!("{reports:?}")
    };
    closed.holdings.clone().unwrap()
}

fn holdings(step: u64, shards: &[(u32, u32)], reduced: bool) -> v1::Holdings {
    let shards = shards.iter().map(|(start, end)| v1::Shards {
        start: *start,
        end: *end,
    });
    v1::Holdings {
        step: Some(step),
        shards: shards.collect(),
        reduced,
        evaluated: false,
        ..v1::Holdings::default()
    }
}

/// The next world, which goes on at this step.
fn healed(generation: u64, first_step: u64, committed: u64) -> RankPlan {
    RankPlan {
        generation,
        first_step,
        healed: Some(false),
        committed,
        ..PLAN
    }
}

#[test]
fn checkpoints_and_evaluations_come_at_their_steps_and_once_at_the_end() {
    use Next::{End, Evaluate, Step};
    let expected = [
        (0, Step),
        (1, Step),
        (2, ONE),
        (2, Step),
        (3, Evaluate),
        (3, Step),
        (4, ONE),
        (4, Step),
        (5, Evaluate),
        (5, LAST),
        (5, End { stopped: false }),
    ];
    assert_eq!(deeds(rank_at(0), None), expected);
}

#[test]
fn a_rank_that_is_told_to_stop_ends_behind_a_checkpoint() {
    let deeds = deeds(rank_at(0), Some(3));
    let expected = [
        (3, Next::Evaluate),
        (3, LAST),
        (3, Next::End { stopped: true }),
    ];
    assert!(deeds.ends_with(&expected), "{deeds:?}");
}

#[test]
fn a_rank_that_is_told_to_stop_at_its_last_step_has_completed() {
    assert_eq!(
        deeds(rank_at(0), Some(5)).last(),
        Some(&(5, Next::End { stopped: false }))
    );
}

#[test]
fn a_rank_that_resumes_writes_the_checkpoint_it_came_from_no_second_time() {
    let expected = [
        (4, Next::Step),
        (5, Next::Evaluate),
        (5, LAST),
        (5, Next::End { stopped: false }),
    ];
    assert_eq!(deeds(rank_at(4), None), expected);
    // The world that wrote the last checkpoint was lost before it could say so.
    assert_eq!(
        deeds(rank_at(5), None),
        [(5, Next::Evaluate), (5, Next::End { stopped: false })]
    );
}

#[test]
fn a_part_is_reported_when_the_records_of_its_steps_are_durable() {
    let mut machine = rank_at(0);
    for place in [(1, false), (2, false), (2, true)] {
        machine.record(record(place));
    }
    machine.part_written(part(2));
    machine.record(record((3, false)));
    assert_eq!(machine.take_reports(), []);
    machine.acked((2, false));
    assert_eq!(machine.take_reports(), [], "its evaluation is not durable");
    machine.acked((2, true));
    assert_eq!(machine.take_reports(), [Report::CheckpointPart(part(2))]);
    assert_eq!(machine.take_reports(), [], "each report goes out once");
    assert_eq!(machine.num_unacked(), 1);
}

#[test]
fn the_end_is_reported_when_its_checkpoint_counts() {
    let mut machine = rank_at(0);
    machine.ended(done(5));
    machine.committed(4);
    assert_eq!(machine.take_reports(), []);
    machine.committed(5);
    assert_eq!(machine.take_reports(), [Report::Done(done(5))]);
    // One that resumed at the end has a checkpoint that counts already.
    let mut machine = rank_at(5);
    machine.ended(done(5));
    machine.record(record((5, true)));
    assert_eq!(machine.take_reports(), [], "its evaluation is not durable");
    machine.acked((5, true));
    assert_eq!(machine.take_reports(), [Report::Done(done(5))]);
}

#[test]
fn files_and_chunks_are_dealt_out_without_gaps() {
    for size in 1..5 {
        let plans = (0..size).map(|rank| RankPlan { rank, size, ..PLAN });
        let mut files: Vec<u32> = plans.clone().flat_map(|plan| plan.files(2)).collect();
        files.sort_unstable();
        assert_eq!(files, [0, 1]);
        let mut chunks: Vec<u32> = plans.flat_map(|plan| plan.chunks(plan.rank, 7)).collect();
        chunks.sort_unstable();
        assert_eq!(chunks, [0, 1, 2, 3, 4, 5, 6]);
    }
}

#[test]
fn a_closed_world_applies_nothing_and_says_what_is_held() {
    let mut machine = rank_at(0);
    step(&mut machine, false);
    assert!(machine.begin_shard(2) && machine.begin_shard(0));
    machine.close(1, cause("lost rank 1"));
    assert_eq!(closed(&mut machine), holdings(1, &[(0, 1), (2, 3)], true));
    assert!(
        !machine.begin_apply() && !machine.begin_shard(1),
        "whatever completes now is not used"
    );
    machine.close(1, cause("again"));
    assert_eq!(machine.take_reports(), [], "a world is closed once");
    assert!(!machine.enter(healed(1, 1, 0)), "it is over");
    assert!(machine.enter(healed(2, 1, 0)));
    assert_eq!(machine.holds(), [Run::new(0, 1), Run::new(2, 3)]);
    step(&mut machine, false);
    assert_eq!((machine.step(), machine.holds()), (2, &[][..]));
}

#[test]
fn a_world_that_is_closed_while_a_step_is_applied_is_reported_behind_it() {
    let mut machine = rank_at(0);
    assert!(machine.begin_shard(0) && machine.begin_apply());
    machine.close(1, cause("rank 1 is gone"));
    assert_eq!(machine.take_reports(), [], "it is in between two steps");
    machine.applied(false, None);
    assert_eq!(closed(&mut machine), holdings(1, &[], true));
    assert!(!machine.begin_apply());
}

#[test]
fn a_world_that_is_closed_before_it_is_entered_is_reported_too() {
    // While the process is still being prepared ...
    let mut machine = RankMachine::new(1);
    machine.close(1, cause("rank 1 is gone"));
    assert_eq!(closed(&mut machine), v1::Holdings::default());
    machine.prepared(RULES, Some(0));
    assert!(!machine.enter(PLAN));
    // ... and while it computes the last shard of the world before.
    machine.assigned(2);
    machine.close(1, cause("an order that is late"));
    assert_eq!(machine.take_reports(), []);
    machine.close(2, cause("rank 2 is gone"));
    assert_eq!(closed(&mut machine), holdings(0, &[], false));
    assert!(!machine.enter(healed(2, 0, 0)));
    machine.assigned(3);
    assert!(machine.enter(healed(3, 0, 0)));
}

/// The coordinator is away: what a rank hears of it are the acknowledgements of records.
#[test]
fn checkpoints_are_left_out_while_too_many_wait_for_the_coordinator_but_for_the_last() {
    let mut machine = RankMachine::new(1);
    let rules = Rules {
        total_steps: 12,
        evaluate_every: None,
        ..RULES
    };
    machine.prepared(rules, Some(0));
    assert!(machine.enter(PLAN));
    let mut ends_at = |num_steps: u64, acked: Option<u64>| {
        let mut taken = Vec::new();
        if let Some(step) = acked {
            // What this rank alone knows changes nothing.
            machine.acked((9, false));
            machine.all_acked((step, false));
        }
        for _ in 0..num_steps {
            step(&mut machine, false);
            loop {
                match machine.next() {
                    next @ Next::Checkpoint { .. } => {
                        taken.push((machine.step(), next));
                        machine.snapped();
                    }
                    Next::LeaveOut => machine.left_out(),
                    Next::Evaluate => machine.evaluated(BTreeMap::new()),
                    Next::Step | Next::End { .. } => break,
                }
            }
        }
        taken
    };
    assert_eq!(ends_at(7, None), [(2, ONE), (4, ONE)], "not of step 6");
    assert_eq!(ends_at(1, Some(1)), [], "both still wait");
    assert_eq!(ends_at(2, Some(2)), [(10, ONE)], "one may be added");
    assert_eq!(
        ends_at(2, None),
        [(12, LAST)],
        "the last may not be missing"
    );
}

#[test]
fn a_new_world_is_proof_of_a_coordinator() {
    let mut machine = rank_at(0);
    for _ in 0..2 {
        machine.snapped();
        step(&mut machine, false);
        step(&mut machine, false);
    }
    assert_eq!(machine.next(), Next::LeaveOut);
    machine.close(1, cause("rank 1 is gone"));
    assert!(machine.enter(healed(2, 4, 0)));
    assert_eq!(machine.next(), ONE);
}

#[test]
fn ranks_that_pause_close_behind_the_step() {
    let mut machine = rank_at(0);
    assert!(machine.begin_apply());
    machine.applied(false, Some("a rank enters".to_owned()));
    let reports = machine.take_reports();
    let [Report::Closed(closed)] = &reports[..] else {
        panic!("{reports:?}")
    };
    assert!(closed.paused && closed.lost.is_empty() && closed.reason == "a rank enters");
}

#[test]
fn a_rank_that_stopped_in_a_world_that_closed_stops_again_behind_one_more_step() {
    let mut machine = rank_at(0);
    step(&mut machine, true);
    assert_eq!(machine.next(), LAST);
    machine.close(1, cause("rank 1 is gone"));
    assert!(machine.enter(healed(2, 1, 0)));
    // A rank that enters now knows nothing of the stop: all do the same.
    assert_eq!(machine.next(), Next::Step);
}

#[test]
fn a_checkpoint_that_came_not_to_count_is_written_again() {
    let mut machine = rank_at(0);
    step(&mut machine, false);
    step(&mut machine, false);
    machine.snapped();
    step(&mut machine, false);
    machine.close(1, cause("rank 1 is gone"));
    assert!(machine.enter(healed(2, 3, 0)));
    assert_eq!(
        machine.next(),
        Next::Evaluate,
        "nobody is sure that all have it"
    );
    machine.evaluated(BTreeMap::new());
    assert_eq!(machine.next(), ONE, "that of step 2 is lost");
    machine.snapped();
    assert_eq!(machine.next(), Next::Step);
    machine.close(2, cause("rank 1 is gone"));
    assert!(machine.enter(healed(3, 3, 2)));
    machine.evaluated(BTreeMap::new());
    assert_eq!(machine.next(), Next::Step, "that of step 2 counts");
}

#[test]
fn records_outlive_the_rank_that_sends_them() {
    let mut machine = rank_at(0);
    let second = RankPlan {
        rank: 1,
        generation: 2,
        ..healed(2, 0, 0)
    };
    machine.close(1, cause("moved"));
    assert!(machine.enter(second));
    for place in [(1, false), (2, false), (3, false), (3, true)] {
        machine.record(record(place));
    }
    assert_eq!(machine.take_records(), [], "rank 0 sends them");
    machine.acked((1, false));
    machine.close(2, cause("rank 0 is gone"));
    assert!(machine.enter(healed(3, 3, 0)));
    let rest = [(2, false), (3, false), (3, true)].map(record);
    assert_eq!(machine.take_records(), rest);
    assert_eq!(machine.take_records(), [], "each goes out once");
    machine.record(record((3, true)));
    assert_eq!(machine.take_records(), [], "an evaluation is told once");
    machine.record(record((4, false)));
    assert_eq!(machine.take_records(), [record((4, false))]);
    machine.acked((5, false));
    machine.record(record((5, false)));
    assert_eq!(machine.num_unacked(), 0, "its acknowledgement came first");
}
