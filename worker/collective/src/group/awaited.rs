//! Who an operation waits for once all have begun it: a rank that sends or sums slowly.

use std::time::{Duration, Instant};

use muster_cluster::RankId;

use crate::world::World;

/// What is seen of one operation.
#[derive(Debug)]
pub(super) struct Awaited {
    /// The peers from which nothing came yet.
    missing: Vec<bool>,
    num_missing: usize,
    /// When the last of them began.
    all_begun: Option<Instant>,
    last: Option<RankId>,
}

impl Awaited {
    pub(super) fn new(world: &World) -> Self {
        let missing: Vec<bool> = world.ranks().map(|rank| rank != world.rank).collect();
        let num_missing = missing.iter().filter(|missing| **missing).count();
        Self {
            missing,
            num_missing,
            all_begun: (num_missing == 0).then(Instant::now),
            last: None,
        }
    }

    /// A frame of the operation came.
    pub(super) fn hears(&mut self, from: RankId) {
        self.last = Some(from);
        if let Some(missing) = self.missing.get_mut(World::index(from))
            && std::mem::take(missing)
        {
            self.num_missing -= 1;
            if self.num_missing == 0 {
                self.all_begun = Some(Instant::now());
            }
        }
    }

    /// The operation is over: who sent its last frame, and how long after all had begun.
    pub(super) fn last(&self) -> Option<(RankId, Duration)> {
        Some((self.last?, self.all_begun?.elapsed()))
    }
}
