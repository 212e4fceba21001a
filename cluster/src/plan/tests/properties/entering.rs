//! Who may enter a world that heals another one, and how far those are who wait.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::ids::{ProcessId, WorkerName};
use crate::plan::{Standby, Watch};
use crate::state::{Job, Placement, World};

/// How far a process is that waits.
pub(super) fn seen(dice: u32, known: &Job) -> Standby {
    if dice.is_multiple_of(5) {
        return Standby::Ready;
    }
    let all = (1..=known.newest_process.0).map(ProcessId);
    let reached = all.filter(|other| dice >> (other.0 % 16) & 0x300 != 0);
    Standby::Follows {
        reached: reached.collect(),
    }
}

/// `rank` enters `world`: it follows and reaches all others, or it is missed.
pub(super) fn check(
    draining: &BTreeSet<WorkerName>,
    known: &Job,
    watch: &Watch,
    world: &World,
    rank: &Placement,
) -> Result<(), TestCaseError> {
    let seen = watch.standbys.get(&rank.process);
    let waits = matches!(seen, Some(Standby::Ready | Standby::Follows { .. }));
    prop_assert!(waits, "{seen:?}");
    if !known.spec.standbys_follow() {
        return Ok(());
    }
    let reaches = |one: &Placement, other: &Placement| {
        let seen = watch.standbys.get(&one.process);
        matches!(seen, Some(Standby::Follows { reached }) if reached.contains(&other.process))
    };
    let drains = |one: &&Placement| {
        draining.contains(&one.worker) || known.distrusted.contains_key(&one.worker)
    };
    let mut staying = world.ranks.iter().filter(|one| !drains(one));
    // Where somebody died, those are taken too of whose links nothing is known yet.
    let mut old = known.world.iter().flat_map(|old| &old.ranks);
    let died = old.any(|one| !world.has(one.process));
    let begins =
        |one: &Placement| died && watch.standbys.get(&one.process) == Some(&Standby::Ready);
    let follows = staying.clone().all(|other| {
        let reach = || reaches(rank, other) || reaches(other, rank);
        other == rank || begins(rank) || begins(other) || reach()
    });
    // Who would hold the others up is taken only where they are too few.
    let is_needed = staying.by_ref().count() <= known.spec.workers.min as usize;
    prop_assert!(follows || is_needed);
    Ok(())
}
