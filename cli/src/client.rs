//! A client of the coordinators: its calls, under one request id each, so that nothing is done
//! twice. Which coordinator is asked, and for how long, is in [`coordinators`]; what does not end
//! with one answer is in [`streams`].

mod coordinators;
mod streams;

use std::io::Read as _;
use std::time::Duration;

use clap::Args;
use muster_proto::event::{Event, What};
use muster_proto::{leader, v1};
use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};

use self::coordinators::Coordinators;
pub(crate) use self::streams::{Events, Logs};
use crate::failure::Failure;

/// Which coordinators a command speaks to.
#[derive(Clone, Debug, Args)]
pub(crate) struct To {
    /// Where coordinators are; the one that leads is found from any of them
    #[arg(
        long,
        value_name = "HOST:PORT,...",
        env = "MUSTER_COORDINATOR",
        default_value = "127.0.0.1:4600",
        value_delimiter = ','
    )]
    coordinator: Vec<String>,
    /// How long to try when none answers, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
}

/// Which coordinators a command looks at that changes nothing.
#[derive(Clone, Debug, Args)]
pub(crate) struct At {
    #[command(flatten)]
    to: To,
    /// Take what the first coordinator that answers has applied, even when it does not lead: it may
    /// be old
    #[arg(long)]
    stale: bool,
}

/// A client; its clones go to the same coordinator.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    coordinators: Coordinators,
    /// Whether an older state is good enough for its looks.
    stale: bool,
}

impl Client {
    /// The client of the coordinators that a command names.
    pub(crate) fn new(to: &To) -> Result<Self, Failure> {
        let what_to_do = "does one run there? --coordinator names others, --timeout waits longer";
        let timeout = Duration::from_secs(to.timeout);
        Self::of(to.coordinator.clone(), timeout, what_to_do)
    }

    /// The same, of a command that only looks.
    pub(crate) fn looking(at: &At) -> Result<Self, Failure> {
        let client = Self::new(&at.to)?;
        Ok(Self {
            stale: at.stale,
            ..client
        })
    }

    /// The client of the coordinators at these addresses; `what_to_do` ends the complaint that none
    /// answers.
    pub(crate) fn of(
        given: Vec<String>,
        timeout: Duration,
        what_to_do: impl Into<String>,
    ) -> Result<Self, Failure> {
        Ok(Self {
            coordinators: Coordinators::new(given, timeout, what_to_do.into())?,
            stale: false,
        })
    }

    /// Whether the coordinator that answered last is on this machine.
    pub(crate) async fn is_on_this_machine(&self) -> bool {
        self.coordinators.is_on_this_machine().await
    }

    /// A request for what is.
    fn look<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if self.stale {
            let yes = MetadataValue::from_static("1");
            request.metadata_mut().insert(leader::STALE, yes);
        }
        request
    }

    pub(crate) async fn submit(&self, submit: v1::Submit) -> Result<v1::SubmitReply, Failure> {
        let request = v1::SubmitRequest {
            request_id: request_id()?,
            submit: Some(submit),
        };
        self.coordinators
            .ask(|mut inner| {
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
        self.coordinators
            .ask(|mut inner| {
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
        self.coordinators
            .ask(|mut inner| {
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
        self.coordinators
            .ask(|mut inner| {
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
        self.coordinators
            .ask(|mut inner| {
                let request = request.clone();
                async move { Ok(inner.abandon_state(request).await?.into_inner()) }
            })
            .await
    }

    pub(crate) async fn ledger(&self, job: &str) -> Result<v1::LedgerReply, Failure> {
        let request = || {
            let job = job.to_owned();
            self.look(v1::ShowLedgerRequest { job })
        };
        self.coordinators
            .ask(|mut inner| {
                let request = request();
                async move { Ok(inner.show_ledger(request).await?.into_inner()) }
            })
            .await
    }

    pub(crate) async fn jobs(&self) -> Result<Vec<v1::JobView>, Failure> {
        let reply = self.coordinators.ask(|mut inner| {
            let request = self.look(v1::ListJobsRequest {});
            async move { Ok(inner.list_jobs(request).await?.into_inner()) }
        });
        Ok(reply.await?.jobs)
    }

    pub(crate) async fn job(&self, job: &str) -> Result<v1::JobView, Failure> {
        let request = || {
            let job = job.to_owned();
            self.look(v1::ShowJobRequest { job })
        };
        self.coordinators
            .ask(|mut inner| {
                let request = request();
                async move { Ok(inner.show_job(request).await?.into_inner()) }
            })
            .await
    }

    /// What the coordinator that is asked first knows of its group.
    pub(crate) async fn group(&self) -> Result<v1::GroupReply, Failure> {
        self.coordinators
            .ask_operators(|mut inner| async move {
                Ok(inner.group(v1::GroupRequest {}).await?.into_inner())
            })
            .await
    }

    pub(crate) async fn change_group(
        &self,
        change: v1::change_group_request::Change,
    ) -> Result<String, Failure> {
        let request = v1::ChangeGroupRequest {
            change: Some(change),
        };
        let reply = self.coordinators.ask_operators(|mut inner| {
            let request = request.clone();
            async move { Ok(inner.change_group(request).await?.into_inner()) }
        });
        Ok(reply.await?.message)
    }

    /// Has another coordinator lead; 0 for whichever is furthest.
    pub(crate) async fn transfer(&self, to: u64) -> Result<String, Failure> {
        let reply = self.coordinators.ask_operators(|mut inner| async move {
            Ok(inner
                .transfer(v1::TransferRequest { to })
                .await?
                .into_inner())
        });
        Ok(reply.await?.message)
    }

    /// All that is true now, in pieces.
    pub(crate) async fn backup(&self) -> Result<Streaming<v1::SnapshotPiece>, Failure> {
        let reply = self.coordinators.ask_operators(|mut inner| async move {
            Ok(inner.backup(v1::BackupRequest {}).await?.into_inner())
        });
        reply.await
    }

    pub(crate) async fn nodes(&self) -> Result<v1::ListNodesReply, Failure> {
        self.coordinators
            .ask(|mut inner| {
                let request = self.look(v1::ListNodesRequest {});
                async move { Ok(inner.list_nodes(request).await?.into_inner()) }
            })
            .await
    }

    /// What a job's ranks printed. A follower's stream is opened again when it breaks, where the leader
    /// is then.
    pub(crate) fn logs(&self, request: v1::LogsRequest) -> Logs {
        Logs::new(self.coordinators.clone(), request)
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

    /// A job's events from a position on. A follower's stream is opened again when it breaks, where the
    /// leader is then.
    pub(crate) fn events(&self, job: &str, from: u64, follow: bool) -> Events {
        let job = job.to_owned();
        Events::new(
            self.coordinators.clone(),
            v1::EventsRequest { job, from, follow },
        )
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

/// Names a request, so that asking again is not asking twice.
fn request_id() -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests;
