//! A rank's work from its assignment to its dismissal: does what the machine says, and measures it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use muster_cluster::command::NumericsClass;
use muster_cluster::error_chain;
use muster_cluster::ids::{Generation, History, RankId};
use muster_collective::tcp::{self, Token};
use muster_collective::{
    Accumulator, Error as CollectiveError, Group, LossReason, Operation, World,
};
use muster_proto::v1;
use muster_trainer::checkpoint::{FILES, Meta};
use muster_trainer::{Metrics, ShardNote};
use muster_worker_core::rank::{Next, RankMachine, RankPlan};
use v1::step_record::Record;

use crate::prepare::{Build, Prepared, prepare};
use crate::records::Records;
use crate::shared::{Shared, Trouble};
use crate::writer::Writer;

/// Runs a rank to its dismissal.
pub(crate) fn live(
    shared: &Arc<Shared>,
    assignment: &v1::Assignment,
    build: Build,
    class: &NumericsClass,
    host: IpAddr,
    records: Records,
) -> Result<(), Trouble> {
    let prepared = prepare(assignment, build, class)?;
    let plan = plan(assignment, &prepared);
    shared.begin(RankMachine::new(plan));
    let meta = Meta {
        job: prepared.spec.name.clone(),
        identity: prepared.trainer.identity().to_owned(),
        history: History(assignment.history),
    };
    let writer = Writer::start(
        Arc::clone(shared),
        prepared.folder.clone(),
        meta,
        plan.files().collect(),
    )
    .map_err(|error| Trouble::Failed(format!("no thread for checkpoints: {error}")))?;
    let group = meet(shared, assignment, host)?;
    let mut worker = Working {
        shared,
        prepared,
        plan,
        group,
        records,
        writer,
        last: Instant::now(),
    };
    worker.run(Duration::from_millis(assignment.collective_timeout_ms))?;
    shared.wait_for_dismissal()
}

fn plan(assignment: &v1::Assignment, prepared: &Prepared) -> RankPlan {
    RankPlan {
        rank: assignment.rank,
        size: u32::try_from(prepared.holdings.len()).unwrap_or(u32::MAX),
        first_step: assignment.first_step,
        total_steps: prepared.trainer.total_steps(),
        checkpoint_every: prepared.spec.checkpoint.every_steps,
        evaluate_every: prepared.spec.train.evaluate_every_steps,
        num_files: u32::try_from(FILES.len()).unwrap_or(u32::MAX),
    }
}

/// Says where this rank listens, waits for the others' addresses, and connects with all.
fn meet(shared: &Shared, assignment: &v1::Assignment, host: IpAddr) -> Result<Group, Trouble> {
    let listener = tcp::Listener::bind(host).map_err(|error| {
        Trouble::Failed(format!(
            "cannot listen on {host}, the --host of this worker: {error}"
        ))
    })?;
    let address = listener.addr().to_string();
    shared.report(v1::rank_report::Report::Ready(v1::Ready { address }));
    let addresses = shared.wait_for_peers()?;
    let parsed: Result<Vec<SocketAddr>, _> =
        addresses.iter().map(|address| address.parse()).collect();
    let peers = parsed.map_err(|_| {
        Trouble::Failed(format!(
            "the peers' addresses {addresses:?} are no addresses"
        ))
    })?;
    let token: [u8; 16] = assignment.world_token[..]
        .try_into()
        .map_err(|_| Trouble::Failed("the token of this world is not 16 bytes".to_owned()))?;
    let world = World {
        history: History(assignment.history),
        generation: Generation(assignment.generation),
        rank: RankId(assignment.rank),
        size: u32::try_from(assignment.shards.len()).unwrap_or(u32::MAX),
    };
    let deadline = Duration::from_millis(assignment.collective_timeout_ms);
    tcp::connect(
        listener,
        world,
        &peers,
        Token(token),
        &shared.revoker,
        deadline,
    )
    .map_err(|error| collective_trouble(shared, &error))
}

/// What a failed exchange means. Only a connection that ended without a goodbye proves a death.
fn collective_trouble(shared: &Shared, error: &CollectiveError) -> Trouble {
    // What revoked the group is the true reason.
    if let Err(trouble) = shared.check() {
        return trouble;
    }
    let reason = error.to_string();
    match error {
        CollectiveError::PeerLost {
            rank,
            reason: LossReason::Closed(_),
        } => Trouble::Broken {
            lost: vec![rank.0],
            reason,
        },
        CollectiveError::Invalid { .. } => Trouble::Failed(reason),
        _ => Trouble::Broken {
            lost: Vec::new(),
            reason,
        },
    }
}

struct Working<'a> {
    shared: &'a Arc<Shared>,
    prepared: Prepared,
    plan: RankPlan,
    group: Group,
    records: Records,
    writer: Writer,
    /// When the step before ended.
    last: Instant,
}

impl Working<'_> {
    fn run(&mut self, timeout: Duration) -> Result<(), Trouble> {
        loop {
            self.shared.check()?;
            match self.tell(|machine| machine.next()) {
                Next::Step => self.step(timeout)?,
                Next::Evaluate => self.evaluate(timeout)?,
                Next::Checkpoint => {
                    self.writer.write(self.prepared.trainer.snapshot());
                    self.tell(RankMachine::snapped);
                }
                Next::End { stopped } => {
                    self.end(stopped);
                    return Ok(());
                }
            }
        }
    }

    fn tell<T>(&self, tell: impl FnOnce(&mut RankMachine) -> T) -> T {
        self.shared
            .tell(tell)
            .expect("the machine begins before the work")
    }

    fn step(&mut self, timeout: Duration) -> Result<(), Trouble> {
        if self.plan.rank == 0 {
            self.shared.wait_for_acks()?;
        }
        let trainer = &mut self.prepared.trainer;
        let (num_shards, num_elements) = (
            self.prepared.spec.train.logical_shards,
            trainer.num_elements(),
        );
        let start = Instant::now();
        let mut accumulator = Accumulator::new(num_shards, num_elements, self.group.pool());
        let mut note = vec![u8::from(self.shared.stop.load(Ordering::SeqCst))];
        for shard in self.prepared.run.shards() {
            let shard = muster_cluster::ids::ShardId(shard);
            let mut values = accumulator.buffer();
            let shard_note = trainer
                .contribute(shard, &mut values)
                .map_err(|error| failed(&error))?;
            accumulator
                .push(shard, values)
                .map_err(|error| failed(&error))?;
            shard_note.encode(&mut note);
        }
        let contributed = Instant::now();
        let operation = Operation {
            step: trainer.step(),
            num_shards,
            num_elements,
            holdings: self.prepared.holdings.clone(),
            mine: accumulator.finish(),
            note,
        };
        let reduced = self
            .group
            .all_reduce(operation, timeout)
            .map_err(|error| collective_trouble(self.shared, &error))?;
        let reduced_at = Instant::now();
        let (stop, notes) = read_notes(&reduced.notes)?;
        let report = trainer
            .apply(&reduced.vector, &notes)
            .map_err(|error| failed(&error))?;
        self.group.pool().give_shared(reduced.vector);
        let end = Instant::now();
        let wall = end - std::mem::replace(&mut self.last, end);
        if self.plan.rank == 0 {
            let batch = f64::from(self.prepared.spec.train.global_batch_size);
            let mut metrics = report.means;
            self.records.send(Record::Applied(v1::StepApplied {
                step: report.step.0,
                loss: metrics.remove("loss").unwrap_or_default(),
                metrics,
                samples_per_s: batch / wall.as_secs_f64().max(f64::MIN_POSITIVE),
                learning_rate: report.learning_rate,
                grad_norm: report.grad_norm,
                wall_ms: millis(wall),
                contribute_ms: millis(contributed - start),
                reduce_ms: millis(reduced_at - contributed),
                update_ms: millis(end - reduced_at),
                total_steps: self.plan.total_steps,
            }));
        }
        self.tell(|machine| machine.stepped(stop));
        Ok(())
    }

    /// Evaluates this rank's chunks and adds up everybody's, in the order of the chunks.
    fn evaluate(&mut self, timeout: Duration) -> Result<(), Trouble> {
        let num_chunks = self.prepared.trainer.num_eval_chunks();
        let mut mine = Vec::new();
        for chunk in self.plan.chunks(self.plan.rank, num_chunks) {
            let metrics = self
                .prepared
                .trainer
                .evaluate_chunk(chunk)
                .map_err(|error| failed(&error))?;
            metrics.encode(&mut mine);
        }
        let all = self
            .group
            .all_gather(mine, timeout)
            .map_err(|error| collective_trouble(self.shared, &error))?;
        let mut chunks = BTreeMap::new();
        for (rank, bytes) in (0u32..).zip(&all) {
            let mut bytes = &bytes[..];
            for chunk in self.plan.chunks(rank, num_chunks) {
                let metrics = Metrics::decode(&mut bytes).map_err(|error| failed(&error))?;
                chunks.insert(chunk, metrics);
            }
        }
        let mut sum = Metrics::default();
        chunks.values().for_each(|metrics| sum.add(metrics));
        let means = sum.means();
        if self.plan.rank == 0 {
            let step = self.prepared.trainer.step().0;
            self.records.send(Record::Evaluated(v1::Evaluated {
                step,
                metrics: means.clone(),
            }));
        }
        self.tell(|machine| machine.evaluated(means));
        Ok(())
    }

    /// Reports the end, which goes out when the last checkpoint counts.
    fn end(&self, stopped: bool) {
        let trainer = &self.prepared.trainer;
        let mut done = v1::Done {
            step: trainer.step().0,
            stopped,
            arena_hash: trainer.arena_hash(),
            optimizer_hash: trainer.optimizer_hash(),
            trace: trainer.trace(),
            metrics: BTreeMap::new(),
        };
        self.tell(|machine| {
            done.metrics.clone_from(machine.metrics());
            machine.ended(done);
        });
    }
}

/// Whether any rank was told to stop, and all notes in the order of the shards.
fn read_notes(notes: &[Vec<u8>]) -> Result<(bool, Vec<ShardNote>), Trouble> {
    let mut stop = false;
    let mut all = Vec::new();
    for bytes in notes {
        let (flag, mut rest) = bytes
            .split_first()
            .ok_or_else(|| Trouble::Failed("a rank sent no note".to_owned()))?;
        stop |= *flag != 0;
        while !rest.is_empty() {
            all.push(ShardNote::decode(&mut rest).map_err(|error| failed(&error))?);
        }
    }
    Ok((stop, all))
}

fn failed(error: &dyn std::error::Error) -> Trouble {
    Trouble::Failed(error_chain(error))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
