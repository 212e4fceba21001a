//! What the others see of a rank that leaves or dies.

use super::*;

/// The end of a connection without a goodbye, as the system may tell it.
pub(super) fn assert_closed(seen: LossReason) {
    let is_closed = matches!(seen, LossReason::Closed(_) | LossReason::Reported { .. });
    assert!(is_closed, "{seen:?}");
}

/// How rank 1 was lost, which is why an operation failed.
#[track_caller]
fn loss_of_rank_1(error: &Error) -> LossReason {
    match error {
        Error::PeerLost {
            rank: RankId(1),
            reason,
        } => *reason,
        other => panic!("{other:?}"),
    }
}

pub(super) fn a_rank_that_left_is_named_by_all_survivors(driver: Driver) {
    on_ranks(driver(3, Generation(1)), |mut group| {
        if group.world().rank == RankId(1) {
            return;
        }
        let begun = Instant::now();
        let error = group.barrier(PATIENT).expect_err("a rank is missing");
        assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
        let reason = loss_of_rank_1(&error);
        let is_known = matches!(reason, LossReason::Left | LossReason::Reported { .. });
        assert!(is_known, "{reason:?}");
        assert_eq!(group.barrier(PATIENT), Err(error), "it stays so");
    });
}

pub(super) fn a_rank_that_retired_has_said_goodbye(driver: Driver) {
    on_ranks(driver(3, Generation(1)), |mut group| {
        let expected = match group.world().rank {
            RankId(1) => return group.retire(),
            RankId(0) => {
                let error = group.recv(RankId(1), PATIENT).expect_err("it has left");
                group.retire();
                (error, LossReason::Left)
            }
            _ => {
                let error = group.recv(RankId(0), PATIENT).expect_err("it has left");
                (error, LossReason::Reported { by: RankId(0) })
            }
        };
        let (error, reason) = expected;
        let rank = RankId(1);
        assert_eq!(error, Error::PeerLost { rank, reason });
    });
}

pub(super) fn a_rank_that_died_before_the_operation_is_named_by_all_survivors(driver: Driver) {
    dies_after(driver, Some(0));
}

pub(super) fn a_rank_that_dies_in_the_operation_is_named_by_all_survivors(driver: Driver) {
    for num_frames in 1..6 {
        dies_after(driver, Some(num_frames));
    }
    dies_after(driver, None);
}

/// Rank 1 of three sends some of its first frames, or all of them, and dies.
pub(super) fn dies_after(driver: Driver, num_frames: Option<usize>) {
    on_ranks(driver(3, Generation(1)), |mut group| {
        let operation = operation(&group, 9, 4, 300_000);
        if group.world().rank == RankId(1) {
            return die_within(group, operation, num_frames);
        }
        let begun = Instant::now();
        let error = group
            .all_reduce(operation, PATIENT)
            .expect_err("a rank is missing");
        assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
        let reason = loss_of_rank_1(&error);
        assert_closed(reason);
    });
}

/// Sends some of the first frames of an operation, or all of them, and dies.
pub(super) fn die_within(group: Group, operation: Operation, num_frames: Option<usize>) {
    let machine = Reduction::new(group.world(), 0, operation, &Pool::default());
    let mut outputs = Vec::new();
    machine
        .expect("possible")
        .handle(Input::Start, &mut outputs);
    for output in outputs.into_iter().take(num_frames.unwrap_or(usize::MAX)) {
        let Output::Send { to, frame } = output else {
            panic!("{output:?}")
        };
        let sent = group.transport().send(to, frame, Patience::Never);
        sent.expect("room");
    }
    group.sever();
}

pub(super) fn a_loss_is_blamed_on_the_rank_that_was_lost_first(driver: Driver) {
    on_ranks(driver(3, Generation(1)), |mut group| {
        if group.world().rank == RankId(1) {
            return group.sever();
        }
        // Rank 0 fails and leaves; rank 2 begins only after that, and names rank 1 all the same.
        if group.world().rank == RankId(2) {
            let error = group.recv(RankId(0), PATIENT).expect_err("rank 0 leaves");
            let reason = loss_of_rank_1(&error);
            return assert_closed(reason);
        }
        let error = group.barrier(PATIENT).expect_err("rank 1 is gone");
        assert!(
            matches!(
                error,
                Error::PeerLost {
                    rank: RankId(1),
                    ..
                }
            ),
            "{error:?}"
        );
    });
}
