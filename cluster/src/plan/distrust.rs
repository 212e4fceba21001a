//! Which workers a job uses no more: those of ranks that were found to compute wrongly. What they hold
//! is not believed, and they get no other process of the job. Who is wrong is decided by the ranks.

use super::fate::Running;
use crate::command::Command;
use crate::device::Device;
use crate::ids::{JobName, WorkerName};
use crate::state::{Job, Placement, World};

/// The next worker to leave out, if ranks that closed their world name one.
pub(super) fn next(running: &Running<'_>) -> Option<Command> {
    let world = running.job.world.as_ref()?;
    let closed = running.watch?.closed.values();
    let (placement, why) = closed
        .flat_map(|closed| closed.suspects.iter().map(move |rank| (rank, &closed.why)))
        .filter_map(|(rank, why)| Some((world.ranks.get(rank.0 as usize)?, why)))
        .find(|(placement, _)| !running.job.distrusted.contains_key(&placement.worker))?;
    Some(distrust(running.name, world, placement, why))
}

/// The whole worker is left out: whether its other devices are better is for a person to find out, who is
/// told which one it was.
fn distrust(job: &JobName, world: &World, placement: &Placement, why: &str) -> Command {
    let on = match placement.device {
        Device::Cpu => String::new(),
        gpu => format!(" (on {gpu})"),
    };
    Command::Distrust {
        job: job.clone(),
        generation: world.generation,
        worker: placement.worker.clone(),
        reason: format!("{why}{on}"),
    }
}

/// Why nobody waits for a rank on this worker, nor believes what it holds.
pub(super) fn left_out(job: &Job, worker: &WorkerName) -> Option<String> {
    let why = job.distrusted.get(worker)?;
    Some(format!("worker {worker} is left out, since {why}"))
}
