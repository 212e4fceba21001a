//! A job whose ranks share the optimizer's state, while ranks die, close their worlds, hang, come and
//! leave between any two acts: ranks made of the machines of `worker-core`, and a leader made of the
//! planner. It has neither a log nor workers nor time on a wire, which the larger simulation has; there
//! is chance alone in who acts next.
//!
//! 1. [`rank`]: the process of a rank, and how it carries out what is decided about its shares.
//! 2. [`leader`]: the planner, and what it hears and says. [`links`]: what crosses between ranks.
//! 3. [`oracle`]: what must hold. [`plants`]: bugs, to see whether anybody notices.
//! 4. [`model`]: what is trained. [`faults`]: what goes wrong.
//!
//! ```text
//! SHARES_SEED=7 cargo test -p muster-tests --test sim shares::tests::one_seed -- --nocapture
//! SHARES_SEEDS=0..5000 cargo test -p muster-tests --test sim shares::tests::many_seeds -- --ignored --nocapture
//! ```

mod faults;
mod leader;
mod links;
mod model;
mod oracle;
mod plants;
mod rank;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use muster_cluster::command::OutcomeKind;

use super::rng::Rng;
use faults::Faults;
use leader::{Leader, Output};
use links::Links;
use model::TOTAL_STEPS;
use oracle::{Counts, Oracle};
use plants::Plant;
use rank::{Rank, Said};

/// More than any run needs.
const MAX_EVENTS: u64 = 60_000;

/// Nobody can do anything for so long only where something is wrong: the longest wait is that for a
/// process that does not answer, and for another one in the place of some that ended at once.
const MAX_IDLE_MS: u64 = 120_000;

/// What kind of job a seed has.
#[derive(Debug)]
struct Profile {
    redundancy: &'static str,
    num_workers: u64,
    min: u32,
    max: u32,
    spares: u32,
}

/// What all processes have to do with.
#[derive(Debug)]
struct Env {
    links: Links,
    oracle: Oracle,
    plant: Plant,
    /// By process, not yet on its way to the leader.
    said: Vec<(u64, Said)>,
    /// The lines of the log; `None` where nobody wants them.
    log: Option<Vec<String>>,
}

impl Env {
    fn log(&mut self, line: fmt::Arguments<'_>) {
        if let Some(log) = &mut self.log {
            log.push(line.to_string());
        }
    }
}

/// Who may act next.
#[derive(Clone, Copy, Debug)]
enum Actor {
    Rank(u64),
    /// A process hears what it was told.
    Told(u64),
    /// The leader hears what a process said.
    Said(u64),
    Leader,
}

#[derive(Debug)]
struct Sim {
    env: Env,
    profile: Profile,
    chance: Rng,
    faults: Faults,
    leader: Leader,
    ranks: BTreeMap<u64, Rank>,
    said: BTreeMap<u64, VecDeque<Said>>,
    has_news: bool,
    now_ms: u64,
    num_events: u64,
    idle_since_ms: Option<u64>,
}

/// How a run ended.
#[derive(Debug)]
struct Report {
    violation: Option<String>,
    counts: Counts,
    log: Vec<String>,
}

fn run(seed: u64, plant: Plant, wants_log: bool) -> Report {
    let mut chance = Rng::new(seed ^ 0x5_4a7e);
    let number = |number: u64| u32::try_from(number).unwrap_or(1);
    let num_workers = chance.between(2, 6);
    let min = number(chance.between(1, 2));
    let profile = Profile {
        redundancy: if chance.chance(70) { "shadow" } else { "none" },
        num_workers,
        min,
        max: number(chance.between(2, num_workers)),
        spares: number(chance.below(2)),
    };
    let faults = Faults::of(&mut chance);
    let mut sim = Sim {
        env: Env {
            links: Links::default(),
            oracle: Oracle::new(),
            plant,
            said: Vec::new(),
            log: wants_log.then(Vec::new),
        },
        leader: Leader::new(&profile),
        profile,
        chance,
        faults,
        ranks: BTreeMap::new(),
        said: BTreeMap::new(),
        has_news: true,
        now_ms: 1_000,
        num_events: 0,
        idle_since_ms: None,
    };
    for _ in 0..sim.profile.num_workers {
        sim.leader.add_worker(0);
    }
    let profile = format!("{:?} {:?}", sim.profile, sim.faults);
    sim.env.log(format_args!("{profile}"));
    while !sim.is_over() {
        sim.step();
    }
    Report {
        violation: sim.env.oracle.violation,
        counts: sim.env.oracle.counts,
        log: sim.env.log.unwrap_or_default(),
    }
}

impl Sim {
    fn is_over(&mut self) -> bool {
        if let Some(outcome) = self.leader.end() {
            // A job whose worlds end one behind the other without a step is given up, as it is to be.
            let is_given_up = outcome.reason.contains("worlds in a row applied no step");
            let is_completed = outcome.kind == OutcomeKind::Completed;
            if !is_given_up && (!is_completed || outcome.step.0 != TOTAL_STEPS) {
                let outcome = format!("the job ended: {outcome:?}");
                self.env.oracle.blame(outcome);
            }
            return true;
        }
        self.env.oracle.violation.is_some()
    }

    /// One event, or a while in which there is none.
    fn step(&mut self) {
        self.num_events += 1;
        if self.num_events > MAX_EVENTS {
            let view = self.view();
            return self
                .env
                .oracle
                .blame(format!("it goes on for ever: {view}"));
        }
        self.disturb();
        let mut actors = self.actors();
        let did = loop {
            let len = actors.len() as u64;
            if len == 0 {
                break false;
            }
            let at = usize::try_from(self.chance.below(len)).unwrap_or(0);
            if self.let_act(actors.swap_remove(at)) {
                break true;
            }
        };
        if did {
            self.now_ms += self.chance.below(3);
            self.idle_since_ms = None;
        } else {
            let since = *self.idle_since_ms.get_or_insert(self.now_ms);
            self.now_ms += 100;
            self.has_news = true;
            if self.now_ms > since + MAX_IDLE_MS {
                let view = self.view();
                self.env.oracle.blame(format!("nobody goes on: {view}"));
            }
        }
        for (process, said) in std::mem::take(&mut self.env.said) {
            self.said.entry(process).or_default().push_back(said);
        }
        for rank in self.ranks.values() {
            rank.check(&mut self.env);
        }
    }

    fn view(&self) -> String {
        let ranks = self.ranks.values().map(|rank| {
            let (process, main, machine) = (rank.process, &rank.main, &rank.machine);
            format!("p{process} {main:?} {machine:?}")
        });
        ranks.collect::<Vec<String>>().join("\n")
    }

    fn actors(&self) -> Vec<Actor> {
        let mut actors = Vec::new();
        let awake = self.ranks.values();
        for rank in awake.filter(|rank| rank.frozen_until_ms <= self.now_ms) {
            actors.push(Actor::Rank(rank.process));
            if !rank.orders.is_empty() {
                actors.push(Actor::Told(rank.process));
            }
        }
        let said = self.said.iter().filter(|(_, said)| !said.is_empty());
        actors.extend(said.map(|(process, _)| Actor::Said(*process)));
        if self.has_news {
            actors.push(Actor::Leader);
        }
        actors
    }

    /// `false` where it has nothing to do.
    fn let_act(&mut self, actor: Actor) -> bool {
        match actor {
            Actor::Rank(process) => {
                if self.strike_at(process) {
                    return true;
                }
                let rank = self.ranks.get_mut(&process);
                rank.is_some_and(|rank| rank.act(&mut self.env))
            }
            Actor::Told(process) => {
                if let Some(rank) = self.ranks.get_mut(&process)
                    && let Some(order) = rank.orders.pop_front()
                {
                    self.env.log(format_args!("p{process} is told {order:?}"));
                    rank.take(order, &mut self.env);
                }
                true
            }
            Actor::Said(process) => {
                let said = self.said.get_mut(&process);
                if let Some(said) = said.and_then(VecDeque::pop_front) {
                    let (now_ms, oracle) = (self.now_ms, &mut self.env.oracle);
                    self.leader.hear(process, said, now_ms, oracle);
                    self.has_news = true;
                }
                true
            }
            Actor::Leader => {
                self.has_news = false;
                let outputs = self.leader.decide(self.now_ms, &mut self.env.oracle);
                let did = !outputs.is_empty();
                if self.leader.end().is_some() {
                    self.check_end();
                }
                for output in outputs {
                    self.carry_out(output);
                }
                did
            }
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Start(process, worker, assigned) => {
                let rank = Rank::new(process.0, worker, *assigned);
                self.ranks.insert(process.0, rank);
            }
            Output::Tell(process, order) => {
                if let Some(rank) = self.ranks.get_mut(&process.0) {
                    rank.orders.push_back(order);
                }
            }
            Output::End {
                process,
                is_awaited,
            } => {
                if is_awaited {
                    self.kill(process.0);
                } else if self.ranks.remove(&process.0).is_some() {
                    self.env.links.die(process.0, &mut self.chance);
                }
            }
            Output::Log(line) => {
                self.env.log(format_args!("{line}"));
                // One decision may lead to the next.
                self.has_news = true;
            }
        }
    }

    /// A process ends, and its worker sees it.
    fn kill(&mut self, process: u64) {
        if self.ranks.remove(&process).is_some() {
            self.env.log(format_args!("-- p{process} dies"));
            self.env.oracle.dies(process);
            self.env.links.die(process, &mut self.chance);
            self.env.said.push((process, Said::Exited));
        }
    }

    /// The job is over: every rank has what it is to have.
    fn check_end(&mut self) {
        let Some(world) = self.leader.last_world() else {
            return;
        };
        for rank in self.ranks.values() {
            if world.has(muster_cluster::ids::ProcessId(rank.process)) {
                self.env.oracle.check_end(rank.process, &rank.state, world);
            }
        }
    }
}

#[cfg(test)]
mod tests;
