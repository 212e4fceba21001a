//! A rank's own sums: the shards that it computed, added up into aligned subtrees as they come.

use std::sync::Arc;

use muster_cluster::ShardId;
use muster_cluster::tree::{self, Run};

use crate::values::{Pool, Subtree};

/// Sums a rank's shards into the fewest subtrees of the canonical tree over `0..num_shards`.
///
/// Shards are pushed in ascending order and may leave gaps. Two subtrees are added as soon as they
/// are the two children of one node, like the carries of a binary counter, so about
/// `log2(num_shards)` vectors are alive at a time and not one per shard.
#[derive(Debug)]
pub struct Accumulator {
    num_shards: u32,
    num_elements: usize,
    pool: Pool,
    done: Vec<(Run, Vec<f32>)>,
}

/// A contribution that the accumulator cannot take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The shard is out of order or out of range.
    #[error("shard {shard} cannot follow: expected one of {expected}")]
    Shard {
        /// The shard that was pushed.
        shard: ShardId,
        /// The shards that may come next.
        expected: Run,
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
    /// Starts the sums of one step; vectors come from `pool` and go back to it.
    #[must_use]
    pub fn new(num_shards: u32, num_elements: usize, pool: Pool) -> Self {
        Self {
            num_shards,
            num_elements,
            pool,
            done: Vec::new(),
        }
    }

    /// A vector for the next contribution; its content is whatever an earlier step left there.
    #[must_use]
    pub fn buffer(&self) -> Vec<f32> {
        self.pool.take(self.num_elements)
    }

    /// Adds the contribution of `shard`, which must lie after every shard pushed before.
    ///
    /// # Errors
    /// [`PushError`], where the shard or the length is not one that may come next; nothing is
    /// added then.
    pub fn push(&mut self, shard: ShardId, values: Vec<f32>) -> Result<(), PushError> {
        let start = self.done.last().map_or(0, |(run, _)| run.end);
        if shard.0 < start || shard.0 >= self.num_shards {
            let expected = Run {
                start,
                end: self.num_shards,
            };
            return Err(PushError::Shard { shard, expected });
        }
        let (len, expected) = (values.len(), self.num_elements);
        if len != expected {
            return Err(PushError::Length {
                shard,
                len,
                expected,
            });
        }
        self.done.push((Run::new(shard.0, shard.0 + 1), values));
        self.carry();
        Ok(())
    }

    /// The sums, in the order of their shards.
    #[must_use]
    pub fn finish(self) -> Vec<Subtree> {
        let subtree = |(run, values)| Subtree {
            run,
            values: Arc::new(values),
        };
        self.done.into_iter().map(subtree).collect()
    }

    /// Adds the last two sums while they are the two children of one node.
    fn carry(&mut self) {
        while let [.., (left, _), (right, _)] = self.done.as_slice()
            && let parent = Run::new(left.start, right.end)
            && tree::split(parent) == Some((*left, *right))
            && tree::subtrees(self.num_shards, parent) == [parent]
        {
            let (_, right) = self.done.pop().expect("there are at least two sums");
            let (run, left) = self.done.last_mut().expect("there is one sum left");
            for (left, right) in left.iter_mut().zip(&right) {
                *left += *right;
            }
            *run = parent;
            self.pool.give(right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{shard_values, tree_sum};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_shards_become_the_canonical_subtrees(
            num_shards in 1u32..40, mask in any::<u64>(), num_elements in 0usize..50,
        ) {
            let pool = Pool::default();
            let mut accumulator = Accumulator::new(num_shards, num_elements, pool.clone());
            let shards: Vec<u32> = (0..num_shards).filter(|s| mask >> s & 1 == 1).collect();
            for shard in &shards {
                let mut buffer = accumulator.buffer();
                buffer.copy_from_slice(&shard_values(*shard, num_elements));
                accumulator.push(ShardId(*shard), buffer).expect("in order");
            }
            for subtree in accumulator.finish() {
                prop_assert_eq!(tree::subtrees(num_shards, subtree.run), vec![subtree.run]);
                prop_assert!(subtree.run.shards().all(|shard| shards.contains(&shard)));
                prop_assert_eq!(&*subtree.values, &tree_sum(subtree.run, num_elements));
            }
        }

        #[test]
        fn a_contiguous_run_gives_the_fewest_subtrees(num_shards in 1u32..40, a in 0u32..40, b in 0u32..40) {
            let run = Run::new(a.min(b).min(num_shards), a.max(b).min(num_shards));
            let mut accumulator = Accumulator::new(num_shards, 1, Pool::default());
            for shard in run.shards() {
                accumulator.push(ShardId(shard), vec![1.0]).expect("in order");
                prop_assert!(accumulator.done.len() <= 2 * (num_shards.ilog2() as usize + 1));
            }
            let runs: Vec<Run> = accumulator.finish().into_iter().map(|s| s.run).collect();
            prop_assert_eq!(runs, tree::subtrees(num_shards, run));
        }
    }

    #[test]
    fn a_shard_out_of_order_or_of_another_length_is_refused() {
        let mut accumulator = Accumulator::new(4, 2, Pool::default());
        accumulator
            .push(ShardId(1), vec![1.0, 2.0])
            .expect("in order");
        for shard in [0, 1, 4, u32::MAX] {
            let refused = accumulator.push(ShardId(shard), vec![0.0; 2]);
            assert!(
                matches!(refused, Err(PushError::Shard { .. })),
                "{shard}: {refused:?}"
            );
        }
        let refused = accumulator.push(ShardId(2), vec![0.0; 3]);
        assert_eq!(
            refused,
            Err(PushError::Length {
                shard: ShardId(2),
                len: 3,
                expected: 2
            })
        );
        assert_eq!(accumulator.finish().len(), 1);
    }

    #[test]
    fn the_vectors_of_a_step_are_used_again_by_the_next() {
        let pool = Pool::default();
        let first = pool.take(8);
        let address = first.as_ptr();
        pool.give_shared(Arc::new(first));
        let second = pool.take(8);
        assert_eq!(second.as_ptr(), address);
    }
}
