//! What clients ask of the coordinator, until they are answered.

use muster_cluster::apply::Effect;
use muster_cluster::command::{Command, StopWhy, Submission};
use muster_cluster::ids::{JobName, WorkerName};
use muster_cluster::job::JobDraft;
use muster_coordinator_core::Reply;

use super::cluster::Sim;
use super::faults::Profile;
use super::model::{CHECKPOINT_EVERY, EVALUATE_EVERY, NUM_SHARDS, TOTAL_STEPS};
use super::net::{MS, Node, SECOND, Timer, seat_place};
use super::worker::name;

/// Where clients are, as a place that can be cut off.
pub(super) const CLIENTS: u32 = 2_000;

pub(super) fn job_name() -> JobName {
    JobName::new("sim").expect("a name")
}

fn submission(profile: &Profile) -> Command {
    let (min, max, spares) = (profile.min, profile.max, profile.spares);
    let text = format!(
        r#"
        name = "sim"
        [model]
        family = "mlp"
        hidden = [8]
        [data]
        source = "digits.csv.gz"
        shape = [64]
        num_classes = 10
        [train]
        global_batch_size = 64
        logical_shards = {NUM_SHARDS}
        steps = {TOTAL_STEPS}
        evaluate_every_steps = {EVALUATE_EVERY}
        [optimizer]
        kind = "sgd"
        learning_rate = 0.1
        [workers]
        min = {min}
        max = {max}
        spares = {spares}
        [checkpoint]
        every_steps = {CHECKPOINT_EVERY}
        keep = 2
        "#
    );
    let draft = JobDraft::parse(&text, "sim.toml", "sim", &[]).expect("a draft");
    Command::submit(Submission {
        draft: draft.to_toml(),
        base_dir: "/jobs".into(),
        data_digest: "d1be57".to_owned(),
        fresh: false,
    })
}

/// What a client asks for, and where it asks next.
#[derive(Debug)]
pub(super) struct Asking {
    command: Command,
    seat: u32,
    num_answers: u32,
}

impl Sim {
    fn request(&mut self, command: Command) {
        // Whoever changes his mind does not ask for what he wanted before.
        self.requests
            .retain(|_, older| match (&older.command, &command) {
                (Command::Drain { worker: one, .. }, Command::Drain { worker: other, .. }) => {
                    one != other
                }
                (Command::Scale { .. }, Command::Scale { .. }) => false,
                _ => true,
            });
        self.num_requests += 1;
        self.env.log(format_args!(
            "-- ask {}: {}",
            self.num_requests,
            brief(&command)
        ));
        let asking = Asking {
            command,
            seat: 1,
            num_answers: 0,
        };
        self.requests.insert(self.num_requests, asking);
        let timer = Timer::Ask(self.num_requests);
        self.env
            .net
            .timer_between(Node::Outside, (MS, 10 * MS), timer);
    }

    /// Asks the next coordinator, under the same number.
    pub(super) fn ask(&mut self, number: u64) {
        let seats = self.control.seats();
        let Some(asking) = self.requests.get_mut(&number) else {
            return;
        };
        let (command, seat) = (asking.command.clone(), asking.seat);
        let at = seats.iter().position(|one| *one == seat);
        let next = seats.iter().cycle().nth(at.unwrap_or_default() + 1);
        asking.seat = next.copied().unwrap_or(seat);
        self.env
            .net
            .timer(Node::Outside, SECOND, Timer::Ask(number));
        let is_cut = self.env.net.is_cut([CLIENTS, seat_place(seat)]);
        let node = self.env.at(seat).filter(|_| !is_cut);
        if let Some(node @ Node::Coordinator { id, .. }) = node
            && !self.env.net.is_paused(node)
            && let Some(host) = self.control.host_mut(id)
        {
            host.ask(number, command, &mut self.env);
            self.observe(id);
        }
    }

    pub(super) fn answered(&mut self, number: u64, reply: Reply) {
        let answer = match reply {
            Reply::Applied { answer, .. } => answer,
            Reply::NotLeading(leader) => {
                let seat = leader.and_then(|leader| self.control.seat_of(leader.0));
                if let Some((asking, seat)) = self.requests.get_mut(&number).zip(seat) {
                    asking.seat = seat;
                }
                return;
            }
            Reply::Changed(_) | Reply::Refused(_) | Reply::Unavailable(_) => return,
        };
        self.env.oracle.replicas.answered(number, &answer);
        let Some(asking) = self.requests.get_mut(&number) else {
            return;
        };
        asking.num_answers += 1;
        // An answer is lost now and then, and asked for again.
        let is_lost = self.control.is_group() && self.control.chance.chance(10);
        if is_lost && asking.num_answers < 3 {
            return;
        }
        let Some(Asking { command, .. }) = self.requests.remove(&number) else {
            return;
        };
        if matches!(command, Command::Submit { .. }) {
            self.is_submitting = false;
            if !matches!(
                answer,
                Ok(Effect::Queued { .. }
                    | Effect::AlreadyRunning { .. }
                    | Effect::AlreadyFinished { .. })
            ) {
                let violation = format!("the submission was answered with {answer:?}");
                self.env.oracle.blame(violation);
            }
        }
    }

    pub(super) fn submit(&mut self) {
        self.is_submitting = true;
        self.request(submission(&self.profile));
    }

    pub(super) fn scale(&mut self, max: u32) {
        let job = job_name();
        self.request(Command::Scale { job, max });
    }

    pub(super) fn drain(&mut self, host: u32, drains: bool) {
        let worker = WorkerName::new(&name(host)).expect("a name");
        self.request(Command::Drain { worker, drains });
    }

    pub(super) fn stop(&mut self) {
        self.request(Command::Stop {
            job: job_name(),
            why: StopWhy::Interrupted,
        });
    }
}

fn brief(command: &Command) -> String {
    match command {
        Command::Submit { .. } => "submit".to_owned(),
        command => format!("{command:?}"),
    }
}
