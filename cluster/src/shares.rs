//! The shares of an optimizer's state, where not every rank keeps all of it: how many there are, who
//! keeps which, and how they move. How elements are divided into shares is the trainer's.

use crate::ids::RankId;
use crate::tree::{self, Run};

/// How many shares an optimizer's state has, whatever the model and the world. Fixed for good:
/// checkpoints of shared state have a file per share.
pub const NUM_SHARES: u32 = 32;

/// The ranks of a world that keep one share up to date.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holders {
    /// Tells the others the parameters, and writes the share into checkpoints.
    pub owner: RankId,
    /// Keeps a second copy.
    pub shadow: Option<RankId>,
}

impl Holders {
    /// Whether a rank is one of them.
    #[must_use]
    pub fn has(&self, rank: RankId) -> bool {
        self.owner == rank || self.shadow == Some(rank)
    }
}

/// A copy of a share, and of the parameters that belong to it, that is made when a world begins. The
/// giver keeps its own until the world after it, whose entry in the log is made of reports that say who
/// has what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which share.
    pub share: u32,
    /// Who has it.
    pub from: RankId,
    /// Who gets it.
    pub to: RankId,
}

/// Shares as the fewest runs, in order.
#[must_use]
pub fn runs(shares: impl IntoIterator<Item = u32>) -> Vec<Run> {
    let runs = shares.into_iter().map(|share| Run::new(share, share + 1));
    tree::union(&runs.collect::<Vec<_>>())
}

/// BLAKE3, in hex, over the digests of all shares in their order: the hash of an optimizer's state.
#[must_use]
pub fn optimizer_hash(digests: &[[u8; 32]]) -> String {
    let mut hasher = blake3::Hasher::new();
    for digest in digests {
        hasher.update(digest);
    }
    hasher.finalize().to_hex().to_string()
}
