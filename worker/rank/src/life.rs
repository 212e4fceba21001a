//! A rank's life from its first assignment to its dismissal: perhaps a time in which it only follows,
//! then one world after another, with one trainer through all of them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use muster_cluster::command::NumericsClass;
use muster_cluster::ids::History;
use muster_cluster::shares;
use muster_collective::tcp::Token;
use muster_collective::{Pool, tcp};
use muster_proto::v1;
use muster_trainer::checkpoint::{Content, Meta};
use muster_worker_core::rank::Rules;
use v1::rank_report::Report;

use crate::feed::{Badge, Hub};
use crate::flaw::Flaw;
use crate::follow::follow;
use crate::halt;
use crate::held::Held;
#[cfg(feature = "devices")]
use crate::kernels;
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
    #[cfg(feature = "devices")]
    let known = match is_for_device(assignment) {
        true => Some(kernels::learn(assignment, build, class)?),
        false => None,
    };
    let prepared = prepare(assignment, build, class)?;
    let is_shared = prepared.spec.workers.redundancy.is_shared();
    let rules = Rules {
        total_steps: prepared.trainer.total_steps(),
        checkpoint_every: prepared.spec.checkpoint.every_steps,
        checkpoint_keep: prepared.spec.checkpoint.keep,
        evaluate_every: prepared.spec.train.evaluate_every_steps,
        num_files: u32::try_from(Content::all(is_shared).len()).unwrap_or(u32::MAX),
        is_shared,
    };
    let state = prepared.has_state.then(|| prepared.trainer.step().0);
    let kept = prepared.trainer.kept().into_iter();
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
    halt::at(shared, "ready");
    let pool = Pool::default();
    let num_shards = prepared.spec.train.logical_shards;
    let num_elements = prepared.trainer.num_elements();
    let on_device = prepared.trainer.is_on_device();
    let badge = badge(assignment)?;
    let (feed, fed_from) = Hub::start(host, badge, num_elements)
        .map_err(|error| Trouble::Failed(format!("cannot listen on {host}: {error}")))?;
    if let Some(step) = state {
        feed.restarted(step);
    }
    shared.report(Report::Ready(v1::Ready {
        address: listener.addr().to_string(),
        feed: fed_from.to_string(),
    }));
    let mut work = Work {
        shared,
        held: Held::new(num_shards, num_elements, pool.clone(), on_device),
        pool,
        notes: Vec::new(),
        audited: None,
        flaw: Flaw::of(assignment.process),
        last: None,
        evaluation: None,
        since: Instant::now(),
        spent: Spent::default(),
        listener: Arc::new(listener),
        #[cfg(feature = "devices")]
        host,
        #[cfg(feature = "devices")]
        known,
        feed,
        spec: prepared.spec,
        trainer: prepared.trainer,
        rules,
        writer,
    };
    let follows = assignment.generation == 0 && work.spec.standbys_follow();
    let mut next = if follows {
        follow(&mut work, badge)?
    } else {
        shared.wait_for_world()?
    };
    while let Some(assignment) = next {
        match work.run(&assignment) {
            Ok(()) => {}
            Err(Trouble::Closed) => halt::at(shared, "closed"),
            Err(trouble) => return Err(trouble),
        }
        next = shared.wait_for_world()?;
    }
    Ok(())
}

/// Whether the process computes on a device: a GPU, or what a test build makes one.
#[cfg(feature = "devices")]
fn is_for_device(assignment: &v1::Assignment) -> bool {
    let is_test = cfg!(feature = "cube-cpu") && std::env::var_os("MUSTER_TEST_CUBE").is_some();
    assignment.cuda.is_some() || is_test
}

/// What this process shows those that follow it, and those that it follows.
fn badge(assignment: &v1::Assignment) -> Result<Badge, Trouble> {
    let token: [u8; 16] = assignment.feed_token[..]
        .try_into()
        .map_err(|_| Trouble::Failed("the token of this job is not 16 bytes".to_owned()))?;
    Ok(Badge {
        token: Token(token),
        history: assignment.history,
        process: assignment.process,
        detect: Duration::from_millis(assignment.detect_ms.max(1)),
    })
}
