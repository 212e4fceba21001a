//! Checkpoints that turn out not to be usable.

use super::*;

/// The ranks of a world say that the checkpoint which it starts from is damaged.
fn damaged(bench: &mut Bench, world: &[(Session, v1::Assignment)]) {
    for (session, assignment) in world {
        let source = assignment.source.as_ref().unwrap();
        let damaged = v1::CheckpointDamaged {
            history: source.history,
            step: source.step,
            reason: format!("{}.params is damaged", source.step),
        };
        let report = Report::CheckpointDamaged(damaged);
        bench.report(*session, &assignment.key(), report);
    }
}

fn num_of(bench: &Bench, kind: &str) -> usize {
    let story = bench.story();
    story.iter().filter(|told| *told == kind).count()
}

#[test]
fn a_damaged_checkpoint_is_rejected_and_the_one_before_it_is_used() {
    let (mut bench, ranks) = running();
    bench.checkpoint(&ranks, 1);
    bench.checkpoint(&ranks, 2);
    let second = all_die(&mut bench, &ranks);
    assert_eq!(second[0].1.first_step, 2);
    damaged(&mut bench, &second);
    bench.pass(3_000, &[ranks[0].0, ranks[1].0]);
    assert_eq!(bench.assigned(ranks[0].0).unwrap().first_step, 1);
    assert_eq!(num_of(&bench, "damaged"), 1);
}

#[test]
fn a_job_whose_only_checkpoint_is_damaged_fails_and_goes_on_from_it_when_it_is_whole_again() {
    let (mut bench, ranks) = running();
    bench.checkpoint(&ranks, 1);
    bench.checkpoint(&ranks, 2);
    let second = all_die(&mut bench, &ranks);
    damaged(&mut bench, &second);
    let sessions = [ranks[0].0, ranks[1].0];
    bench.pass(3_000, &sessions);
    let third = sessions.map(|session| (session, bench.assigned(session).unwrap()));
    damaged(&mut bench, &third);
    bench.pass(3_000, &sessions);
    let view = bench.coordinator.job_view(JOB).unwrap();
    assert_eq!((view.state.as_str(), view.step), ("failed", 1));
    for word in [
        "only checkpoint, of step 1",
        "1.params is damaged",
        "--fresh",
    ] {
        assert!(view.reason.contains(word), "{}", view.reason);
    }
    assert_eq!(num_of(&bench, "damaged"), 1, "the last one still counts");
    bench.request(4, submit());
    bench.pass(3_000, &sessions);
    assert_eq!(bench.assigned(sessions[0]).unwrap().first_step, 1);
}

#[test]
fn a_checkpoint_that_no_rank_can_read_fails_the_job_in_the_end_and_still_counts() {
    let (mut bench, ranks) = running();
    bench.step(&ranks[0].1, 1);
    bench.checkpoint(&ranks, 1);
    bench.step(&ranks[0].1, 2);
    let mut ranks = ranks.to_vec();
    for world in 2..=6 {
        let next = all_die(&mut bench, &ranks);
        assert_eq!(next[0].1.first_step, 1, "world {world}");
        ranks = next
            .into_iter()
            .map(|(session, assignment)| (session, assignment.key()))
            .collect();
    }
    for (session, key) in &ranks {
        let exited = v1::RankExited {
            key: Some(key.clone()),
            reason: "exit code 1".to_owned(),
            log_tail: "error: could not read checkpoint file 1.params\n".to_owned(),
        };
        bench.say(*session, From::Exited(exited));
    }
    let view = bench.coordinator.job_view(JOB).unwrap();
    assert_eq!((view.state.as_str(), view.step), ("failed", 1));
    for word in ["worlds in a row", "could not read checkpoint file 1.params"] {
        assert!(view.reason.contains(word), "{}", view.reason);
    }
    assert_eq!(num_of(&bench, "damaged"), 0);
    assert_eq!(view.manifests.len(), 1);
}

#[test]
fn a_checkpoint_that_a_rank_cannot_write_is_told_and_the_job_goes_on_to_the_next_one() {
    let (mut bench, ranks) = running();
    let (session, key) = &ranks[1];
    let unwritten = v1::CheckpointUnwritten {
        step: 1,
        reason: "no room".to_owned(),
    };
    bench.report(*session, key, Report::CheckpointUnwritten(unwritten));
    let told = bench.events.last().map(|event| event.what.clone());
    let expected = What::Unwritten {
        step: 1,
        rank: 1,
        worker: "b".to_owned(),
        reason: "no room".to_owned(),
    };
    assert_eq!(told, Some(expected));
    bench.checkpoint(&ranks, 2);
    let view = bench.coordinator.job_view(JOB).unwrap();
    assert_eq!((view.state.as_str(), view.manifests.len()), ("running", 1));
}
