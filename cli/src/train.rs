//! `muster train`: a cluster on this machine for one job. Starts a coordinator and workers as
//! children, submits the job, tells what happens, and leaves no process behind.

mod report;
mod tree;

use std::fs::File;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use muster_proto::event::{Event, What};
use muster_proto::v1;
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::client::{Client, Events};
use crate::failure::{Failure, INTERRUPTED, Outcome};
use crate::jobfile::{JobArguments, Prepared, prepare, state_folder};
use crate::manage::exit_code_of;
use report::{Format, Reporter};
use tree::{Role, Tree, start_coordinator};

/// Train a job on this machine
#[derive(Debug, Args)]
#[command(after_help = "\
Examples: muster train examples/digits/job.toml
          muster train examples/digits/job.toml --workers 2 --set train.seed=7 --fresh

Ctrl-C ends the run at the next step, behind a checkpoint; the same command goes on from there. \
A second Ctrl-C ends it at once.

Exit code: 0 completed, 1 failed, 2 the input is wrong, 130 interrupted.")]
pub(crate) struct Train {
    #[command(flatten)]
    job: JobArguments,
    /// How many worker processes [default: one per processor, within the job's range]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    workers: Option<u32>,
    /// How many threads each computes with [default: its share of the processors]
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZero<usize>>,
    /// Where jobs keep their state and, unless the job says otherwise, their checkpoints
    /// [default: muster in the XDG state folder]
    #[arg(long, value_name = "FOLDER", env = "MUSTER_STATE")]
    state: Option<PathBuf>,
    /// Print every event as one line of JSON, and nothing else
    #[arg(long)]
    json: bool,
}

/// How long the coordinator of this very run may be silent: it may be starting again.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(60);

impl Train {
    pub(crate) async fn run(self) -> Outcome {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let own = u32::try_from(processors).unwrap_or(u32::MAX);
        let prepared = prepare(&self.job, |min, max| {
            Some(self.workers.unwrap_or(own.clamp(min, max.max(min))))
        })?;
        let workers = prepared.spec.workers.max;
        let folder = state_folder(self.state.as_deref())?
            .join("train")
            .join(prepared.spec.name.to_string());
        let checkpoints = prepared
            .spec
            .checkpoint
            .folder
            .clone()
            .unwrap_or_else(|| folder.join("checkpoints"));
        muster_rank::check_checkpoint_folder(&checkpoints).map_err(Failure::bad_input)?;
        let _lock = lock(&folder)?;

        let mut signals = Signals::new()?;
        let format = match (self.json, std::io::stderr().is_terminal()) {
            (true, _) => Format::Json,
            (false, true) => Format::Terminal,
            (false, false) => Format::Lines,
        };
        let mut tree = Tree::new();
        let mut run = Run {
            prepared: &prepared,
            folder: &folder,
            workers,
            threads: self.threads.map_or(
                (processors / workers as usize).max(1),
                std::num::NonZero::get,
            ),
            reporter: Reporter::new(format),
            at_once: false,
        };
        let outcome = run.until_the_end(&mut tree, &mut signals).await;
        if run.at_once {
            // Whoever asked twice does not want to wait: children are killed as this process ends.
            return outcome;
        }
        tokio::select! {
            () = tree.end() => {}
            () = signals.next() => {}
        }
        outcome
    }
}

/// SIGINT, SIGTERM and SIGHUP (the terminal was closed), which mean the same.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// Makes the job's folder, and keeps another run of the same job out of it.
fn lock(folder: &Path) -> Result<File, Failure> {
    let path = folder.join("lock");
    let unusable = |error: std::io::Error| {
        Failure::bad_input(format!(
            "{}: {error}; say with --state where to keep state",
            folder.display()
        ))
    };
    std::fs::create_dir_all(folder).map_err(unusable)?;
    let file = File::create(&path).map_err(unusable)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
        Failure::bad_input(format!(
            "{}: in use by another `muster train` of the same job; wait for it, or rename the job with --set name=...",
            folder.display()
        ))
    })?;
    Ok(file)
}

struct Run<'a> {
    prepared: &'a Prepared,
    folder: &'a Path,
    workers: u32,
    threads: usize,
    reporter: Reporter,
    /// Whether it was asked twice to stop.
    at_once: bool,
}

impl Run<'_> {
    async fn until_the_end(&mut self, tree: &mut Tree, signals: &mut Signals) -> Outcome {
        let mut coordinator = self.coordinator();
        let address = tokio::select! {
            address = start_coordinator(&mut coordinator, tree) => address?,
            () = signals.next() => return Ok(ExitCode::from(INTERRUPTED)),
        };
        let client = Client::at(&address, COORDINATOR_TIMEOUT)?;
        let job = self.prepared.spec.name.to_string();
        let mut has_workers = false;
        loop {
            let reply = tokio::select! {
                reply = client.submit(self.prepared.submit()) => reply?,
                Some(failure) = tree.failed.recv() => return Err(failure),
                () = signals.next() => return Ok(ExitCode::from(INTERRUPTED)),
            };
            let from = match reply.status() {
                v1::SubmitStatus::AlreadyFinished => {
                    return self
                        .already_finished(&client, &job, reply.first_event)
                        .await;
                }
                v1::SubmitStatus::AlreadyRunning => {
                    // An earlier run of this command was killed; what it told is not told again.
                    self.reporter.say(&format!(
                        "job {job} was running when its last run ended; going on"
                    ));
                    self.count_events(&client, &job).await?
                }
                _ => reply.first_event,
            };
            if !has_workers {
                for number in 0..self.workers {
                    tree.start(self.worker(number, &address))?;
                }
                has_workers = true;
            }
            let follow = Follow {
                job: &job,
                events: client.events(&job, from, true),
                client: &client,
                asked_to_stop: false,
            };
            let end = self.follow(follow, tree, signals).await?;
            let Some((state, was_asked)) = end else {
                return Ok(ExitCode::from(INTERRUPTED));
            };
            // A run that was told to stop and then killed rests only now; this one was not told.
            if state == "interrupted" && !was_asked {
                continue;
            }
            return Ok(exit_code_of(&state));
        }
    }

    /// Tells events until the job ends; returns how, and whether this run was asked to stop. `None`
    /// when it was asked twice.
    async fn follow(
        &mut self,
        mut follow: Follow<'_>,
        tree: &mut Tree,
        signals: &mut Signals,
    ) -> Result<Option<(String, bool)>, Failure> {
        loop {
            tokio::select! {
                record = follow.events.next() => {
                    let Some(record) = record? else { continue };
                    let event: Event = serde_json::from_str(&record.json)
                        .map_err(|error| Failure::failed(format!("an event that is none: {error}")))?;
                    self.reporter.event(&event, &record.json);
                    if let What::Finished { state, .. } = event.what {
                        return Ok(Some((state, follow.asked_to_stop)));
                    }
                }
                Some(failure) = tree.failed.recv() => return Err(failure),
                () = signals.next() => {
                    if follow.asked_to_stop {
                        self.at_once = true;
                        return Ok(None);
                    }
                    follow.asked_to_stop = true;
                    self.reporter.say("ending at the next step, behind a checkpoint; Ctrl-C again ends at once");
                    let (client, job) = (follow.client.clone(), follow.job.to_owned());
                    // The events go on meanwhile, and say how it ended.
                    tokio::spawn(async move {
                        if let Err(failure) = client.stop(&job, v1::StopWhy::Interrupted).await {
                            tracing::warn!("{}", failure.text);
                        }
                    });
                }
            }
        }
    }

    async fn already_finished(&mut self, client: &Client, job: &str, first_event: u64) -> Outcome {
        let mut events = client.events(job, first_event, false);
        while let Some(record) = events.next().await? {
            if let Ok(event) = serde_json::from_str::<Event>(&record.json)
                && let What::Finished { .. } = event.what
            {
                self.reporter.event(&event, &record.json);
            }
        }
        self.reporter.say(&format!(
            "job {job} finished before; no step was run. --fresh starts over"
        ));
        Ok(ExitCode::SUCCESS)
    }

    async fn count_events(&self, client: &Client, job: &str) -> Result<u64, Failure> {
        let mut events = client.events(job, 0, false);
        let mut count = 0;
        while let Some(record) = events.next().await? {
            count = record.seq + 1;
        }
        Ok(count)
    }

    fn coordinator(&self) -> Role {
        let text = |path: PathBuf| path.display().to_string();
        let arguments = [
            "coordinator",
            "--tree",
            "--ready-json",
            "--listen",
            "127.0.0.1:0",
            "--data",
            &text(self.folder.join("coordinator")),
            "--checkpoints",
            &text(self.folder.join("checkpoints")),
        ];
        Role {
            name: "coordinator".to_owned(),
            arguments: arguments.map(str::to_owned).to_vec(),
            log: self.folder.join("coordinator.log"),
        }
    }

    fn worker(&self, number: u32, address: &str) -> Role {
        let name = format!("worker-{number}");
        let state = self.folder.join(&name).display().to_string();
        let threads = self.threads.to_string();
        let arguments = [
            "worker",
            "--tree",
            "--join",
            address,
            "--name",
            &name,
            "--state",
            &state,
            "--threads",
            &threads,
        ];
        Role {
            arguments: arguments.map(str::to_owned).to_vec(),
            log: self.folder.join(format!("{name}.log")),
            name,
        }
    }
}

/// What is needed to follow a job.
struct Follow<'a> {
    job: &'a str,
    events: Events,
    client: &'a Client,
    asked_to_stop: bool,
}
