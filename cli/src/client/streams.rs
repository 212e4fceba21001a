//! What a coordinator tells one by one: a job's events, and what its ranks printed. A stream that
//! breaks is opened again behind what it told, where the leader is then.

use muster_proto::v1;
use muster_proto::v1::clients_client::ClientsClient;
use tonic::Streaming;
use tonic::transport::Channel;

use super::coordinators::{Coordinators, RETRY_WAIT, is_worth_asking_again};
use crate::failure::Failure;

/// A job's events, one by one.
#[derive(Debug)]
pub(crate) struct Events {
    coordinators: Coordinators,
    /// From the next event on.
    request: v1::EventsRequest,
    stream: Option<Streaming<v1::EventRecord>>,
}

impl Events {
    pub(super) fn new(coordinators: Coordinators, request: v1::EventsRequest) -> Self {
        Self {
            coordinators,
            request,
            stream: None,
        }
    }

    /// The next event, or `None` at the end of what is known, if it does not follow.
    pub(crate) async fn next(&mut self) -> Result<Option<v1::EventRecord>, Failure> {
        loop {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => {
                    let open = |mut inner: ClientsClient<Channel>| {
                        let request = self.request.clone();
                        async move { Ok(inner.events(request).await?.into_inner()) }
                    };
                    self.coordinators.ask(open).await?
                }
            };
            match stream.message().await {
                Ok(Some(record)) => {
                    self.request.from = record.seq + 1;
                    self.stream = Some(stream);
                    return Ok(Some(record));
                }
                Ok(None) if !self.request.follow => return Ok(None),
                Ok(None) => {}
                Err(status) if is_worth_asking_again(&status) => self.coordinators.broke(&status),
                Err(status) => return Err(Failure::failed(status.message())),
            }
            // The coordinator went away in the middle: ask again, but not in a tight loop.
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }
}

/// What a job's ranks printed, line by line.
#[derive(Debug)]
pub(crate) struct Logs {
    coordinators: Coordinators,
    /// From the next line on.
    request: v1::LogsRequest,
    stream: Option<Streaming<v1::LogRecord>>,
}

impl Logs {
    pub(super) fn new(coordinators: Coordinators, request: v1::LogsRequest) -> Self {
        Self {
            coordinators,
            request,
            stream: None,
        }
    }

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
                    self.coordinators.ask(open).await?
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
                Err(status) if is_worth_asking_again(&status) => self.coordinators.broke(&status),
                Err(status) => return Err(Failure::failed(status.message())),
            }
            // The coordinator went away in the middle: ask again, but not in a tight loop.
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }
}
