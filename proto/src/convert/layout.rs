//! Which shards each rank of a world has, as few numbers: every rank is told of all, so what is written
//! for each would be the square of the world's size together.

use muster_cluster::tree::Run;

use super::BadMessage;
use crate::v1;

/// More ranks than any world has: a few bytes must not become a vector that fills the memory.
const MAX_RANKS: u64 = 1 << 20;

/// The shards of the ranks, by rank, for the wire. Ranks that follow each other and have equally many
/// are one entry; the usual division has two, and one that was balanced has as many as lengths change.
#[must_use]
pub fn layout(runs: &[Run]) -> Vec<v1::EqualRanks> {
    let mut layout: Vec<v1::EqualRanks> = Vec::new();
    let mut last_end = None;
    for run in runs {
        let shards_each = run.num_shards();
        let goes_on = last_end == Some(run.start);
        match layout.last_mut() {
            Some(ranks) if goes_on && ranks.shards_each == shards_each => ranks.num_ranks += 1,
            _ => layout.push(v1::EqualRanks {
                num_ranks: 1,
                start: run.start,
                shards_each,
            }),
        }
        last_end = Some(run.end);
    }
    layout
}

/// The shards of each rank, by rank, from the wire: what [`layout`] was given.
///
/// # Errors
/// Where a rank has no shard, where there are more than 2^20 ranks, and where shards have no number.
pub fn runs_of(layout: &[v1::EqualRanks]) -> Result<Vec<Run>, BadMessage> {
    let senseless = |why: String| BadMessage::Senseless {
        what: "layout",
        why,
    };
    let num_ranks: u64 = layout.iter().map(|ranks| u64::from(ranks.num_ranks)).sum();
    if num_ranks > MAX_RANKS {
        return Err(senseless(format!("it has {num_ranks} ranks")));
    }
    let mut runs = Vec::new();
    for ranks in layout {
        let v1::EqualRanks {
            num_ranks,
            start,
            shards_each,
        } = *ranks;
        if shards_each == 0 {
            return Err(senseless(format!("{num_ranks} ranks have no shards")));
        }
        let mut next = start;
        for _ in 0..num_ranks {
            let end = next.checked_add(shards_each);
            let end = end.ok_or_else(|| senseless(format!("{shards_each} shards from {next}")))?;
            runs.push(Run { start: next, end });
            next = end;
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_cluster::tree;

    #[test]
    fn the_usual_division_of_ten_thousand_ranks_is_two_entries() {
        let runs = tree::runs(16_384, 10_000).unwrap();
        let told = layout(&runs);
        assert_eq!(told.len(), 2);
        assert_eq!(runs_of(&told), Ok(runs));
        let equal = tree::runs(10_000, 10_000).unwrap();
        assert_eq!(layout(&equal).len(), 1);
    }

    #[test]
    fn any_layout_comes_back_as_it_was() {
        let runs = |ends: &[(u32, u32)]| -> Vec<Run> {
            ends.iter()
                .map(|(start, end)| Run::new(*start, *end))
                .collect()
        };
        for known in [
            runs(&[]),
            runs(&[(0, 8)]),
            runs(&[(0, 3), (3, 4), (4, 7), (7, 8)]),
            runs(&[(4, 6), (0, 2), (2, 4), (9, 11)]),
            runs(&[(u32::MAX - 1, u32::MAX)]),
        ] {
            assert_eq!(runs_of(&layout(&known)), Ok(known));
        }
    }

    #[test]
    fn a_layout_that_makes_no_sense_is_refused() {
        let refused = |num_ranks, start, shards_each| {
            let ranks = v1::EqualRanks {
                num_ranks,
                start,
                shards_each,
            };
            runs_of(&[ranks, ranks]).unwrap_err().to_string()
        };
        assert!(refused(3, 0, 0).contains("no shards"));
        assert!(refused(u32::MAX, 0, 1).contains("8589934590 ranks"));
        assert!(refused(2, u32::MAX - 1, 1).contains("shards from"));
    }
}
