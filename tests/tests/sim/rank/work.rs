//! The main thread of a rank: what it does in one world after another, and what it waits for; see
//! `worker/rank/src/{life,prepare,work,writer}.rs`. Steps themselves are in `steps`.

use std::collections::VecDeque;
use std::sync::Arc;

use muster_cluster::tree::{self, Run};
use muster_collective::{Accumulator, Error, Reduced};
use muster_proto::{convert, v1};
use muster_worker_core::rank::{Cause, Next, RankPlan};
use v1::rank_report::Report;

use super::super::env::{Env, Point};
use super::super::model::{NUM_CHUNKS, NUM_SHARDS, ShardNote, State};
use super::super::net::{MS, SECOND, Time, Timer};
use super::super::note::Note;
use super::meet::Received;
use super::{Rank, Trouble};

/// How long a collective waits, as the coordinator says.
pub(super) const TIMEOUT: Time = 60 * SECOND;

/// The files of a checkpoint.
pub(super) const FILES: [&str; 2] = ["params", "optimizer"];

/// The last step's reduced vector, for ranks that were not as fast.
#[derive(Clone, Debug)]
pub(crate) struct Last {
    pub(super) step: u64,
    pub(super) vector: Arc<Vec<f32>>,
    pub(super) notes: Vec<ShardNote>,
    pub(super) story: Story,
}

/// What is told of a step beside its result.
#[derive(Clone, Debug, Default)]
pub(crate) struct Story {
    pub(super) generation: u64,
    pub(super) acked: (u64, bool),
    pub(super) evaluation: Option<v1::StepRecord>,
}

/// What the main thread does, or waits for.
#[derive(Debug)]
pub(crate) enum Main {
    Booting,
    Preparing(v1::Assignment),
    /// It waits for a world.
    Waiting,
    Computing {
        shard: u32,
        left: VecDeque<u32>,
        then: Then,
    },
    /// It waits for the others of its world.
    Meeting,
    TakingOver(State, Vec<v1::StepRecord>),
    /// It waits for a world, has the state, and takes it over.
    FollowingFrom(State, Vec<v1::StepRecord>),
    /// It waits for a world, and applies a step.
    Following(Last),
    Reducing,
    /// Between the end of a reduction and the update.
    Merging(Last, Note),
    Applying(Last, Note),
    Evaluating(VecDeque<u32>, Vec<(u32, f64)>),
    Gathering,
    /// The checkpoint before this one is still being written.
    WaitingForWriter(Vec<u32>, bool),
    /// It waits until the others have heard its goodbye.
    Leaving {
        until: Time,
    },
    /// It has said what the matter is, and waits for its end.
    Failed,
}

/// What contributions are computed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Meet,
    Reduce,
}

/// What one world asks of this rank.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) plan: RankPlan,
    pub(super) first: Vec<Vec<Run>>,
    pub(super) then: Vec<Vec<Run>>,
}

#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) state: State,
    /// Whether that is a state of the job, and not one that another rank will give.
    pub(crate) has_state: bool,
    /// Whether it was at a step together with others: then it goes back behind none.
    pub(super) was_rank: bool,
    pub(super) held: Accumulator,
    pub(super) notes: Vec<ShardNote>,
    pub(super) last: Option<Last>,
    pub(super) evaluation: Option<v1::StepRecord>,
    pub(super) world: Option<World>,
    /// The snapshot that is being written, which of its files are not, and whether the work ends
    /// behind it.
    pub(super) writing: Option<(State, VecDeque<u32>, bool)>,
}

impl Work {
    pub(super) fn forget(&mut self) {
        self.held.clear();
        self.notes.clear();
    }

    pub(super) fn world(&self) -> &World {
        self.world.as_ref().expect("it has entered one")
    }
}

fn runs(shards: &[v1::Shards]) -> Result<Vec<Run>, Trouble> {
    convert::runs(shards.to_vec()).map_err(|error| Trouble::Failed(error.to_string()))
}

impl Rank {
    pub(super) fn work(&mut self) -> &mut Work {
        self.work.as_mut().expect("it is prepared")
    }

    /// The main thread is busy for a while.
    pub(super) fn busy(&mut self, range: (Time, Time), main: Main, env: &mut Env) {
        self.token += 1;
        self.main = main;
        let timer = Timer::Work(self.token);
        env.net.timer_between(self.node(), range, timer);
    }

    /// What the main thread was busy with is done.
    pub(super) fn worked(&mut self, env: &mut Env) {
        let result = match std::mem::replace(&mut self.main, Main::Waiting) {
            Main::Preparing(assignment) => self.prepared(&assignment, env),
            Main::Computing { shard, left, then } => self.computed(shard, left, then, env),
            Main::TakingOver(state, records) => self.took_over(state, records, env),
            Main::FollowingFrom(state, records) => {
                self.follows_from(state, records, env);
                Ok(())
            }
            Main::Following(last) => {
                self.followed(last, env);
                Ok(())
            }
            Main::Merging(last, note) => self.begin_apply(last, note, env),
            Main::Applying(last, note) => self.applied(last, &note, env),
            Main::Evaluating(left, mine) => self.evaluate(left, mine, env),
            main => {
                self.main = main;
                Ok(())
            }
        };
        self.settle(result, env);
    }

    fn settle(&mut self, result: Result<(), Trouble>, env: &mut Env) {
        match result {
            Ok(()) => {}
            Err(Trouble::Closed) => {
                self.token += 1;
                self.main = Main::Waiting;
                self.abandon(env);
                if let Some(joined) = self.joined.take() {
                    self.retire(&joined, env);
                }
            }
            Err(Trouble::Damaged { history, step }) => {
                self.main = Main::Failed;
                let key = self.shared.as_ref().map(|shared| shared.key.clone());
                let report = Report::CheckpointDamaged(v1::CheckpointDamaged {
                    history,
                    step,
                    reason: "its files are gone".to_owned(),
                });
                self.report(key.unwrap_or_default(), report, env);
            }
            Err(Trouble::Fault(message)) => {
                self.main = Main::Failed;
                self.exit(&format!("exit code 1; its log ends with: {message}"), env);
            }
            Err(Trouble::Failed(message)) => {
                env.oracle
                    .blame(format!("process {} failed: {message}", self.pid));
                self.main = Main::Failed;
                let key = self.shared.as_ref().map(|shared| shared.key.clone());
                let report = Report::Failed(v1::Failed {
                    message,
                    ..v1::Failed::default()
                });
                self.report(key.unwrap_or_default(), report, env);
            }
        }
    }

    /// Goes on where the main thread waits for something that is there; whether it did.
    pub(super) fn progress(&mut self, env: &mut Env) -> bool {
        let result = match &self.main {
            Main::Waiting => {
                let following = self.following.as_ref();
                let Some(shared) = &mut self.shared else {
                    return false;
                };
                let enters = shared.assignment.take_if(|assignment| {
                    following.is_none_or(|following| !following.brings(assignment.first_step))
                });
                if let Some(assignment) = enters {
                    self.begin(&assignment, env)
                } else if shared.is_dismissed {
                    self.exit("dismissed", env);
                    return false;
                } else if self.follow_on(env) {
                    Ok(())
                } else {
                    return false;
                }
            }
            Main::Meeting => match self.met() {
                Some(Ok((joined, received))) => {
                    self.joined = Some(joined);
                    self.receive(received, env)
                }
                Some(Err(trouble)) => Err(trouble),
                None => return false,
            },
            Main::Reducing | Main::Gathering => {
                let Some(mut joined) = self.joined.take() else {
                    return false;
                };
                let ended = joined.group.poll();
                self.flush(&mut joined, env);
                self.joined = Some(joined);
                match ended {
                    Some(ended) => self.operated(ended, env),
                    None => return false,
                }
            }
            Main::WaitingForWriter(files, is_last) => {
                let (files, is_last) = (files.clone(), *is_last);
                match self.check() {
                    Ok(()) if self.work().writing.is_some() => return false,
                    Ok(()) => {
                        self.main = Main::Waiting;
                        self.write(files, is_last, env);
                        self.boundary(env)
                    }
                    Err(trouble) => Err(trouble),
                }
            }
            Main::Leaving { until } => {
                if !self.leaving.is_empty() && env.net.now < *until {
                    return false;
                }
                self.leaving.clear();
                self.main = Main::Waiting;
                Ok(())
            }
            _ => return false,
        };
        self.settle(result, env);
        true
    }

    /// The time of an operation is over.
    pub(super) fn timed_out(&mut self, env: &mut Env) {
        if let (Main::Reducing | Main::Gathering, Some(joined)) = (&self.main, &mut self.joined)
            && let Some(ended) = joined.group.time_out()
        {
            let result = self.operated(ended, env);
            self.settle(result, env);
        }
    }

    fn operated(&mut self, ended: Result<Reduced, Error>, env: &mut Env) -> Result<(), Trouble> {
        match ended {
            Ok(reduced) if matches!(self.main, Main::Reducing) => self.reduced(reduced, env),
            Ok(reduced) => self.gathered(&reduced.notes, env),
            Err(error) => {
                let generation = self.work().world().plan.generation;
                Err(self.closed_by(generation, &error, env))
            }
        }
    }

    pub(super) fn check(&self) -> Result<(), Trouble> {
        let is_open = self
            .shared
            .as_ref()
            .is_some_and(|one| one.machine.is_open());
        if is_open {
            Ok(())
        } else {
            Err(Trouble::Closed)
        }
    }

    /// What a failed exchange means.
    pub(super) fn closed_by(&mut self, generation: u64, error: &Error, env: &mut Env) -> Trouble {
        if let Err(trouble) = self.check() {
            return trouble;
        }
        if let Error::Protocol { .. } = error {
            // Everybody is honest here.
            env.oracle
                .blame(format!("process {} says: {error}", self.pid));
        }
        if let Error::Invalid { .. } = error {
            return Trouble::Failed(error.to_string());
        }
        let cause = Cause {
            lost: error.missed().iter().map(|rank| rank.0).collect(),
            reason: error.to_string(),
            ..Cause::default()
        };
        self.tell(env, |shared| shared.machine.close(generation, cause));
        Trouble::Closed
    }

    /// Begins to work in a world.
    fn begin(&mut self, assignment: &v1::Assignment, env: &mut Env) -> Result<(), Trouble> {
        self.stop_following(env);
        let first = convert::runs_of(&assignment.layout)
            .map_err(|error| Trouble::Failed(error.to_string()))?;
        let size = u32::try_from(first.len()).unwrap_or(u32::MAX);
        if !tree::is_division(NUM_SHARDS, &first) || assignment.rank >= size {
            return Err(Trouble::Failed(
                "the shards are not divided as they are".to_owned(),
            ));
        }
        let then: Vec<Vec<Run>> = first.into_iter().map(|run| vec![run]).collect();
        let first = match &assignment.finish {
            None => then.clone(),
            Some(finish) => {
                let parts = finish.parts.iter().map(|part| runs(&part.shards));
                parts.collect::<Result<_, _>>()?
            }
        };
        let plan = RankPlan {
            generation: assignment.generation,
            rank: assignment.rank,
            size,
            first_step: assignment.first_step,
            healed: assignment.finish.as_ref().map(|finish| finish.evaluated),
            committed: assignment.committed_step,
        };
        let brings = first.get(plan.rank as usize).cloned().unwrap_or_default();
        self.work().world = Some(World { plan, first, then });
        env.point(Point::Entering, self.node());
        let has_entered = self.tell(env, |shared| {
            shared.pause = None;
            shared.machine.enter(plan)
        });
        env.log(format_args!("p{} enters {plan:?}: {has_entered}", self.pid));
        if !has_entered {
            return Err(Trouble::Closed);
        }
        self.feed.entered();
        self.meet(assignment)?;
        self.main = Main::Meeting;
        let waits = self.meeting.as_ref().is_some_and(super::Meeting::needs);
        // Peers may wait at the door since before.
        self.poll_meeting(env);
        if waits {
            return Ok(());
        }
        self.contribute(&brings, Then::Meet, env)
    }

    /// Takes what the others gave.
    fn receive(&mut self, received: Option<Received>, env: &mut Env) -> Result<(), Trouble> {
        match received {
            Some(Received::State(state, records)) => {
                if !self.tell(env, |shared| shared.machine.begin_apply()) {
                    return Err(Trouble::Closed);
                }
                self.busy((MS, 20 * MS), Main::TakingOver(state, records), env);
                Ok(())
            }
            Some(Received::Reduced(last, mut records)) => {
                records.extend(last.story.evaluation.clone());
                self.tell(env, |shared| shared.machine.inherited(records));
                self.begin_apply(last, Note::default(), env)
            }
            Some(Received::Records(records)) => {
                self.tell(env, |shared| shared.machine.inherited(records));
                self.arrived_at_the_step(env)
            }
            None => self.arrived_at_the_step(env),
        }
    }

    fn took_over(
        &mut self,
        state: State,
        records: Vec<v1::StepRecord>,
        env: &mut Env,
    ) -> Result<(), Trouble> {
        let step = state.step;
        let history = self.shared.as_ref().map_or(0, |shared| shared.key.history);
        if !self.work().was_rank {
            env.oracle.rewound(self.pid, history);
        }
        env.oracle.received(self.pid, history, &state);
        self.feed.restarted(step);
        let work = self.work();
        work.forget();
        work.last = None;
        work.state = state;
        work.has_state = true;
        self.tell(env, |shared| {
            shared.machine.inherited(records);
            shared.machine.received(step);
        });
        self.arrived_at_the_step(env)
    }

    pub(super) fn arrived_at_the_step(&mut self, env: &mut Env) -> Result<(), Trouble> {
        let (at, first) = (self.work().state.step, self.work().world().plan.first_step);
        if at != first {
            return Err(Trouble::Failed(format!(
                "this world begins at step {first}, and the rank is at step {at}"
            )));
        }
        self.work().was_rank = true;
        self.boundary(env)
    }

    /// What comes next, at a step boundary.
    pub(super) fn boundary(&mut self, env: &mut Env) -> Result<(), Trouble> {
        loop {
            self.check()?;
            let next = self.shared.as_ref().map(|shared| shared.machine.next());
            match next.expect("it has entered a world") {
                Next::Step => {
                    let work = self.work();
                    let world = work.world();
                    let is_first = work.state.step == world.plan.first_step;
                    let brings = if is_first { &world.first } else { &world.then };
                    let brings = brings[world.plan.rank as usize].clone();
                    return self.contribute(&brings, Then::Reduce, env);
                }
                Next::Evaluate => {
                    let plan = self.work().world().plan;
                    let chunks = plan.chunks(plan.rank, NUM_CHUNKS).collect();
                    env.point(Point::Evaluating, self.node());
                    return self.evaluate(chunks, Vec::new(), env);
                }
                Next::Checkpoint { is_last } => {
                    let plan = self.work().world().plan;
                    let files: Vec<u32> = plan.files(2).collect();
                    if !files.is_empty() && self.work().writing.is_some() {
                        self.main = Main::WaitingForWriter(files, is_last);
                        return Ok(());
                    }
                    self.write(files, is_last, env);
                }
                Next::LeaveOut => {
                    env.log(format_args!("p{} leaves a checkpoint out", self.pid));
                    self.tell(env, |shared| shared.machine.left_out());
                }
                Next::End { stopped } => {
                    self.end(stopped, env);
                    return Ok(());
                }
            }
        }
    }

    fn end(&mut self, stopped: bool, env: &mut Env) {
        let state = &self.work().state;
        let mut done = v1::Done {
            step: state.step,
            stopped,
            arena_hash: state.arena_hash(),
            optimizer_hash: state.optimizer_hash(),
            trace: state.trace_text(),
            ..v1::Done::default()
        };
        self.tell(env, |shared| {
            done.metrics = shared.machine.metrics().clone().into_iter().collect();
            shared.machine.ended(done);
        });
        if let Some(joined) = self.joined.take() {
            self.leaving = joined.streams.keys().copied().collect();
            self.retire(&joined, env);
        }
        let until = env.net.now + 10 * SECOND;
        self.token += 1;
        self.main = Main::Leaving { until };
        let timer = Timer::Deadline(self.token);
        env.net.timer(self.node(), 10 * SECOND, timer);
    }
}
