//! The audit of a step: which shard is computed a second time and by whom, and, where the two results
//! differ, who of all ranks is wrong. Every rank decides it from the same numbers. How a result
//! becomes a hash, and what a wrong rank means for its job, is decided elsewhere.

use std::collections::BTreeMap;

use muster_cluster::tree::Run;

/// BLAKE3 of a contribution and of its shard's note.
pub type Hash = [u8; 32];

/// What is audited in a step, and by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Audit {
    /// The shard.
    pub shard: u32,
    /// The rank that brings its contribution into the step.
    pub brings: u32,
    /// The rank that computes it a second time; the same where there is no other.
    pub audits: u32,
}

/// The result of computing the audited shard once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// Who computed it.
    pub rank: u32,
    /// What came out.
    pub hash: Hash,
}

/// Who is wrong where results differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// These ranks, in order.
    Wrong(Vec<u32>),
    /// That cannot be told.
    Undecided,
}

/// The shard of a step that is audited, if one is: of every `every` steps the last has an audit. It
/// depends on the job and the step alone, not on the ranks, so that it stays the same when a world is
/// healed in the middle of the step.
#[must_use]
pub fn shard(seed: u64, step: u64, every: Option<u64>, num_shards: u32) -> Option<u32> {
    let is_due = step.checked_add(1)?.is_multiple_of(every?);
    let pick = draw(seed, step, Draw::Shard).checked_rem(u64::from(num_shards))?;
    is_due.then(|| u32::try_from(pick).expect("a remainder of a u32 is a u32"))
}

impl Audit {
    /// The audit of `shard` in a step into which each rank brings these shards, by rank. `None` where
    /// nobody brings it.
    #[must_use]
    pub fn new(seed: u64, step: u64, shard: u32, brings: &[Vec<Run>]) -> Option<Self> {
        let has = |runs: &Vec<Run>| runs.iter().any(|run| run.shards().any(|one| one == shard));
        let of = u32::try_from(brings.iter().position(has)?).ok()?;
        let size = u32::try_from(brings.len()).ok()?;
        let others = u64::from(size.saturating_sub(1));
        let audits = match draw(seed, step, Draw::Rank).checked_rem(others) {
            None => of,
            Some(pick) => {
                let place = (u64::from(of) + 1 + pick) % u64::from(size);
                u32::try_from(place).expect("a remainder of a u32 is a u32")
            }
        };
        Some(Self {
            shard,
            brings: of,
            audits,
        })
    }
}

/// Who is wrong. A rank that contradicts itself is; of the others, each of which has one voice, those
/// that are not of the majority. Nobody is believed without a majority, or where what it says was
/// computed only once.
#[must_use]
pub fn judge(votes: &[Vote]) -> Verdict {
    let mut voices: BTreeMap<u32, Option<Hash>> = BTreeMap::new();
    for vote in votes {
        let voice = voices.entry(vote.rank).or_insert(Some(vote.hash));
        *voice = voice.filter(|hash| *hash == vote.hash);
    }
    let mut counts: BTreeMap<Hash, usize> = BTreeMap::new();
    for hash in voices.values().flatten() {
        *counts.entry(*hash).or_default() += 1;
    }
    let num_voices: usize = counts.values().sum();
    let is_seen_twice = |hash: &Hash| votes.iter().filter(|vote| vote.hash == *hash).count() > 1;
    let majority = counts.iter().find(|(_, count)| **count * 2 > num_voices);
    let Some((right, _)) = majority.filter(|(hash, _)| is_seen_twice(hash)) else {
        return Verdict::Undecided;
    };
    let wrong = voices.iter().filter(|(_, voice)| **voice != Some(*right));
    Verdict::Wrong(wrong.map(|(rank, _)| *rank).collect())
}

/// What a number is drawn for.
#[derive(Clone, Copy)]
enum Draw {
    Shard = 1,
    Rank = 2,
}

/// A number that depends on its place alone: the finalizer of SplitMix64 (Steele, Lea and Flood 2014)
/// over each part of it.
fn draw(seed: u64, step: u64, what: Draw) -> u64 {
    let mix = |state: u64, part: u64| {
        let mut z = (state ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    [seed, step, what as u64].into_iter().fold(0, mix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_cluster::tree;

    fn brings(num_shards: u32, size: u32) -> Vec<Vec<Run>> {
        let runs = tree::runs(num_shards, size).expect("no more ranks than shards");
        runs.into_iter().map(|run| vec![run]).collect()
    }

    #[test]
    fn every_nth_step_has_an_audit_and_all_shards_and_ranks_have_their_turn() {
        let audited = |every| {
            let steps = 0..12;
            let due = steps.filter(|step| shard(3, *step, every, 8).is_some());
            due.collect::<Vec<u64>>()
        };
        assert_eq!(audited(None), []);
        assert_eq!(audited(Some(1)), (0..12).collect::<Vec<_>>());
        assert_eq!(audited(Some(5)), [4, 9]);
        for size in 1..=8 {
            let brings = brings(8, size);
            let mut pairs = BTreeMap::new();
            for step in 0..4000 {
                let shard = shard(3, step, Some(1), 8).expect("each step is audited");
                let audit = Audit::new(3, step, shard, &brings).expect("somebody has it");
                let run = brings[audit.brings as usize][0];
                assert!(run.shards().any(|one| one == shard));
                assert!(audit.audits < size);
                assert_eq!(audit.audits == audit.brings, size == 1, "{audit:?}");
                *pairs.entry((shard, audit.audits)).or_insert(0u32) += 1;
            }
            let num_pairs = 8 * (size as usize - 1).max(1);
            assert_eq!(pairs.len(), num_pairs, "every shard by every other rank");
            // 4000 draws over at most 56 pairs: 71 on average, and 30 would be five deviations less.
            assert!(pairs.values().all(|count| *count > 30), "{pairs:?}");
        }
    }

    #[test]
    fn the_shard_does_not_depend_on_the_ranks_and_another_seed_picks_others() {
        let picks = |seed| (0..50).map(move |step| shard(seed, step, Some(1), 64));
        assert!(picks(1).eq(picks(1)));
        let num_same = picks(1).zip(picks(2)).filter(|(a, b)| a == b).count();
        assert!(num_same < 10, "{num_same} of 50");
        // A shard that ranks bring in pieces, as they do in the first step of a world that heals.
        let runs = |list: &[(u32, u32)]| list.iter().map(|(a, b)| Run::new(*a, *b)).collect();
        let brings: Vec<Vec<Run>> = vec![runs(&[(0, 2), (5, 6)]), runs(&[(2, 5), (6, 8)])];
        let audit = Audit::new(1, 4, 5, &brings).expect("rank 0 has it");
        assert_eq!((audit.brings, audit.audits), (0, 1));
        assert_eq!(Audit::new(1, 4, 8, &brings), None);
        assert_eq!(shard(1, 4, Some(1), 0), None);
        assert_eq!(shard(1, u64::MAX, Some(1), 8), None);
    }

    /// The verdict on votes as text: `0a 1b 2a` says that ranks 0 and 2 computed the same.
    fn verdict(votes: &str) -> Verdict {
        let vote = |text: &str| {
            let (rank, hash) = text.split_at(1);
            Vote {
                rank: rank.parse().expect("a digit"),
                hash: [hash.as_bytes()[0]; 32],
            }
        };
        let votes: Vec<Vote> = votes.split_whitespace().map(vote).collect();
        judge(&votes)
    }

    #[test]
    fn the_rank_that_is_not_of_the_majority_is_wrong_and_without_one_nobody_is_believed() {
        let wrong = |ranks: &[u32]| Verdict::Wrong(ranks.to_vec());
        for (votes, expected) in [
            // The one who brings it is wrong, each time or once; then the one who audits it.
            ("0b 1a  0b 1a 2a", wrong(&[0])),
            ("0b 1a  0a 1a 2a", wrong(&[0])),
            ("0a 1b  0a 1b 2a", wrong(&[1])),
            ("0a 1b  0a 1a 2a", wrong(&[1])),
            // Nobody differed but in between; a third one that is asked is wrong as well.
            ("0a 1b  0a 1a 2b 3a", wrong(&[1, 2])),
            // Two ranks: only one that contradicts itself is known to be wrong.
            ("0b 1a  0a 1a", wrong(&[0])),
            ("0c 1a  0b 1a", wrong(&[0])),
            ("0b 1a  0b 1a", Verdict::Undecided),
            ("0a 1b  0b 1a", Verdict::Undecided),
            // One rank has nobody beside it.
            ("0a 0b  0a", Verdict::Undecided),
            // All differ: the model gives what it likes.
            ("0a 1b  0a 1b 2c", Verdict::Undecided),
            ("0a 1b  0c 1d 2e", Verdict::Undecided),
            ("0a 1a  2b 3b", Verdict::Undecided),
        ] {
            assert_eq!(verdict(votes), expected, "{votes}");
        }
        assert_eq!(judge(&[]), Verdict::Undecided);
    }
}
