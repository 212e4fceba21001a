//! What must hold of shares, whatever happens: what a rank said it has is there and right, a share is
//! lost only with all who had it, and nothing is computed of parameters that are old.

use std::collections::{BTreeMap, BTreeSet};

use muster_cluster::ids::{Generation, RankId};
use muster_cluster::shares::{Holders, NUM_SHARES};
use muster_cluster::state::{Heal, World};

use super::model::{State, undisturbed};

/// How much of what is of interest happened.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) worlds: u64,
    pub(super) moves: u64,
    pub(super) given_up: u64,
    pub(super) gatherings: u64,
    pub(super) deaths: u64,
    pub(super) fallbacks: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.worlds += other.worlds;
        self.moves += other.moves;
        self.given_up += other.given_up;
        self.gatherings += other.gatherings;
        self.deaths += other.deaths;
        self.fallbacks += other.fallbacks;
    }
}

/// A world, as it was made.
#[derive(Debug)]
struct Made {
    /// By rank.
    processes: Vec<u64>,
    /// By rank: the shares that it had reported to have, as far as its world goes on with them.
    had: Vec<BTreeSet<u32>>,
    holders: Vec<Holders>,
    /// The shares that are copied when it begins.
    copied: BTreeSet<u32>,
    /// The processes that have made its first step.
    stepped: BTreeSet<u64>,
}

#[derive(Debug)]
pub(super) struct Oracle {
    pub(super) violation: Option<String>,
    pub(super) counts: Counts,
    /// The state after each step, as it has to be.
    pub(super) truth: Vec<State>,
    /// By process: the shares of its last report.
    reported: BTreeMap<u64, BTreeSet<u32>>,
    dead: BTreeSet<u64>,
    worlds: BTreeMap<Generation, Made>,
}

impl Oracle {
    pub(super) fn new() -> Self {
        Self {
            violation: None,
            counts: Counts::default(),
            truth: undisturbed(),
            reported: BTreeMap::new(),
            dead: BTreeSet::new(),
            worlds: BTreeMap::new(),
        }
    }

    pub(super) fn blame(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(super) fn dies(&mut self, process: u64) {
        self.counts.deaths += 1;
        self.dead.insert(process);
    }

    /// A process says that it has these shares.
    pub(super) fn reports(&mut self, process: u64, shares: &BTreeSet<u32>) {
        self.reported.insert(process, shares.clone());
    }

    /// What a process says it has is there, and as it has to be.
    pub(super) fn check_shares(&mut self, process: u64, state: &State, said: &BTreeSet<u32>) {
        if let Some(share) = said.iter().find(|share| !state.kept.contains_key(*share)) {
            self.blame(format!(
                "process {process} said that it has share {share}, and has not"
            ));
        }
        let expected = self.truth.get(usize::try_from(state.step).unwrap_or(0));
        let is_right = |(share, value): (&u32, &u64)| {
            expected.is_some_and(|expected| expected.kept.get(share) == Some(value))
        };
        if let Some((share, _)) = state.kept.iter().find(|one| !is_right(*one)) {
            self.blame(format!(
                "process {process} has a share {share} that is not that of step {}",
                state.step
            ));
        }
    }

    /// A process computes with its parameters, or says that it has all of them.
    pub(super) fn check_params(&mut self, process: u64, state: &State, what: &str) {
        let expected = self.truth.get(usize::try_from(state.step).unwrap_or(0));
        if expected.is_none_or(|expected| expected.params != state.params) {
            self.blame(format!(
                "process {process} {what} at step {} with parameters that are not of that step",
                state.step
            ));
        }
    }

    /// A world is made, perhaps behind another one.
    pub(super) fn made(&mut self, old: Option<&World>, world: &World, why: &str) {
        self.counts.worlds += 1;
        if let Some(old) = old.filter(|_| world.finish.is_none()) {
            self.counts.fallbacks += 1;
            self.check_fallback(old, why);
        }
        let size = world.ranks.len();
        let parts = world.finish.iter().flat_map(|finish| &finish.parts);
        let had = world.ranks.iter().zip(parts).map(|(rank, part)| {
            let reported = self.reported.get(&rank.process.0);
            let reported = reported.filter(|_| !matches!(part.heal, Some(Heal::State { .. })));
            reported.cloned().unwrap_or_default()
        });
        let mut had: Vec<BTreeSet<u32>> = had.collect();
        if world.finish.is_none() {
            let ranks = (0u32..).map(RankId).take(size);
            had = ranks.map(|rank| kept_by(&world.shares, rank)).collect();
        }
        let moves = world.finish.iter().flat_map(|finish| &finish.moves);
        let made = Made {
            processes: world.ranks.iter().map(|rank| rank.process.0).collect(),
            had,
            holders: world.shares.clone(),
            copied: moves.map(|one| one.share).collect(),
            stepped: BTreeSet::new(),
        };
        self.worlds.insert(world.generation, made);
    }

    /// A process made the first step of a world.
    pub(super) fn steps(&mut self, generation: u64, process: u64) {
        if let Some(made) = self.worlds.get_mut(&Generation(generation)) {
            made.stepped.insert(process);
        }
    }

    /// A job falls back where all are dead who were to have a share: its holders; and of a share that is
    /// copied those who had it when the world was made, until all ranks have made the first step.
    fn check_fallback(&mut self, old: &World, why: &str) {
        let Some(made) = self.worlds.get(&old.generation) else {
            return;
        };
        if old.finish.is_none() && made.stepped.is_empty() {
            // It begins again where it began.
            return;
        }
        let have_stepped = made.processes.iter().all(|one| made.stepped.contains(one));
        let is_lost = |share: u32| {
            let ranks = (0u32..).zip(&made.processes).zip(&made.had);
            let is_moving = made.copied.contains(&share) && !have_stepped;
            let mut having = ranks.filter(|((rank, _), had)| match is_moving {
                true => had.contains(&share),
                false => made.holders[share as usize].has(RankId(*rank)),
            });
            having.all(|((_, process), _)| self.dead.contains(process))
        };
        if !(0..NUM_SHARES).any(is_lost) {
            let (generation, dead) = (old.generation, &self.dead);
            self.violation.get_or_insert(format!(
                "the job fell back behind world {generation} of {:?}, though of every share somebody \
                 is alive ({dead:?} are dead): {why}",
                made.processes
            ));
        }
    }

    /// At the end of the job a rank keeps what it is to keep, and nothing else once all have stepped.
    pub(super) fn check_end(&mut self, process: u64, state: &State, world: &World) {
        let nothing = BTreeSet::new();
        self.check_shares(process, state, &nothing);
        self.check_params(process, state, "ended");
        let rank = world.ranks.iter().position(|one| one.process.0 == process);
        let Some(rank) = rank.and_then(|rank| u32::try_from(rank).ok()) else {
            return;
        };
        let made = &self.worlds[&world.generation];
        let have_stepped = made.processes.iter().all(|one| made.stepped.contains(one));
        let kept = kept_by(&world.shares, RankId(rank));
        let has: BTreeSet<u32> = state.kept.keys().copied().collect();
        if !has.is_superset(&kept) || have_stepped && has != kept {
            self.blame(format!(
                "process {process} ends with the shares {has:?} and not with {kept:?}"
            ));
        }
    }
}

/// The shares that a rank is to keep.
fn kept_by(holders: &[Holders], rank: RankId) -> BTreeSet<u32> {
    let shares = (0u32..).zip(holders);
    let kept = shares.filter(|(_, holders)| holders.has(rank));
    kept.map(|(share, _)| share).collect()
}
