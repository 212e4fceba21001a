//! What the list of a job's worlds says by itself: which steps of each count, which were void or
//! applied again, and whether the worlds and the checkpoints can have followed each other.

use std::collections::BTreeMap;

use muster_cluster::state::{LedgerEntry, Manifest};
use muster_proto::v1;

/// The steps of one world, by the number of updates before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The first one it ran.
    pub(super) first: u64,
    /// Those below it count.
    pub(super) counts_to: u64,
    /// Those below it were applied, as far as is known.
    pub(super) last: u64,
    /// Whether what is above `counts_to` is void; else a later world of the same history applied it
    /// again, with the same bits.
    pub(super) is_void: bool,
}

/// The steps of each world, in the order of the ledger.
pub(super) fn spans(ledger: &v1::LedgerReply) -> Vec<Span> {
    let worlds = &ledger.worlds;
    let span = |(index, world): (usize, &v1::WorldRecord)| {
        let first = world.first_step;
        // Where a world goes on, its predecessor was; a history that is new and has no world yet
        // goes on at the last checkpoint.
        let next = worlds.get(index + 1);
        let end = match next {
            Some(next) => next.first_step,
            None if ledger.history == world.history => ledger.step,
            None => committed(ledger),
        };
        let last = first.max(end).max(world.last_step.unwrap_or_default());
        let later = worlds[index + 1..].iter();
        let later = later.map(|later| (later.first_step, later.history));
        let unborn = (ledger.history > worlds.last().map_or(0, |world| world.history))
            .then(|| (committed(ledger), ledger.history));
        let later: Vec<(u64, u64)> = later.chain(unborn).collect();
        let counts_to = later.iter().map(|(step, _)| *step).min();
        Span {
            first,
            counts_to: last.min(counts_to.unwrap_or(last)).max(first),
            last,
            is_void: later
                .iter()
                .any(|(step, history)| *step < last && *history > world.history),
        }
    };
    worlds.iter().enumerate().map(span).collect()
}

/// The step of the newest checkpoint.
fn committed(ledger: &v1::LedgerReply) -> u64 {
    ledger.manifests.last().map_or(0, |manifest| manifest.step)
}

/// What cannot be as the ledger says, whatever the data.
pub(super) fn faults(ledger: &v1::LedgerReply) -> Vec<String> {
    let mut faults = Vec::new();
    faults.extend(ledger.worlds.iter().filter_map(cut));
    faults.extend(changed(&ledger.worlds));
    let hashes: BTreeMap<(u64, u64), &str> = ledger
        .committed
        .iter()
        .map(|known| ((known.history, known.step), known.manifest_hash.as_str()))
        .collect();
    let mut last: Option<&v1::WorldRecord> = None;
    let mut start = 0;
    for world in &ledger.worlds {
        let generation = world.generation;
        let expected = last.map_or(1, |last| last.generation + 1);
        if generation != expected {
            faults.push(format!(
                "generation {generation} is where generation {expected} must be"
            ));
        }
        if last.is_some_and(|last| last.history > world.history) {
            faults.push(format!(
                "generation {generation} goes back to history {}",
                world.history
            ));
        }
        let is_new = last.is_none_or(|last| last.history != world.history);
        if is_new {
            start = world.first_step;
        }
        let has_source = hashes
            .keys()
            .any(|(history, step)| *step == start && *history < world.history);
        if is_new && start > 0 && !has_source {
            faults.push(format!(
                "history {} begins at step {start}, of which no checkpoint was committed before",
                world.history
            ));
        }
        if world.first_step < start {
            faults.push(format!(
                "generation {generation} begins at step {}, below step {start} where its history \
                 begins",
                world.first_step
            ));
        }
        last = Some(world);
    }
    for manifest in &ledger.manifests {
        faults.extend(fault_of(manifest, ledger, &hashes));
    }
    let pairs = ledger.manifests.windows(2);
    let disordered = pairs.filter(|pair| pair[0].step >= pair[1].step);
    faults.extend(disordered.map(|pair| {
        format!(
            "the manifest of step {} stands behind that of step {}",
            pair[1].step, pair[0].step
        )
    }));
    faults
}

/// The worlds that are not as their events told of them when they began.
fn changed(worlds: &[v1::WorldRecord]) -> Vec<String> {
    let mut before = String::new();
    let mut faults = Vec::new();
    for world in worlds {
        let told = std::mem::replace(&mut before, world.told_hash.clone());
        let generation = world.generation;
        let entry = match LedgerEntry::try_from(world.clone()) {
            Ok(entry) => entry,
            Err(error) => {
                faults.push(format!("generation {generation}: {error}"));
                continue;
            }
        };
        if entry.hash.is_empty() {
            faults.push(format!("generation {generation}: no event tells of it"));
        } else if entry.hash != entry.hash_behind(&told) {
            faults.push(format!(
                "generation {generation}, or what was before it, is not what its event told when it \
                 began: the ledger has the hash {}, and the event told {}",
                entry.hash_behind(&told),
                entry.hash
            ));
        }
    }
    faults
}

/// A world whose ranks do not have every shard once.
fn cut(world: &v1::WorldRecord) -> Option<String> {
    let mut next = 0;
    for rank in &world.ranks {
        if rank.shards_start != next || rank.shards_end <= next {
            return Some(format!(
                "generation {}: rank {} has the shards {}..{} where {next} is next",
                world.generation, rank.rank, rank.shards_start, rank.shards_end
            ));
        }
        next = rank.shards_end;
    }
    None
}

fn fault_of(
    manifest: &v1::Manifest,
    ledger: &v1::LedgerReply,
    hashes: &BTreeMap<(u64, u64), &str>,
) -> Option<String> {
    let (history, step) = (manifest.history, manifest.step);
    let written = Manifest::from(manifest.clone()).hash();
    let Some(told) = hashes.get(&(history, step)) else {
        return Some(format!(
            "step {step}: the manifest is of history {history}, and no event tells of it"
        ));
    };
    if *told != written {
        return Some(format!(
            "step {step}: the manifest has the hash {written}, and was committed with {told}"
        ));
    }
    let worlds = &ledger.worlds;
    let has_world = |world: &v1::WorldRecord| {
        (world.history, world.generation) == (history, manifest.generation)
    };
    if !worlds.iter().any(has_world) {
        return Some(format!(
            "step {step}: the manifest is of generation {} in history {history}, which had no such \
             world",
            manifest.generation
        ));
    }
    let later = worlds
        .iter()
        .find(|world| world.history > history && world.first_step < step);
    later.map(|world| {
        format!(
            "step {step}: the manifest is of history {history}, and history {} went on at step {}",
            world.history, world.first_step
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(history: u64, generation: u64, first_step: u64, last: Option<u64>) -> v1::WorldRecord {
        let ranks = [(0, 0, 4), (1, 4, 8)].map(|(rank, shards_start, shards_end)| v1::Placement {
            rank,
            shards_start,
            shards_end,
            worker: "a".to_owned(),
            ..Default::default()
        });
        v1::WorldRecord {
            history,
            generation,
            first_step,
            last_step: last,
            ranks: ranks.to_vec(),
            ..Default::default()
        }
    }

    fn manifest(history: u64, generation: u64, step: u64) -> v1::Manifest {
        v1::Manifest {
            history,
            generation,
            step,
            ..Default::default()
        }
    }

    /// A ledger with the events of its worlds and manifests.
    fn ledger(
        mut worlds: Vec<v1::WorldRecord>,
        manifests: Vec<v1::Manifest>,
        step: u64,
    ) -> v1::LedgerReply {
        let committed = manifests
            .iter()
            .map(|manifest| v1::CommittedCheckpoint {
                history: manifest.history,
                step: manifest.step,
                manifest_hash: Manifest::from(manifest.clone()).hash(),
            })
            .collect();
        let mut before = String::new();
        for world in &mut worlds {
            let entry = LedgerEntry::try_from(world.clone()).unwrap();
            world.told_hash = entry.hash_behind(&before);
            before.clone_from(&world.told_hash);
        }
        v1::LedgerReply {
            history: worlds.last().map_or(1, |world| world.history),
            worlds,
            manifests,
            step,
            committed,
            ..Default::default()
        }
    }

    fn span(first: u64, counts_to: u64, last: u64, is_void: bool) -> Span {
        Span {
            first,
            counts_to,
            last,
            is_void,
        }
    }

    #[test]
    fn a_world_that_heals_another_goes_on_where_it_was() {
        let worlds = vec![world(1, 1, 0, Some(40)), world(1, 2, 41, Some(60))];
        let ledger = ledger(worlds, vec![], 60);
        assert_eq!(
            spans(&ledger),
            [span(0, 41, 41, false), span(41, 60, 60, false)]
        );
        assert_eq!(faults(&ledger), [""; 0]);
    }

    #[test]
    fn a_world_may_begin_below_the_one_it_heals() {
        let worlds = vec![
            world(1, 1, 0, Some(40)),
            world(1, 2, 40, Some(41)),
            world(1, 3, 39, Some(60)),
        ];
        let ledger = ledger(worlds, vec![], 60);
        assert_eq!(
            spans(&ledger),
            [
                span(0, 39, 40, false),
                span(40, 40, 41, false),
                span(39, 60, 60, false)
            ]
        );
        assert_eq!(faults(&ledger), [""; 0]);
    }

    #[test]
    fn a_fallback_leaves_void_steps_behind() {
        let worlds = vec![
            world(1, 1, 0, Some(30)),
            world(1, 2, 30, Some(37)),
            world(2, 3, 25, Some(60)),
        ];
        let ledger = ledger(worlds, vec![manifest(1, 1, 25), manifest(2, 3, 50)], 60);
        assert_eq!(
            spans(&ledger),
            [
                span(0, 25, 30, true),
                span(30, 30, 37, true),
                span(25, 60, 60, false)
            ]
        );
        assert_eq!(faults(&ledger), [""; 0]);
    }

    #[test]
    fn a_job_that_rests_behind_a_checkpoint_and_goes_on_loses_nothing() {
        let mut ledger = ledger(vec![world(1, 1, 0, Some(40))], vec![manifest(1, 1, 40)], 40);
        // It was submitted again, and has no world yet.
        ledger.history = 2;
        assert_eq!(spans(&ledger), [span(0, 40, 40, false)]);
        assert_eq!(faults(&ledger), [""; 0]);
    }

    #[test]
    fn what_was_before_a_fresh_start_is_void() {
        let worlds = vec![world(1, 1, 0, Some(40)), world(2, 2, 0, Some(5))];
        let ledger = ledger(worlds, vec![], 5);
        assert_eq!(spans(&ledger), [span(0, 0, 40, true), span(0, 5, 5, false)]);
        assert_eq!(faults(&ledger), [""; 0]);
    }

    #[test]
    fn a_ledger_that_cannot_be_so_is_told_by_its_place() {
        let sound = || {
            ledger(
                vec![world(1, 1, 0, Some(30)), world(2, 2, 25, Some(60))],
                vec![manifest(1, 1, 25), manifest(2, 2, 50)],
                60,
            )
        };
        assert_eq!(faults(&sound()), [""; 0]);
        type Tamper = fn(&mut v1::LedgerReply);
        let cases: [(Tamper, &str); 13] = [
            (
                |ledger| drop(ledger.worlds.remove(0)),
                "generation 2 is where generation 1 must be",
            ),
            (
                |ledger| ledger.worlds[1].first_step = 24,
                "history 2 begins at step 24, of which no checkpoint",
            ),
            (
                |ledger| ledger.worlds[1].history = 0,
                "generation 2 goes back to history 0",
            ),
            (
                |ledger| ledger.worlds[1].first_step = 26,
                "generation 2, or what was before it, is not what its event told",
            ),
            (
                |ledger| ledger.worlds[0].ranks[1].worker = "b".to_owned(),
                "generation 1, or what was before it, is not what its event told",
            ),
            (
                |ledger| ledger.worlds[0].reason = "another".to_owned(),
                "generation 1, or what was before it, is not what its event told",
            ),
            (
                |ledger| ledger.worlds[1].told_hash.clear(),
                "generation 2: no event tells of it",
            ),
            (
                |ledger| ledger.worlds[1].told_hash.replace_range(..4, "0000"),
                "generation 2, or what was before it, is not what its event told",
            ),
            (
                |ledger| ledger.worlds[0].ranks[1].shards_start = 5,
                "rank 1 has the shards 5..8 where 4 is next",
            ),
            (
                |ledger| ledger.manifests[1].trace = "other".to_owned(),
                "step 50: the manifest has the hash",
            ),
            (
                |ledger| ledger.manifests[1].step = 51,
                "step 51: the manifest is of history 2, and no event tells of it",
            ),
            (
                |ledger| ledger.manifests[0].generation = 7,
                "step 25: the manifest is of generation 7 in history 1, which had no such world",
            ),
            (
                |ledger| ledger.manifests.reverse(),
                "the manifest of step 25 stands behind that of step 50",
            ),
        ];
        for (tamper, expected) in cases {
            let mut ledger = sound();
            tamper(&mut ledger);
            let found = faults(&ledger).join("\n");
            assert!(found.contains(expected), "{expected:?} in {found:?}");
        }
    }
}
