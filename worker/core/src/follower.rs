//! How a process that waits to enter a world follows the steps of its job meanwhile: whom it calls, from
//! whom it takes the state and the steps, and how far it is. The other side is in [`crate::feed`].
//!
//! ```text
//!          every rank is called                       all shares are here
//! Waiting ----------------------> Taking the state ------------------------> Following
//!    ^                                   |                                       |
//!    +------ a giver is lost, refuses ---+--- nobody has the step it is at ------+
//! ```
//!
//! It follows one rank; when that one is lost, another one that still has the step.

use std::collections::{BTreeMap, BTreeSet};

use muster_cluster::ids::ProcessId;
use muster_proto::v1;

use crate::feed::{Ask, MAX_PARTS, Ticket};

/// Progress is reported so often while a state arrives.
const REPORTS_OF_A_STATE: u64 = 16;

/// What can happen to a process that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The leader says whom to follow, and whom else to reach.
    Told {
        /// The ranks of the newest world.
        ranks: BTreeSet<ProcessId>,
        /// Others that wait.
        others: BTreeSet<ProcessId>,
    },
    /// A process has answered.
    Reached(ProcessId),
    /// It is not reached, or not any more. It is called again until the leader names it no more.
    Lost {
        /// Which one.
        process: ProcessId,
        /// In words.
        reason: String,
    },
    /// A share of the state begins.
    Share {
        /// Who sends it.
        from: ProcessId,
        /// For which attempt.
        attempt: u64,
        /// How many steps the state has seen.
        step: u64,
        /// How long the share is.
        bytes: u64,
    },
    /// So much of a share is here.
    Arrived {
        /// Who sends it.
        from: ProcessId,
        /// For which attempt.
        attempt: u64,
        /// All so far.
        bytes: u64,
    },
    /// The shares that were taken over together are not of one state.
    Spoiled,
    /// The reduced vector of a step is here.
    Step {
        /// Who sends it.
        from: ProcessId,
        /// Which step.
        step: u64,
    },
    /// A rank has sent all it has.
    Level {
        /// Which one.
        from: ProcessId,
        /// How many steps it has applied.
        step: u64,
    },
    /// A rank does not have what it was asked for.
    Refused {
        /// Which one.
        from: ProcessId,
        /// What that was.
        ask: Ask,
    },
}

/// What it does.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Connect with a process, and again when that is lost.
    Call(ProcessId),
    /// Leave a process.
    HangUp(ProcessId),
    /// Ask a process.
    Ask(ProcessId, Ask),
    /// Take the state over whose shares these sent, in this order, for this attempt.
    TakeOver(Vec<ProcessId>, u64),
    /// Apply the step that just came.
    Apply,
    /// Tell the coordinator.
    Report(v1::Following),
}

/// One giver's share.
#[derive(Debug)]
struct Part {
    giver: ProcessId,
    step: Option<u64>,
    bytes: u64,
    total: u64,
}

#[derive(Debug)]
enum Phase {
    Waiting,
    Taking(Vec<Part>),
    Following {
        step: u64,
        /// Whom it follows at present.
        source: Option<ProcessId>,
        /// Who does not have the step.
        without: BTreeSet<ProcessId>,
        /// The step at which it had caught up first.
        level: Option<u64>,
    },
}

/// The machine.
#[derive(Debug)]
pub struct Follower {
    me: ProcessId,
    ranks: BTreeSet<ProcessId>,
    others: BTreeSet<ProcessId>,
    reached: BTreeSet<ProcessId>,
    unreached: BTreeMap<ProcessId, String>,
    attempt: u64,
    /// Who gave the first share of the last state: it keeps the steps behind it.
    keeper: Option<ProcessId>,
    phase: Phase,
    reported: Option<v1::Following>,
}

impl Follower {
    /// A process that was told of nobody yet.
    #[must_use]
    pub fn new(me: ProcessId) -> Self {
        Self {
            me,
            ranks: BTreeSet::new(),
            others: BTreeSet::new(),
            reached: BTreeSet::new(),
            unreached: BTreeMap::new(),
            attempt: 0,
            keeper: None,
            phase: Phase::Waiting,
            reported: None,
        }
    }

    /// Takes one input.
    pub fn handle(&mut self, input: Input, outputs: &mut Vec<Output>) {
        match input {
            Input::Told { ranks, others } => self.told(ranks, others, outputs),
            Input::Reached(process) if self.is_told_of(process) => {
                self.unreached.remove(&process);
                self.reached.insert(process);
            }
            Input::Lost { process, reason } if self.is_told_of(process) => {
                self.unreached.insert(process, reason);
                self.reached.remove(&process);
                self.without(process);
            }
            Input::Share {
                from,
                attempt,
                step,
                bytes,
            } => self.share(from, attempt, step, bytes, outputs),
            Input::Arrived {
                from,
                attempt,
                bytes,
            } => self.arrived(from, attempt, bytes, outputs),
            Input::Spoiled => self.phase = Phase::Waiting,
            Input::Step { from, step } => self.step(from, step, outputs),
            Input::Level { from, step: theirs } => {
                if let Phase::Following {
                    step,
                    source,
                    without,
                    level,
                } = &mut self.phase
                    && *source == Some(from)
                    && *step >= theirs
                {
                    without.clear();
                    level.get_or_insert(*step);
                }
            }
            Input::Refused { from, ask } => self.refused(from, ask),
            Input::Reached(_) | Input::Lost { .. } => {}
        }
        self.go_on(outputs);
        self.report(outputs);
    }

    fn is_told_of(&self, process: ProcessId) -> bool {
        self.ranks.contains(&process) || self.others.contains(&process)
    }

    fn told(
        &mut self,
        ranks: BTreeSet<ProcessId>,
        others: BTreeSet<ProcessId>,
        outputs: &mut Vec<Output>,
    ) {
        let all = |ranks: &BTreeSet<ProcessId>, others: &BTreeSet<ProcessId>| -> BTreeSet<_> {
            ranks.union(others).copied().collect()
        };
        let (old, new) = (all(&self.ranks, &self.others), all(&ranks, &others));
        (self.ranks, self.others) = (ranks, others);
        for process in old.difference(&new) {
            outputs.push(Output::HangUp(*process));
            self.reached.remove(process);
            self.unreached.remove(process);
        }
        // Whoever is no rank any more gives nothing.
        let left: Vec<ProcessId> = old.difference(&self.ranks).copied().collect();
        for process in left {
            self.without(process);
        }
        outputs.extend(new.difference(&old).map(|process| Output::Call(*process)));
    }

    /// Goes on without what a process was to give.
    fn without(&mut self, process: ProcessId) {
        match &mut self.phase {
            Phase::Waiting => {}
            Phase::Taking(parts) => {
                if parts.iter().any(|part| part.giver == process) {
                    self.phase = Phase::Waiting;
                }
            }
            Phase::Following { source, .. } => {
                source.take_if(|source| *source == process);
            }
        }
    }

    fn refused(&mut self, from: ProcessId, ask: Ask) {
        match (&mut self.phase, ask) {
            (Phase::Taking(_), Ask::State(ticket)) if ticket.attempt == self.attempt => {
                self.without(from);
            }
            (
                Phase::Following {
                    source, without, ..
                },
                Ask::Steps { .. },
            ) if *source == Some(from) => {
                *source = None;
                without.insert(from);
            }
            _ => {}
        }
    }

    fn part(&mut self, giver: ProcessId, attempt: u64) -> Option<&mut Part> {
        let Phase::Taking(parts) = &mut self.phase else {
            return None;
        };
        let mut parts = parts.iter_mut();
        parts.find(|part| part.giver == giver && attempt == self.attempt)
    }

    fn share(
        &mut self,
        from: ProcessId,
        attempt: u64,
        step: u64,
        bytes: u64,
        outputs: &mut Vec<Output>,
    ) {
        if let Some(part) = self.part(from, attempt) {
            part.step = Some(step);
            part.total = bytes;
            self.arrived(from, attempt, 0, outputs);
        }
    }

    fn arrived(&mut self, from: ProcessId, attempt: u64, bytes: u64, outputs: &mut Vec<Output>) {
        let Some(part) = self.part(from, attempt) else {
            return;
        };
        part.bytes = bytes;
        let Phase::Taking(parts) = &self.phase else {
            return;
        };
        if !parts
            .iter()
            .all(|part| part.step.is_some() && part.bytes >= part.total)
        {
            return;
        }
        let first = parts.first().and_then(|part| part.step);
        self.phase = match first.filter(|_| parts.iter().all(|part| part.step == first)) {
            None => Phase::Waiting,
            Some(step) => {
                let givers: Vec<ProcessId> = parts.iter().map(|part| part.giver).collect();
                self.keeper = givers.first().copied();
                outputs.push(Output::TakeOver(givers, attempt));
                Phase::Following {
                    step,
                    source: None,
                    without: BTreeSet::new(),
                    level: None,
                }
            }
        };
    }

    fn step(&mut self, from: ProcessId, theirs: u64, outputs: &mut Vec<Output>) {
        if let Phase::Following { step, source, .. } = &mut self.phase
            && *source == Some(from)
            && *step == theirs
        {
            *step += 1;
            outputs.push(Output::Apply);
        }
    }

    /// Asks for what it lacks.
    fn go_on(&mut self, outputs: &mut Vec<Output>) {
        if let Phase::Following {
            step,
            source: source @ None,
            without,
            ..
        } = &mut self.phase
        {
            let able = |one: &ProcessId| self.reached.contains(one) && !without.contains(one);
            let mut able = self.ranks.iter().copied().filter(able).collect::<Vec<_>>();
            able.sort_by_key(|one| Some(*one) != self.keeper);
            match able.first() {
                Some(next) => {
                    *source = Some(*next);
                    outputs.push(Output::Ask(*next, Ask::Steps { from: *step }));
                }
                // Whoever it cannot reach may still have the step.
                None if without.is_empty() => {}
                None => self.phase = Phase::Waiting,
            }
        }
        let is_settled =
            |one: &ProcessId| self.reached.contains(one) || self.unreached.contains_key(one);
        if matches!(self.phase, Phase::Waiting) && self.ranks.iter().all(is_settled) {
            self.take_a_state(outputs);
        }
    }

    fn take_a_state(&mut self, outputs: &mut Vec<Output>) {
        let able: Vec<ProcessId> = self.ranks.intersection(&self.reached).copied().collect();
        if able.is_empty() {
            return;
        }
        self.attempt += 1;
        // Several that wait do not all ask the same ranks.
        let start = usize::try_from(self.me.0).unwrap_or_default() % able.len();
        let givers = able.iter().cycle().skip(start);
        let givers: Vec<ProcessId> = givers
            .take(able.len().min(usize::from(MAX_PARTS)))
            .copied()
            .collect();
        let parts = u8::try_from(givers.len()).unwrap_or(MAX_PARTS);
        for (part, giver) in (0u8..).zip(&givers) {
            let ticket = Ticket {
                process: self.me,
                attempt: self.attempt,
                part,
                parts,
            };
            outputs.push(Output::Ask(*giver, Ask::State(ticket)));
        }
        let part = |giver| Part {
            giver,
            step: None,
            bytes: 0,
            total: 0,
        };
        self.phase = Phase::Taking(givers.into_iter().map(part).collect());
    }

    /// Says how far it is, where that is news.
    fn report(&mut self, outputs: &mut Vec<Output>) {
        let unreached = self.unreached.iter();
        let mut following = v1::Following {
            step: None,
            reached: self.reached.iter().map(|process| process.0).collect(),
            unreached: unreached
                .map(|(process, reason)| v1::Unreached {
                    process: process.0,
                    reason: reason.clone(),
                })
                .collect(),
            bytes_taken: 0,
            bytes_total: 0,
        };
        match &self.phase {
            Phase::Waiting => {}
            Phase::Taking(parts) => {
                let total: u64 = parts.iter().map(|part| part.total).sum();
                let taken: u64 = parts.iter().map(|part| part.bytes).sum();
                let grain = (total / REPORTS_OF_A_STATE).max(1);
                following.bytes_total = total;
                following.bytes_taken = taken - taken % grain;
            }
            Phase::Following { level, .. } => following.step = *level,
        }
        if self.reported.as_ref() != Some(&following) {
            self.reported = Some(following.clone());
            outputs.push(Output::Report(following));
        }
    }
}

#[cfg(test)]
mod tests;
