//! Reads and plays scenarios: text files of what happens to a cluster and what the leader says.
//!
//! A block holds what happens, a line each, and behind `----` what came of it: the answer to each
//! command, then what the planner decides. Decisions are applied at once, and a second look at the
//! state must find nothing more to decide. The interpreter stands for the leader's observation: it
//! notes who is silent, since when a job could have a world, and since when ranks owe a report.
//!
//! ```text
//! at 500                              the leader's clock says 500 ms
//! worker w1 devices=2 build=b2        w1 registers, in a new life, and connects
//!     [gpus=4] [gpu=a]                it has GPUs too, of this model
//! silent w1 | back w1                 its stream breaks | comes back, in the same life
//! late tick                           the leader itself was late: all get a new full timeout
//! leader                              another leader begins: it has the log, and heard nothing yet
//! submit j1 workers.min=2 [fresh]     overrides of a small job file
//! stop j1                             the user cancels it
//! drain w1 | undrain w1               an operator wants it free | gives it back
//! scale j1 max=3                      the user wants it to run with at most so many ranks
//! samples j1 step=40 shard=2 rows=17,803
//!                                     a rank says which samples a suspected shard has
//! printed j1 a line                   the last line of the process that ended last
//! abandon j1                          an operator gives up what its missed ranks hold
//! gone j1 rank=0 signal 9             a worker saw a rank exit
//! closed j1 rank=0 step=41 has=0..2,3..4 [reduced] [evaluated] [paused] [lost=1,2] [suspects=1] p1 is gone
//!                                     a rank closed its world, and says why and what it holds;
//!                                     step=none: it has no state; keeps=0..16: what it has of a
//!                                     shared optimizer's state; partial: it lacks parameters
//! ready j1 p5                         a process that waits to enter a world is prepared
//! follows j1 p5 [reaches=1,2]         it follows, and reaches these processes, or all
//! standby-gone j1 p5 signal 9         a worker saw it exit
//! broken j1 the files are damaged     a world says that it cannot go on
//! failed j1 rank=0 it has no memory   a rank says that the job cannot go on anywhere
//! progress j1 [step=41]               the world applied a step; so many are applied now
//! pace j1 us=100,300 [updates=50,50] [steps=16]
//!                                     what a shard and an update take each rank, known of so many
//!                                     steps
//! commit j1 step=100 [history=1] [generation=1]
//!                                     a checkpoint is durable; of the newest world, or an older one
//! damaged j1 step=100 [history=1]     a checkpoint turned out not to be whole
//! end j1 step=1000                    the world ran to the job's end
//! ```

mod line;
mod text;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::command::{Command, OutcomeKind, Stamped, StopWhy};
use crate::ids::{Generation, History, Incarnation, JobName, ProcessId, Step};
use crate::plan::{Closing, Observed, Pace, Patience, Plan, Standby, Watch, plan};
use crate::state::{ClusterState, Phase, World};
use crate::testing::{gpus, job, manifest, node, outcome, submission, worker};
use line::Line;
use text::{describe, on_gpu, suspicion};

/// Plays a scenario; the result is the same text with what really came of each block.
pub(super) fn play(text: &str) -> String {
    let mut scene = Scene::default();
    let mut out = String::new();
    for block in text.split("\n\n") {
        let (happens, _) = block.split_once("\n----").unwrap_or((block, ""));
        let happens = happens.trim_end();
        out += happens;
        out += "\n";
        let lines = happens.lines().filter(|line| !line.starts_with('#'));
        let lines: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
        if !lines.is_empty() {
            out += "----\n";
            for line in lines {
                scene.happens(line, &mut out);
            }
            scene.decide(&mut out);
        }
        out += "\n";
    }
    out.truncate(out.trim_end().len());
    out + "\n"
}

#[derive(Default)]
struct Scene {
    state: ClusterState,
    observed: Observed,
    now_ms: u64,
}

impl Scene {
    fn happens(&mut self, text: &str, out: &mut String) {
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        let line = Line {
            text,
            words: rest.split_whitespace().collect(),
        };
        let name = line.words.first().copied().unwrap_or_default();
        let now_ms = self.now_ms;
        match verb {
            "at" => self.now_ms = name.parse().unwrap(),
            "worker" => {
                let last = self
                    .state
                    .nodes
                    .get(&worker(name))
                    .map_or(0, |node| node.incarnation.0);
                let devices = line
                    .number("devices")
                    .map_or(1, |devices| devices.try_into().unwrap());
                let build = line.find("build").unwrap_or("b1");
                let mut node = node(last + 1, devices, build);
                if let Some(number) = line.number("gpus") {
                    let model = line.find("gpu").unwrap_or("a");
                    node.gpus = gpus(number.try_into().unwrap(), model, build);
                }
                self.connect(name, node.incarnation);
                self.command(
                    Command::RegisterWorker {
                        worker: worker(name),
                        node,
                    },
                    out,
                );
            }
            "silent" => {
                self.observed.connected.remove(&worker(name)).unwrap();
                self.observed.silent_since_ms.insert(worker(name), now_ms);
            }
            "back" => self.connect(name, self.state.nodes[&worker(name)].incarnation),
            "late" => self.forgive(),
            "leader" => self.begin_to_lead(),
            "submit" => {
                let set: Vec<&str> = line
                    .words
                    .iter()
                    .filter(|word| word.contains('='))
                    .copied()
                    .collect();
                let mut submission = submission(name, &set);
                submission.fresh = line.has("fresh");
                self.command(Command::submit(submission), out);
            }
            "stop" => self.command(
                Command::Stop {
                    job: job(name),
                    why: StopWhy::Cancelled,
                },
                out,
            ),
            "gone" => {
                let rank = line.rank();
                self.watch(name).gone.insert(rank, line.rest());
            }
            "closed" => {
                let watch = self.watch(name);
                watch.closed.insert(line.rank(), line.closed());
                watch.closing_since_ms.get_or_insert(now_ms);
            }
            "ready" => {
                let standbys = &mut self.watch(name).standbys;
                standbys.insert(line.process(), Standby::Ready);
            }
            "follows" => {
                let reached = match line.find("reaches") {
                    Some(list) => list
                        .split(',')
                        .map(|one| ProcessId(one.parse().unwrap()))
                        .collect(),
                    None => (1..=self.state.jobs[&job(name)].newest_process.0)
                        .map(ProcessId)
                        .collect(),
                };
                let standbys = &mut self.watch(name).standbys;
                standbys.insert(line.process(), Standby::Follows { reached });
            }
            "standby-gone" => {
                let process = line.process();
                let seat = self.state.jobs[&job(name)].standbys[&process].clone();
                let how = line.words[2..].join(" ");
                self.watch(name).standby_gone(process, &seat, how, now_ms);
            }
            "broken" => self.watch(name).broken = Some(line.rest()),
            "failed" => self.fail(name, &line, out),
            "progress" => {
                let watch = self.watch(name);
                watch.progressed = true;
                watch.applied = line.number("step").map(Step).or(watch.applied);
            }
            "samples" => {
                let rows = line.find("rows").unwrap().split(',');
                let rows = rows.map(|row| row.parse().unwrap()).collect();
                let shard = line.need("shard").try_into().unwrap();
                let suspect = self.watch(name).suspect.get_or_insert_default();
                suspect.step = Step(line.need("step"));
                suspect.rows.insert(shard, rows);
            }
            "printed" => {
                let line = line.words[1..].join(" ");
                self.watch(name).last_words += &(line + "\n");
            }
            "abandon" => self.command(Command::AbandonState { job: job(name) }, out),
            "pace" => self.pace(name, &line),
            "drain" | "undrain" => self.command(
                Command::Drain {
                    worker: worker(name),
                    drains: verb == "drain",
                },
                out,
            ),
            "scale" => self.command(
                Command::Scale {
                    job: job(name),
                    max: line.need("max").try_into().unwrap(),
                },
                out,
            ),
            "commit" => {
                let known = &self.state.jobs[&job(name)];
                let history = line.number("history").map_or(known.history, History);
                let generation = line
                    .number("generation")
                    .map_or(known.generation, Generation);
                let manifest = manifest(history, generation, line.need("step"));
                self.command(
                    Command::CommitManifest {
                        job: job(name),
                        manifest,
                    },
                    out,
                );
            }
            "damaged" => {
                let step = Step(line.need("step"));
                let known = self.state.jobs[&job(name)]
                    .manifests
                    .iter()
                    .find(|known| known.step == step);
                let history = line
                    .number("history")
                    .map_or(known.unwrap().history, History);
                let reason = "a file's hash is wrong".to_owned();
                self.command(
                    Command::RejectManifest {
                        job: job(name),
                        history,
                        step,
                        reason,
                    },
                    out,
                );
            }
            "end" => {
                let generation = self.state.jobs[&job(name)].generation;
                let outcome = outcome(OutcomeKind::Completed, line.need("step"));
                self.command(
                    Command::Finish {
                        job: job(name),
                        generation,
                        outcome,
                    },
                    out,
                );
            }
            _ => panic!("{text:?}: no such line; the head of scenario.rs lists them"),
        }
    }

    fn connect(&mut self, name: &str, incarnation: Incarnation) {
        self.observed.silent_since_ms.remove(&worker(name));
        self.observed.connected.insert(worker(name), incarnation);
    }

    /// A leader whose own clock jumped cannot tell who was silent meanwhile.
    fn forgive(&mut self) {
        let now_ms = self.now_ms;
        self.observed
            .silent_since_ms
            .values_mut()
            .for_each(|since| *since = now_ms);
        let watches = self.observed.worlds.values_mut();
        watches
            .filter_map(|watch| watch.closing_since_ms.as_mut())
            .for_each(|since| *since = now_ms);
    }

    /// Of each world the log tells that there is one, and not how it is.
    fn begin_to_lead(&mut self) {
        let worlds = self.state.jobs.iter().filter(|(_, job)| job.has_world());
        let worlds = worlds.map(|(name, job)| {
            let watch = Watch {
                generation: job.generation,
                ..Watch::default()
            };
            (name.clone(), watch)
        });
        let workers = self.state.nodes.keys();
        self.observed = Observed {
            connected: BTreeMap::new(),
            silent_since_ms: workers.map(|one| (one.clone(), self.now_ms)).collect(),
            worlds: worlds.collect(),
        };
    }

    /// The coordinator ends a job with what one of its ranks says.
    fn fail(&mut self, name: &str, line: &Line<'_>, out: &mut String) {
        let known = &self.state.jobs[&job(name)];
        let reason = format!("rank {}: {}", line.rank(), line.rest());
        let end = Command::Finish {
            job: job(name),
            generation: known.generation,
            outcome: known.rest(OutcomeKind::Failed, reason),
        };
        self.carry_out(end, out);
    }

    fn watch(&mut self, name: &str) -> &mut Watch {
        self.observed.worlds.get_mut(&job(name)).unwrap()
    }

    fn pace(&mut self, name: &str, line: &Line<'_>) {
        let world = self.state.jobs[&job(name)].world.clone().unwrap();
        let speed = &mut self.watch(name).speed;
        let numbers = |key| line.find(key).into_iter().flat_map(|all| all.split(','));
        let updates = numbers("updates").chain(std::iter::repeat("0"));
        let us = numbers("us").zip(updates).map(|(us, update)| Pace {
            computing_us: us.parse().unwrap(),
            updating_us: update.parse().unwrap(),
            ..Pace::default()
        });
        let processes = world.ranks.iter().map(|rank| rank.process);
        speed.paces.extend(processes.zip(us));
        speed.num_steps = line.number("steps").unwrap_or(16).try_into().unwrap();
    }

    fn apply(&mut self, command: Command) -> crate::apply::Answer {
        self.state.apply(Stamped {
            stamp_ms: self.now_ms,
            request: None,
            command,
        })
    }

    fn command(&mut self, command: Command, out: &mut String) {
        use crate::apply::Effect;
        let text = match self.apply(command) {
            Ok(Effect::Registered) => return,
            Ok(Effect::Queued { job, from }) => format!("{job} is queued, from step {from}"),
            Ok(Effect::AlreadyFinished { job, step }) => {
                format!("{job} has finished already, at step {step}")
            }
            Ok(Effect::AlreadyRunning { job }) => format!("{job} runs already"),
            Ok(Effect::Stopping { job, at_rest: true }) => format!("{job} rests at once"),
            Ok(Effect::Stopping { job, .. }) => format!("{job} stops at the next step boundary"),
            Ok(Effect::ManifestCommitted { job, step }) => {
                format!("{job} has a checkpoint of step {step}")
            }
            Ok(Effect::ManifestRejected { job, step }) => {
                format!("{job} drops its checkpoint of step {step}")
            }
            Ok(Effect::Finished { job }) => format!("{job} has ended"),
            Ok(Effect::Scaled { job, max }) => format!("{job} is scaled to at most {max} ranks"),
            Ok(Effect::StateAbandoned { job }) => format!("{job} waits for nobody who is missed"),
            Ok(Effect::Drained { worker, drains }) => match drains {
                true => format!("{worker} is to be free"),
                false => format!("{worker} is given back"),
            },
            Ok(
                effect @ (Effect::WorldStarted { .. }
                | Effect::StandbyStarted
                | Effect::StandbyEnded
                | Effect::Distrusted { .. }),
            ) => panic!("only the planner leads to {effect:?}"),
            Err(refusal) => format!("refused: {refusal}"),
        };
        writeln!(out, "{text}").unwrap();
    }

    /// Carries decisions out until there is nothing to decide: what one job gives back may serve
    /// another one in the next round.
    fn decide(&mut self, out: &mut String) {
        const MAX_ROUNDS: usize = 32;
        for _ in 0..MAX_ROUNDS {
            let now_ms = self.now_ms;
            let decided = plan(&self.state, &self.observed, Patience::default(), now_ms);
            if decided.commands.is_empty() {
                self.rest(&decided, out);
                self.assert_phases();
                return;
            }
            for command in decided.commands {
                self.carry_out(command, out);
            }
        }
        panic!("the planner does not come to rest");
    }

    /// What the leader does where it has nothing to propose: it tells ranks to close, and says who
    /// waits.
    fn rest(&mut self, decided: &Plan, out: &mut String) {
        for (name, closing) in &decided.closing {
            let (how, why) = match closing {
                Closing::Now(why) => ("now", why),
                Closing::BehindStep(why) => ("behind the step", why),
            };
            // Why a closed world waits begins with why it was closed.
            let why = decided.waits.get(name).map_or(why, |wait| &wait.why);
            writeln!(out, "{name} closes {how}    ({why})").unwrap();
        }
        for (name, stuck) in &decided.stuck {
            let stuck: Vec<String> = stuck.iter().map(|one| format!("p{}", one.0)).collect();
            writeln!(out, "{name} has {} killed", stuck.join(", ")).unwrap();
        }
        let waits = decided.waits.iter();
        for (name, wait) in waits.filter(|(name, _)| !decided.closing.contains_key(name)) {
            writeln!(out, "{name} {wait}").unwrap();
        }
        for name in self.state.jobs.keys() {
            let watch = self.observed.worlds.entry(name.clone()).or_default();
            decided.note_in(watch, name, self.now_ms);
        }
    }

    fn carry_out(&mut self, command: Command, out: &mut String) {
        match &command {
            Command::StartWorld {
                job,
                world,
                reason,
                poison,
                ..
            } => {
                let world_text = describe(world);
                let poison = poison.as_ref().map(suspicion).unwrap_or_default();
                writeln!(out, "{job} {world_text}    ({reason}){poison}").unwrap();
                self.follow(job, world);
            }
            Command::StartStandby { job, process, seat } => {
                let on = on_gpu(seat.device);
                writeln!(out, "{job} starts {process} on {}{on}", seat.worker).unwrap();
            }
            Command::EndStandby {
                job,
                process,
                reason,
            } => {
                self.watch(job.as_str()).standbys.remove(process);
                writeln!(out, "{job} ends {process}    ({reason})").unwrap();
            }
            Command::Finish { job, outcome, .. } => {
                let (kind, step, why) = (outcome.kind.as_str(), outcome.step, &outcome.reason);
                writeln!(out, "{job} ends {kind} at step {step}    ({why})").unwrap();
            }
            Command::Distrust {
                job,
                worker,
                reason,
                ..
            } => writeln!(out, "{job} distrusts {worker}    ({reason})").unwrap(),
            other => panic!("no decision of the planner's: {other:?}"),
        }
        self.apply(command)
            .expect("a decision fits the state that it was made from");
    }

    fn follow(&mut self, name: &JobName, world: &World) {
        let old = self.state.jobs[name].world.as_ref();
        let watch = self.observed.worlds.entry(name.clone()).or_default();
        *watch = watch.follow(old, world, self.now_ms);
    }

    fn assert_phases(&self) {
        for (name, known) in &self.state.jobs {
            let runs = matches!(known.phase, Phase::Running | Phase::Stopping(_));
            assert_eq!(runs, known.has_world(), "{name} has a world while it runs");
        }
    }
}
