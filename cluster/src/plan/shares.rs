//! Who keeps which share of the optimizer's state in a world: as many holders as the job asks for,
//! few moves, and then an even load.
//! Copies lie on few pairs of ranks (Cidon et al., Copysets, USENIX ATC 2013): two deaths at once seldom
//! hit both of one. Why a world is made is decided elsewhere.

use std::collections::BTreeSet;

use crate::ids::RankId;
use crate::job::spec::Redundancy;
use crate::shares::{Holders, Move, NUM_SHARES};
use crate::tree::Run;

/// A rank of the next world, as far as shares go.
#[derive(Clone, Debug, Default)]
pub(super) struct Keeper {
    /// The shares that it has, as they are at the world's first step.
    pub(super) has: Vec<Run>,
    /// It is there to hand over what it has, and leaves with the world.
    pub(super) leaves: bool,
}

/// The holders of all shares, and what has to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Division {
    pub(super) holders: Vec<Holders>,
    pub(super) moves: Vec<Move>,
}

/// The holders of the shares of a new optimizer, or of one from a checkpoint: nothing moves, since
/// every rank can have every share. Empty where every rank keeps everything.
pub(super) fn initial(redundancy: Redundancy, size: usize) -> Vec<Holders> {
    if !redundancy.is_shared() {
        return Vec::new();
    }
    let everything = Keeper {
        has: vec![Run::new(0, NUM_SHARES)],
        leaves: false,
    };
    divide(redundancy, &vec![everything; size]).holders
}

/// The shares that none of these ranks has.
pub(super) fn lost<'a>(kept: impl Iterator<Item = &'a [Run]>) -> Vec<u32> {
    let kept: BTreeSet<u32> = kept.flatten().copied().flat_map(Run::shards).collect();
    (0..NUM_SHARES)
        .filter(|share| !kept.contains(share))
        .collect()
}

/// Divides the shares over the ranks of a world, each of which some rank has.
pub(super) fn divide(redundancy: Redundancy, keepers: &[Keeper]) -> Division {
    let staying = keepers.iter().filter(|keeper| !keeper.leaves).count();
    let num_copies = num_copies(redundancy, staying);
    let mut draft = Draft {
        keepers,
        kept: Vec::new(),
        loads: vec![0; keepers.len()],
    };
    for share in 0..NUM_SHARES {
        draft.keep(share, num_copies);
    }
    for share in 0..NUM_SHARES {
        draft.copy(share, num_copies);
    }
    while draft.level() {}
    draft.finish()
}

fn num_copies(redundancy: Redundancy, size: usize) -> usize {
    match redundancy {
        Redundancy::Shadow => 2.min(size),
        Redundancy::None | Redundancy::Full => 1,
    }
}

struct Draft<'a> {
    keepers: &'a [Keeper],
    /// By share, by rank.
    kept: Vec<Vec<usize>>,
    /// By rank: how many shares it is to keep.
    loads: Vec<usize>,
}

impl Draft<'_> {
    fn has(&self, rank: usize, share: u32) -> bool {
        let runs = self.keepers[rank].has.iter();
        runs.into_iter()
            .any(|run| run.start <= share && share < run.end)
    }

    /// Ranks that stay, those with the least to keep first.
    fn staying(&self) -> Vec<usize> {
        let ranks = 0..self.keepers.len();
        let mut staying: Vec<usize> = ranks.filter(|rank| !self.keepers[*rank].leaves).collect();
        staying.sort_by_key(|rank| (self.loads[*rank], *rank));
        staying
    }

    /// Those who have a share go on with it, as many as are to.
    fn keep(&mut self, share: u32, num_copies: usize) {
        let mut ranks = self.staying();
        ranks.retain(|rank| self.has(*rank, share));
        ranks.truncate(num_copies);
        for rank in &ranks {
            self.loads[*rank] += 1;
        }
        self.kept.push(ranks);
    }

    /// Where those who have a share are too few, others get a copy.
    fn copy(&mut self, share: u32, num_copies: usize) {
        let staying = self.staying();
        let Some(ranks) = self.kept.get_mut(share as usize) else {
            return;
        };
        let others = staying.into_iter().filter(|rank| !ranks.contains(rank));
        let getting: Vec<usize> = others.take(num_copies - ranks.len()).collect();
        for rank in &getting {
            self.loads[*rank] += 1;
        }
        ranks.extend(getting);
    }

    /// Moves one share from the rank with the most to the one with the least, where that has so much
    /// less that it is worth a move.
    fn level(&mut self) -> bool {
        let staying = self.staying();
        let (Some(least), Some(most)) = (staying.first(), staying.last()) else {
            return false;
        };
        let average = self.loads.iter().sum::<usize>() / staying.len();
        if self.loads[*most] <= self.loads[*least] + 1 + average / 2 {
            return false;
        }
        let movable = |ranks: &Vec<usize>| ranks.contains(most) && !ranks.contains(least);
        let Some(share) = self.kept.iter().position(movable) else {
            return false;
        };
        let place = self.kept[share].iter_mut().find(|rank| *rank == most);
        if let Some(place) = place {
            *place = *least;
        }
        self.loads[*most] -= 1;
        self.loads[*least] += 1;
        true
    }

    fn finish(self) -> Division {
        let rank = |index: usize| RankId(u32::try_from(index).unwrap_or(u32::MAX));
        let mut owned = vec![0; self.keepers.len()];
        let (mut holders, mut moves) = (Vec::new(), Vec::new());
        for (share, ranks) in (0..NUM_SHARES).zip(&self.kept) {
            let mut ranks = ranks.clone();
            ranks.sort_by_key(|rank| (owned[*rank], *rank));
            let Some(owner) = ranks.first().copied() else {
                continue;
            };
            owned[owner] += 1;
            holders.push(Holders {
                owner: rank(owner),
                shadow: ranks.get(1).copied().map(rank),
            });
            let has = (0..self.keepers.len()).filter(|rank| self.has(*rank, share));
            let Some(giver) = has.min_by_key(|rank| (!ranks.contains(rank), *rank)) else {
                continue;
            };
            let getting = ranks.iter().filter(|rank| !self.has(**rank, share));
            moves.extend(getting.map(|to| Move {
                share,
                from: rank(giver),
                to: rank(*to),
            }));
        }
        Division { holders, moves }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keeper(has: &[Run], leaves: bool) -> Keeper {
        Keeper {
            has: has.to_vec(),
            leaves,
        }
    }

    /// The ranks of a world made of these holders.
    fn keepers(holders: &[Holders], size: usize) -> Vec<Keeper> {
        let has = |rank: usize| {
            let shares = (0..NUM_SHARES).zip(holders);
            let shares = shares.filter(|(_, holders)| holders.has(RankId(rank as u32)));
            crate::tree::union(
                &shares
                    .map(|(share, _)| Run::new(share, share + 1))
                    .collect::<Vec<_>>(),
            )
        };
        (0..size).map(|rank| keeper(&has(rank), false)).collect()
    }

    #[test]
    fn nothing_moves_where_nothing_changed() {
        for redundancy in [Redundancy::Shadow, Redundancy::None] {
            for size in 1..9 {
                let holders = initial(redundancy, size);
                let division = divide(redundancy, &keepers(&holders, size));
                assert_eq!(division.moves, [], "{redundancy:?} over {size}");
            }
        }
        assert_eq!(initial(Redundancy::Full, 4), []);
    }

    #[test]
    fn only_shares_that_lost_a_holder_move_when_a_rank_dies() {
        let holders = initial(Redundancy::Shadow, 4);
        let lost = holders.iter().filter(|holders| holders.has(RankId(1)));
        let num_lost = lost.count();
        let mut left = keepers(&holders, 4);
        left.remove(1);
        assert_eq!(divide(Redundancy::Shadow, &left).moves.len(), num_lost);
        // One that enters takes over what the dead one had, and nothing else moves.
        left.push(Keeper::default());
        let division = divide(Redundancy::Shadow, &left);
        assert_eq!(division.moves.len(), num_lost);
        assert!(division.moves.iter().all(|one| one.to == RankId(3)));
    }

    #[test]
    fn who_leaves_gives_everything_and_keeps_nothing() {
        for redundancy in [Redundancy::Shadow, Redundancy::None] {
            let mut ranks = keepers(&initial(redundancy, 3), 3);
            ranks[2].leaves = true;
            let division = divide(redundancy, &ranks);
            assert!(division.holders.iter().all(|one| !one.has(RankId(2))));
            let is_given = |share: u32| division.moves.iter().any(|one| one.share == share);
            let lost = lost(ranks[..2].iter().map(|keeper| keeper.has.as_slice()));
            assert!(lost.into_iter().all(is_given));
        }
    }

    proptest! {
        #[test]
        fn every_share_has_its_copies_and_loads_are_even(
            sets in prop::collection::vec((any::<u32>(), any::<bool>()), 1..9),
            is_shadow in any::<bool>(),
        ) {
            let redundancy = if is_shadow { Redundancy::Shadow } else { Redundancy::None };
            let mut ranks: Vec<Keeper> = sets
                .iter()
                .map(|(bits, leaves)| {
                    let runs = (0..NUM_SHARES).filter(|share| bits >> share & 1 == 1);
                    keeper(&runs.map(|share| Run::new(share, share + 1)).collect::<Vec<_>>(), *leaves)
                })
                .collect();
            // Somebody stays, and everything is somewhere.
            ranks[0].leaves = false;
            for share in lost(ranks.iter().map(|keeper| keeper.has.as_slice())) {
                ranks[0].has.push(Run::new(share, share + 1));
            }
            let division = divide(redundancy, &ranks);
            let staying: Vec<usize> = (0..ranks.len()).filter(|rank| !ranks[*rank].leaves).collect();
            prop_assert_eq!(division.holders.len(), NUM_SHARES as usize);
            let has = |rank: RankId, share: u32| {
                ranks[rank.0 as usize].has.iter().any(|run| run.start <= share && share < run.end)
            };
            let mut loads = vec![0; ranks.len()];
            for (share, holders) in (0..NUM_SHARES).zip(&division.holders) {
                prop_assert_eq!(holders.shadow.is_some(), is_shadow && staying.len() > 1);
                prop_assert_ne!(holders.shadow, Some(holders.owner));
                for rank in std::iter::once(holders.owner).chain(holders.shadow) {
                    prop_assert!(!ranks[rank.0 as usize].leaves);
                    loads[rank.0 as usize] += 1;
                    let gets = division.moves.iter().filter(|one| one.share == share && one.to == rank);
                    prop_assert_eq!(gets.count(), usize::from(!has(rank, share)));
                }
            }
            for one in &division.moves {
                prop_assert!(has(one.from, one.share) && !has(one.to, one.share));
                prop_assert!(division.holders[one.share as usize].has(one.to));
            }
            let loads: Vec<i32> = staying.iter().map(|rank| loads[*rank]).collect();
            let spread = loads.iter().max().unwrap() - loads.iter().min().unwrap();
            let average = loads.iter().sum::<i32>() / loads.len() as i32;
            prop_assert!(spread <= 1 + average / 2, "{:?}", loads);
        }
    }
}
