//! A worker as a machine: which ranks it runs, what it owes the coordinator, and what each of both
//! is told. It decides nothing about jobs, and starts and ends processes by saying so.

use std::collections::BTreeMap;

use muster_proto::v1;
use v1::from_worker::Message as ToCoordinator;
use v1::rank_order::Order;
use v1::rank_report::Report;
use v1::to_worker::Message as FromCoordinator;

/// What can happen to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A stream to a coordinator is open.
    Connected,
    /// It has ended.
    Disconnected,
    /// The coordinator says something.
    FromCoordinator(FromCoordinator),
    /// The process of a rank runs.
    Started {
        /// Which rank.
        key: v1::RankKey,
        /// Its process id.
        pid: u32,
    },
    /// A rank showed its token, and can be talked to.
    RankConnected(v1::RankKey),
    /// A rank reports.
    FromRank(v1::RankReport),
    /// The process of a rank ended, or could not be started.
    Exited(v1::RankExited),
    /// The worker ends.
    Shutdown,
}

/// What a worker does.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Start the process of this rank.
    Start(v1::RankKey),
    /// End the process of this rank at once.
    Kill(v1::RankKey),
    /// Tell a rank.
    ToRank(v1::RankKey, v1::to_rank::Message),
    /// Tell the coordinator.
    ToCoordinator(ToCoordinator),
    /// The coordinator wants none of this worker.
    Refused(String),
}

/// A rank on a worker: the ranks of a job are in the order of their worlds.
pub type Place = (String, u64, u32);

/// The place of a rank.
#[must_use]
pub fn place(key: &v1::RankKey) -> Place {
    (key.job.clone(), key.generation, key.rank)
}

/// One rank, until nobody needs to hear of it any more.
#[derive(Debug)]
struct Rank {
    key: v1::RankKey,
    assignment: v1::Assignment,
    pid: Option<u32>,
    is_connected: bool,
    /// Orders that came before the rank could be told.
    waiting: Vec<v1::RankOrder>,
    address: String,
    /// How its work ended.
    last: Option<Report>,
    /// Files that no committed checkpoint has yet, as far as is known here.
    parts: Vec<v1::CheckpointPart>,
    exited: Option<v1::RankExited>,
    /// Nobody wants to know how it ends.
    is_unwanted: bool,
}

/// The machine.
#[derive(Debug)]
pub struct Agent {
    worker: v1::RegisterWorker,
    is_connected: bool,
    ranks: BTreeMap<Place, Rank>,
    /// The oldest world of each job that may still start here.
    newest: BTreeMap<String, u64>,
    num_refused: u64,
}

impl Agent {
    /// A worker without ranks that will introduce itself so.
    #[must_use]
    pub fn new(worker: v1::RegisterWorker) -> Self {
        Self {
            worker,
            is_connected: false,
            ranks: BTreeMap::new(),
            newest: BTreeMap::new(),
            num_refused: 0,
        }
    }

    /// How many messages were for or from ranks that are not here.
    #[must_use]
    pub fn num_refused(&self) -> u64 {
        self.num_refused
    }

    /// The ranks whose processes run, or are to run.
    pub fn running(&self) -> impl Iterator<Item = &v1::RankKey> {
        self.ranks
            .values()
            .filter(|rank| rank.exited.is_none())
            .map(|rank| &rank.key)
    }

    /// Takes one input.
    pub fn handle(&mut self, input: Input, outputs: &mut Vec<Output>) {
        match input {
            Input::Connected => self.introduce(outputs),
            Input::Disconnected => self.is_connected = false,
            Input::FromCoordinator(message) => self.ordered(message, outputs),
            Input::Started { key, pid } => {
                if let Some(rank) = self.rank(&key) {
                    rank.pid = Some(pid);
                    self.tell(
                        ToCoordinator::Started(v1::RankStarted {
                            key: Some(key),
                            pid,
                        }),
                        outputs,
                    );
                }
            }
            Input::RankConnected(key) => {
                if let Some(rank) = self.rank(&key) {
                    rank.is_connected = true;
                    let assignment = v1::to_rank::Message::Assignment(rank.assignment.clone());
                    outputs.push(Output::ToRank(key.clone(), assignment));
                    for order in rank.waiting.drain(..) {
                        outputs.push(Output::ToRank(
                            key.clone(),
                            v1::to_rank::Message::Order(order),
                        ));
                    }
                }
            }
            Input::FromRank(report) => self.reported(report, outputs),
            Input::Exited(exited) => self.exited(exited, outputs),
            Input::Shutdown => {
                // How they end is still reported: it is the proof that they have.
                let living = self.ranks.values().filter(|rank| rank.exited.is_none());
                outputs.extend(living.map(|rank| Output::Kill(rank.key.clone())));
            }
        }
    }

    /// A rank that is known, and whose process has not ended; else the message is counted.
    fn rank(&mut self, key: &v1::RankKey) -> Option<&mut Rank> {
        let rank = self
            .ranks
            .get_mut(&place(key))
            .filter(|rank| rank.key == *key && rank.exited.is_none());
        if rank.is_none() {
            self.num_refused += 1;
        }
        rank
    }

    fn tell(&self, message: ToCoordinator, outputs: &mut Vec<Output>) {
        if self.is_connected {
            outputs.push(Output::ToCoordinator(message));
        }
    }

    /// Says who is here and what runs, and again what an earlier stream may have lost.
    fn introduce(&mut self, outputs: &mut Vec<Output>) {
        self.is_connected = true;
        let living = self
            .ranks
            .values()
            .filter(|rank| rank.exited.is_none() && !rank.is_unwanted);
        let ranks = living.map(|rank| v1::RunningRank {
            key: Some(rank.key.clone()),
            pid: rank.pid.unwrap_or_default(),
            address: rank.address.clone(),
        });
        let hello = v1::WorkerHello {
            worker: Some(self.worker.clone()),
            ranks: ranks.collect(),
        };
        outputs.push(Output::ToCoordinator(ToCoordinator::Hello(hello)));
        for rank in self.ranks.values().filter(|rank| !rank.is_unwanted) {
            let parts = rank.parts.iter().cloned().map(Report::CheckpointPart);
            for report in parts.chain(rank.last.clone()) {
                let report = v1::RankReport {
                    key: Some(rank.key.clone()),
                    report: Some(report),
                };
                outputs.push(Output::ToCoordinator(ToCoordinator::Report(report)));
            }
            let exited = rank.exited.clone().map(ToCoordinator::Exited);
            outputs.extend(exited.map(Output::ToCoordinator));
        }
    }

    fn ordered(&mut self, message: FromCoordinator, outputs: &mut Vec<Output>) {
        match message {
            FromCoordinator::Welcome(_) => {}
            FromCoordinator::Assignment(assignment) => self.assigned(assignment, outputs),
            FromCoordinator::Order(order) => {
                let Some(key) = order.key.clone() else { return };
                let Some(rank) = self.rank(&key) else { return };
                match &order.order {
                    Some(Order::Committed(committed)) => {
                        rank.parts.retain(|part| part.step > committed.step);
                    }
                    Some(Order::Dismiss(_)) => rank.is_unwanted = true,
                    _ => {}
                }
                if rank.is_connected {
                    outputs.push(Output::ToRank(key, v1::to_rank::Message::Order(order)));
                } else {
                    rank.waiting.push(order);
                }
            }
            FromCoordinator::Revoke(revoke) => {
                // Nothing of what is revoked starts again.
                let newest = self.newest.entry(revoke.job.clone()).or_default();
                *newest = revoke.generation.saturating_add(1).max(*newest);
                self.end(
                    |key| key.job == revoke.job && key.generation <= revoke.generation,
                    outputs,
                );
            }
            FromCoordinator::Refused(refused) => outputs.push(Output::Refused(refused.reason)),
        }
    }

    /// A rank is to run here. One that ran or runs already is not started twice.
    fn assigned(&mut self, assignment: v1::Assignment, outputs: &mut Vec<Output>) {
        let key = v1::RankKey {
            job: assignment.job.clone(),
            history: assignment.history,
            generation: assignment.generation,
            rank: assignment.rank,
        };
        if self.ranks.contains_key(&place(&key)) {
            return;
        }
        let newest = self.newest.entry(key.job.clone()).or_default();
        if *newest > key.generation {
            self.num_refused += 1;
            return;
        }
        *newest = key.generation;
        self.end(
            |old| old.job == key.job && old.generation < key.generation,
            outputs,
        );
        let rank = Rank {
            key: key.clone(),
            assignment,
            pid: None,
            is_connected: false,
            waiting: Vec::new(),
            address: String::new(),
            last: None,
            parts: Vec::new(),
            exited: None,
            is_unwanted: false,
        };
        self.ranks.insert(place(&key), rank);
        outputs.push(Output::Start(key));
    }

    /// Ends ranks; those that ended before are forgotten.
    fn end(&mut self, is_over: impl Fn(&v1::RankKey) -> bool, outputs: &mut Vec<Output>) {
        self.ranks
            .retain(|_, rank| rank.exited.is_none() || !is_over(&rank.key));
        for rank in self.ranks.values_mut().filter(|rank| is_over(&rank.key)) {
            rank.is_unwanted = true;
            outputs.push(Output::Kill(rank.key.clone()));
        }
    }

    fn reported(&mut self, report: v1::RankReport, outputs: &mut Vec<Output>) {
        let (Some(key), Some(said)) = (&report.key, &report.report) else {
            self.num_refused += 1;
            return;
        };
        let Some(rank) = self.rank(key) else { return };
        match said {
            Report::Ready(ready) => rank.address.clone_from(&ready.address),
            Report::CheckpointPart(part) => rank.parts.push(part.clone()),
            last => rank.last = Some(last.clone()),
        }
        self.tell(ToCoordinator::Report(report), outputs);
    }

    fn exited(&mut self, exited: v1::RankExited, outputs: &mut Vec<Output>) {
        let Some(key) = exited.key.clone() else {
            return;
        };
        let Some(rank) = self.rank(&key) else { return };
        if rank.is_unwanted {
            self.ranks.remove(&place(&key));
            return;
        }
        rank.exited = Some(exited.clone());
        self.tell(ToCoordinator::Exited(exited), outputs);
    }
}

#[cfg(test)]
mod tests;
