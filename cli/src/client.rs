//! A client of a coordinator: asks again while it does not answer, for a stated time, and with the
//! same request id, so that nothing is done twice.

use std::io::Read as _;
use std::time::{Duration, Instant};

use clap::Args;
use muster_proto::event::{Event, What};
use muster_proto::v1::clients_client::ClientsClient;
use muster_proto::{address, v1};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::chaos::is_local;
use crate::failure::Failure;

/// Which coordinator a command speaks to.
#[derive(Clone, Debug, Args)]
pub(crate) struct To {
    /// Where the coordinator is
    #[arg(
        long,
        value_name = "HOST:PORT",
        env = "MUSTER_COORDINATOR",
        default_value = "127.0.0.1:4600"
    )]
    to: String,
    /// How long to try when it does not answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

/// Between two attempts.
const RETRY_WAIT: Duration = Duration::from_millis(100);

const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// A connection that is opened when it is needed.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    address: String,
    timeout: Duration,
    /// What the user can do when it does not answer.
    what_to_do: &'static str,
    inner: ClientsClient<Channel>,
}

impl Client {
    /// The client of the coordinator that a command names.
    pub(crate) fn new(to: &To) -> Result<Self, Failure> {
        let what_to_do = "is it running? --to names another, --timeout waits longer";
        Self::at(&to.to, Duration::from_secs(to.timeout), what_to_do)
    }

    /// The client of the coordinator at an address; `what_to_do` ends the complaint that it does not
    /// answer.
    pub(crate) fn at(
        address: &str,
        timeout: Duration,
        what_to_do: &'static str,
    ) -> Result<Self, Failure> {
        let channel = address::endpoint(address)
            .map_err(Failure::bad_input)?
            .connect_lazy();
        let inner = ClientsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self {
            address: address.to_owned(),
            timeout,
            what_to_do,
            inner,
        })
    }

    /// Whether the coordinator that it speaks to is on this machine.
    pub(crate) async fn is_on_this_machine(&self) -> bool {
        let found = tokio::net::lookup_host(&self.address).await;
        found.is_ok_and(|mut found| found.all(|address| is_local(address.ip())))
    }

    /// Asks until there is an answer, or the time is over.
    async fn ask<T, F: Future<Output = Result<T, Status>>>(
        &self,
        ask: impl Fn(ClientsClient<Channel>) -> F,
    ) -> Result<T, Failure> {
        let start = Instant::now();
        loop {
            let left = self.timeout.saturating_sub(start.elapsed());
            let status = match tokio::time::timeout(left, ask(self.inner.clone())).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable("it is silent"),
            };
            if !is_worth_asking_again(status.code()) {
                return Err(Failure::bad_input(status.message()));
            }
            if start.elapsed() + RETRY_WAIT >= self.timeout {
                let seconds = self.timeout.as_secs();
                return Err(Failure::bad_input(format!(
                    "the coordinator at {} did not answer for {seconds} s ({}); {}",
                    self.address,
                    reason_of(&status),
                    self.what_to_do
                )));
            }
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }

    pub(crate) async fn submit(&self, submit: v1::Submit) -> Result<v1::SubmitReply, Failure> {
        let request = v1::SubmitRequest {
            request_id: request_id()?,
            submit: Some(submit),
        };
        self.ask(|mut inner| {
            let request = request.clone();
            async move { Ok(inner.submit_job(request).await?.into_inner()) }
        })
        .await
    }

    pub(crate) async fn stop(&self, job: &str, why: v1::StopWhy) -> Result<v1::StopReply, Failure> {
        let stop = v1::Stop {
            job: job.to_owned(),
            why: why.into(),
        };
        let request = v1::StopRequest {
            request_id: request_id()?,
            stop: Some(stop),
        };
        self.ask(|mut inner| {
            let request = request.clone();
            async move { Ok(inner.stop_job(request).await?.into_inner()) }
        })
        .await
    }

    pub(crate) async fn scale(&self, job: &str, max: u32) -> Result<v1::ScaleReply, Failure> {
        let scale = v1::Scale {
            job: job.to_owned(),
            max,
        };
        let request = v1::ScaleRequest {
            request_id: request_id()?,
            scale: Some(scale),
        };
        self.ask(|mut inner| {
            let request = request.clone();
            async move { Ok(inner.scale_job(request).await?.into_inner()) }
        })
        .await
    }

    pub(crate) async fn drain(
        &self,
        worker: &str,
        drains: bool,
    ) -> Result<v1::DrainReply, Failure> {
        let drain = v1::Drain {
            worker: worker.to_owned(),
            drains,
        };
        let request = v1::DrainRequest {
            request_id: request_id()?,
            drain: Some(drain),
        };
        self.ask(|mut inner| {
            let request = request.clone();
            async move { Ok(inner.drain_node(request).await?.into_inner()) }
        })
        .await
    }

    pub(crate) async fn abandon_state(&self, job: &str) -> Result<v1::AbandonStateReply, Failure> {
        let abandon = v1::AbandonState {
            job: job.to_owned(),
        };
        let request = v1::AbandonStateRequest {
            request_id: request_id()?,
            abandon: Some(abandon),
        };
        self.ask(|mut inner| {
            let request = request.clone();
            async move { Ok(inner.abandon_state(request).await?.into_inner()) }
        })
        .await
    }

    pub(crate) async fn ledger(&self, job: &str) -> Result<v1::LedgerReply, Failure> {
        let request = v1::ShowLedgerRequest {
            job: job.to_owned(),
        };
        self.ask(|mut inner| {
            let request = request.clone();
            async move { Ok(inner.show_ledger(request).await?.into_inner()) }
        })
        .await
    }

    pub(crate) async fn jobs(&self) -> Result<Vec<v1::JobView>, Failure> {
        let reply = self.ask(|mut inner| async move {
            Ok(inner.list_jobs(v1::ListJobsRequest {}).await?.into_inner())
        });
        Ok(reply.await?.jobs)
    }

    pub(crate) async fn job(&self, job: &str) -> Result<v1::JobView, Failure> {
        let request = v1::ShowJobRequest {
            job: job.to_owned(),
        };
        self.ask(|mut inner| {
            let request = request.clone();
            async move { Ok(inner.show_job(request).await?.into_inner()) }
        })
        .await
    }

    pub(crate) async fn nodes(&self) -> Result<v1::ListNodesReply, Failure> {
        self.ask(|mut inner| async move {
            Ok(inner
                .list_nodes(v1::ListNodesRequest {})
                .await?
                .into_inner())
        })
        .await
    }

    /// What a job's ranks printed. A follower's stream is opened again when it breaks.
    pub(crate) fn logs(&self, request: v1::LogsRequest) -> Logs {
        Logs {
            client: self.clone(),
            request,
            stream: None,
        }
    }

    /// Waits for the end of a job.
    pub(crate) async fn end_of(&self, job: &str) -> Result<End, Failure> {
        let mut last = None;
        let mut known = self.events(job, 0, false);
        let mut next = 0;
        while let Some(record) = known.next().await? {
            next = record.seq + 1;
            last = Some(record);
        }
        let mut live = self.events(job, next, true);
        loop {
            if let Some(v1::EventRecord { json, .. }) = &last
                && let Ok(event) = serde_json::from_str::<Event>(json)
                && let What::Finished { state, reason, .. } = event.what
            {
                let json = json.clone();
                return Ok(End {
                    state,
                    reason,
                    json,
                });
            }
            last = live.next().await?;
            if last.is_none() {
                return Err(Failure::failed("the events ended before the job did"));
            }
        }
    }

    /// A job's events from a position on. A follower's stream is opened again when it breaks.
    pub(crate) fn events(&self, job: &str, from: u64, follow: bool) -> Events {
        Events {
            client: self.clone(),
            job: job.to_owned(),
            next: from,
            follow,
            stream: None,
        }
    }
}

/// The end of a job's newest submission.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) state: String,
    pub(crate) reason: String,
    /// The event that tells it.
    pub(crate) json: String,
}

/// A job's events, one by one.
#[derive(Debug)]
pub(crate) struct Events {
    client: Client,
    job: String,
    next: u64,
    follow: bool,
    stream: Option<Streaming<v1::EventRecord>>,
}

impl Events {
    /// The next event, or `None` at the end of what is known, if it does not follow.
    pub(crate) async fn next(&mut self) -> Result<Option<v1::EventRecord>, Failure> {
        loop {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => {
                    let request = v1::EventsRequest {
                        job: self.job.clone(),
                        from: self.next,
                        follow: self.follow,
                    };
                    let open = |mut inner: ClientsClient<Channel>| {
                        let request = request.clone();
                        async move { Ok(inner.events(request).await?.into_inner()) }
                    };
                    self.client.ask(open).await?
                }
            };
            match stream.message().await {
                Ok(Some(record)) => {
                    self.next = record.seq + 1;
                    self.stream = Some(stream);
                    return Ok(Some(record));
                }
                Ok(None) if !self.follow => return Ok(None),
                Ok(None) => {}
                Err(status) if is_worth_asking_again(status.code()) => {}
                Err(status) => return Err(Failure::failed(status.message())),
            }
            // The coordinator went away in the middle: ask it again, but not in a tight loop.
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }
}

/// What a job's ranks printed, line by line.
#[derive(Debug)]
pub(crate) struct Logs {
    client: Client,
    /// From the next line on.
    request: v1::LogsRequest,
    stream: Option<Streaming<v1::LogRecord>>,
}

impl Logs {
    /// The next line, or `None` at the end of what is kept, if it does not follow.
    pub(crate) async fn next(&mut self) -> Result<Option<v1::LogRecord>, Failure> {
        loop {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => {
                    let open = |mut inner: ClientsClient<Channel>| {
                        let request = self.request.clone();
                        async move { Ok(inner.logs(request).await?.into_inner()) }
                    };
                    self.client.ask(open).await?
                }
            };
            match stream.message().await {
                Ok(Some(line)) => {
                    self.request.from = self.request.from.max(line.seq + 1);
                    self.stream = Some(stream);
                    return Ok(Some(line));
                }
                Ok(None) if !self.request.follow => return Ok(None),
                Ok(None) => {}
                Err(status) if is_worth_asking_again(status.code()) => {}
                Err(status) => return Err(Failure::failed(status.message())),
            }
            // The coordinator went away in the middle: ask it again, but not in a tight loop.
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }
}

/// Whether a later attempt may succeed. A connection that breaks shows as `Unknown` or `Cancelled`.
fn is_worth_asking_again(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal
    )
}

/// A status in words. A connection that failed says so only in the cause that lies deepest.
fn reason_of(status: &Status) -> String {
    let causes = std::iter::successors(std::error::Error::source(status), |error| error.source());
    causes
        .last()
        .map_or_else(|| status.message().to_owned(), ToString::to_string)
}

/// Names a request, so that asking again is not asking twice.
fn request_id() -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
