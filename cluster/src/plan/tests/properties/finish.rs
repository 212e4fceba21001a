//! What holds of a world that heals another one, whatever was reported of that one.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::ids::{RankId, Step};
use crate::plan::Closed;
use crate::shares::Move;
use crate::state::{Finish, Heal, Part, World};
use crate::tree::{self, Run};

/// Nothing that is held is lost or repeated, and each rank is given what it lacks by who has it.
pub(super) fn check_finish(
    step: Step,
    reports: &[Closed],
    finish: &Finish,
) -> Result<(), TestCaseError> {
    let Finish {
        evaluated, parts, ..
    } = finish;
    prop_assert_eq!(parts.len(), reports.len());
    prop_assert!(reports[0].step.is_some(), "rank 0 has no state");
    let is_there = |closed: &Closed| closed.step == Some(step);
    let newest = reports.iter().filter_map(|report| report.step).max();
    prop_assert_eq!(newest, Some(step));
    prop_assert!(!evaluated || reports.iter().all(|report| report.evaluated));

    let mut brought: Vec<u32> = Vec::new();
    for part in parts {
        brought.extend(part.shards.iter().flat_map(|run| run.shards()));
    }
    brought.sort_unstable();
    prop_assert_eq!(brought, (0..8).collect::<Vec<u32>>());

    let mut earlier: Vec<Run> = Vec::new();
    for (report, Part { shards, heal }) in reports.iter().zip(parts) {
        if is_there(report) {
            let own = tree::difference(&report.shards, &earlier);
            prop_assert_eq!(tree::intersection(&own, shards), own);
            earlier.extend(&report.shards);
        }
        prop_assert_eq!(heal.is_none(), is_there(report));
        match heal {
            None => {}
            Some(Heal::Reduced { from }) => {
                let source = &reports[from.0 as usize];
                prop_assert!(is_there(source) && source.has_reduced);
                prop_assert_eq!(report.step.map(Step::next), Some(step));
            }
            Some(Heal::State { from }) => {
                prop_assert!(!from.is_empty());
                prop_assert!(from.iter().all(|from| is_there(&reports[from.0 as usize])));
                let sources: BTreeSet<_> = from.iter().collect();
                prop_assert_eq!(sources.len(), from.len());
            }
        }
    }
    Ok(())
}

/// Every share of a shared state has holders that have it, or get it from one that does.
pub(super) fn check_shares(
    world: &World,
    reports: &[Closed],
    finish: &Finish,
) -> Result<(), TestCaseError> {
    let has = |rank: RankId, share: u32| {
        let rank = rank.0 as usize;
        let kept = reports[rank].kept.iter();
        let is_moved_on = !matches!(finish.parts[rank].heal, Some(Heal::State { .. }));
        is_moved_on
            && kept
                .into_iter()
                .any(|run| run.start <= share && share < run.end)
    };
    for (share, holders) in (0u32..).zip(&world.shares) {
        for rank in std::iter::once(holders.owner).chain(holders.shadow) {
            let gets = |one: &&Move| one.share == share && one.to == rank;
            let num_moves = finish.moves.iter().filter(gets).count();
            prop_assert_eq!(num_moves, usize::from(!has(rank, share)));
        }
    }
    for one in &finish.moves {
        prop_assert!(
            has(one.from, one.share),
            "{one:?} gives what it does not have"
        );
    }
    let is_whole = |(report, part): (&Closed, &Part)| part.heal.is_none() && report.is_whole;
    let all_are_whole = reports.iter().zip(&finish.parts).all(is_whole);
    prop_assert!(world.shares.is_empty() || finish.gather || all_are_whole);
    Ok(())
}
