//! What one `muster train` does between the first child and the job's end: it submits, tells events,
//! and hands on signals. Knows nothing of how children are kept running.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use muster_proto::event::{Event, What};
use muster_proto::v1;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::report::Reporter;
use crate::client::{Client, Events};
use crate::failure::{Failure, INTERRUPTED, Outcome};
use crate::jobfile::Prepared;
use crate::local::{Coordinators, Tree, addresses, worker};
use crate::manage::exit_code_of;

/// How long the coordinator of this very run may be silent: it may be starting again.
const COORDINATOR_TIMEOUT: Duration = Duration::from_secs(60);

/// SIGINT, SIGTERM and SIGHUP (the terminal was closed), which mean the same.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// A run of one job, from the first child to the job's end.
pub(super) struct Run<'a> {
    pub(super) prepared: &'a Prepared,
    pub(super) folder: &'a Path,
    pub(super) workers: u32,
    /// The GPU of each worker; empty where ranks compute on processors.
    pub(super) gpus: &'a [u32],
    /// Whether several of them are to share one.
    pub(super) shares_gpus: bool,
    /// How long a rank may be silent.
    pub(super) detect_ms: u64,
    pub(super) coordinators: u32,
    pub(super) threads: usize,
    pub(super) reporter: Reporter,
    /// Whether it was asked twice to stop.
    pub(super) at_once: bool,
}

impl Run<'_> {
    /// Starts the children, submits the job, and tells its events until it ends.
    pub(super) async fn until_the_end(
        &mut self,
        tree: &mut Tree,
        signals: &mut Signals,
    ) -> Outcome {
        let coordinators = self.coordinators();
        let members = tokio::select! {
            members = coordinators.start(tree) => members?,
            () = signals.next() => return Ok(ExitCode::from(INTERRUPTED)),
        };
        let join = addresses(&members);
        let client = Client::of(
            join.clone(),
            COORDINATOR_TIMEOUT,
            format!(
                "its log is in {}; the same command goes on from the last checkpoint",
                self.folder.display()
            ),
        )?;
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
                    let threads = self.threads.to_string();
                    let gpu = self.gpus.get(number as usize).map(u32::to_string);
                    let gpus = gpu.as_deref().unwrap_or("none");
                    let mut more = vec!["--threads", &threads, "--gpus", gpus];
                    if self.shares_gpus {
                        more.push("--share-gpus");
                    }
                    tree.start(worker(self.folder, number, &join, &more))?;
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

    fn coordinators(&self) -> Coordinators {
        let checkpoints = self.folder.join("checkpoints").display().to_string();
        let detect_ms = self.detect_ms.to_string();
        let arguments = [
            "--checkpoints",
            &checkpoints,
            "--detect-ms",
            &detect_ms,
            "--gather-ms",
            GATHER_MS,
            "--fallback-after-ms",
            FALLBACK_AFTER_MS,
        ];
        Coordinators {
            folder: self.folder.to_owned(),
            number: self.coordinators,
            port: 0,
            arguments: arguments.map(str::to_owned).to_vec(),
        }
    }
}

/// All of the job's workers are about to come, unless one of them cannot.
const GATHER_MS: &str = "30000";

/// A worker of the tree that is not there for so long is of a run that had more of them: all of its
/// processes ended with that tree, and ranks without a daemon end after 30 s.
const FALLBACK_AFTER_MS: &str = "40000";

/// What is needed to follow a job.
struct Follow<'a> {
    job: &'a str,
    events: Events,
    client: &'a Client,
    asked_to_stop: bool,
}
