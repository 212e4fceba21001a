//! The canonical reduction tree: in which order the contributions of a step are summed.
//!
//! The tree over the logical shards `0..L` depends on `L` alone. A node over `[a, b)` with more
//! than one shard splits at `a` plus the largest power of two below `b - a`, so that every left
//! child is a full binary tree. Floating-point addition is not associative; summing along one
//! fixed tree is what makes the result independent of which rank holds which shards.

use std::fmt;

/// A contiguous run of logical shards `[start, end)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// The first shard of the run.
    pub start: u32,
    /// One past the last shard of the run.
    pub end: u32,
}

impl Run {
    /// The run `[start, end)`.
    #[must_use]
    pub fn new(start: u32, end: u32) -> Self {
        debug_assert!(start <= end, "a run does not end before it starts");
        Self { start, end }
    }

    /// How many shards the run holds.
    #[must_use]
    pub fn num_shards(self) -> u32 {
        self.end - self.start
    }

    /// The shards of the run, in order.
    pub fn shards(self) -> impl Iterator<Item = u32> {
        self.start..self.end
    }

    /// Whether `other` lies wholly inside this run.
    #[must_use]
    pub fn contains(self, other: Run) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Where the node over `run` splits into its two children, or `None` for a single shard.
#[must_use]
pub fn split(run: Run) -> Option<(Run, Run)> {
    let num_shards = run.num_shards();
    if num_shards < 2 {
        return None;
    }
    let left = 1u32 << (31 - (num_shards - 1).leading_zeros());
    let middle = run.start + left;
    Some((Run::new(run.start, middle), Run::new(middle, run.end)))
}

/// The fewest nodes of the tree over `0..num_shards` that together hold exactly `run`, in order.
///
/// A rank that holds `run` sends one vector per node.
#[must_use]
pub fn subtrees(num_shards: u32, run: Run) -> Vec<Run> {
    fn cover(node: Run, run: Run, out: &mut Vec<Run>) {
        if run.contains(node) {
            out.push(node);
        } else if let Some((left, right)) = split(node)
            && node.start < run.end
            && run.start < node.end
        {
            cover(left, run, out);
            cover(right, run, out);
        }
    }
    let mut out = Vec::new();
    if run.num_shards() > 0 {
        cover(Run::new(0, num_shards), run, &mut out);
    }
    out
}

/// The fewest nodes of the tree over `0..num_shards` that together hold exactly these shards, in
/// order: what a rank's contributions to them add up to.
#[must_use]
pub fn cover(num_shards: u32, shards: &[Run]) -> Vec<Run> {
    let shards = union(shards);
    let nodes = shards.iter().flat_map(|run| subtrees(num_shards, *run));
    nodes.collect()
}

/// The same shards as the fewest runs, in order.
#[must_use]
pub fn union(shards: &[Run]) -> Vec<Run> {
    let mut runs: Vec<Run> = shards.to_vec();
    runs.sort_unstable();
    let mut merged: Vec<Run> = Vec::new();
    for run in runs {
        match merged.last_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => merged.push(run),
        }
    }
    merged
}

/// The shards that both hold, as the fewest runs, in order.
#[must_use]
pub fn intersection(these: &[Run], those: &[Run]) -> Vec<Run> {
    let common = these.iter().flat_map(|this| {
        those.iter().filter_map(move |that| {
            let (start, end) = (this.start.max(that.start), this.end.min(that.end));
            (start < end).then_some(Run { start, end })
        })
    });
    union(&common.collect::<Vec<_>>())
}

/// The shards of `these` that are not in `those`, as the fewest runs, in order.
#[must_use]
pub fn difference(these: &[Run], those: &[Run]) -> Vec<Run> {
    let mut rest = union(these);
    for that in those {
        let cut = |run: Run| {
            let left = (run.start, run.end.min(that.start));
            let right = (run.start.max(that.end), run.end);
            [left, right]
                .into_iter()
                .filter(|(start, end)| start < end)
                .map(|(start, end)| Run { start, end })
        };
        rest = rest.into_iter().flat_map(cut).collect();
    }
    rest
}

/// Sums the leaves under `node` along the canonical tree: `leaf` gives a part that is already
/// summed (a shard, or a whole subtree, where it returns `Some`), `add` adds the right child into
/// the left one. Returns `None` when a leaf is missing.
pub fn fold<T>(
    node: Run,
    leaf: &mut impl FnMut(Run) -> Option<T>,
    add: &mut impl FnMut(T, T) -> T,
) -> Option<T> {
    if let Some(sum) = leaf(node) {
        return Some(sum);
    }
    let (left, right) = split(node)?;
    let left = fold(left, leaf, add)?;
    let right = fold(right, leaf, add)?;
    Some(add(left, right))
}

/// Cuts `0..num_shards` into `num_ranks` contiguous runs whose lengths differ by at most one, the
/// longer ones first. Every rank gets at least one shard.
///
/// Returns `None` when there are more ranks than shards, or no rank at all.
#[must_use]
pub fn runs(num_shards: u32, num_ranks: u32) -> Option<Vec<Run>> {
    if num_ranks == 0 || num_ranks > num_shards {
        return None;
    }
    let (base, longer) = (num_shards / num_ranks, num_shards % num_ranks);
    let mut start = 0;
    let runs = (0..num_ranks).map(|rank| {
        let end = start + base + u32::from(rank < longer);
        let run = Run::new(start, end);
        start = end;
        run
    });
    Some(runs.collect())
}

/// Whether these runs, by rank, are `0..num_shards` cut into contiguous ones, each with at least one
/// shard.
#[must_use]
pub fn is_division(num_shards: u32, runs: &[Run]) -> bool {
    let mut next = 0;
    let follow = runs.iter().all(|run| {
        let follows = run.start == next && run.start < run.end;
        next = run.end;
        follows
    });
    follow && next == num_shards && !runs.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(num_shards: u32, start: u32, end: u32) -> String {
        let parts = subtrees(num_shards, Run::new(start, end));
        parts
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn aligned_runs_are_one_subtree_and_others_are_few() {
        assert_eq!(text(8, 0, 4), "0..4");
        assert_eq!(text(8, 0, 3), "0..2 2..3");
        assert_eq!(text(8, 3, 6), "3..4 4..6");
        assert_eq!(text(6, 0, 6), "0..6");
        assert_eq!(text(6, 4, 6), "4..6");
    }

    #[test]
    fn a_division_is_whole_and_leaves_nobody_without_a_shard() {
        let runs = |ends: &[(u32, u32)]| -> Vec<Run> {
            ends.iter()
                .map(|(start, end)| Run {
                    start: *start,
                    end: *end,
                })
                .collect()
        };
        assert!(is_division(8, &runs(&[(0, 6), (6, 7), (7, 8)])));
        for bad in [
            &[][..],
            &[(0, 7)],
            &[(0, 9)],
            &[(1, 8)],
            &[(0, 4), (4, 4), (4, 8)],
            &[(0, 4), (3, 8)],
            &[(0, 4), (5, 8)],
            &[(4, 8), (0, 4)],
            &[(0, 8), (8, 4), (4, 8)],
        ] {
            assert!(!is_division(8, &runs(bad)), "{bad:?}");
        }
    }

    /// The runs of the shards whose bit is set.
    fn of_bits(bits: u32) -> Vec<Run> {
        let runs = (0..32).filter(|shard| bits >> shard & 1 == 1);
        runs.map(|shard| Run::new(shard, shard + 1)).collect()
    }

    proptest! {
        #[test]
        fn sets_of_shards_behave_as_sets(a in any::<u32>(), b in any::<u32>()) {
            let (left, right) = (of_bits(a), of_bits(b));
            let both = [left.clone(), right.clone()].concat();
            prop_assert_eq!(union(&both), union(&of_bits(a | b)));
            prop_assert_eq!(intersection(&left, &right), union(&of_bits(a & b)));
            prop_assert_eq!(difference(&left, &right), union(&of_bits(a & !b)));
            let covered: u32 = cover(32, &left).iter().flat_map(|run| run.shards()).map(|s| 1 << s).sum();
            prop_assert_eq!(covered, a);
            for node in cover(32, &left) {
                prop_assert_eq!(subtrees(32, node), vec![node]);
            }
        }

        #[test]
        fn any_split_over_ranks_sums_in_one_order(num_shards in 1u32..65, num_ranks in 1u32..65) {
            prop_assume!(num_ranks <= num_shards);
            // The sum is a text with its parentheses, so that equal texts mean equal bits.
            let mut add = |a: String, b: String| format!("({a}+{b})");
            let mut single = |node: Run| (node.num_shards() == 1).then(|| node.start.to_string());
            let all = Run::new(0, num_shards);
            let whole = fold(all, &mut single, &mut add).expect("all shards are there");

            let held: Vec<Run> = runs(num_shards, num_ranks)
                .expect("no more ranks than shards")
                .into_iter()
                .flat_map(|run| subtrees(num_shards, run))
                .collect();
            let mut from_ranks = |node: Run| {
                held.contains(&node).then(|| {
                    fold(node, &mut single, &mut add).expect("a held subtree is whole")
                })
            };
            let mut add = |a: String, b: String| format!("({a}+{b})");
            prop_assert_eq!(fold(all, &mut from_ranks, &mut add), Some(whole));
        }
    }
}
