//! The service for people and scripts: submissions, stops, and looks at what is.

use std::path::PathBuf;
use std::pin::Pin;

use muster_cluster::apply::{Effect, Refusal};
use muster_cluster::command::{Command, Submission};
use muster_coordinator_core::{Coordinator, Reply};
use muster_proto::v1::clients_server::Clients;
use muster_proto::{convert, leader, v1};
use tokio::fs::File;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader, Take};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::calls::{Call, Handle};
use crate::logs::Logs;
use crate::records::Records;
use crate::words;

/// Jobs that the machine is asked for at once.
const MAX_VIEWS_AT_ONCE: usize = 100;

/// Events or lines that may wait for one client.
const MAX_WAITING: usize = 256;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Debug)]
pub(crate) struct ClientsService {
    driver: Handle,
    records: Records,
    logs: Logs,
}

impl ClientsService {
    pub(crate) fn new(driver: Handle, records: Records, logs: Logs) -> Self {
        Self {
            driver,
            records,
            logs,
        }
    }

    /// Has a command applied, and returns what it changed; of a submission, also where its events begin.
    async fn apply(&self, request: &[u8], command: Command) -> Result<(Effect, u64), Status> {
        let request = convert::request_id(request)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let request = |answer| Call::Request {
            request,
            command,
            answer,
        };
        match self.driver.ask(request).await?? {
            Reply::Applied {
                answer,
                first_event,
            } => match answer {
                Ok(effect) => Ok((effect, first_event)),
                Err(refusal) => Err(Status::failed_precondition(refusal.to_string())),
            },
            other => Err(Status::internal(format!("a command led to {other:?}"))),
        }
    }

    async fn must_exist(&self, is_stale: bool, job: &str) -> Result<v1::JobView, Status> {
        let name = job.to_owned();
        let view = self
            .driver
            .look(is_stale, move |coordinator, _| coordinator.job_view(&name))
            .await?;
        view.ok_or_else(|| {
            Status::not_found(format!(
                "no job is named {job:?}; `muster ps` lists the jobs"
            ))
        })
    }
}

#[tonic::async_trait]
impl Clients for ClientsService {
    type EventsStream = Replies<v1::EventRecord>;
    type LogsStream = Replies<v1::LogRecord>;

    async fn submit_job(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        let request = request.into_inner();
        let Some(submit) = request.submit else {
            return Err(Status::invalid_argument("there is no job in it"));
        };
        let submission = Submission::from(submit);
        // Understood here, where others do not wait for it.
        let spec = submission.check().map_err(|error| {
            Status::failed_precondition(Refusal::BadJob(error.to_string()).to_string())
        })?;
        let command = Command::Submit {
            submission,
            spec: Some(Box::new(spec)),
        };
        let (effect, first_event) = self.apply(&request.request_id, command).await?;
        let (job, status, step) = match effect {
            Effect::Queued { job, from } if from.0 == 0 => (job, v1::SubmitStatus::Queued, from),
            Effect::Queued { job, from } => (job, v1::SubmitStatus::Resumed, from),
            Effect::AlreadyFinished { job, step } => (job, v1::SubmitStatus::AlreadyFinished, step),
            Effect::AlreadyRunning { job } => (
                job,
                v1::SubmitStatus::AlreadyRunning,
                muster_cluster::ids::Step(0),
            ),
            other => return Err(Status::internal(format!("a submission led to {other:?}"))),
        };
        Ok(Response::new(v1::SubmitReply {
            job: job.to_string(),
            status: status.into(),
            step: step.0,
            first_event,
        }))
    }

    async fn stop_job(
        &self,
        request: Request<v1::StopRequest>,
    ) -> Result<Response<v1::StopReply>, Status> {
        let request = request.into_inner();
        let stop = request
            .stop
            .ok_or_else(|| Status::invalid_argument("no job is named"))?;
        let job = convert::job_name(&stop.job).map_err(invalid)?;
        let why = convert::stop_why(stop.why).map_err(invalid)?;
        let (effect, _) = self
            .apply(
                &request.request_id,
                Command::Stop {
                    job: job.clone(),
                    why,
                },
            )
            .await?;
        let message = match effect {
            Effect::Stopping { at_rest: true, .. } => format!("job {job} had no ranks, and rests"),
            _ => format!("job {job} ends at the next step boundary, behind a checkpoint"),
        };
        Ok(Response::new(v1::StopReply { message }))
    }

    async fn scale_job(
        &self,
        request: Request<v1::ScaleRequest>,
    ) -> Result<Response<v1::ScaleReply>, Status> {
        let request = request.into_inner();
        let scale = request
            .scale
            .ok_or_else(|| Status::invalid_argument("no job is named"))?;
        let name = convert::job_name(&scale.job).map_err(invalid)?;
        let max = scale.max;
        self.apply(&request.request_id, Command::Scale { job: name, max })
            .await?;
        let view = self.must_exist(true, &scale.job).await?;
        Ok(Response::new(v1::ScaleReply {
            message: words::scaled(&view, max),
            workers_min: view.workers_min,
            workers_max: view.workers_max,
            world_size: view.world_size,
        }))
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainRequest>,
    ) -> Result<Response<v1::DrainReply>, Status> {
        let request = request.into_inner();
        let drain = request
            .drain
            .ok_or_else(|| Status::invalid_argument("no node is named"))?;
        let worker = convert::worker_name(&drain.worker).map_err(invalid)?;
        let drains = drain.drains;
        let command = Command::Drain {
            worker: worker.clone(),
            drains,
        };
        self.apply(&request.request_id, command).await?;
        let reply = self
            .driver
            .look(true, move |coordinator, _| {
                let jobs = coordinator.jobs_on(&worker);
                let views = jobs.iter().filter_map(|job| coordinator.job_view(job));
                let views: Vec<v1::JobView> = views.collect();
                v1::DrainReply {
                    message: words::drained(&drain.worker, drains, &views),
                    jobs,
                }
            })
            .await?;
        Ok(Response::new(reply))
    }

    async fn abandon_state(
        &self,
        request: Request<v1::AbandonStateRequest>,
    ) -> Result<Response<v1::AbandonStateReply>, Status> {
        let request = request.into_inner();
        let abandon = request
            .abandon
            .ok_or_else(|| Status::invalid_argument("no job is named"))?;
        let job = convert::job_name(&abandon.job).map_err(invalid)?;
        let before = self.must_exist(false, &abandon.job).await?;
        self.apply(&request.request_id, Command::AbandonState { job })
            .await?;
        let committed_step = before.manifests.last().map_or(0, |last| last.step);
        Ok(Response::new(v1::AbandonStateReply {
            message: words::abandoned(&before, committed_step),
            committed_step,
        }))
    }

    async fn show_ledger(
        &self,
        request: Request<v1::ShowLedgerRequest>,
    ) -> Result<Response<v1::LedgerReply>, Status> {
        let is_stale = is_stale(&request);
        let job = request.into_inner().job;
        self.must_exist(is_stale, &job).await?;
        let ledger = self
            .driver
            .look(true, move |coordinator, _| coordinator.ledger(&job))
            .await?;
        let ledger = ledger.ok_or_else(|| Status::internal("the job has no ledger"))?;
        Ok(Response::new(ledger))
    }

    async fn list_jobs(
        &self,
        request: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsReply>, Status> {
        let names = |coordinator: &Coordinator, _| -> Vec<String> {
            let names = coordinator.job_names().into_iter();
            names.map(ToString::to_string).collect()
        };
        let names = self.driver.look(is_stale(&request), names).await?;
        let mut jobs = Vec::new();
        // A few at a time: the driver must not miss its ticks for a list of a hundred thousand.
        for some in names.chunks(MAX_VIEWS_AT_ONCE) {
            let some = some.to_vec();
            let views = move |coordinator: &Coordinator, _| -> Vec<v1::JobView> {
                let views = some.iter().filter_map(|job| coordinator.job_view(job));
                views.collect()
            };
            jobs.extend(self.driver.look(true, views).await?);
        }
        Ok(Response::new(v1::ListJobsReply { jobs }))
    }

    async fn show_job(
        &self,
        request: Request<v1::ShowJobRequest>,
    ) -> Result<Response<v1::JobView>, Status> {
        let is_stale = is_stale(&request);
        let job = request.into_inner().job;
        Ok(Response::new(self.must_exist(is_stale, &job).await?))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesReply>, Status> {
        let nodes = self
            .driver
            .look(is_stale(&request), |coordinator, now| {
                let mut nodes = coordinator.node_views(now);
                for node in nodes.iter_mut().filter(|node| node.draining) {
                    let jobs = node.jobs.iter();
                    let views = jobs.filter_map(|job| coordinator.job_view(job));
                    let views: Vec<v1::JobView> = views.collect();
                    node.drains = words::drained(&node.worker, true, &views);
                }
                nodes
            })
            .await?;
        Ok(Response::new(v1::ListNodesReply {
            nodes,
            coordinator_pid: std::process::id(),
            now_ms: crate::driver::wall_ms(),
        }))
    }

    async fn events(
        &self,
        request: Request<v1::EventsRequest>,
    ) -> Result<Response<Self::EventsStream>, Status> {
        let is_stale = is_stale(&request);
        let epoch = self.driver.lead().borrow().epoch;
        let request = request.into_inner();
        self.must_exist(is_stale, &request.job).await?;
        // What is applied is in the file.
        self.records.written().await;
        let (path, length) = self.records.stream(&request.job);
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        let driver = self.driver.clone();
        tokio::spawn(async move {
            let sent = tokio::select! {
                sent = send_events(path, length, &request, &sender) => sent,
                status = driver.deposed(epoch), if !is_stale => Err(status),
            };
            if let Err(status) = sent {
                // The client may have gone meanwhile.
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn logs(
        &self,
        request: Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let is_stale = is_stale(&request);
        let epoch = self.driver.lead().borrow().epoch;
        let request = request.into_inner();
        self.must_exist(is_stale, &request.job).await?;
        let driver = self.driver.clone();
        let unreadable = |error| {
            Status::internal(format!(
                "the log of job {} cannot be read: {error}",
                request.job
            ))
        };
        let (kept, mut live) = self.logs.read(&request.job).await.map_err(unreadable)?;
        let (sender, receiver) = mpsc::channel(MAX_WAITING);
        tokio::spawn(async move {
            let is_wanted = |record: &v1::LogRecord| {
                record.seq >= request.from && request.rank.is_none_or(|rank| rank == record.rank)
            };
            for record in kept.into_iter().filter(is_wanted) {
                if sender.send(Ok(record)).await.is_err() {
                    return;
                }
            }
            if !request.follow {
                return;
            }
            let deposed = driver.deposed(epoch);
            tokio::pin!(deposed);
            loop {
                let (job, record) = tokio::select! {
                    () = sender.closed() => return,
                    status = &mut deposed, if !is_stale => {
                        let _ = sender.send(Err(status)).await;
                        return;
                    }
                    line = live.recv() => match line {
                        Ok(line) => line,
                        Err(RecvError::Lagged(_)) => {
                            let behind = Status::unavailable("too far behind; ask again from there");
                            let _ = sender.send(Err(behind)).await;
                            return;
                        }
                        Err(RecvError::Closed) => return,
                    },
                };
                if job == request.job
                    && is_wanted(&record)
                    && sender.send(Ok(record)).await.is_err()
                {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// Whether a client is content with what this coordinator knows.
fn is_stale<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(leader::STALE)
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to `map_err`")]
fn invalid(error: convert::BadMessage) -> Status {
    Status::invalid_argument(error.to_string())
}

/// Sends the lines of a job's file, and, to a follower, those that come.
async fn send_events(
    path: PathBuf,
    mut length: watch::Receiver<u64>,
    request: &v1::EventsRequest,
    sender: &mpsc::Sender<Result<v1::EventRecord, Status>>,
) -> Result<(), Status> {
    let unreadable =
        |error: std::io::Error| Status::internal(format!("{}: {error}", path.display()));
    let mut file: Option<BufReader<Take<File>>> = None;
    let (mut position, mut seq) = (0, 0);
    let mut line = String::new();
    loop {
        let end = *length.borrow_and_update();
        while position < end {
            if file.is_none() {
                let opened = File::open(&path).await.map_err(unreadable)?;
                file = Some(BufReader::new(opened.take(0)));
            }
            let Some(reader) = file.as_mut() else { break };
            if reader.buffer().is_empty() {
                // What is behind may be written over.
                reader.get_mut().set_limit(end - position);
            }
            line.clear();
            let read = reader.read_line(&mut line).await.map_err(unreadable)?;
            if read == 0 {
                return Err(Status::internal(format!(
                    "{}: the file became shorter",
                    path.display()
                )));
            }
            position += read as u64;
            let is_wanted = seq >= request.from;
            let record = v1::EventRecord {
                seq,
                json: line.trim_end().to_owned(),
            };
            seq += 1;
            if is_wanted && sender.send(Ok(record)).await.is_err() {
                return Ok(());
            }
        }
        if !request.follow {
            return Ok(());
        }
        tokio::select! {
            () = sender.closed() => return Ok(()),
            changed = length.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}
