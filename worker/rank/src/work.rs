//! What a rank does in one world: steps, evaluations and checkpoints, as the machine says; measured.

mod boundary;
mod measured;
mod reduce;

use std::collections::BTreeSet;
#[cfg(feature = "devices")]
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use muster_cluster::error_chain;
use muster_cluster::ids::ShardId;
use muster_cluster::job::JobSpec;
use muster_cluster::tree::{self, Run};
use muster_collective::{Error as CollectiveError, Pool, Revoker, tcp};
use muster_proto::{convert, v1};
use muster_trainer::{ShardNote, Trainer, Vector};
use muster_worker_core::audit::Hash;
use muster_worker_core::rank::{Cause, Next, RankMachine, RankPlan, Rules};
use muster_worker_core::sharing::Sharing;

use crate::audit;
use crate::feed::Hub;
use crate::flaw::Flaw;
use crate::halt;
use crate::heal::{self, Meeting, Received, Underway};
use crate::held::{Held, Reduced};
#[cfg(feature = "devices")]
use crate::kernels;
use crate::last::{Last, Story};
use crate::links::Links;
use crate::note::Note;
use crate::shared::{Shared, Trouble};
use crate::suspects;
use crate::writer::Writer;
pub(crate) use measured::{Spent, Times};

/// A rank at work, through all of its worlds.
pub(crate) struct Work<'a> {
    pub(crate) shared: &'a Arc<Shared>,
    pub(crate) spec: JobSpec,
    pub(crate) trainer: Trainer,
    pub(crate) rules: Rules,
    pub(crate) writer: Writer,
    pub(crate) listener: Arc<tcp::Listener>,
    /// The address that the others reach this rank at.
    #[cfg(feature = "devices")]
    pub(crate) host: IpAddr,
    /// On a device, what is known of its kernels.
    #[cfg(feature = "devices")]
    pub(crate) known: Option<kernels::Known>,
    /// Feeds those that follow.
    pub(crate) feed: Arc<Hub>,
    pub(crate) pool: Pool,
    /// The contributions to the step that comes next, kept until it is applied, and their notes.
    pub(crate) held: Held,
    pub(crate) notes: Vec<ShardNote>,
    /// The hash of the one of them that is audited, if it is there.
    pub(crate) audited: Option<Hash>,
    pub(crate) flaw: Flaw,
    pub(crate) last: Option<Arc<Last>>,
    /// The record of the evaluation at this step, if there was one.
    pub(crate) evaluation: Option<v1::StepRecord>,
    /// When the step before ended, or the world began.
    pub(crate) since: Instant,
    /// What was measured since then.
    pub(crate) spent: Spent,
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
        self.feed.entered();
        let rank = world.plan.rank as usize;
        let meeting = Meeting::new(self, assignment, revoker)?;
        let needs = meeting.needs();
        let meeting = meeting.start(self.shared)?;
        let brings = world.first.get(rank).cloned().unwrap_or_default();
        let lacks = world.sharing.as_ref();
        let lacks = lacks.is_some_and(Sharing::begins_with_gathering);
        if !needs && !lacks {
            // The others connect meanwhile, and some of them wait for what is missing.
            self.contribute(&brings, Some(&meeting))?;
        }
        let (mut links, received) = meeting.wait(&self.trainer)?;
        links.group().set_pool(self.pool.clone());
        if let Some(on_sent) = halt::behind_frames(self.shared) {
            links.group().set_on_sent(on_sent);
        }
        let result = self.go_on(&mut links, received, &world);
        let refused = &links.group().counters().refused;
        if !refused.is_empty() {
            let generation = world.plan.generation;
            tracing::warn!(generation, ?refused, "frames that do not belong here came");
        }
        // A later world must not wait until everybody has heard the goodbye.
        links.retire();
        result
    }

    fn go_on(
        &mut self,
        links: &mut Links,
        received: Option<Received>,
        world: &World,
    ) -> Result<(), Trouble> {
        match received {
            Some(Received::State {
                head,
                shares,
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
                        .take_over(head, &shares)
                        .map_err(|error| failed(&error))?;
                }
                self.feed.restarted(head.step.0);
                self.shared.tell(|machine| {
                    machine.inherited(records);
                    machine.received(head.step.0);
                });
            }
            Some(Received::Reduced { last, mut records }) => {
                records.extend(last.story.evaluation.clone());
                self.shared.tell(|machine| machine.inherited(records));
                self.apply(last, false, None, &Times::of_nothing())?;
            }
            Some(Received::Records(records)) => {
                self.shared.tell(|machine| machine.inherited(records));
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
            let deeds = sharing.begin(&self.shares_here());
            self.share(links.group(), deeds, world.timeout)?;
        }
        loop {
            self.shared.check()?;
            match self.shared.tell(|machine| machine.next()) {
                Next::Step => self.step(links, world)?,
                Next::Evaluate => self.evaluate(links.group(), world)?,
                Next::Checkpoint { is_last } => {
                    let begun = Instant::now();
                    self.checkpoint(world, is_last)?;
                    self.spent.snapshot += begun.elapsed();
                    self.shared.tell(RankMachine::snapped);
                }
                Next::LeaveOut => {
                    tracing::warn!(
                        step = self.trainer.step().0,
                        "no checkpoint: too many wait to count until the coordinator is heard of"
                    );
                    self.shared.tell(RankMachine::left_out);
                }
                Next::End { stopped } => {
                    return self.end(links.group(), world, stopped);
                }
            }
        }
    }

    fn world(&self, assignment: &v1::Assignment) -> Result<World, Trouble> {
        let num_shards = self.spec.train.logical_shards;
        let runs = convert::runs_of(&assignment.layout).map_err(|error| failed(&error))?;
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
            sharing: Sharing::of(assignment).map_err(|error| failed(&error))?,
            timeout: Duration::from_millis(assignment.collective_timeout_ms),
        })
    }

    /// Computes what is not there of these shards' contributions to the step that comes next. Between
    /// two shards it gives what a rank lacks that it meets meanwhile.
    fn contribute(&mut self, brings: &[Run], meeting: Option<&Underway>) -> Result<(), Trouble> {
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
            if let Some(meeting) = meeting {
                meeting.give(&self.trainer)?;
            }
            if !self.shared.tell(|machine| machine.begin_shard(shard)) {
                return Err(Trouble::Closed);
            }
            halt::at_shard(self.shared, shard);
            let (values, note) = self.compute(ShardId(shard))?;
            if self.audited_shard() == Some(shard) {
                // Here, since it becomes a part of a sum.
                let hash = audit::hash(&values, &note).map_err(|error| failed(&error))?;
                self.audited = Some(hash);
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

    /// Computes a shard's contribution to the step that comes next.
    pub(crate) fn compute(&mut self, shard: ShardId) -> Result<(Vector, ShardNote), Trouble> {
        let mut values = self.held.buffer();
        let note = self
            .trainer
            .contribute(shard, &mut values)
            .map_err(|error| failed(&error))?;
        if self.audited_shard() == Some(shard.0) {
            let spoilt = self.flaw.spoil(self.trainer.step().0, &mut values);
            spoilt.map_err(|error| failed(&error))?;
        }
        Ok((values, note))
    }

    /// Gives up the contributions to the step that comes next.
    fn forget(&mut self) {
        self.held.clear();
        self.notes.clear();
        self.audited = None;
    }

    fn step(&mut self, links: &mut Links, world: &World) -> Result<(), Trouble> {
        if world.plan.rank == 0 {
            self.shared.wait_for_acks()?;
        }
        let step = self.trainer.step();
        let (brings, rank) = (world.brings(step.0), world.plan.rank);
        self.contribute(&brings[rank as usize], None)?;
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
        let note = Note {
            stop: self.shared.stop.load(Ordering::SeqCst),
            pause: self.shared.pause(),
            acked: self.shared.tell(|machine| machine.last_acked()),
            paces: vec![self.pace()],
            audit: hashes,
            tickets: self.feed.tickets(),
            shards: self.notes.clone(),
        };
        let (vector, notes) = self.reduce(links, world, note.encode())?;
        halt::at(self.shared, "reduced");
        let notes = Note::merge(&notes).map_err(|error| failed(&error))?;
        self.spent.awaited = links.group().awaited();
        if let Some(audit) = audit {
            self.settle(audit, notes.audit, links.group(), world)?;
        }
        let times = Times {
            contributed,
            reduced: Instant::now(),
            paces: notes.paces,
        };
        let last = Last {
            step: step.0,
            vector,
            notes: notes.shards,
            story: Story {
                generation: world.plan.generation,
                acked: notes.acked,
                evaluation: self.evaluation.take(),
            },
        };
        self.shared.tell(|machine| machine.all_acked(notes.acked));
        self.apply(last, notes.stop, notes.pause, &times)?;
        // The state is that of this step, whether or not the world goes on.
        let copied = self.feed.copy(&notes.tickets, &self.trainer, self.shared);
        copied.map_err(|error| failed(&error))?;
        match &world.sharing {
            Some(sharing) => {
                let deeds = sharing.behind_step(&self.shares_here());
                self.share(links.group(), deeds, world.timeout)
            }
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
        if last.step != self.trainer.step().0 {
            return Err(Trouble::Failed(format!(
                "the reduced vector of step {} is to be applied at step {}",
                last.step,
                self.trainer.step()
            )));
        }
        // Whoever has it from another rank tells of the world that made it.
        let key = self.shared.key_in(last.story.generation);
        let last = Arc::new(last);
        // Whoever follows applies it at the same time.
        self.feed.applied(&last);
        let report = self
            .trainer
            .apply(last.vector.view(), &last.notes)
            .map_err(|error| failed(&error))?;
        halt::at(self.shared, "updated");
        self.forget();
        if let Some(old) = self.last.replace(last)
            && let Ok(old) = Arc::try_unwrap(old)
            && let Reduced::Host(vector) = old.vector
        {
            self.pool.give_shared(vector);
        }
        let record = self.record_of(report, times, key);
        self.shared.tell(|machine| {
            machine.record(record);
            machine.applied(stop, pause);
        });
        Ok(())
    }

    pub(crate) fn closed_by(&self, generation: u64, error: &CollectiveError) -> Trouble {
        closed_by(self.shared, generation, error)
    }
}

/// What a failed exchange means: mostly that this world is over, and who is missed in it.
pub(crate) fn closed_by(shared: &Shared, generation: u64, error: &CollectiveError) -> Trouble {
    if let CollectiveError::Stuck { .. } = error {
        return Trouble::Fault(error.to_string());
    }
    // What revoked the group is the true reason.
    if let Err(trouble) = shared.check() {
        return trouble;
    }
    if let CollectiveError::Invalid { .. } = error {
        return Trouble::Failed(error.to_string());
    }
    if let CollectiveError::Device { what } = error {
        // What each rank holds is whole: another world goes on with it, over the host.
        shared.refuse_devices(what);
    }
    let cause = Cause {
        lost: error.missed().iter().map(|rank| rank.0).collect(),
        reason: error.to_string(),
        ..Cause::default()
    };
    shared.close(generation, cause);
    Trouble::Closed
}

pub(crate) fn failed(error: &dyn std::error::Error) -> Trouble {
    Trouble::Failed(error_chain(error))
}
