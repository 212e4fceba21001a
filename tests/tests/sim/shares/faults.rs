//! What goes wrong with ranks that share, and when: all of it drawn from the seed. Half of the faults
//! strike at a moment that is of interest, such as the middle of a copy.

use std::collections::BTreeMap;

use muster_cluster::ids::WorkerName;

use super::super::rng::Rng;
use super::Sim;
use super::rank::{POINTS, Point, Rank};

/// Something that goes wrong, or that somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    KillTwo,
    /// A rank closes its world, as one that misses a peer for a moment.
    Hiccup,
    Freeze,
    AddWorker,
    Drain,
    Scale,
}

/// With how often each is drawn.
const FAULTS: [(Fault, u64); 7] = [
    (Fault::Kill, 8),
    (Fault::KillTwo, 2),
    (Fault::Hiccup, 6),
    (Fault::Freeze, 2),
    (Fault::AddWorker, 2),
    (Fault::Drain, 4),
    (Fault::Scale, 3),
];

/// A job whose ranks die over and over is given up, which is not what is looked for here.
const MAX_DEATHS: u64 = 4;

/// What strikes the rank that reaches a point next, after `skip` others.
#[derive(Clone, Copy, Debug)]
struct Armed {
    point: Point,
    skip: u64,
    fault: Fault,
}

/// What is taken back later.
#[derive(Clone, Debug)]
enum Undo {
    Drain(WorkerName),
    Scale,
}

/// What goes wrong in a run.
#[derive(Debug)]
pub(super) struct Faults {
    kinds: Vec<Fault>,
    num_left: u64,
    num_deaths: u64,
    gap: u64,
    /// By the number of the event.
    next_at: u64,
    undo: BTreeMap<u64, Undo>,
    armed: Option<Armed>,
}

impl Faults {
    pub(super) fn of(chance: &mut Rng) -> Self {
        let percent = chance.between(25, 90);
        let mut kinds = Vec::new();
        for (fault, weight) in FAULTS {
            if chance.chance(percent) {
                kinds.extend((0..weight).map(|_| fault));
            }
        }
        Self {
            kinds,
            num_left: chance.between(1, 10),
            num_deaths: 0,
            gap: chance.between(10, 120),
            next_at: chance.between(20, 300),
            undo: BTreeMap::new(),
            armed: None,
        }
    }
}

impl Sim {
    /// What goes wrong before the next event.
    pub(super) fn disturb(&mut self) {
        let now = self.num_events;
        while let Some(undo) = self.faults.undo.first_entry()
            && *undo.key() <= now
        {
            let undo = undo.remove();
            self.env.log(format_args!("-- no more {undo:?}"));
            self.has_news = true;
            match undo {
                Undo::Drain(worker) => self.leader.drain(worker, false, self.now_ms),
                Undo::Scale => self.leader.scale(self.profile.max, self.now_ms),
            }
        }
        if self.faults.num_left == 0 || now < self.faults.next_at {
            return;
        }
        self.faults.num_left -= 1;
        self.faults.next_at = now + self.chance.between(1, 2 * self.faults.gap);
        let Some(fault) = self.chance.pick(&self.faults.kinds) else {
            return;
        };
        if self.faults.armed.is_none() && self.chance.chance(60) {
            let point = self.chance.pick(&POINTS).unwrap_or(Point::Giving);
            let skip = self.chance.below(6);
            self.faults.armed = Some(Armed { point, skip, fault });
        } else {
            self.strike(fault, None);
        }
    }

    /// Strikes a rank that is where a fault waits for it, or another one at that moment.
    pub(super) fn strike_at(&mut self, process: u64) -> bool {
        let Some(armed) = self.faults.armed else {
            return false;
        };
        let point = self.ranks.get(&process).and_then(Rank::point);
        if point != Some(armed.point) {
            return false;
        }
        if armed.skip > 0 {
            let skip = armed.skip - 1;
            self.faults.armed = Some(Armed { skip, ..armed });
            return false;
        }
        self.faults.armed = None;
        self.env
            .log(format_args!("-- p{process} is at {:?}", armed.point));
        let near = self.chance.chance(60).then_some(process);
        self.strike(armed.fault, near);
        true
    }

    fn strike(&mut self, fault: Fault, near: Option<u64>) {
        self.has_news = true;
        let all: Vec<u64> = self.ranks.keys().copied().collect();
        let Some(process) = near.or_else(|| self.chance.pick(&all)) else {
            return;
        };
        self.env.log(format_args!("-- {fault:?} at p{process}"));
        let later = self.num_events + self.chance.between(20, 400);
        match fault {
            Fault::Kill => self.strike_dead(process),
            Fault::KillTwo => {
                self.strike_dead(process);
                if let Some(other) = self.chance.pick(&all) {
                    self.strike_dead(other);
                }
            }
            Fault::Hiccup => {
                if let Some(rank) = self.ranks.get_mut(&process) {
                    rank.hiccup(&mut self.env);
                }
            }
            Fault::Freeze => {
                let until = self.now_ms + self.chance.between(20, 5_000);
                if let Some(rank) = self.ranks.get_mut(&process) {
                    rank.frozen_until_ms = until;
                }
            }
            Fault::AddWorker => self.leader.add_worker(self.now_ms),
            Fault::Drain => {
                let near = self.ranks.get(&process).map(|rank| rank.worker.clone());
                let workers = self.leader.workers();
                let any = self.chance.pick(&workers);
                if let Some(worker) = near.filter(|_| self.chance.chance(70)).or(any) {
                    self.leader.drain(worker.clone(), true, self.now_ms);
                    self.faults.undo.insert(later, Undo::Drain(worker));
                }
            }
            Fault::Scale => {
                let max = self.chance.between(u64::from(self.profile.min), 6);
                let max = u32::try_from(max).unwrap_or(1);
                self.leader.scale(max, self.now_ms);
                self.faults.undo.insert(later, Undo::Scale);
            }
        }
    }

    fn strike_dead(&mut self, process: u64) {
        if self.faults.num_deaths < MAX_DEATHS {
            self.faults.num_deaths += 1;
            self.kill(process);
        }
    }
}
