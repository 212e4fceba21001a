//! A rank's life from its first assignment to its dismissal: one world after another, with one
//! trainer through all of them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use muster_cluster::command::NumericsClass;
use muster_cluster::ids::History;
use muster_collective::{Accumulator, Pool, tcp};
use muster_proto::v1;
use muster_trainer::checkpoint::{Content, Meta};
use muster_trainer::shares;
use muster_worker_core::rank::Rules;
use v1::rank_report::Report;

use crate::flaw::Flaw;
use crate::halt;
use crate::prepare::{Build, prepare};
use crate::shared::{Shared, Trouble};
use crate::work::{Spent, Work};
use crate::writer::Writer;

/// Runs a rank to its dismissal.
pub(crate) fn live(
    shared: &Arc<Shared>,
    assignment: &v1::Assignment,
    build: Build,
    class: &NumericsClass,
    host: IpAddr,
) -> Result<(), Trouble> {
    let prepared = prepare(assignment, build, class)?;
    let is_shared = prepared.spec.workers.redundancy.is_shared();
    let rules = Rules {
        total_steps: prepared.trainer.total_steps(),
        checkpoint_every: prepared.spec.checkpoint.every_steps,
        evaluate_every: prepared.spec.train.evaluate_every_steps,
        num_files: u32::try_from(Content::all(is_shared).len()).unwrap_or(u32::MAX),
        is_shared,
    };
    let state = prepared.has_state.then(|| prepared.trainer.step().0);
    let kept = prepared.trainer.optimizer_state().shares.keys().copied();
    let kept = if is_shared {
        shares::runs(kept)
    } else {
        Vec::new()
    };
    shared.tell(|machine| {
        machine.prepared(rules, state);
        machine.keeps(kept);
    });
    let meta = Meta {
        job: prepared.spec.name.clone(),
        identity: prepared.trainer.identity().to_owned(),
        history: History(assignment.history),
    };
    let writer = Writer::start(
        Arc::clone(shared),
        prepared.folder.clone(),
        meta,
        rules.num_files,
    )
    .map_err(|error| Trouble::Failed(format!("no thread for checkpoints: {error}")))?;
    let listener = tcp::Listener::bind(host).map_err(|error| {
        Trouble::Failed(format!(
            "cannot listen on {host}, the --host of this worker: {error}"
        ))
    })?;
    let address = listener.addr().to_string();
    shared.report(Report::Ready(v1::Ready { address }));
    halt::at(shared, "ready");
    let pool = Pool::default();
    let num_shards = prepared.spec.train.logical_shards;
    let num_elements = prepared.trainer.num_elements();
    let mut work = Work {
        shared,
        held: Accumulator::new(num_shards, num_elements, pool.clone()),
        pool,
        notes: Vec::new(),
        audited: None,
        flaw: Flaw::of(assignment.process),
        last: None,
        since: Instant::now(),
        spent: Spent::default(),
        listener: Arc::new(listener),
        spec: prepared.spec,
        trainer: prepared.trainer,
        rules,
        writer,
    };
    while let Some(assignment) = shared.wait_for_world()? {
        match work.run(&assignment) {
            Ok(()) => {}
            Err(Trouble::Closed) => halt::at(shared, "closed"),
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(())
}
