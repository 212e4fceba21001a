//! Which workers a job uses no more: those of ranks that were found to compute wrongly. What they hold
//! is not believed, and they get no other process of the job. Who is wrong is decided by the ranks.

use super::fate::Running;
use crate::command::Command;
use crate::ids::{JobName, WorkerName};
use crate::state::{Job, World};

/// The next worker to leave out, if ranks that closed their world name one.
pub(super) fn next(running: &Running<'_>) -> Option<Command> {
    let world = running.job.world.as_ref()?;
    let closed = running.watch?.closed.values();
    let (worker, why) = closed
        .flat_map(|closed| closed.suspects.iter().map(move |rank| (rank, &closed.why)))
        .filter_map(|(rank, why)| Some((&world.ranks.get(rank.0 as usize)?.worker, why)))
        .find(|(worker, _)| !running.job.distrusted.contains_key(*worker))?;
    Some(distrust(running.name, world, worker, why))
}

fn distrust(job: &JobName, world: &World, worker: &WorkerName, why: &str) -> Command {
    Command::Distrust {
        job: job.clone(),
        generation: world.generation,
        worker: worker.clone(),
        reason: why.to_owned(),
    }
}

/// Why nobody waits for a rank on this worker, nor believes what it holds.
pub(super) fn left_out(job: &Job, worker: &WorkerName) -> Option<String> {
    let why = job.distrusted.get(worker)?;
    Some(format!("worker {worker} is left out, since {why}"))
}
