//! What goes wrong, and when: all of it drawn from the seed. Half of the faults strike at a moment
//! that is of interest, such as the middle of a heal; the others at any time.

use super::cluster::Sim;
use super::coordinator::Host;
use super::env::{POINTS, Point};
use super::net::{Later, MS, Node, SECOND, Time, Timer};
use super::rng::Rng;
use super::worker::Worker;

/// Something that goes wrong, or that somebody asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    KillRank,
    KillTwoRanks,
    KillWorker,
    CrashHost,
    KillCoordinator,
    PauseRank,
    PauseWorker,
    PauseCoordinator,
    CutLink,
    DropStream,
    AddWorker,
    Scale,
    Drain,
    Stop,
}

/// With how often each of them is drawn.
const FAULTS: [(Fault, u64); 14] = [
    (Fault::KillRank, 24),
    (Fault::KillTwoRanks, 8),
    (Fault::KillWorker, 9),
    (Fault::CrashHost, 5),
    (Fault::KillCoordinator, 12),
    (Fault::PauseRank, 8),
    (Fault::PauseWorker, 5),
    (Fault::PauseCoordinator, 4),
    (Fault::CutLink, 8),
    (Fault::DropStream, 8),
    (Fault::AddWorker, 4),
    (Fault::Scale, 5),
    (Fault::Drain, 5),
    (Fault::Stop, 2),
];

/// The points between one world and the next.
const MENDING: [Point; 7] = [
    Point::Closed,
    Point::Decided,
    Point::Entering,
    Point::Meeting,
    Point::Giving,
    Point::Taking,
    Point::Computing,
];

/// What strikes the process that reaches a point next, after `skip` others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Armed {
    point: Point,
    skip: u64,
    fault: Fault,
}

/// What kind of cluster a seed has, and what kind of trouble.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    pub(super) num_workers: u32,
    pub(super) min: u32,
    pub(super) max: u32,
    pub(super) spares: u32,
    pub(super) first_fault: Time,
    pub(super) calm_after: Time,
    gap: Time,
    faults: Vec<Fault>,
}

impl Profile {
    pub(super) fn of(chance: &mut Rng) -> Self {
        let number = |number: u64| u32::try_from(number).unwrap_or(1);
        let num_workers = number(chance.between(1, 4));
        let min = number(chance.between(1, 2)).min(num_workers);
        // Each seed has its own kinds of trouble, so that rare ones are not drowned by others.
        let percent = chance.between(15, 90);
        let mut faults = Vec::new();
        for (fault, weight) in FAULTS {
            if chance.chance(percent) {
                faults.extend((0..weight).map(|_| fault));
            }
        }
        Self {
            num_workers,
            min,
            max: number(chance.between(u64::from(min), 5)),
            spares: number(chance.between(0, 1)),
            first_fault: chance.between(SECOND, 3 * SECOND),
            calm_after: chance.between(4 * SECOND, 16 * SECOND),
            gap: chance.between(20 * MS, 1_500 * MS),
            faults,
        }
    }
}

impl Sim {
    /// One more fault, and when the next one comes.
    pub(super) fn disturb(&mut self) {
        if self.calm_since.is_some() {
            return;
        }
        let after = self.chance.between(MS, 2 * self.profile.gap);
        self.env.net.timer(Node::Outside, after, Timer::Disturb);
        let Some(fault) = self.chance.pick(&self.profile.faults) else {
            return;
        };
        if self.armed.len() < 2 && self.chance.chance(50) {
            self.arm(fault, &POINTS, 6);
        } else {
            self.strike(fault, None);
        }
    }

    fn arm(&mut self, fault: Fault, points: &[Point], num_skips: u64) {
        let point = self.chance.pick(points).unwrap_or(Point::Reducing);
        let skip = self.chance.below(num_skips);
        self.armed.push(Armed { point, skip, fault });
    }

    /// A process reached a point.
    pub(super) fn reached(&mut self, point: Point, node: Node) {
        let mut struck = Vec::new();
        self.armed.retain_mut(|armed| {
            if armed.point != point {
                return true;
            }
            let is_due = armed.skip == 0;
            if is_due {
                struck.push(armed.fault);
            }
            armed.skip = armed.skip.saturating_sub(1);
            !is_due
        });
        for fault in struck {
            self.env.log(format_args!("-- {node:?} is at {point:?}"));
            self.strike(fault, Some(node));
            // Trouble while the last one is being mended is of most interest.
            if self.chance.chance(40)
                && let Some(fault) = self.chance.pick(&self.profile.faults)
            {
                self.arm(fault, &MENDING, 4);
            }
        }
    }

    /// `near` is the process that it strikes, where it can choose.
    fn strike(&mut self, fault: Fault, near: Option<Node>) {
        self.env.oracle.counts.faults += 1;
        let down = if self.chance.chance(80) {
            self.chance.between(50 * MS, 2 * SECOND)
        } else {
            self.chance.between(2 * SECOND, 6 * SECOND)
        };
        let rank = self.some_rank(near);
        let host = match near {
            Some(Node::Worker { host, .. }) => Some(host),
            Some(Node::Rank { .. }) => rank.and_then(|pid| Some(self.ranks.get(&pid)?.host)),
            _ => {
                let hosts: Vec<u32> = self.workers.keys().copied().collect();
                self.chance.pick(&hosts)
            }
        };
        match fault {
            Fault::KillRank => self.kill_soon(rank),
            Fault::KillTwoRanks => {
                self.kill_soon(rank);
                let other = self.some_rank(None);
                self.kill_soon(other);
            }
            Fault::KillWorker => {
                if let Some(host) = host {
                    self.kill_worker(host, down);
                }
            }
            Fault::CrashHost => {
                if let Some(host) = host {
                    self.crash_host(host, down);
                }
            }
            Fault::KillCoordinator => {
                if let Some(id) = self.some_coordinator(near) {
                    self.kill_coordinator(id, down);
                }
            }
            Fault::PauseRank => self.pause(rank.map(|pid| Node::Rank { pid })),
            Fault::PauseWorker => {
                let worker = host.and_then(|host| self.workers.get(&host));
                self.pause(worker.map(Worker::node));
            }
            Fault::PauseCoordinator => {
                let id = self.some_coordinator(near);
                let host = id.and_then(|id| self.control.host(id));
                self.pause(host.map(Host::node));
            }
            Fault::CutLink => self.cut(host),
            Fault::DropStream => {
                let worker = host.and_then(|host| self.workers.get(&host));
                if let Some((control, bulk)) = worker.and_then(Worker::streams) {
                    self.env
                        .log(format_args!("-- drop the stream of w{host:?}"));
                    let one = if self.chance.chance(70) {
                        control
                    } else {
                        bulk
                    };
                    self.env.net.tear(one);
                }
            }
            Fault::AddWorker => {
                if self.workers.len() < 6 {
                    self.add_worker();
                }
            }
            Fault::Scale => {
                let max = self.chance.between(u64::from(self.profile.min), 6);
                self.scale(u32::try_from(max).unwrap_or(1));
                let after = self.chance.between(500 * MS, 4 * SECOND);
                let timer = Timer::Later(Later::Rescale);
                self.env.net.timer(Node::Outside, after, timer);
            }
            Fault::Drain => {
                if let Some(host) = host {
                    self.drain(host, true);
                    let after = self.chance.between(500 * MS, 5 * SECOND);
                    let timer = Timer::Later(Later::Undrain(host));
                    self.env.net.timer(Node::Outside, after, timer);
                }
            }
            Fault::Stop => self.stop(),
        }
    }

    fn some_rank(&mut self, near: Option<Node>) -> Option<u32> {
        if let Some(Node::Rank { pid }) = near
            && self.ranks.contains_key(&pid)
        {
            return Some(pid);
        }
        let pids: Vec<u32> = self.ranks.keys().copied().collect();
        self.chance.pick(&pids)
    }

    /// At once, or in a moment.
    fn kill_soon(&mut self, pid: Option<u32>) {
        let Some(pid) = pid else { return };
        if self.chance.chance(50) {
            self.end_rank(pid, "signal 9");
        } else {
            let after = self.chance.between(1, 10 * MS);
            let timer = Timer::Kill(Node::Rank { pid });
            self.env.net.timer(Node::Outside, after, timer);
        }
    }

    pub(super) fn pause(&mut self, node: Option<Node>) {
        let length = self.chance.between(10 * MS, 3 * SECOND);
        if let Some(node) = node {
            self.env
                .log(format_args!("-- pause {node:?} for {} ms", length / MS));
            self.env.net.pause(node, length);
        }
    }

    fn cut(&mut self, host: Option<u32>) {
        let Some(host) = host else { return };
        let others: Vec<u32> = self
            .workers
            .keys()
            .copied()
            .filter(|one| *one != host)
            .collect();
        let length = self.chance.between(50 * MS, 6 * SECOND);
        if let Some(other) = self.chance.pick(&others) {
            self.env.log(format_args!(
                "-- cut w{host} from w{other} for {} ms",
                length / MS
            ));
            self.env.net.cut_link([host, other], length);
        }
    }
}
