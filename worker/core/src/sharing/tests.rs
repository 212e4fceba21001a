//! The deeds of giver, taker and bystander, in their order.

use super::*;
use crate::rank::{Cause, RankPlan, Rules};

/// Three ranks: 0 keeps the first half of all shares, 1 the second; share 3 goes from 2 to 0, and
/// share 20 from 0 to 1.
fn assignment(rank: u32, gather: bool) -> v1::Assignment {
    let moves = [(3, 2, 0), (20, 0, 1)].map(|(share, from, to)| v1::ShareMove { share, from, to });
    v1::Assignment {
        rank,
        layout: vec![v1::EqualRanks {
            num_ranks: 3,
            start: 0,
            shards_each: 1,
        }],
        state_shares: (0..NUM_SHARES)
            .map(|share| v1::ShareHolders {
                owner: u32::from(share >= 16),
                shadow: None,
            })
            .collect(),
        finish: Some(v1::FinishStep {
            moves: moves.to_vec(),
            gather,
            ..v1::FinishStep::default()
        }),
        ..v1::Assignment::default()
    }
}

fn sharing(rank: u32) -> Sharing {
    Sharing::of(&assignment(rank, false)).unwrap().unwrap()
}

fn set(shares: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
    shares.into_iter().collect()
}

fn left(runs: &[(u32, u32)]) -> Deed {
    let runs = runs.iter().map(|(start, end)| Run::new(*start, *end));
    Deed::Say(Word::Left(runs.collect()))
}

fn kept(runs: &[(u32, u32)]) -> Deed {
    let runs = runs.iter().map(|(start, end)| Run::new(*start, *end));
    Deed::Say(Word::Kept(runs.collect()))
}

/// Who tells what behind a step, where nothing is new.
fn gathering() -> [Deed; 2] {
    let tellers = vec![(0..16).collect(), (16..32).collect(), Vec::new()];
    [Deed::Gather { tellers }, Deed::Say(Word::Gathered)]
}

#[test]
fn what_is_copied_is_given_up_behind_the_first_step_and_not_before() {
    let here = set((0..16).filter(|share| *share != 3).chain([20, 25]));
    let rank = sharing(0);
    let all_but = set((0..16).chain([20]));
    let begin = [
        left(&[(0, 3), (4, 16), (20, 21)]),
        Deed::Free { all_but },
        Deed::Take {
            share: 3,
            from: RankId(2),
        },
        kept(&[(0, 16), (20, 21)]),
        Deed::Give {
            share: 20,
            to: RankId(1),
        },
    ];
    assert_eq!(rank.begin(&here), begin);
    let here = set((0..16).chain([20]));
    let [gather, said] = gathering();
    let all_but = set(0..16);
    let behind = [gather, said, left(&[(0, 16)]), Deed::Free { all_but }];
    assert_eq!(rank.behind_step(&here), behind);
    assert_eq!(rank.behind_step(&set(0..16)), gathering(), "once");
}

#[test]
fn who_leaves_gives_and_keeps_what_it_gave_until_the_first_step_is_made() {
    let give = Deed::Give {
        share: 3,
        to: RankId(0),
    };
    assert_eq!(sharing(2).begin(&set([3])), [give]);
    let [gather, said] = gathering();
    let all_but = BTreeSet::new();
    let behind = [gather, said, left(&[]), Deed::Free { all_but }];
    assert_eq!(sharing(2).behind_step(&set([3])), behind);
}

#[test]
fn parameters_are_gathered_behind_the_copies_where_somebody_lacks_them() {
    let rank = Sharing::of(&assignment(1, true)).unwrap().unwrap();
    let [gather, said] = gathering();
    let begin = [
        Deed::Take {
            share: 20,
            from: RankId(0),
        },
        kept(&[(16, 32)]),
        gather,
        said,
    ];
    let here = set((16..32).filter(|share| *share != 20));
    assert_eq!(rank.begin(&here), begin);
    assert_eq!(rank.behind_step(&set(16..32)), gathering());
}

#[test]
fn shares_of_no_rank_are_refused() {
    assert_eq!(Sharing::of(&v1::Assignment::default()), Ok(None));
    let mut holders = assignment(0, false);
    holders.state_shares[7].shadow = Some(3);
    let mut moves = assignment(0, false);
    moves.finish.as_mut().unwrap().moves[0].share = NUM_SHARES;
    let mut few = assignment(0, false);
    few.state_shares.pop();
    for bad in [holders, moves, few] {
        assert_eq!(Sharing::of(&bad), Err(BadShares));
    }
}

#[test]
fn nothing_is_given_up_of_a_world_that_is_closed() {
    let rules = Rules {
        total_steps: 5,
        checkpoint_every: 2,
        checkpoint_keep: 1,
        evaluate_every: None,
        num_files: 2,
        is_shared: true,
    };
    let mut machine = RankMachine::new(1);
    machine.prepared(rules, Some(0));
    assert!(Word::Kept(vec![Run::new(0, 32)]).tell(&mut machine));
    assert!(machine.enter(RankPlan {
        generation: 1,
        size: 2,
        ..RankPlan::default()
    }));
    assert!(Word::Left(vec![Run::new(0, 16)]).tell(&mut machine));
    machine.close(1, Cause::default());
    assert!(!Word::Left(vec![Run::new(0, 8)]).tell(&mut machine));
}

#[test]
fn rounds_are_as_long_as_they_may_be() {
    let tellers = [vec![0, 1, 2, 3], vec![], vec![4]];
    let len = |share: u32| [2, 2, 0, 9, 1][share as usize];
    let expected = vec![
        vec![vec![0, 1, 2], vec![], vec![4]],
        vec![vec![3], vec![], vec![]],
    ];
    assert_eq!(rounds(&tellers, 4, len), expected);
    assert_eq!(rounds(&[vec![], vec![]], 4, len), [[vec![], vec![]]]);
}
