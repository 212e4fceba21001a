//! Bugs in what a rank does about its shares, planted between the decision and the deeds.

use std::collections::BTreeSet;

use muster_cluster::shares::runs;
use muster_worker_core::sharing::{Deed, Sharing, Word};

/// A bug of the model's, never of the product's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Plant {
    Nothing,
    /// What is copied is given up as soon as this rank's own copies are done, before the world has made a
    /// step: nobody knows that the takers have it.
    GiveUpWhenMoved,
    /// What is given up is freed before it is said.
    FreeBeforeSaying,
    /// What was to be given up is freed although the world was closed before that was said.
    FreeWhenClosed,
    /// A share is said to be there before it is.
    SayBeforeTaking,
    /// All parameters are said to be there before they are gathered.
    SayBeforeGathering,
    /// A share is copied without its parameters, which are to be gathered later. Where the world closes
    /// before that, who has the share tells old ones in the next world.
    CopyWithoutParameters,
    /// Nothing is ever given up.
    KeepAll,
}

/// The deeds of the begin of a world.
pub(super) fn begin(plant: Plant, sharing: &Sharing, here: &BTreeSet<u32>) -> Vec<Deed> {
    let mut deeds = sharing.begin(here);
    let is_copy = |deed: &Deed| matches!(deed, Deed::Give { .. } | Deed::Take { .. });
    match plant {
        Plant::GiveUpWhenMoved => {
            let Some(last) = deeds.iter().rposition(is_copy) else {
                return deeds;
            };
            let mut had = here.clone();
            had.extend(deeds.iter().filter_map(|deed| match deed {
                Deed::Take { share, .. } => Some(*share),
                _ => None,
            }));
            let all_but = sharing.kept();
            let left = runs(had.intersection(&all_but).copied());
            let behind = last + 1 + usize::from(matches!(deeds[last], Deed::Take { .. }));
            let early = [Deed::Say(Word::Left(left)), Deed::Free { all_but }];
            deeds.splice(behind..behind, early);
        }
        _ => twist(plant, &mut deeds),
    }
    deeds
}

/// The deeds behind a step.
pub(super) fn behind_step(plant: Plant, sharing: &Sharing, here: &BTreeSet<u32>) -> Vec<Deed> {
    let mut deeds = sharing.behind_step(here);
    twist(plant, &mut deeds);
    deeds
}

fn is_gather(deed: &Deed) -> bool {
    matches!(deed, Deed::Gather { .. })
}

fn twist(plant: Plant, deeds: &mut Vec<Deed>) {
    for at in 1..deeds.len() {
        let is_turned = match (plant, &deeds[at - 1], &deeds[at]) {
            (Plant::FreeBeforeSaying, Deed::Say(Word::Left(_)), Deed::Free { .. })
            | (Plant::SayBeforeTaking, Deed::Take { .. }, Deed::Say(Word::Kept(_))) => true,
            (Plant::SayBeforeGathering, gather, Deed::Say(Word::Gathered)) => is_gather(gather),
            _ => false,
        };
        if is_turned {
            deeds.swap(at - 1, at);
        }
    }
    if plant == Plant::KeepAll {
        deeds.retain(|deed| !matches!(deed, Deed::Say(Word::Left(_)) | Deed::Free { .. }));
    }
}
