//! Vectors that are shared instead of copied, and the pool that their memory goes back to.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, PoisonError};

use muster_cluster::tree::Run;

/// The sum of one aligned subtree of shards, as a rank holds it.
#[derive(Debug, PartialEq)]
pub struct Subtree<V = Vec<f32>> {
    /// The shards that are summed; a node of the canonical tree.
    pub run: Run,
    /// The sum: one value per element of the arena.
    pub values: Arc<V>,
}

impl<V> Clone for Subtree<V> {
    fn clone(&self) -> Self {
        Self {
            run: self.run,
            values: Arc::clone(&self.values),
        }
    }
}

/// A vector that an accumulator adds up, wherever it is.
pub trait Summand: Sized {
    /// The number of elements.
    fn num_elements(&self) -> usize;

    /// `left + right`, each element rounded once, in the memory of `left` unless somebody else sees
    /// it: an operation, even one that has failed, may still be sending it.
    fn sum(left: Arc<Self>, right: Arc<Self>, pool: &Pool) -> Arc<Self>;

    /// Its memory is free, if nobody else sees it.
    fn give_back(vector: Arc<Self>, pool: &Pool);
}

impl Summand for Vec<f32> {
    fn num_elements(&self) -> usize {
        self.len()
    }

    fn sum(mut left: Arc<Self>, right: Arc<Self>, pool: &Pool) -> Arc<Self> {
        let sum = if let Some(sum) = Arc::get_mut(&mut left) {
            for (sum, right) in sum.iter_mut().zip(right.iter()) {
                *sum += *right;
            }
            left
        } else {
            let mut sum = pool.take(left.len());
            for ((sum, left), right) in sum.iter_mut().zip(left.iter()).zip(right.iter()) {
                *sum = *left + *right;
            }
            Arc::new(sum)
        };
        pool.give_shared(right);
        sum
    }

    fn give_back(vector: Arc<Self>, pool: &Pool) {
        pool.give_shared(vector);
    }
}

/// A range of a shared vector.
#[derive(Clone)]
pub struct Values {
    whole: Arc<Vec<f32>>,
    range: Range<usize>,
}

impl Values {
    /// All of `values`.
    #[must_use]
    pub fn new(values: Vec<f32>) -> Self {
        let range = 0..values.len();
        Self {
            whole: Arc::new(values),
            range,
        }
    }

    /// The elements `range` of `whole`, which holds them.
    pub(crate) fn slice(whole: &Arc<Vec<f32>>, range: Range<usize>) -> Self {
        debug_assert!(range.end <= whole.len(), "a slice lies inside its vector");
        Self {
            whole: Arc::clone(whole),
            range,
        }
    }

    /// `left + right`, in the memory of whichever is not shared.
    pub(crate) fn add(mut left: Values, mut right: Values) -> Values {
        if let Some(sum) = left.exclusive() {
            for (left, right) in sum.iter_mut().zip(right.iter()) {
                *left += *right;
            }
            left
        } else if let Some(sum) = right.exclusive() {
            for (left, right) in left.iter().zip(sum) {
                *right += *left;
            }
            right
        } else {
            Values::new(
                left.iter()
                    .zip(right.iter())
                    .map(|(left, right)| left + right)
                    .collect(),
            )
        }
    }

    /// The values for writing, if nobody else can see them.
    fn exclusive(&mut self) -> Option<&mut [f32]> {
        let range = self.range.clone();
        Arc::get_mut(&mut self.whole).map(|whole| &mut whole[range])
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.whole[self.range.clone()]
    }
}

/// The values as they cross a wire, not copied where the processor is little-endian too.
pub(crate) fn le_bytes(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        Cow::Owned(bytes.collect())
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Values({} elements)", self.len())
    }
}

impl PartialEq for Values {
    /// By bits, so that a NaN equals itself.
    fn eq(&self, other: &Self) -> bool {
        self.iter()
            .map(|v| v.to_bits())
            .eq(other.iter().map(|v| v.to_bits()))
    }
}

/// Vectors of a step that the next step uses again: a fresh vector of megabytes is mapped and
/// faulted in page by page, which costs as much as summing it.
///
/// Clones share one pool.
#[derive(Clone, Default)]
pub struct Pool {
    spare: Arc<Mutex<Vec<Vec<f32>>>>,
}

/// More spare vectors than this are given back to the allocator: a step needs one per level of
/// the tree and one for the result.
const MAX_SPARE: usize = 16;

impl Pool {
    /// A vector of `num_elements` values, of which nothing else is known.
    #[must_use]
    pub fn take(&self, num_elements: usize) -> Vec<f32> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let found = spare.iter().position(|values| values.len() == num_elements);
        found
            .map(|at| spare.swap_remove(at))
            .unwrap_or_else(|| vec![0.0; num_elements])
    }

    /// Puts a vector back.
    pub fn give(&self, values: Vec<f32>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() >= MAX_SPARE {
            // The oldest may be of a length that is no longer asked for.
            spare.remove(0);
        }
        if !values.is_empty() {
            spare.push(values);
        }
    }

    /// Puts a shared vector back, if the caller was the last to hold it.
    pub fn give_shared(&self, values: Arc<Vec<f32>>) {
        if let Ok(values) = Arc::try_unwrap(values) {
            self.give(values);
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "Pool({} spare)", spare.len())
    }
}
