//! The process of a rank, as `worker/rank/src/{life,work,heal,shares}.rs` make it of the machines of
//! `worker-core`: one act at a time, so that anything may happen between two of them.

mod deeds;
mod steps;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use muster_cluster::ids::WorkerName;
use muster_cluster::shares::{NUM_SHARES, runs};
use muster_cluster::state::{Finish, Heal};
use muster_cluster::tree::Run;
use muster_proto::{convert, v1};
use muster_worker_core::rank::{Cause, RankMachine, RankPlan, Rules};
use muster_worker_core::sharing::{Deed, Sharing, Word};
use v1::rank_report::Report;

use super::Env;
use super::links::{Frame, Next};
use super::model::{CHECKPOINT_EVERY, State, TOTAL_STEPS};
use deeds::Gathering;
use steps::Came;

const RULES: Rules = Rules {
    total_steps: TOTAL_STEPS,
    checkpoint_every: CHECKPOINT_EVERY,
    checkpoint_keep: 2,
    evaluate_every: None,
    num_files: NUM_SHARES + 1,
    is_shared: true,
};

/// What the leader tells a process.
#[derive(Clone, Debug)]
pub(super) enum Order {
    Assigned(Box<Assigned>),
    Close(u64, String),
    Pause(u64, String),
    Committed(u64),
}

/// An assignment, with the processes of its world by rank, which in the product are addresses.
#[derive(Clone, Debug)]
pub(super) struct Assigned {
    pub(super) assignment: v1::Assignment,
    pub(super) processes: Vec<u64>,
}

/// What a process tells the leader.
#[derive(Clone, Debug)]
pub(super) enum Said {
    Ready,
    Report(u64, Box<Report>),
    Applied(u64),
    Exited,
}

/// What it does next, or waits for.
#[derive(Debug)]
pub(super) enum Main {
    Booting(Box<Assigned>),
    /// It waits for a world.
    Waiting,
    /// It waits for these ranks.
    Meeting(BTreeSet<u32>),
    /// It waits for what it lacks.
    Healing,
    TakingOver(u64),
    Applying {
        reduced: u64,
        pause: Option<String>,
        heals: bool,
    },
    Sharing {
        deeds: VecDeque<Deed>,
        gathering: Option<Gathering>,
    },
    Boundary,
    Sending,
    Reducing(BTreeMap<u32, Came>),
}

/// A moment at which a fault is of interest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Point {
    Meeting,
    Healing,
    TakingOver,
    Applying,
    Reducing,
    Giving,
    Taking,
    Saying,
    Freeing,
    Gathering,
}

pub(super) const POINTS: [Point; 10] = [
    Point::Meeting,
    Point::Healing,
    Point::TakingOver,
    Point::Applying,
    Point::Reducing,
    Point::Giving,
    Point::Taking,
    Point::Saying,
    Point::Freeing,
    Point::Gathering,
];

/// What one world asks of a rank.
#[derive(Debug)]
struct World {
    plan: RankPlan,
    /// By rank.
    processes: Vec<u64>,
    finish: Option<Finish>,
    first: Vec<Vec<Run>>,
    then: Vec<Vec<Run>>,
    sharing: Sharing,
}

impl World {
    fn of(assigned: &Assigned) -> Self {
        let assignment = &assigned.assignment;
        let shards = convert::runs_of(&assignment.layout).expect("runs");
        let then: Vec<Vec<Run>> = shards.into_iter().map(|run| vec![run]).collect();
        let finish = assignment.finish.clone().map(Finish::try_from);
        let finish = finish.map(|finish| finish.expect("a finish"));
        let parts = finish.as_ref().map(|finish| {
            let parts = finish.parts.iter();
            parts.map(|part| part.shards.clone()).collect()
        });
        Self {
            plan: RankPlan {
                generation: assignment.generation,
                rank: assignment.rank,
                size: u32::try_from(assigned.processes.len()).expect("few ranks"),
                first_step: assignment.first_step,
                healed: finish.as_ref().map(|finish| finish.evaluated),
                committed: assignment.committed_step,
            },
            processes: assigned.processes.clone(),
            first: parts.unwrap_or_else(|| then.clone()),
            then,
            finish,
            sharing: Sharing::of(assignment).expect("holders").expect("shares"),
        }
    }

    fn need(&self) -> Option<&Heal> {
        let finish = self.finish.as_ref()?;
        finish.parts[self.plan.rank as usize].heal.as_ref()
    }

    fn others(&self) -> impl Iterator<Item = u32> + use<> {
        let rank = self.plan.rank;
        (0..self.plan.size).filter(move |other| *other != rank)
    }
}

#[derive(Debug)]
pub(super) struct Rank {
    pub(super) process: u64,
    pub(super) worker: WorkerName,
    pub(super) machine: RankMachine,
    pub(super) state: State,
    has_state: bool,
    /// The contributions to the step that comes next, by shard.
    held: BTreeMap<u32, u64>,
    /// The last step and its reduced vector.
    last: Option<(u64, u64)>,
    world: Option<World>,
    next: Option<Box<Assigned>>,
    pub(super) orders: VecDeque<Order>,
    pause: Option<(u64, String)>,
    pub(super) main: Main,
    /// What it reported to have, and has not said since to give up.
    promised: BTreeSet<u32>,
    pub(super) frozen_until_ms: u64,
}

impl Rank {
    pub(super) fn new(process: u64, worker: WorkerName, assigned: Assigned) -> Self {
        let mut state = State::initial();
        state.kept.clear();
        Self {
            process,
            worker,
            machine: RankMachine::new(assigned.assignment.generation),
            state,
            has_state: false,
            held: BTreeMap::new(),
            last: None,
            world: None,
            next: None,
            orders: VecDeque::new(),
            pause: None,
            main: Main::Booting(Box::new(assigned)),
            promised: BTreeSet::new(),
            frozen_until_ms: 0,
        }
    }

    /// Does the next thing; `false` where it only waits.
    pub(super) fn act(&mut self, env: &mut Env) -> bool {
        let main = std::mem::replace(&mut self.main, Main::Waiting);
        if !self.machine.is_open() && waits_for_others(&main) {
            self.leave(env);
            return true;
        }
        match main {
            Main::Booting(assigned) => self.boot(*assigned, env),
            Main::Waiting => match self.next.take() {
                Some(assigned) => self.enter(&assigned, env),
                None => return false,
            },
            Main::Meeting(missing) => return self.meet(missing, env),
            Main::Healing => return self.heal(env),
            Main::TakingOver(step) => self.take_over(step, env),
            Main::Applying {
                reduced,
                pause,
                heals,
            } => self.apply(reduced, pause, heals, env),
            Main::Sharing { deeds, gathering } => return self.share(deeds, gathering, env),
            Main::Boundary => self.boundary(env),
            Main::Sending => self.bring(env),
            Main::Reducing(came) => return self.reduce(came, env),
        }
        true
    }

    /// Takes what it is told.
    pub(super) fn take(&mut self, order: Order, env: &mut Env) {
        match order {
            Order::Assigned(assigned) => {
                self.machine.assigned(assigned.assignment.generation);
                self.next = Some(assigned);
            }
            Order::Close(generation, reason) => self.close(generation, Vec::new(), reason, env),
            Order::Pause(generation, reason) => self.pause = Some((generation, reason)),
            Order::Committed(step) => self.machine.committed(step),
        }
        self.flush(env);
    }

    /// Closes a world for a reason of its own.
    pub(super) fn hiccup(&mut self, env: &mut Env) {
        if self.machine.is_open() {
            let generation = self.machine.generation();
            self.close(generation, Vec::new(), "a hiccup".to_owned(), env);
        }
    }

    fn close(&mut self, generation: u64, lost: Vec<u32>, reason: String, env: &mut Env) {
        let cause = Cause {
            lost,
            reason,
            ..Cause::default()
        };
        self.machine.close(generation, cause);
        self.flush(env);
    }

    /// Sends what the machine has to report.
    fn flush(&mut self, env: &mut Env) {
        let generation = self.machine.generation();
        for report in self.machine.take_reports() {
            if let Report::Closed(closed) = &report {
                let holdings = closed.holdings.clone().unwrap_or_default();
                let kept = convert::runs(holdings.kept).expect("runs");
                let kept: BTreeSet<u32> = kept.into_iter().flat_map(Run::shards).collect();
                if holdings.step.is_some() {
                    env.oracle.check_shares(self.process, &self.state, &kept);
                    if !holdings.partial {
                        let what = "reports that it is whole";
                        env.oracle.check_params(self.process, &self.state, what);
                    }
                }
                env.oracle.reports(self.process, &kept);
                self.promised = kept;
            }
            env.log(format_args!("p{} reports {report:?}", self.process));
            let said = Said::Report(generation, Box::new(report));
            env.said.push((self.process, said));
        }
    }

    /// What must hold of it at any time.
    pub(super) fn check(&self, env: &mut Env) {
        let oracle = &mut env.oracle;
        oracle.check_shares(self.process, &self.state, &self.promised);
    }

    /// Where it is, if that is of interest.
    pub(super) fn point(&self) -> Option<Point> {
        Some(match &self.main {
            Main::Meeting(_) => Point::Meeting,
            Main::Healing => Point::Healing,
            Main::TakingOver(_) => Point::TakingOver,
            Main::Applying { .. } => Point::Applying,
            Main::Reducing(_) => Point::Reducing,
            Main::Sharing { deeds, .. } => match deeds.front()? {
                Deed::Give { .. } => Point::Giving,
                Deed::Take { .. } => Point::Taking,
                Deed::Say(Word::Left(_)) => Point::Saying,
                Deed::Free { .. } => Point::Freeing,
                Deed::Gather { .. } => Point::Gathering,
                Deed::Say(_) => return None,
            },
            Main::Booting(_) | Main::Waiting | Main::Boundary | Main::Sending => return None,
        })
    }

    fn world(&self) -> &World {
        self.world.as_ref().expect("it is in a world")
    }

    fn boot(&mut self, assigned: Assigned, env: &mut Env) {
        let assignment = &assigned.assignment;
        if assignment.generation > 0 {
            let step = usize::try_from(assignment.first_step).expect("a few steps");
            let kept = World::of(&assigned).sharing.kept();
            self.state = env.oracle.truth[step].clone();
            self.state.kept.retain(|share, _| kept.contains(share));
            self.has_state = true;
            self.next = Some(Box::new(assigned));
        }
        let state = self.has_state.then_some(self.state.step);
        self.machine.prepared(RULES, state);
        self.machine.keeps(runs(self.state.kept.keys().copied()));
        env.said.push((self.process, Said::Ready));
    }

    fn enter(&mut self, assigned: &Assigned, env: &mut Env) {
        let world = World::of(assigned);
        let plan = world.plan;
        if !self.machine.enter(plan) {
            env.links.leave(plan.generation, self.process);
            return;
        }
        let lacks = world.need().is_some() || world.sharing.begins_with_gathering();
        for other in world.others() {
            let to = world.processes[other as usize];
            env.links
                .send(plan.generation, [self.process, to], Frame::Hello);
        }
        self.main = Main::Meeting(world.others().collect());
        self.world = Some(world);
        if !lacks && !self.contribute(env) {
            self.leave(env);
        }
    }

    /// Its part in this world is over; what it sent arrives.
    fn leave(&mut self, env: &mut Env) {
        if let Some(world) = self.world.take() {
            env.links.leave(world.plan.generation, self.process);
        }
        self.main = Main::Waiting;
    }

    fn send(&self, to: u32, frame: Frame, env: &mut Env) {
        let world = self.world();
        let to = world.processes[to as usize];
        env.links
            .send(world.plan.generation, [self.process, to], frame);
    }

    /// What is next from a peer. Where nothing will come the world is closed, and left.
    fn receive(&mut self, from: u32, env: &mut Env) -> Option<Frame> {
        let world = self.world.as_ref()?;
        let (generation, peer) = (world.plan.generation, world.processes[from as usize]);
        match env.links.next(generation, [peer, self.process]) {
            Next::Frame(frame) => Some(frame),
            Next::Nothing => None,
            Next::End => {
                let reason = format!("rank {from} is gone");
                self.close(generation, vec![from], reason, env);
                self.leave(env);
                None
            }
        }
    }

    /// Whether the world was left meanwhile.
    fn has_left(&self) -> bool {
        self.world.is_none()
    }

    fn meet(&mut self, mut missing: BTreeSet<u32>, env: &mut Env) -> bool {
        let before = missing.len();
        for from in missing.clone() {
            match self.receive(from, env) {
                Some(Frame::Hello) => drop(missing.remove(&from)),
                Some(frame) => self.surprise(&frame, env),
                None if self.has_left() => return true,
                None => {}
            }
        }
        let has_met = missing.is_empty();
        let came = missing.len() < before;
        self.main = Main::Meeting(missing);
        if has_met {
            self.give_what_is_lacking(env);
        }
        came || has_met
    }

    fn surprise(&self, frame: &Frame, env: &mut Env) {
        let process = self.process;
        env.oracle
            .blame(format!("process {process} did not expect {frame:?}"));
    }

    fn give_what_is_lacking(&mut self, env: &mut Env) {
        let world = self.world();
        let plan = world.plan;
        let parts = world.finish.iter().flat_map(|finish| &finish.parts);
        let mut gifts = Vec::new();
        for (rank, part) in (0u32..).zip(parts) {
            match &part.heal {
                Some(Heal::Reduced { from }) if from.0 == plan.rank => {
                    let last = self.last.filter(|(step, _)| step + 1 == plan.first_step);
                    gifts.push((rank, last.map(|(_, reduced)| Frame::Reduced(reduced))));
                }
                Some(Heal::State { from }) if from.iter().any(|from| from.0 == plan.rank) => {
                    let step = self.state.step;
                    let is_there = step == plan.first_step;
                    gifts.push((rank, is_there.then_some(Frame::Head(step))));
                }
                _ => {}
            }
        }
        let needs = world.need().is_some();
        for (rank, gift) in gifts {
            match gift {
                Some(frame) => self.send(rank, frame, env),
                None => env.oracle.blame(format!(
                    "process {} has not what it is to give rank {rank}",
                    self.process
                )),
            }
        }
        if needs {
            self.main = Main::Healing;
        } else {
            self.begin(env);
        }
    }

    fn heal(&mut self, env: &mut Env) -> bool {
        self.main = Main::Healing;
        let from = match self.world().need() {
            Some(Heal::Reduced { from }) => from.0,
            Some(Heal::State { from }) => from[0].0,
            None => return false,
        };
        let main = match self.receive(from, env) {
            Some(Frame::Reduced(reduced)) => Main::Applying {
                reduced,
                pause: None,
                heals: true,
            },
            Some(Frame::Head(step)) => Main::TakingOver(step),
            Some(frame) => {
                self.surprise(&frame, env);
                return true;
            }
            None => return self.has_left(),
        };
        if self.machine.begin_apply() {
            self.main = main;
        } else {
            self.leave(env);
        }
        true
    }

    fn take_over(&mut self, step: u64, env: &mut Env) {
        self.held.clear();
        self.last = None;
        // What it kept is of another step; all values follow.
        self.promised.clear();
        self.state.kept.clear();
        self.state.step = step;
        self.has_state = true;
        self.machine.received(step);
        self.flush(env);
        self.begin(env);
    }
}

/// Whether that ends where the world is closed. What a rank has begun by itself, it ends.
fn waits_for_others(main: &Main) -> bool {
    match main {
        Main::Booting(_) | Main::Waiting | Main::TakingOver(_) | Main::Applying { .. } => false,
        Main::Sharing { deeds, .. } => {
            !matches!(deeds.front(), Some(Deed::Say(_) | Deed::Free { .. }))
        }
        Main::Meeting(_) | Main::Healing | Main::Boundary | Main::Sending | Main::Reducing(_) => {
            true
        }
    }
}
