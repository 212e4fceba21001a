//! What a rank does in one world: steps, evaluations and checkpoints, as the machine says; measured.

mod boundary;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use muster_cluster::error_chain;
use muster_cluster::ids::{RankId, ShardId};
use muster_cluster::job::JobSpec;
use muster_cluster::tree::{self, Run};
use muster_collective::{
    Accumulator, Error as CollectiveError, Group, LossReason, Operation, Pool, Revoker, tcp,
};
use muster_proto::v1;
use muster_trainer::{ShardNote, StepReport, Trainer};
use muster_worker_core::audit::Hash;
use muster_worker_core::rank::{Cause, Next, RankMachine, RankPlan, Rules};
use v1::step_record::Record;

use crate::audit;
use crate::flaw::Flaw;
use crate::halt;
use crate::heal::{self, Meeting, Received};
use crate::note::{Note, Pace};
use crate::shared::{Shared, Trouble};
use crate::shares::Sharing;
use crate::suspects;
use crate::writer::Writer;

/// The last step's reduced vector, for ranks that were not as fast.
#[derive(Debug)]
pub(crate) struct Last {
    /// The step that it completed.
    pub(crate) step: u64,
    pub(crate) vector: Arc<Vec<f32>>,
    /// The notes of all shards, in their order.
    pub(crate) notes: Vec<ShardNote>,
}

/// A rank at work, through all of its worlds.
pub(crate) struct Work<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) spec: JobSpec,
    pub(crate) trainer: Trainer,
    pub(crate) rules: Rules,
    pub(crate) writer: Writer,
    pub(crate) listener: Arc<tcp::Listener>,
    pub(crate) pool: Pool,
    /// The contributions to the step that comes next, kept until it is applied, and their notes.
    pub(crate) held: Accumulator,
    pub(crate) notes: Vec<ShardNote>,
    /// The hash of the one of them that is audited, if it is there.
    pub(crate) audited: Option<Hash>,
    pub(crate) flaw: Flaw,
    pub(crate) last: Option<Arc<Last>>,
    /// When the step before ended, or the world began.
    pub(crate) since: Instant,
    /// What was measured since then.
    pub(crate) spent: Spent,
}

/// What a rank did since the step before, measured.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    contributing: Duration,
    num_contributed: u32,
    evaluating: Duration,
    /// Waiting for the files of the snapshot before.
    snapshot: Duration,
    /// The update of the step before.
    update: Duration,
    /// Whom the reduction of the step before waited for longest.
    awaited: Option<(RankId, Duration)>,
}

/// What one world asks of this rank.
pub(crate) struct World {
    pub(crate) plan: RankPlan,
    /// What each rank brings into the first step, and into every later one, by rank.
    first: Vec<Vec<Run>>,
    then: Vec<Vec<Run>>,
    pub(crate) timeout: Duration,
    /// Who keeps what of the optimizer's state, where not every rank keeps all of it.
    sharing: Option<Sharing>,
}

impl World {
    /// What each rank brings into a step, by rank.
    pub(crate) fn brings(&self, step: u64) -> &[Vec<Run>] {
        if step == self.plan.first_step {
            &self.first
        } else {
            &self.then
        }
    }
}

/// Where the time of a step went that its contributions did not take.
struct Times {
    contributed: Instant,
    reduced: Instant,
    /// What each rank measured of itself, by rank.
    paces: Vec<Pace>,
}

impl Work<'_> {
    /// Works in a world until its end, or until it is closed.
    pub(crate) fn run(&mut self, assignment: &v1::Assignment) -> Result<(), Trouble> {
        let world = self.world(assignment)?;
        self.since = Instant::now();
        self.spent = Spent::default();
        let revoker = Revoker::default();
        if !self.shared.enter(world.plan, revoker.clone()) {
            return Err(Trouble::Closed);
        }
        if let Some(suspect) = &assignment.suspect {
            suspects::tell(self.shared, &self.trainer, suspect);
        }
        let rank = world.plan.rank as usize;
        let meeting = Meeting::new(self, assignment, revoker)?;
        let needs = meeting.needs();
        let meeting = meeting.start(self.shared)?;
        let brings = world.first.get(rank).cloned().unwrap_or_default();
        let lacks = world.sharing.as_ref().is_some_and(|sharing| sharing.gather);
        if !needs && !lacks {
            // The others connect meanwhile, and some of them wait for what is missing.
            self.contribute(&brings)?;
        }
        let (mut group, received) = meeting.wait()?;
        group.set_pool(self.pool.clone());
        if let Some(on_sent) = halt::behind_frames(self.shared) {
            group.set_on_sent(on_sent);
        }
        let result = self.go_on(&mut group, received, &world);
        // A later world must not wait until everybody has heard the goodbye.
        group.retire();
        result
    }

    fn go_on(
        &mut self,
        group: &mut Group,
        received: Option<Received>,
        world: &World,
    ) -> Result<(), Trouble> {
        match received {
            Some(Received::State {
                head,
                values,
                records,
            }) => {
                if !self.shared.tell(RankMachine::begin_apply) {
                    return Err(Trouble::Closed);
                }
                self.forget();
                self.last = None;
                if world.sharing.is_some() {
                    // What it kept is of another step; all values follow.
                    self.trainer.keep(&BTreeSet::new());
                    self.trainer.go_to(head);
                } else {
                    self.trainer
                        .take_over(head, &values)
                        .map_err(|error| failed(&error))?;
                }
                self.shared.tell(|machine| {
                    machine.inherited(records);
                    machine.received(head.step.0);
                });
            }
            Some(Received::Reduced(last)) => {
                let now = Instant::now();
                let times = Times {
                    contributed: now,
                    reduced: now,
                    paces: Vec::new(),
                };
                self.apply(last, false, None, &times)?;
            }
            None => {}
        }
        let at = self.trainer.step().0;
        if at != world.plan.first_step {
            return Err(Trouble::Failed(format!(
                "this world begins at step {}, and the rank is at step {at}",
                world.plan.first_step
            )));
        }
        if let Some(sharing) = &world.sharing {
            self.begin_sharing(group, sharing, world.timeout)?;
        }
        loop {
            self.shared.check()?;
            match self.shared.tell(|machine| machine.next()) {
                Next::Step => self.step(group, world)?,
                Next::Evaluate => self.evaluate(group, world)?,
                Next::Checkpoint => {
                    let begun = Instant::now();
                    self.checkpoint(world);
                    self.spent.snapshot += begun.elapsed();
                    self.shared.tell(RankMachine::snapped);
                }
                Next::End { stopped } => {
                    return self.end(group, world, stopped);
                }
            }
        }
    }

    fn world(&self, assignment: &v1::Assignment) -> Result<World, Trouble> {
        let num_shards = self.spec.train.logical_shards;
        let runs = heal::runs(&assignment.shards)?;
        let size = u32::try_from(runs.len()).unwrap_or(u32::MAX);
        if !tree::is_division(num_shards, &runs) || assignment.rank >= size {
            return Err(Trouble::Failed(format!(
                "{num_shards} shards cannot be divided over {size} ranks as assigned"
            )));
        }
        let then: Vec<Vec<Run>> = runs.into_iter().map(|run| vec![run]).collect();
        let first = match &assignment.finish {
            None => then.clone(),
            Some(finish) => finish
                .parts
                .iter()
                .map(|part| heal::runs(&part.shards))
                .collect::<Result<_, _>>()?,
        };
        Ok(World {
            plan: RankPlan {
                generation: assignment.generation,
                rank: assignment.rank,
                size,
                first_step: assignment.first_step,
                healed: assignment.finish.as_ref().map(|finish| finish.evaluated),
                committed: assignment.committed_step,
            },
            first,
            then,
            sharing: Sharing::of(assignment)?,
            timeout: Duration::from_millis(assignment.collective_timeout_ms),
        })
    }

    /// Computes what is not there of these shards' contributions to the step that comes next.
    fn contribute(&mut self, brings: &[Run]) -> Result<(), Trouble> {
        if self.trainer.step().0 >= self.rules.total_steps {
            return Ok(());
        }
        let held = self.held.shards();
        if !tree::difference(&held, brings).is_empty() {
            // Something that others bring now: it cannot be taken out of the sums again.
            self.forget();
            self.shared.tell(RankMachine::drop_contributions);
        }
        let begun = Instant::now();
        let missing = tree::difference(brings, &self.held.shards());
        for shard in missing.into_iter().flat_map(Run::shards) {
            if !self.shared.tell(|machine| machine.begin_shard(shard)) {
                return Err(Trouble::Closed);
            }
            halt::at(self.shared, "compute");
            let (values, note) = self.compute(ShardId(shard))?;
            if self.audited_shard() == Some(shard) {
                // Here, since it becomes a part of a sum.
                self.audited = Some(audit::hash(&values, &note));
            }
            self.held
                .push(ShardId(shard), values)
                .map_err(|error| failed(&error))?;
            self.notes.push(note);
            self.spent.num_contributed += 1;
        }
        self.spent.contributing += begun.elapsed();
        Ok(())
    }

    /// What this rank measured of itself.
    fn pace(&mut self) -> Pace {
        let spent = &self.spent;
        let awaited = spent.awaited.unwrap_or_default();
        Pace {
            shard: micros(spent.contributing)
                .checked_div(spent.num_contributed)
                .unwrap_or_default(),
            data: micros(self.trainer.take_reading_time()),
            checkpoint: micros(spent.snapshot),
            update: micros(spent.update),
            awaited: awaited.0.0,
            awaited_for: micros(awaited.1),
        }
    }

    /// Computes a shard's contribution to the step that comes next.
    pub(crate) fn compute(&mut self, shard: ShardId) -> Result<(Vec<f32>, ShardNote), Trouble> {
        let mut values = self.held.buffer();
        let note = self
            .trainer
            .contribute(shard, &mut values)
            .map_err(|error| failed(&error))?;
        if self.audited_shard() == Some(shard.0) {
            self.flaw.spoil(self.trainer.step().0, &mut values);
        }
        Ok((values, note))
    }

    /// Gives up the contributions to the step that comes next.
    fn forget(&mut self) {
        self.held.clear();
        self.notes.clear();
        self.audited = None;
    }

    fn step(&mut self, group: &mut Group, world: &World) -> Result<(), Trouble> {
        if world.plan.rank == 0 {
            self.shared.wait_for_acks()?;
        }
        let step = self.trainer.step();
        let (brings, rank) = (world.brings(step.0), world.plan.rank);
        self.contribute(&brings[rank as usize])?;
        let audit = self.audit(world);
        let mut hashes = [None; 2];
        if let Some(audit) = audit {
            hashes[0] = self.audited.filter(|_| audit.brings == rank);
            if audit.audits == rank {
                hashes[1] = Some(self.hash_again(audit.shard)?);
            }
        }
        let contributed = Instant::now();
        halt::at(self.shared, "reduce");
        let num_shards = self.spec.train.logical_shards;
        let note = Note {
            stop: self.shared.stop.load(Ordering::SeqCst),
            pause: self.shared.pause(),
            acked: self.shared.tell(|machine| machine.last_acked()),
            paces: vec![self.pace()],
            audit: hashes,
            shards: self.notes.clone(),
        };
        let holdings = brings.iter().map(|runs| tree::cover(num_shards, runs));
        let operation = Operation {
            step,
            num_shards,
            num_elements: self.trainer.num_elements(),
            holdings: holdings.collect(),
            mine: self.held.subtrees(),
            note: note.encode(),
        };
        let reduced = group
            .all_reduce(operation, world.timeout)
            .map_err(|error| self.closed_by(world.plan.generation, &error))?;
        halt::at(self.shared, "reduced");
        let notes = Note::merge(&reduced.notes).map_err(|error| failed(&error))?;
        self.spent.awaited = group.awaited();
        if let Some(audit) = audit {
            self.settle(audit, notes.audit, group, world)?;
        }
        let times = Times {
            contributed,
            reduced: Instant::now(),
            paces: notes.paces,
        };
        let last = Last {
            step: step.0,
            vector: reduced.vector,
            notes: notes.shards,
        };
        self.shared.tell(|machine| machine.acked(notes.acked));
        self.apply(last, notes.stop, notes.pause, &times)?;
        match &world.sharing {
            Some(sharing) => self.gather(group, sharing, false, world.timeout),
            None => Ok(()),
        }
    }

    /// Makes the update, and keeps what made it for ranks that were not as fast.
    fn apply(
        &mut self,
        last: Last,
        stop: bool,
        pause: Option<String>,
        times: &Times,
    ) -> Result<(), Trouble> {
        if !self.shared.tell(RankMachine::begin_apply) {
            return Err(Trouble::Closed);
        }
        halt::at(self.shared, "update");
        let report = self
            .trainer
            .apply(&last.vector, &last.notes)
            .map_err(|error| failed(&error))?;
        halt::at(self.shared, "updated");
        self.forget();
        if let Some(old) = self.last.replace(Arc::new(last))
            && let Ok(old) = Arc::try_unwrap(old)
        {
            self.pool.give_shared(old.vector);
        }
        let record = self.record_of(report, times);
        self.shared.tell(|machine| {
            machine.record(record);
            machine.applied(stop, pause);
        });
        Ok(())
    }

    fn record_of(&mut self, report: StepReport, times: &Times) -> v1::StepRecord {
        let end = Instant::now();
        let wall = end - std::mem::replace(&mut self.since, end);
        let next = Spent {
            update: end - times.reduced,
            awaited: self.spent.awaited,
            ..Spent::default()
        };
        let spent = std::mem::replace(&mut self.spent, next);
        let batch = f64::from(self.spec.train.global_batch_size);
        let mut metrics = report.means;
        let paces = || times.paces.iter();
        let data_us: f64 = paces().map(|pace| f64::from(pace.data)).sum();
        let checkpoint_us = paces().map(|pace| pace.checkpoint).max();
        self.record(Record::Applied(v1::StepApplied {
            step: report.step.0,
            loss: metrics.remove("loss").unwrap_or_default(),
            metrics,
            samples_per_s: batch / wall.as_secs_f64().max(f64::MIN_POSITIVE),
            learning_rate: report.learning_rate,
            grad_norm: report.grad_norm,
            wall_ms: millis(wall),
            contribute_ms: millis(spent.contributing),
            reduce_ms: millis(times.reduced - times.contributed),
            update_ms: millis(end - times.reduced),
            total_steps: self.rules.total_steps,
            data_ms: data_us / f64::from(size(times.paces.len()).max(1)) / 1000.0,
            checkpoint_ms: f64::from(checkpoint_us.unwrap_or_default()) / 1000.0,
            evaluate_ms: millis(spent.evaluating),
            paces: paces().map(Into::into).collect(),
            skipped: report
                .skipped
                .map(|fault| fault.to_string())
                .unwrap_or_default(),
        }))
    }

    fn record(&self, record: Record) -> v1::StepRecord {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let time = since_epoch
            .map(|time| time.as_secs_f64())
            .unwrap_or_default();
        v1::StepRecord {
            key: Some(self.shared.key()),
            time,
            record: Some(record),
        }
    }

    pub(crate) fn closed_by(&self, generation: u64, error: &CollectiveError) -> Trouble {
        closed_by(self.shared, generation, error)
    }
}

/// What a failed exchange means: mostly that this world is over, and who is missed in it. Only a
/// connection that ended without a goodbye, or that is silent, speaks against a peer.
pub(crate) fn closed_by(shared: &Shared, generation: u64, error: &CollectiveError) -> Trouble {
    // What revoked the group is the true reason.
    if let Err(trouble) = shared.check() {
        return trouble;
    }
    let lost = match error {
        CollectiveError::PeerLost {
            rank,
            reason: LossReason::Closed(_) | LossReason::Silent,
        } => vec![rank.0],
        CollectiveError::TimedOut { waiting_for } => {
            waiting_for.iter().map(|rank| rank.0).collect()
        }
        CollectiveError::Invalid { .. } => return Trouble::Failed(error.to_string()),
        _ => Vec::new(),
    };
    let cause = Cause {
        lost,
        reason: error.to_string(),
        ..Cause::default()
    };
    shared.close(generation, cause);
    Trouble::Closed
}

pub(crate) fn failed(error: &dyn std::error::Error) -> Trouble {
    Trouble::Failed(error_chain(error))
}

fn size(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
