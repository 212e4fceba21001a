//! A rank's own sums: the shards that it computed, added up into aligned subtrees as they come.
//!
//! Which shards a rank computes, and which it computes again after a loss, is decided elsewhere.

use std::sync::Arc;

use muster_cluster::ShardId;
use muster_cluster::tree::{self, Run};

use crate::values::{Pool, Subtree, Summand};

/// Sums a rank's shards into the fewest subtrees of the canonical tree over `0..num_shards`.
///
/// Shards may be pushed in any order and leave gaps. Two sums are added as soon as they are the
/// two children of one node, the right one to the left one: the bits are those of the tree, not of
/// the order of arrival. Pushed in ascending order, about `log2(num_shards)` vectors are alive at
/// a time and not one per shard.
///
/// The sums of a step outlive the operations that reduce them, and so the world: when a rank dies,
/// the others push the shards that are missing and reduce again in a new generation.
///
/// The vectors are on the host, unless something else is a [`Summand`] for the caller.
#[derive(Debug)]
pub struct Accumulator<V = Vec<f32>> {
    num_shards: u32,
    num_elements: usize,
    pool: Pool,
    /// In the order of their shards; no two are the children of one node.
    held: Vec<Subtree<V>>,
}

/// A contribution that the accumulator cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The step has no such shard.
    #[error("there is no shard {shard}: expected one of 0..{num_shards}")]
    OutOfRange {
        /// The shard that was pushed.
        shard: ShardId,
        /// How many shards the step has.
        num_shards: u32,
    },
    /// The shard was pushed before; adding it again would count it twice.
    #[error("shard {shard} is already a part of the sum of {by}")]
    Held {
        /// The shard that was pushed.
        shard: ShardId,
        /// The subtree that holds it.
        by: Run,
    },
    /// The contribution has another length than the arena.
    #[error("the contribution of shard {shard} has {len} elements: expected {expected}")]
    Length {
        /// The shard that was pushed.
        shard: ShardId,
        /// The length of its contribution.
        len: usize,
        /// The length of the arena.
        expected: usize,
    },
}

impl Accumulator {
    /// A vector for the next contribution; its content is whatever an earlier step left there.
    #[must_use]
    pub fn buffer(&self) -> Vec<f32> {
        self.pool.take(self.num_elements)
    }
}

impl<V: Summand> Accumulator<V> {
    /// Starts the sums of one step; vectors come from `pool` and go back to it.
    #[must_use]
    pub fn new(num_shards: u32, num_elements: usize, pool: Pool) -> Self {
        Self {
            num_shards,
            num_elements,
            pool,
            held: Vec::new(),
        }
    }

    /// Adds the contribution of `shard`.
    ///
    /// # Errors
    /// [`PushError`], where there is no such shard, where it is already held, or where the length
    /// is not the arena's; nothing is added then.
    pub fn push(&mut self, shard: ShardId, values: V) -> Result<(), PushError> {
        let num_shards = self.num_shards;
        if shard.0 >= num_shards {
            return Err(PushError::OutOfRange { shard, num_shards });
        }
        let at = self.place(shard).map_err(|at| {
            let by = self.held[at].run;
            PushError::Held { shard, by }
        })?;
        let (len, expected) = (values.num_elements(), self.num_elements);
        if len != expected {
            return Err(PushError::Length {
                shard,
                len,
                expected,
            });
        }
        let leaf = Subtree {
            run: Run::new(shard.0, shard.0 + 1),
            values: Arc::new(values),
        };
        self.held.insert(at, leaf);
        self.carry(at);
        Ok(())
    }

    /// Whether the contribution of `shard` is a part of the sums.
    #[must_use]
    pub fn holds(&self, shard: ShardId) -> bool {
        self.place(shard).is_err()
    }

    /// The shards that are held, as the fewest runs, in order.
    #[must_use]
    pub fn shards(&self) -> Vec<Run> {
        let runs: Vec<Run> = self.held.iter().map(|subtree| subtree.run).collect();
        tree::union(&runs)
    }

    /// The sums, in the order of their shards: one per node of [`tree::cover`] of the shards that
    /// are held.
    ///
    /// They share the vectors of the accumulator, which goes on holding them; a later push leaves
    /// them as they are and adds elsewhere.
    #[must_use]
    pub fn subtrees(&self) -> Vec<Subtree<V>> {
        self.held.clone()
    }

    /// Forgets all shards, for the next step. A vector that nobody else holds goes back to the
    /// pool.
    pub fn clear(&mut self) {
        for subtree in self.held.drain(..) {
            V::give_back(subtree.values, &self.pool);
        }
    }

    /// Where the sum of `shard` alone would lie among the sums; `Err` with the place of the sum
    /// that holds it already.
    fn place(&self, shard: ShardId) -> Result<usize, usize> {
        let at = self.held.partition_point(|sum| sum.run.end <= shard.0);
        match self.held.get(at) {
            Some(sum) if sum.run.start <= shard.0 => Err(at),
            _ => Ok(at),
        }
    }

    /// Adds the sum at `at` and its sibling, then that sum and its own, while the sibling is here.
    fn carry(&mut self, mut at: usize) {
        // A sum may be the left child, whose sibling came before it, or the right one.
        while let Some(left_at) = [Some(at), at.checked_sub(1)]
            .into_iter()
            .flatten()
            .find(|at| self.are_siblings(*at))
        {
            let right = self.held.remove(left_at + 1);
            let left = self.held.remove(left_at);
            let sum = Subtree {
                run: Run::new(left.run.start, right.run.end),
                values: V::sum(left.values, right.values, &self.pool),
            };
            self.held.insert(left_at, sum);
            at = left_at;
        }
    }

    /// Whether the sums at `at` and behind it are the two children of one node.
    fn are_siblings(&self, at: usize) -> bool {
        let Some([left, right]) = self.held.get(at..at + 2) else {
            return false;
        };
        let parent = Run::new(left.run.start, right.run.end);
        tree::split(parent) == Some((left.run, right.run))
            && tree::subtrees(self.num_shards, parent) == [parent]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, shard_values, tree_sum};
    use proptest::prelude::*;

    fn pushed(accumulator: &mut Accumulator, shard: u32) {
        let mut values = accumulator.buffer();
        values.copy_from_slice(&shard_values(shard, accumulator.num_elements));
        let result = accumulator.push(ShardId(shard), values);
        result.expect("a shard of the step, not held yet");
    }

    /// The runs of the subtrees and the bits of their sums.
    fn looks(subtrees: &[Subtree]) -> Vec<(Run, Vec<u32>)> {
        let look = |subtree: &Subtree| (subtree.run, bits(&subtree.values));
        subtrees.iter().map(look).collect()
    }

    fn expected(num_shards: u32, shards: &[Run], num_elements: usize) -> Vec<(Run, Vec<u32>)> {
        let sum = |node: Run| (node, bits(&tree_sum(node, num_elements)));
        tree::cover(num_shards, shards)
            .into_iter()
            .map(sum)
            .collect()
    }

    proptest! {
        #[test]
        fn any_shards_in_any_order_become_the_canonical_sums_and_older_ones_stay(
            num_shards in 1u32..40,
            order in Just((0u32..40).collect::<Vec<_>>()).prop_shuffle(),
            num_pushes in 0usize..40,
            num_elements in 0usize..50,
            lent_after in any::<u64>(),
            returned_after in any::<u64>(),
        ) {
            let shards = order.into_iter().filter(|shard| *shard < num_shards);
            let mut accumulator = Accumulator::new(num_shards, num_elements, Pool::default());
            let mut held = Vec::new();
            let mut lent = Vec::new();
            for shard in shards.take(num_pushes) {
                pushed(&mut accumulator, shard);
                held = tree::union(&[held, vec![Run::new(shard, shard + 1)]].concat());
                prop_assert_eq!(&accumulator.shards(), &held);
                for shard in 0..num_shards {
                    let is_held = held.iter().any(|run| run.contains(Run::new(shard, shard + 1)));
                    prop_assert_eq!(accumulator.holds(ShardId(shard)), is_held);
                }
                if returned_after >> shard & 1 == 1 {
                    lent.pop();
                }
                if lent_after >> shard & 1 == 1 {
                    lent.push((accumulator.subtrees(), held.clone()));
                }
                let now = accumulator.subtrees();
                prop_assert_eq!(looks(&now), expected(num_shards, &held, num_elements));
            }
            for (subtrees, held) in &lent {
                prop_assert_eq!(looks(subtrees), expected(num_shards, held, num_elements));
            }
            accumulator.clear();
            prop_assert_eq!(accumulator.shards(), vec![]);
            for (subtrees, held) in &lent {
                prop_assert_eq!(looks(subtrees), expected(num_shards, held, num_elements));
            }
        }

        #[test]
        fn shards_in_ascending_order_leave_few_vectors_alive(
            num_shards in 1u32..40, a in 0u32..40, b in 0u32..40,
        ) {
            let run = Run::new(a.min(b).min(num_shards), a.max(b).min(num_shards));
            let mut accumulator = Accumulator::new(num_shards, 1, Pool::default());
            for shard in run.shards() {
                pushed(&mut accumulator, shard);
                prop_assert!(accumulator.held.len() <= 2 * (num_shards.ilog2() as usize + 1));
            }
        }
    }

    #[test]
    fn a_shard_that_is_held_unknown_or_of_another_length_is_refused() {
        let mut accumulator = Accumulator::new(5, 2, Pool::default());
        for shard in [3, 2] {
            pushed(&mut accumulator, shard);
        }
        let before = looks(&accumulator.subtrees());
        let mut refusal = |shard, len| accumulator.push(ShardId(shard), vec![1.0; len]);
        for shard in [2, 3].map(ShardId) {
            let by = Run::new(2, 4);
            assert_eq!(refusal(shard.0, 2), Err(PushError::Held { shard, by }));
        }
        for shard in [5, u32::MAX].map(ShardId) {
            let num_shards = 5;
            let unknown = PushError::OutOfRange { shard, num_shards };
            assert_eq!(refusal(shard.0, 2), Err(unknown));
        }
        let (shard, len, expected) = (ShardId(1), 3, 2);
        let length = PushError::Length {
            shard,
            len,
            expected,
        };
        assert_eq!(refusal(1, 3), Err(length));
        assert_eq!(looks(&accumulator.subtrees()), before);
        assert!(!accumulator.holds(ShardId(u32::MAX)));
    }

    #[test]
    fn a_vector_goes_back_to_the_pool_only_when_nobody_else_holds_it() {
        let mut accumulator = Accumulator::new(4, 8, Pool::default());
        pushed(&mut accumulator, 0);
        let kept = accumulator.subtrees();
        let address = kept[0].values.as_ptr();
        accumulator.clear();
        let other = accumulator.buffer();
        assert_ne!(other.as_ptr(), address);

        pushed(&mut accumulator, 2);
        let address = accumulator.subtrees()[0].values.as_ptr();
        accumulator.clear();
        let again = accumulator.buffer();
        assert_eq!(again.as_ptr(), address);
    }
}
