//! What a rank does about its shares of the optimizer's state, where ranks share it: what it copies to
//! whom when a world begins, who tells which parameters, what it gives up and when, and what it says
//! before. It moves no value: the caller carries the deeds out in their order, and stops at the first
//! that fails, since with it the world is over.
//!
//! ```text
//! begin       = [give up what is neither kept nor copied], the copies in the world's order, [gather]
//! behind step = gather, [give up what was copied and is not kept]
//! give up     = say it, then free it
//! ```
//!
//! Who is to keep what, and what has to be copied for it, is the planner's to decide (ADR 4).

use std::collections::BTreeSet;

use muster_cluster::ids::RankId;
use muster_cluster::shares::{self, Holders, Move, NUM_SHARES};
use muster_cluster::tree::Run;
use muster_proto::v1;

use crate::rank::RankMachine;

/// An assignment that gives shares to nobody, or to ranks that there are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the assignment gives shares of the optimizer's state to ranks that there are not")]
pub struct BadShares;

/// One thing to do, of several in an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Tell the rank's machine, by [`Word::tell`]. Where it refuses, the world is closed, and nothing
    /// that comes behind is done.
    Say(Word),
    /// Free all shares of the optimizer's state but these.
    Free {
        /// What stays, as far as it is here.
        all_but: BTreeSet<u32>,
    },
    /// Send a share: the optimizer's values, and the parameters that they belong to.
    Give {
        /// Which share.
        share: u32,
        /// To whom.
        to: RankId,
    },
    /// Wait for the same, and keep the share up to date from then on. Whoever has a share has its
    /// parameters of the same step: a world may close before they are gathered, and the next one has
    /// them told by who says that it has the share.
    Take {
        /// Which share.
        share: u32,
        /// From whom.
        from: RankId,
    },
    /// Tell the others the parameters that this rank has updated, and take over theirs. It ends on no
    /// rank before every rank has come to it.
    Gather {
        /// By rank: the shares whose parameters it tells.
        tellers: Vec<Vec<u32>>,
    },
}

/// What the machine of a rank, and with it the coordinator, is to know of its shares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// It goes on with these shares alone, and will not have the others.
    Left(Vec<Run>),
    /// It has these shares, at its step.
    Kept(Vec<Run>),
    /// It has all parameters of its step.
    Gathered,
}

impl Word {
    /// Says it: `false` where the world is closed, so that what was said before has to stay true.
    #[must_use]
    pub fn tell(self, machine: &mut RankMachine) -> bool {
        match self {
            Self::Left(shares) => return machine.gives_up_all_but(shares),
            Self::Kept(shares) => machine.keeps(shares),
            Self::Gathered => machine.gathered(),
        }
        true
    }
}

/// How a world shares the optimizer's state, as one of its ranks sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    rank: RankId,
    size: usize,
    /// By share.
    holders: Vec<Holders>,
    moves: Vec<Move>,
    /// Whether some rank lacks parameters when the world begins.
    gather: bool,
}

impl Sharing {
    /// What an assignment says; `None` where every rank keeps everything.
    ///
    /// # Errors
    /// [`BadShares`], when shares have no holder, or one that is no rank of the world.
    pub fn of(assignment: &v1::Assignment) -> Result<Option<Self>, BadShares> {
        if assignment.state_shares.is_empty() {
            return Ok(None);
        }
        let shares = assignment.state_shares.iter().copied();
        let finish = assignment.finish.as_ref();
        let moves = finish.into_iter().flat_map(|finish| &finish.moves);
        let sharing = Self {
            rank: RankId(assignment.rank),
            size: assignment.num_ranks() as usize,
            holders: shares.map(Into::into).collect(),
            moves: moves.copied().map(Into::into).collect(),
            gather: finish.is_some_and(|finish| finish.gather),
        };
        sharing.is_whole().then_some(Some(sharing)).ok_or(BadShares)
    }

    /// Whether every share has holders, and every rank that is named is one.
    fn is_whole(&self) -> bool {
        let is_rank = |rank: RankId| (rank.0 as usize) < self.size;
        let has_ranks = |one: &Holders| is_rank(one.owner) && one.shadow.is_none_or(is_rank);
        let is_possible =
            |one: &Move| one.share < NUM_SHARES && is_rank(one.from) && is_rank(one.to);
        self.holders.len() == NUM_SHARES as usize
            && self.holders.iter().all(has_ranks)
            && self.moves.iter().all(is_possible)
    }

    /// Whether some rank lacks parameters when the world begins: nobody can compute before they are
    /// gathered.
    #[must_use]
    pub fn begins_with_gathering(&self) -> bool {
        self.gather
    }

    /// Whether this rank writes the parameters into checkpoints, which every rank has.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.rank == RankId(0)
    }

    /// The shares that this rank is to keep.
    #[must_use]
    pub fn kept(&self) -> BTreeSet<u32> {
        self.shares(|one| one.has(self.rank))
    }

    /// The shares that this rank tells the others of, and writes into checkpoints.
    #[must_use]
    pub fn owned(&self) -> BTreeSet<u32> {
        self.shares(|one| one.owner == self.rank)
    }

    fn shares(&self, is_wanted: impl Fn(&Holders) -> bool) -> BTreeSet<u32> {
        let holders = (0u32..).zip(&self.holders);
        let wanted = holders.filter(|(_, one)| is_wanted(one));
        wanted.map(|(share, _)| share).collect()
    }

    /// What brings this rank, which has the shares `here`, to where the world begins.
    #[must_use]
    pub fn begin(&self, here: &BTreeSet<u32>) -> Vec<Deed> {
        // What is copied is kept by all who have it until whoever takes it has it, too.
        let mut kept = self.kept();
        kept.extend(self.moves.iter().map(|one| one.share));
        let mut deeds = give_up_all_but(&kept, here);
        let mut here: BTreeSet<u32> = here.intersection(&kept).copied().collect();
        for one in &self.moves {
            let (share, from, to) = (one.share, one.from, one.to);
            if from == self.rank {
                deeds.push(Deed::Give { share, to });
            } else if to == self.rank {
                here.insert(share);
                deeds.push(Deed::Take { share, from });
                deeds.push(Deed::Say(Word::Kept(shares::runs(here.iter().copied()))));
            }
        }
        if self.gather {
            deeds.extend(self.gather());
        }
        deeds
    }

    /// What this rank, which has the shares `here`, does behind each of its updates.
    #[must_use]
    pub fn behind_step(&self, here: &BTreeSet<u32>) -> Vec<Deed> {
        let mut deeds = self.gather();
        // All have made the step when the gathering ends, and nobody makes it before all copies are
        // made: what was copied is where it is to be.
        if !self.moves.is_empty() {
            deeds.extend(give_up_all_but(&self.kept(), here));
        }
        deeds
    }

    /// By rank, the owners tell the parameters of their shares.
    fn gather(&self) -> Vec<Deed> {
        let mut tellers = vec![Vec::new(); self.size];
        for (share, holders) in (0u32..).zip(&self.holders) {
            tellers[holders.owner.0 as usize].push(share);
        }
        vec![Deed::Gather { tellers }, Deed::Say(Word::Gathered)]
    }
}

/// Said first: a world that is closed before has been told that they are here, and may be healed by
/// them.
fn give_up_all_but(kept: &BTreeSet<u32>, here: &BTreeSet<u32>) -> Vec<Deed> {
    if here.is_subset(kept) {
        return Vec::new();
    }
    let left = shares::runs(here.intersection(kept).copied());
    let all_but = kept.clone();
    vec![Deed::Say(Word::Left(left)), Deed::Free { all_but }]
}

/// Divides what each rank tells into rounds, at least one, in each of which a rank tells at most
/// `max_elements` parameters, or those of a single share. `num_elements` says how many a share has.
///
/// By round and by rank: the shares, in order.
#[must_use]
pub fn rounds(
    tellers: &[Vec<u32>],
    max_elements: usize,
    num_elements: impl Fn(u32) -> usize,
) -> Vec<Vec<Vec<u32>>> {
    let mut rounds = vec![vec![Vec::new(); tellers.len()]];
    for (rank, shares) in tellers.iter().enumerate() {
        let (mut round, mut num_told) = (0, 0);
        for share in shares {
            let len = num_elements(*share);
            if num_told > 0 && num_told + len > max_elements {
                (round, num_told) = (round + 1, 0);
            }
            num_told += len;
            if round == rounds.len() {
                rounds.push(vec![Vec::new(); tellers.len()]);
            }
            rounds[round][rank].push(*share);
        }
    }
    rounds
}

#[cfg(test)]
mod tests;
