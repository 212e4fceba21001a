//! The whole cluster on one thread: who is alive, what happens next, and whether all is well in the
//! end. What goes wrong, and when, is chosen in `faults`, what is
//! asked for in `clients`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_cluster::command::OutcomeKind;
use muster_cluster::state::{Job, Phase, World};

use super::clients::{Asking, job_name};
use super::control::Control;
use super::env::{Env, Plant, Point};
use super::faults::{Armed, Profile};
use super::net::{Event, Later, MS, Message, Net, Node, SECOND, Time, Timer};
use super::oracle::{Counts, Oracle};
use super::rank::Rank;
use super::rng::Rng;
use super::worker::Worker;

/// How long a cluster may take to finish its job once nothing disturbs it.
const CALM: Time = 30 * SECOND;

/// How long the processes of a finished job may take to end.
const END: Time = 15 * SECOND;

/// A run is not longer than this, in events; no seed comes near it.
const MAX_EVENTS: u64 = 3_000_000;

pub(super) struct Sim {
    pub(super) env: Env,
    pub(super) chance: Rng,
    pub(super) profile: Profile,
    pub(super) control: Control,
    pub(super) workers: BTreeMap<u32, Worker>,
    /// How often each host's worker was started, and how many devices it has.
    lives: BTreeMap<u32, (u64, u32)>,
    pub(super) ranks: BTreeMap<u32, Rank>,
    /// Machines that went without a word.
    pub(super) vanished: BTreeSet<Node>,
    pub(super) requests: BTreeMap<u64, Asking>,
    pub(super) num_requests: u64,
    pub(super) armed: Vec<Armed>,
    pub(super) calm_since: Option<Time>,
    pub(super) completed_at: Option<Time>,
    /// The last entry whose state was looked at.
    observed: u64,
    pub(super) is_submitting: bool,
    committed: Option<u64>,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) violation: Option<String>,
    /// The log, and the state of everything at the end.
    pub(crate) log: Vec<String>,
    pub(crate) counts: Counts,
    pub(crate) took: Time,
    pub(crate) num_events: u64,
}

/// Runs a seed to its end.
///
/// `size` is the number of coordinators; the seed draws it where it is not given.
pub(crate) fn run(seed: u64, size: Option<u64>, plant: Plant, is_logged: bool) -> Report {
    let mut sim = Sim::new(seed, size, plant, is_logged);
    let mut num_events = 0;
    while sim.env.oracle.violation().is_none() && !sim.is_finished() {
        num_events += 1;
        let Some((node, event)) = sim.env.net.next() else {
            sim.env.oracle.blame("nothing happens any more".to_owned());
            break;
        };
        sim.dispatch(node, event);
        sim.after();
        if num_events > MAX_EVENTS {
            sim.env.oracle.blame("it never ends".to_owned());
        }
        sim.check_time();
    }
    sim.report(num_events)
}

impl Sim {
    fn new(seed: u64, size: Option<u64>, plant: Plant, is_logged: bool) -> Self {
        let mut chance = Rng::new(seed ^ 0xfa17);
        let profile = Profile::of(&mut chance);
        let control = Control::of(seed, size);
        let env = Env {
            net: Net::new(seed),
            oracle: Oracle::new(),
            plant,
            files: BTreeMap::new(),
            held: Vec::new(),
            has_full_disks: seed % 7 == 2,
            points: Vec::new(),
            spawns: Vec::new(),
            exits: Vec::new(),
            num_pids: 0,
            listening: BTreeMap::new(),
            dark: BTreeSet::new(),
            log: is_logged.then(Vec::new),
        };
        let mut sim = Self {
            env,
            chance,
            profile,
            control,
            workers: BTreeMap::new(),
            lives: BTreeMap::new(),
            ranks: BTreeMap::new(),
            vanished: BTreeSet::new(),
            requests: BTreeMap::new(),
            num_requests: 0,
            armed: Vec::new(),
            calm_since: None,
            completed_at: None,
            observed: 0,
            is_submitting: false,
            committed: None,
        };
        let profile = format!("{:?} {:?}", sim.profile, sim.control);
        sim.env.log(format_args!("{profile}"));
        sim.found();
        for _ in 0..sim.profile.num_workers {
            sim.add_worker();
        }
        sim.submit();
        let first = sim.profile.first_fault;
        sim.env.net.timer(Node::Outside, first, Timer::Disturb);
        let calm = sim.profile.calm_after;
        sim.env.net.timer(Node::Outside, calm, Timer::Calm);
        sim
    }

    // Processes.

    pub(super) fn add_worker(&mut self) {
        let host = u32::try_from(self.lives.len()).unwrap_or(u32::MAX) + 1;
        let num_devices = if self.chance.chance(30) { 2 } else { 1 };
        self.lives.insert(host, (0, num_devices));
        self.start_worker(host);
    }

    fn start_worker(&mut self, host: u32) {
        if let Some((life, num_devices)) = self.lives.get_mut(&host)
            && !self.workers.contains_key(&host)
        {
            *life += 1;
            let seats = self.control.seats();
            let worker = Worker::new(host, *life, *num_devices, seats, &mut self.env);
            self.env
                .log(format_args!("-- worker w{host}.{} starts", worker.life));
            self.workers.insert(host, worker);
        }
    }

    /// The worker's process dies, and its ranks notice.
    pub(super) fn kill_worker(&mut self, host: u32, down: Time) {
        if let Some(worker) = self.workers.remove(&host) {
            self.env
                .log(format_args!("-- kill worker w{host}.{}", worker.life));
            self.env.net.die(worker.node());
            let timer = Timer::Restart(worker.node());
            self.env.net.timer(Node::Outside, down, timer);
        }
    }

    /// The machine is gone at once, and nobody is told.
    pub(super) fn crash_host(&mut self, host: u32, down: Time) {
        let Some(worker) = self.workers.remove(&host) else {
            return;
        };
        self.env
            .log(format_args!("-- crash host w{host}.{}", worker.life));
        let pids: Vec<u32> = self.ranks_on(host);
        let ranks = pids.iter().map(|pid| Node::Rank { pid: *pid });
        for node in ranks.chain([worker.node()]) {
            self.env.net.vanish(node);
            self.vanished.insert(node);
        }
        self.ranks.retain(|pid, _| !pids.contains(pid));
        let timer = Timer::Restart(worker.node());
        self.env.net.timer(Node::Outside, down, timer);
    }

    pub(super) fn ranks_on(&self, host: u32) -> Vec<u32> {
        let ranks = self.ranks.values().filter(|rank| rank.host == host);
        ranks.map(|rank| rank.pid).collect()
    }

    pub(super) fn end_rank(&mut self, pid: u32, reason: &str) {
        let Some(rank) = self.ranks.remove(&pid) else {
            return;
        };
        self.env.log(format_args!("-- p{pid} ends: {reason}"));
        self.env.net.die(Node::Rank { pid });
        let worker = self.workers.get(&rank.host);
        if let Some(worker) = worker.filter(|worker| worker.life == rank.life) {
            let timer = Timer::Ended {
                key: rank.key,
                reason: reason.to_owned(),
            };
            let node = worker.node();
            self.env.net.timer_between(node, (200, 60 * MS), timer);
        }
    }

    // What happens.

    fn dispatch(&mut self, node: Node, event: Event) {
        match node {
            Node::Outside => self.outside(event),
            Node::Coordinator { id, .. } => match self.control.host_mut(id) {
                Some(host) if host.node() == node => {
                    host.handle(event, &mut self.env);
                    self.observe(id);
                }
                _ => self.nobody(node, &event),
            },
            Node::Worker { host, life } => match self.workers.get_mut(&host) {
                Some(worker) if worker.life == life => {
                    worker.handle(event, &mut self.env);
                }
                _ => self.nobody(node, &event),
            },
            Node::Rank { pid } => match self.ranks.get_mut(&pid) {
                Some(rank) => rank.handle(event, &mut self.env),
                None => self.nobody(node, &event),
            },
        }
    }

    /// A machine that runs refuses what is for a process that does not.
    fn nobody(&mut self, node: Node, event: &Event) {
        if let Event::Message { stream, message } = event
            && !self.vanished.contains(&node)
            && matches!(
                message,
                Message::Dial { .. }
                    | Message::FeedHello
                    | Message::Knock { .. }
                    | Message::FromWorker(_)
                    | Message::Subscribe
            )
        {
            self.env.net.close(node, *stream);
        }
    }

    fn outside(&mut self, event: Event) {
        let Event::Timer(timer) = event else { return };
        match timer {
            Timer::Disturb => self.disturb(),
            Timer::Calm => self.calm(),
            Timer::Resume(node) => {
                self.env.log(format_args!("-- resume {node:?}"));
                self.env.net.resume(node);
            }
            Timer::Restart(Node::Coordinator { id, .. }) => self.start_coordinator(id),
            Timer::Restart(Node::Worker { host, .. }) => self.start_worker(host),
            Timer::Ask(number) => self.ask(number),
            Timer::Kill(Node::Rank { pid }) => self.end_rank(pid, "signal 9"),
            Timer::Later(Later::Submit) => self.submit(),
            Timer::Later(Later::Undrain(host)) => self.drain(host, false),
            Timer::Later(Later::Rescale) => self.scale(self.profile.max),
            Timer::DisturbGroup => self.disturb_group(),
            Timer::Operate => self.operate(),
            Timer::Look => self.look(),
            _ => {}
        }
    }

    /// What follows at once from what just happened.
    fn after(&mut self) {
        for spawn in std::mem::take(&mut self.env.spawns) {
            let rank = Rank::new(spawn.pid, spawn.host, spawn.life, spawn.key, &mut self.env);
            self.ranks.insert(spawn.pid, rank);
        }
        for (pid, reason) in std::mem::take(&mut self.env.exits) {
            self.end_rank(pid, &reason);
        }
        for (point, node) in std::mem::take(&mut self.env.points) {
            self.reached(point, node);
            self.reached_group(point, node);
        }
        self.after_coordinators();
        self.watch_the_end();
    }

    // Whether all is well.

    pub(super) fn job(&self) -> Option<Arc<Job>> {
        self.control.leader()?.machine.job(&job_name())
    }

    /// The state of a coordinator may have changed. It is looked at where no other one has been yet.
    pub(super) fn observe(&mut self, id: u64) {
        let Some(host) = self.control.host(id) else {
            return;
        };
        let Some(job) = host.machine.job(&job_name()) else {
            return;
        };
        self.env.oracle.check_world(&job);
        if host.applied() <= self.observed {
            return;
        }
        self.observed = host.applied();
        let holder = |world: &World| {
            let ranks = world.ranks.iter().find_map(|placement| {
                let mut ranks = self.ranks.values();
                ranks.find(|rank| {
                    let worker = self.workers.get(&rank.host);
                    rank.key.process == placement.process.0
                        && worker.is_some_and(|worker| {
                            worker.life == rank.life && worker.life == placement.incarnation.0
                        })
                        && rank
                            .step()
                            .is_some_and(|step| step > job.committed_step().0)
                })
            });
            ranks.map(|rank| format!("p{} at step {:?}", rank.pid, rank.step()))
        };
        self.env.oracle.observe(&job, host.events(), holder);
        let committed = job.latest_manifest().map(|manifest| manifest.step.0);
        if committed != self.committed {
            self.committed = committed;
            let node = host.node();
            self.env.point(Point::Committed, node);
        }
    }

    /// Whether the job has ended, as the leader knows.
    fn watch_the_end(&mut self) {
        let Some(job) = self.job() else { return };
        let ended = match &job.phase {
            Phase::Ended(outcome) => Some(outcome.kind),
            _ => None,
        };
        match ended {
            Some(OutcomeKind::Completed) if self.completed_at.is_none() => {
                self.completed_at = Some(self.env.net.now);
                self.calm();
            }
            Some(_) if self.completed_at.is_none() && !self.is_submitting => {
                self.is_submitting = true;
                let after = (10 * MS, 2 * SECOND);
                let timer = Timer::Later(Later::Submit);
                self.env.net.timer_between(Node::Outside, after, timer);
            }
            _ => {}
        }
    }

    /// Nothing goes wrong any more, and what did is mended.
    fn calm(&mut self) {
        if self.calm_since.is_some() {
            return;
        }
        self.env.log(format_args!("-- calm"));
        self.calm_group();
        self.calm_since = Some(self.env.net.now);
        self.armed.clear();
        for host in self.lives.keys().copied().collect::<Vec<_>>() {
            self.drain(host, false);
        }
        self.scale(self.profile.max);
    }

    fn is_finished(&self) -> bool {
        let is_over = self.ranks.is_empty() && self.requests.is_empty();
        self.completed_at.is_some() && is_over && self.is_group_healthy()
    }

    fn check_time(&mut self) {
        let now = self.env.net.now;
        let Some(calm) = self.calm_since else { return };
        if self.completed_at.is_none() && now > calm + CALM {
            let waits = self.job().map(|job| job.phase.clone());
            self.env.oracle.blame(format!(
                "the job is not completed {} s after the last fault: {waits:?}",
                CALM / SECOND
            ));
        }
        if self.completed_at.is_some_and(|at| now > at.max(calm) + END) {
            let left = self.ranks.keys().collect::<Vec<_>>();
            let asked = self.requests.keys().collect::<Vec<_>>();
            let group = self.control.view();
            let violation = format!(
                "the job is over, and its processes {left:?} are not, or requests {asked:?} are not \
                 answered, or the group is not healthy: {group}"
            );
            self.env.oracle.blame(violation);
        }
    }

    fn report(mut self, num_events: u64) -> Report {
        if self.env.oracle.violation().is_none() {
            for host in self.control.hosts() {
                self.env.oracle.check_events(host.events());
                let oracle = &mut self.env.oracle.replicas;
                oracle.compare(&host.machine, host.applied());
            }
            self.env.oracle.gather();
        }
        let mut log = self.env.log.take().unwrap_or_default();
        if self.env.oracle.violation().is_some() {
            log.push(self.control.view());
            if let Some(host) = self.control.leader() {
                let view = host.machine.job_view("sim");
                log.push(format!("{view:#?}"));
                let job = self.job();
                let world = job
                    .as_ref()
                    .map(|job| (&job.world, &job.standbys, &job.phase));
                log.push(format!("{world:#?}"));
            }
            log.extend(self.workers.values().map(Worker::view));
            log.extend(self.ranks.values().map(Rank::view));
        }
        Report {
            violation: self.env.oracle.violation().cloned(),
            log,
            counts: self.env.oracle.counts,
            took: self.env.net.now,
            num_events,
        }
    }
}
