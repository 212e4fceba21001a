//! What a coordinator tells one by one: a job's events, and what its ranks printed. A stream that
//! breaks is opened again behind what it told, where the leader is then.

use std::future::Future;

use muster_proto::v1;
use muster_proto::v1::clients_client::ClientsClient;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::coordinators::{Coordinators, RETRY_WAIT, is_worth_asking_again};
use crate::failure::Failure;

/// Asks for records from one on.
pub(crate) trait Request: Clone {
    /// What is told.
    type Record;

    /// Opens a stream.
    fn open(
        self,
        inner: ClientsClient<Channel>,
    ) -> impl Future<Output = Result<Streaming<Self::Record>, Status>>;

    /// Asks for what is behind this record.
    fn pass(&mut self, record: &Self::Record);

    /// Whether what is told later is wanted, too.
    fn follows(&self) -> bool;
}

impl Request for v1::EventsRequest {
    type Record = v1::EventRecord;

    async fn open(
        self,
        mut inner: ClientsClient<Channel>,
    ) -> Result<Streaming<v1::EventRecord>, Status> {
        Ok(inner.events(self).await?.into_inner())
    }

    fn pass(&mut self, record: &v1::EventRecord) {
        self.from = record.seq + 1;
    }

    fn follows(&self) -> bool {
        self.follow
    }
}

impl Request for v1::LogsRequest {
    type Record = v1::LogRecord;

    async fn open(
        self,
        mut inner: ClientsClient<Channel>,
    ) -> Result<Streaming<v1::LogRecord>, Status> {
        Ok(inner.logs(self).await?.into_inner())
    }

    fn pass(&mut self, line: &v1::LogRecord) {
        self.from = self.from.max(line.seq + 1);
    }

    fn follows(&self) -> bool {
        self.follow
    }
}

/// Records, one by one.
#[derive(Debug)]
pub(crate) struct Records<R: Request> {
    coordinators: Coordinators,
    /// From the next record on.
    request: R,
    stream: Option<Streaming<R::Record>>,
}

/// A job's events, one by one.
pub(crate) type Events = Records<v1::EventsRequest>;

/// What a job's ranks printed, line by line.
pub(crate) type Logs = Records<v1::LogsRequest>;

impl<R: Request> Records<R> {
    pub(super) fn new(coordinators: Coordinators, request: R) -> Self {
        Self {
            coordinators,
            request,
            stream: None,
        }
    }

    /// The next record, or `None` at the end of what is known, if it does not follow.
    pub(crate) async fn next(&mut self) -> Result<Option<R::Record>, Failure> {
        loop {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => {
                    let open = |inner| self.request.clone().open(inner);
                    self.coordinators.ask(open).await?
                }
            };
            match stream.message().await {
                Ok(Some(record)) => {
                    self.request.pass(&record);
                    self.stream = Some(stream);
                    return Ok(Some(record));
                }
                Ok(None) if !self.request.follows() => return Ok(None),
                Ok(None) => {}
                Err(status) if is_worth_asking_again(&status) => self.coordinators.broke(&status),
                Err(status) => return Err(Failure::failed(status.message())),
            }
            // The coordinator went away in the middle: ask again, but not in a tight loop.
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }
}
