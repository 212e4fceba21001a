//! The entries of the log, applied: on every replica the same.

use std::sync::Arc;

use muster_cluster::apply::{Answer, Effect};
use muster_cluster::command::{Command, Stamped};
use muster_cluster::ids::JobName;
use muster_proto::convert::{BadMessage, LogEntry};

use super::{Asked, Coordinator, Output, Reply, ReplyTo};

/// A queue with so many jobs is long.
const LONG_QUEUE: usize = 100;

impl Coordinator {
    pub(super) fn apply(
        &mut self,
        index: u64,
        data: &[u8],
        request: Option<u64>,
        outputs: &mut Vec<Output>,
    ) {
        self.snapshots.applied(data.len());
        match LogEntry::decode(data) {
            Ok(LogEntry::Command(stamped)) => self.apply_command(stamped, request, outputs),
            Ok(LogEntry::Records(records)) => self.apply_records(records, request, outputs),
            Ok(LogEntry::Seen(member)) => {
                self.in_flight
                    .retain(|_, proposal| Some(*proposal) != request);
                self.members.seen(member);
                self.say_members(outputs);
            }
            Err(error) => {
                let reason =
                    format!("entry {index} of the log was written by another version: {error}");
                outputs.push(Output::Broken { reason });
            }
        }
    }

    fn apply_command(
        &mut self,
        mut stamped: Stamped,
        request: Option<u64>,
        outputs: &mut Vec<Output>,
    ) {
        if let Command::Submit { submission, spec } = &mut stamped.command
            && spec.is_none()
        {
            // An older build proposed it. What cannot be understood is refused where it is applied.
            *spec = submission.check().ok().map(Box::new);
        }
        if let Some(id) = stamped.request
            && self.state.answer_to(id).is_some()
        {
            // Asked for again before the first entry of it was applied: it changes nothing, and nothing
            // is told.
            let answer = self.state.apply(stamped);
            return self.conclude(request, answer, outputs);
        }
        let name = stamped.command.job();
        if let Some(name) = &name
            && let Err(error) = self.unpack(name)
        {
            let reason = format!("job {name} was written by another version: {error}");
            outputs.push(Output::Broken { reason });
            return;
        }
        self.change_state(stamped, request, outputs);
        if let Some(name) = name {
            self.pack(name);
        }
    }

    /// A command names a job: it is part of the state again, if it was over.
    fn unpack(&mut self, name: &JobName) -> Result<(), BadMessage> {
        if let Some((job, account)) = self.archive.take(name)? {
            self.state
                .restore_job(name.clone(), Arc::unwrap_or_clone(job));
            self.accounts.insert(name.clone(), account);
        }
        Ok(())
    }

    /// A job that is over is part of the state no more.
    fn pack(&mut self, name: JobName) {
        if let Some(job) = self.state.take_ended(&name) {
            let account = self.accounts.remove(&name).unwrap_or_default();
            self.archive.put(name, &job, &account);
        }
    }

    fn change_state(&mut self, stamped: Stamped, request: Option<u64>, outputs: &mut Vec<Output>) {
        // One more in a long queue waits for the next look at it.
        let is_submission = matches!(stamped.command, Command::Submit { .. });
        self.is_changed |= !is_submission || self.state.num_open_jobs() < LONG_QUEUE;
        // A submission is told by what comes of it.
        let command = (!is_submission).then(|| stamped.command.clone());
        let last_world = match &command {
            Some(Command::StartWorld { job, .. }) if self.is_leader => {
                self.state.jobs.get(job).and_then(|job| job.world.clone())
            }
            _ => None,
        };
        let answer = self.state.apply(stamped);
        if self.is_leader && answer.is_ok() {
            match &command {
                Some(Command::StartWorld { job, world, .. }) => {
                    self.follow(job, last_world.as_ref(), world);
                }
                Some(Command::EndStandby { job, process, .. }) => {
                    if let Some(world) = self.worlds.get_mut(job) {
                        world.forget(*process);
                    }
                }
                _ => {}
            }
        }
        self.tell(command.as_ref(), &answer, outputs);
        if self.is_leader
            && answer.is_ok()
            && let Some(Command::StartWorld { job, world, .. }) = &command
        {
            self.observe_ranks(job, world);
        }
        self.conclude(request, answer, outputs);
    }

    /// An entry is applied: whoever proposed it here hears of it.
    fn conclude(&mut self, request: Option<u64>, answer: Answer, outputs: &mut Vec<Output>) {
        let Some(proposal) = request else { return };
        self.settle(proposal, &answer, outputs);
        if let Some(Asked::Command(reply_to)) = self.asked.remove(&proposal) {
            self.answer(reply_to, answer, outputs);
        }
    }

    /// Tells a client what came of its command.
    pub(super) fn answer(&self, reply_to: ReplyTo, answer: Answer, outputs: &mut Vec<Output>) {
        let first_event = match &answer {
            Ok(
                Effect::Queued { job, .. }
                | Effect::AlreadyRunning { job }
                | Effect::AlreadyFinished { job, .. },
            ) => self
                .known(job)
                .map_or(0, |(_, account)| account.first_event),
            _ => 0,
        };
        let reply = Reply::Applied {
            answer,
            first_event,
        };
        outputs.push(Output::Reply { reply_to, reply });
    }
}
