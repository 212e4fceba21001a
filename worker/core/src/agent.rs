//! A worker as a machine: which processes of jobs it runs, what it owes the coordinator, and what
//! each of both is told. A process lives through many worlds; an assignment makes it a rank of the
//! next one. It decides nothing about jobs, and starts and ends processes by saying so.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use muster_proto::v1;
use v1::from_worker::Message as ToCoordinator;
use v1::rank_order::Order;
use v1::rank_report::Report;
use v1::to_rank::Message as ToRank;
use v1::to_worker::Message as FromCoordinator;

use crate::last::LastWords;

pub mod records;

/// What can happen to a worker.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// A stream to a coordinator is open.
    Connected,
    /// It has ended.
    Disconnected,
    /// The coordinator says something.
    FromCoordinator(FromCoordinator),
    /// A process runs.
    Started {
        /// What it was when it was to start.
        key: v1::RankKey,
        /// Its process id.
        pid: u32,
    },
    /// A process of this place runs that an earlier daemon of this worker started.
    Adopted {
        /// What it was told to be at last, as far as is known.
        key: v1::RankKey,
        /// Its process id.
        pid: u32,
    },
    /// A process that has had no assignment yet showed its token, and can be talked to.
    RankConnected(v1::RankKey),
    /// A process that is this at present showed its token again: an earlier connection ended.
    RankReturned(v1::RankKey),
    /// A process reports.
    FromRank(v1::RankReport),
    /// A process ended, or could not be started.
    Exited(v1::RankExited),
    /// The worker ends.
    Shutdown,
}

/// What a worker does.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Start this process; on the GPU of this index, if on any.
    Start(v1::RankKey, Option<u32>),
    /// End this process at once.
    Kill(v1::RankKey),
    /// Tell a process, which is this at present.
    ToRank(v1::RankKey, ToRank),
    /// Tell the coordinator.
    ToCoordinator(ToCoordinator),
    /// The coordinator wants none of this worker.
    Refused(String),
}

/// What a process is known by, whichever worlds it enters: its job, and its number there.
pub type Place = (String, u64);

/// The place of a process.
#[must_use]
pub fn place(key: &v1::RankKey) -> Place {
    (key.job.clone(), key.process)
}

/// One process, until nobody needs to hear of it any more.
#[derive(Debug)]
struct Process {
    /// What it is at present.
    key: v1::RankKey,
    pid: Option<u32>,
    /// What it is told when it connects, its newest assignment first; `None` once it has.
    waiting: Option<Vec<ToRank>>,
    /// Where it listens, for its peers of this world and of later ones, and for those that follow it.
    ready: v1::Ready,
    last: LastWords,
    /// Files of its history that no committed checkpoint has yet, as far as is known here.
    parts: Vec<v1::CheckpointPart>,
    exited: Option<v1::RankExited>,
    /// Nobody wants to know how it ends.
    is_unwanted: bool,
    /// Its first assignment was lost with an earlier daemon: it runs for nobody yet.
    is_unassigned: bool,
}

impl Process {
    fn new(key: v1::RankKey) -> Self {
        Self {
            key,
            pid: None,
            waiting: Some(Vec::new()),
            ready: v1::Ready::default(),
            last: LastWords::default(),
            parts: Vec::new(),
            exited: None,
            is_unwanted: false,
            is_unassigned: false,
        }
    }

    /// What it was to be told when it connects, and whether that makes it a rank of a world.
    fn take_waiting(&mut self) -> (Vec<ToRank>, bool) {
        let waiting = self.waiting.take().unwrap_or_default();
        let is_assigned = waiting
            .iter()
            .any(|message| matches!(message, ToRank::Assignment(_)));
        (waiting, is_assigned)
    }

    /// Tells it now, or when it connects.
    fn tell(&mut self, message: ToRank, outputs: &mut Vec<Output>) {
        match &mut self.waiting {
            Some(waiting) => waiting.push(message),
            None => outputs.push(Output::ToRank(self.key.clone(), message)),
        }
    }

    /// Makes it a rank of another world: what belonged to the old one is forgotten. The files that
    /// it wrote still count, unless the world falls back.
    fn enter(&mut self, key: v1::RankKey) {
        if self.key.history == key.history {
            self.last.enters();
        } else {
            self.parts.clear();
            self.last = LastWords::default();
        }
        self.key = key;
        if let Some(waiting) = &mut self.waiting {
            waiting.clear();
        }
    }

    /// Whether an order is for what the process is at present, or for its history as a whole.
    fn takes(&self, key: &v1::RankKey, order: &Order) -> bool {
        let is_dismissal = matches!(order, Order::Dismiss(_));
        let outlives_worlds = is_dismissal || matches!(order, Order::Committed(_) | Order::Stop(_));
        let is_for_it = key.generation == self.key.generation
            || outlives_worlds && key.history == self.key.history;
        is_for_it && (is_dismissal || self.exited.is_none())
    }

    /// Keeps of a report what a new stream has to hear again.
    fn remember(&mut self, key: &v1::RankKey, report: &Report) {
        if let Report::CheckpointPart(part) = report {
            if key.history == self.key.history && !self.parts.contains(part) {
                self.parts.push(part.clone());
            }
            return;
        }
        if let Report::Ready(ready) = report {
            // It says so once in its life, and perhaps as what it was before it entered this world.
            self.ready = ready.clone();
        } else if matches!(
            report,
            Report::SuspectSamples(_) | Report::CheckpointUnwritten(_)
        ) {
            // The next world's rank 0 says the one again, and the other changes nothing.
        } else if key.generation == self.key.generation
            || key.history == self.key.history && matches!(report, Report::Failed(_))
        {
            self.last.keep(report.clone());
        }
    }
}

/// The machine.
#[derive(Debug)]
pub struct Agent {
    worker: v1::RegisterWorker,
    is_connected: bool,
    /// Whether a coordinator has heard which processes run here.
    was_introduced: bool,
    processes: BTreeMap<Place, Process>,
    num_refused: u64,
}

impl Agent {
    /// A worker without processes that will introduce itself so.
    #[must_use]
    pub fn new(worker: v1::RegisterWorker) -> Self {
        Self {
            worker,
            is_connected: false,
            was_introduced: false,
            processes: BTreeMap::new(),
            num_refused: 0,
        }
    }

    /// How many messages were for or from processes that are not here, or not of that world.
    #[must_use]
    pub fn num_refused(&self) -> u64 {
        self.num_refused
    }

    /// Whether somebody may still need to hear of a process.
    #[must_use]
    pub fn knows(&self, place: &Place) -> bool {
        self.processes.contains_key(place)
    }

    /// The processes that run, or are to run.
    pub fn running(&self) -> impl Iterator<Item = &v1::RankKey> {
        self.living().map(|process| &process.key)
    }

    fn living(&self) -> impl Iterator<Item = &Process> {
        self.processes
            .values()
            .filter(|process| process.exited.is_none())
    }

    /// Takes one input.
    pub fn handle(&mut self, input: Input, outputs: &mut Vec<Output>) {
        match input {
            Input::Connected => self.introduce(outputs),
            Input::Disconnected => self.is_connected = false,
            Input::FromCoordinator(message) => self.ordered(message, outputs),
            Input::Started { key, pid } => self.started(&key, pid, outputs),
            Input::Adopted { key, pid } => {
                let mut process = Process::new(key);
                process.pid = Some(pid);
                self.processes.insert(place(&process.key), process);
            }
            Input::RankConnected(key) => self.rank_connected(&key, outputs),
            Input::RankReturned(key) => self.rank_returned(key, outputs),
            Input::FromRank(report) => self.reported(report, outputs),
            Input::Exited(exited) => self.exited(exited, outputs),
            Input::Shutdown => {
                // How they end is still reported: it is the proof that they have.
                outputs.extend(self.running().cloned().map(Output::Kill));
            }
        }
    }

    /// A process that is known, and has not ended; else the message is counted.
    fn process(&mut self, key: &v1::RankKey) -> Option<&mut Process> {
        let process = self
            .processes
            .get_mut(&place(key))
            .filter(|process| process.exited.is_none());
        if process.is_none() {
            self.num_refused += 1;
        }
        process
    }

    /// A process waits for its first assignment. Where that was lost with an earlier daemon, the
    /// coordinator says it again if it does not hear that the process runs; if it has heard so, the
    /// process is of no use, and has nothing that would be lost.
    fn rank_connected(&mut self, key: &v1::RankKey, outputs: &mut Vec<Output>) {
        let was_introduced = self.was_introduced;
        let Some(process) = self.process(key) else {
            return;
        };
        let (waiting, is_assigned) = process.take_waiting();
        if !is_assigned && was_introduced {
            outputs.push(Output::Kill(process.key.clone()));
            return;
        }
        process.is_unassigned = !is_assigned;
        for message in waiting {
            process.tell(message, outputs);
        }
    }

    /// A process knows better than an earlier daemon's notes what it is: an assignment may have
    /// been lost on the way, and is said again where the coordinator hears what arrived.
    fn rank_returned(&mut self, key: v1::RankKey, outputs: &mut Vec<Output>) {
        let Some(process) = self.process(&key) else {
            return;
        };
        let (waiting, is_assigned) = process.take_waiting();
        let is_news = !is_assigned && key != process.key;
        if is_news {
            process.enter(key);
        }
        for message in waiting {
            process.tell(message, outputs);
        }
        if is_news {
            let key = process.key.clone();
            self.tell_started(&key, outputs);
        }
    }

    /// Tells the coordinator what runs, as what it is at present.
    fn tell_started(&self, key: &v1::RankKey, outputs: &mut Vec<Output>) {
        let Some(process) = self.processes.get(&place(key)) else {
            return;
        };
        if let Some(pid) = process.pid.filter(|_| !process.is_unwanted) {
            let key = Some(process.key.clone());
            let started = v1::RankStarted { key, pid };
            self.tell(ToCoordinator::Started(started), outputs);
        }
    }

    fn tell(&self, message: ToCoordinator, outputs: &mut Vec<Output>) {
        if self.is_connected {
            outputs.push(Output::ToCoordinator(message));
        }
    }

    /// Says who is here and what runs, and again what an earlier stream may have lost.
    fn introduce(&mut self, outputs: &mut Vec<Output>) {
        self.is_connected = true;
        self.was_introduced = true;
        let living = self
            .living()
            .filter(|process| !process.is_unwanted && !process.is_unassigned);
        let ranks = living.map(|process| v1::RunningRank {
            key: Some(process.key.clone()),
            pid: process.pid.unwrap_or_default(),
            address: process.ready.address.clone(),
            feed: process.ready.feed.clone(),
        });
        let hello = v1::WorkerHello {
            worker: Some(self.worker.clone()),
            ranks: ranks.collect(),
        };
        outputs.push(Output::ToCoordinator(ToCoordinator::Hello(hello)));
        let wanted = self
            .processes
            .values()
            .filter(|process| !process.is_unwanted);
        for process in wanted {
            let parts = process.parts.iter().cloned().map(Report::CheckpointPart);
            for report in parts.chain(process.last.reports().cloned()) {
                let report = v1::RankReport {
                    key: Some(process.key.clone()),
                    report: Some(report),
                };
                outputs.push(Output::ToCoordinator(ToCoordinator::Report(report)));
            }
            let exited = process.exited.clone().map(ToCoordinator::Exited);
            outputs.extend(exited.map(Output::ToCoordinator));
        }
    }

    fn ordered(&mut self, message: FromCoordinator, outputs: &mut Vec<Output>) {
        match message {
            FromCoordinator::Welcome(_) => {}
            FromCoordinator::Assignment(assignment) => self.assigned(assignment, outputs),
            FromCoordinator::Order(order) => self.told(order, outputs),
            FromCoordinator::End(end) => self.end(end, outputs),
            // The end of the stream follows, and then a new one.
            FromCoordinator::Refused(refused) if refused.superseded => {}
            FromCoordinator::Refused(refused) => outputs.push(Output::Refused(refused.reason)),
        }
    }

    /// A process is to start here, or is to enter its next world. What it is already, and what has
    /// ended, stays as it is: the coordinator says it again on a new stream.
    fn assigned(&mut self, assignment: v1::Assignment, outputs: &mut Vec<Output>) {
        let key = v1::RankKey {
            job: assignment.job.clone(),
            history: assignment.history,
            generation: assignment.generation,
            rank: assignment.rank,
            process: assignment.process,
        };
        let mut is_found = false;
        let process = match self.processes.entry(place(&key)) {
            Entry::Vacant(vacant) => {
                outputs.push(Output::Start(key.clone(), assignment.cuda));
                vacant.insert(Process::new(key.clone()))
            }
            Entry::Occupied(occupied) => {
                let process = occupied.into_mut();
                let has_ended = process.is_unwanted || process.exited.is_some();
                let is_old = key.generation <= process.key.generation;
                if has_ended || is_old && !process.is_unassigned {
                    return;
                }
                is_found = std::mem::take(&mut process.is_unassigned);
                process.enter(key.clone());
                process
            }
        };
        process.tell(ToRank::Assignment(assignment), outputs);
        if is_found {
            self.tell_started(&key, outputs);
        }
    }

    fn told(&mut self, order: v1::RankOrder, outputs: &mut Vec<Output>) {
        let (Some(key), Some(said)) = (&order.key, &order.order) else {
            self.num_refused += 1;
            return;
        };
        let process = self.processes.get_mut(&place(key));
        let Some(process) = process.filter(|process| process.takes(key, said)) else {
            self.num_refused += 1;
            return;
        };
        match said {
            Order::Committed(committed) => {
                process.parts.retain(|part| part.step > committed.step);
            }
            Order::Dismiss(_) if process.exited.is_some() => {
                self.processes.remove(&place(key));
                return;
            }
            Order::Dismiss(_) => process.is_unwanted = true,
            _ => {}
        }
        process.tell(ToRank::Order(order), outputs);
    }

    /// Ends a process; one that ended before is forgotten.
    fn end(&mut self, end: v1::EndProcess, outputs: &mut Vec<Output>) {
        let Entry::Occupied(mut occupied) = self.processes.entry((end.job, end.process)) else {
            return;
        };
        let process = occupied.get_mut();
        if process.exited.is_some() {
            // One that is waited for was told, or will be.
            if !end.is_awaited {
                occupied.remove();
            }
            return;
        }
        process.is_unwanted |= !end.is_awaited;
        outputs.push(Output::Kill(process.key.clone()));
    }

    fn started(&mut self, key: &v1::RankKey, pid: u32, outputs: &mut Vec<Output>) {
        let Some(process) = self.process(key) else {
            return;
        };
        process.pid = Some(pid);
        self.tell_started(key, outputs);
    }

    /// Passes a report on, whichever world it is of: the coordinator knows which one counts.
    fn reported(&mut self, report: v1::RankReport, outputs: &mut Vec<Output>) {
        let (Some(key), Some(said)) = (&report.key, &report.report) else {
            self.num_refused += 1;
            return;
        };
        let Some(process) = self.process(key) else {
            return;
        };
        if process.is_unwanted {
            return;
        }
        process.remember(key, said);
        self.tell(ToCoordinator::Report(report), outputs);
    }

    fn exited(&mut self, exited: v1::RankExited, outputs: &mut Vec<Output>) {
        let Some(key) = &exited.key else {
            return;
        };
        let place = place(key);
        let Some(process) = self.process(key) else {
            return;
        };
        if process.is_unwanted {
            self.processes.remove(&place);
            return;
        }
        let exited = v1::RankExited {
            key: Some(process.key.clone()),
            ..exited
        };
        process.exited = Some(exited.clone());
        process.last.exited();
        self.tell(ToCoordinator::Exited(exited), outputs);
    }
}

#[cfg(test)]
mod tests;
