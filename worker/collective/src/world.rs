//! Which ranks talk to each other, and the numbers that fence everything older.

use muster_cluster::{Generation, History, RankId};

/// One rank's view of the world that it takes part in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// The job's line of committed steps.
    pub history: History,
    /// The number of this world; frames of any other are refused.
    pub generation: Generation,
    /// This rank.
    pub rank: RankId,
    /// How many ranks there are; at least one.
    pub size: u32,
}

impl World {
    /// The place of `rank` in a list by rank.
    pub(crate) fn index(rank: RankId) -> usize {
        rank.0 as usize
    }

    /// How many ranks there are, as a length.
    pub(crate) fn len(&self) -> usize {
        self.size as usize
    }

    /// Every rank, from 0.
    pub(crate) fn ranks(&self) -> impl Iterator<Item = RankId> + use<> {
        (0..self.size).map(RankId)
    }

    /// Every other rank, starting after this one, so that not all send to rank 0 first.
    pub(crate) fn peers(&self) -> impl Iterator<Item = RankId> + use<> {
        let (rank, size) = (u64::from(self.rank.0), u64::from(self.size));
        (1..size).map(move |step| {
            let peer = (rank + step) % size;
            RankId(u32::try_from(peer).expect("a remainder of a u32 is a u32"))
        })
    }

    /// Why this is no world, or `None`.
    pub(crate) fn problem(&self) -> Option<String> {
        (self.rank.0 >= self.size).then(|| {
            format!(
                "rank {} is not one of a world of {} ranks",
                self.rank, self.size
            )
        })
    }
}
