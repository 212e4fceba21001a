//! The order of a rank's deeds, and what holds its reports back.

use super::*;

fn plan() -> RankPlan {
    RankPlan {
        rank: 0,
        size: 2,
        first_step: 0,
        total_steps: 5,
        checkpoint_every: 2,
        evaluate_every: Some(3),
        num_files: 2,
    }
}

/// Runs a rank to its end; returns what it did, and after which step.
fn deeds(plan: RankPlan, stop_at: Option<u64>) -> Vec<(u64, Next)> {
    let mut machine = RankMachine::new(plan);
    let mut deeds = Vec::new();
    loop {
        let next = machine.next();
        deeds.push((machine.step(), next));
        match next {
            Next::Step => machine.stepped(stop_at == Some(machine.step() + 1)),
            Next::Evaluate => machine.evaluated(BTreeMap::new()),
            Next::Checkpoint => machine.snapped(),
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

#[test]
fn checkpoints_and_evaluations_come_at_their_steps_and_once_at_the_end() {
    use Next::{Checkpoint, End, Evaluate, Step};
    let expected = [
        (0, Step),
        (1, Step),
        (2, Checkpoint),
        (2, Step),
        (3, Evaluate),
        (3, Step),
        (4, Checkpoint),
        (4, Step),
        (5, Evaluate),
        (5, Checkpoint),
        (5, End { stopped: false }),
    ];
    assert_eq!(deeds(plan(), None), expected);
}

#[test]
fn a_rank_that_is_told_to_stop_ends_behind_a_checkpoint() {
    let deeds = deeds(plan(), Some(3));
    let expected = [
        (3, Next::Evaluate),
        (3, Next::Checkpoint),
        (3, Next::End { stopped: true }),
    ];
    assert!(deeds.ends_with(&expected), "{deeds:?}");
}

#[test]
fn a_rank_that_is_told_to_stop_at_its_last_step_has_completed() {
    assert_eq!(
        deeds(plan(), Some(5)).last(),
        Some(&(5, Next::End { stopped: false }))
    );
}

#[test]
fn a_rank_that_resumes_writes_the_checkpoint_it_came_from_no_second_time() {
    let resumed = RankPlan {
        first_step: 4,
        ..plan()
    };
    let expected = [
        (4, Next::Step),
        (5, Next::Evaluate),
        (5, Next::Checkpoint),
        (5, Next::End { stopped: false }),
    ];
    assert_eq!(deeds(resumed, None), expected);
    // The world that wrote the last checkpoint was lost before it could say so.
    let complete = RankPlan {
        first_step: 5,
        ..plan()
    };
    assert_eq!(
        deeds(complete, None),
        [(5, Next::Evaluate), (5, Next::End { stopped: false })]
    );
}

#[test]
fn a_part_is_reported_when_the_records_of_its_steps_are_durable() {
    let mut machine = RankMachine::new(plan());
    machine.recorded(1, false);
    machine.recorded(2, false);
    machine.recorded(2, true);
    machine.part_written(part(2));
    machine.recorded(3, false);
    assert_eq!(machine.take_reports(), []);
    machine.acked(2, false);
    assert_eq!(machine.take_reports(), [], "its evaluation is not durable");
    machine.acked(2, true);
    assert_eq!(machine.take_reports(), [Report::CheckpointPart(part(2))]);
    assert_eq!(machine.take_reports(), [], "each report goes out once");
    assert_eq!(machine.num_unacked(), 1);
}

#[test]
fn the_end_is_reported_when_its_checkpoint_counts() {
    let mut machine = RankMachine::new(plan());
    machine.ended(done(5));
    machine.committed(4);
    assert_eq!(machine.take_reports(), []);
    machine.committed(5);
    assert_eq!(machine.take_reports(), [Report::Done(done(5))]);
    // One that resumed at the end has a checkpoint that counts already.
    let mut machine = RankMachine::new(RankPlan {
        first_step: 5,
        ..plan()
    });
    machine.ended(done(5));
    machine.recorded(5, true);
    assert_eq!(machine.take_reports(), [], "its evaluation is not durable");
    machine.acked(5, true);
    assert_eq!(machine.take_reports(), [Report::Done(done(5))]);
}

#[test]
fn files_and_chunks_are_dealt_out_without_gaps() {
    for size in 1..5 {
        let plans = (0..size).map(|rank| RankPlan {
            rank,
            size,
            ..plan()
        });
        let mut files: Vec<u32> = plans.clone().flat_map(|plan| plan.files()).collect();
        files.sort_unstable();
        assert_eq!(files, [0, 1]);
        let mut chunks: Vec<u32> = plans.flat_map(|plan| plan.chunks(plan.rank, 7)).collect();
        chunks.sort_unstable();
        assert_eq!(chunks, [0, 1, 2, 3, 4, 5, 6]);
    }
}
