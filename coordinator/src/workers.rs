//! The service for workers: one stream for control, one for records and logs. Passes on what comes
//! in, and carries no state but who is connected.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};

use muster_coordinator_core::{Input, Session};
use muster_proto::v1;
use muster_proto::v1::workers_server::Workers;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use v1::from_worker::Message as From;

use crate::door::Refusals;
use crate::driver::{Call, Ended, Handle, orders};
use crate::logs::Logs;
use crate::records::Records;

/// Acknowledgements that may wait for one stream.
const MAX_WAITING_ACKS: usize = 64;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Debug)]
pub(crate) struct WorkersService {
    driver: Handle,
    records: Records,
    logs: Logs,
    refusals: Refusals,
    num_sessions: AtomicU64,
}

impl WorkersService {
    pub(crate) fn new(driver: Handle, records: Records, logs: Logs, refusals: Refusals) -> Self {
        Self {
            driver,
            records,
            logs,
            refusals,
            num_sessions: AtomicU64::new(0),
        }
    }
}

#[tonic::async_trait]
impl Workers for WorkersService {
    type ControlStream = Replies<v1::ToWorker>;
    type BulkStream = Replies<v1::RecordAck>;

    async fn control(
        &self,
        request: Request<Streaming<v1::FromWorker>>,
    ) -> Result<Response<Self::ControlStream>, Status> {
        let from = request.remote_addr();
        let mut messages = request.into_inner();
        let first = match messages.message().await {
            Ok(first) => first.and_then(|first| first.message),
            Err(status) => {
                self.refusals.count(from, status.message());
                return Err(status);
            }
        };
        let Some(From::Hello(hello)) = first else {
            let expected =
                "the first message of a control stream must be a hello with the worker's name";
            self.refusals.count(from, expected);
            return Err(Status::invalid_argument(expected));
        };
        let session = Session(self.num_sessions.fetch_add(1, Ordering::Relaxed) + 1);
        let (orders, receiver) = orders();
        self.driver
            .call(Call::Hello {
                session,
                hello,
                orders,
            })
            .await
            .map_err(ended)?;
        let driver = self.driver.clone();
        tokio::spawn(async move {
            // It ends with the stream, whoever ended it.
            while let Ok(Some(message)) = messages.message().await {
                let Some(message) = message.message else {
                    continue;
                };
                let input = Input::FromWorker { session, message };
                if driver.call(Call::Input(input)).await.is_err() {
                    return;
                }
            }
            let _ = driver
                .call(Call::Input(Input::WorkerGone { session }))
                .await;
        });
        let replies = ReceiverStream::new(receiver).map(|message| {
            Ok(v1::ToWorker {
                message: Some(message),
            })
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn bulk(
        &self,
        request: Request<Streaming<v1::BulkItem>>,
    ) -> Result<Response<Self::BulkStream>, Status> {
        let mut items = request.into_inner();
        let (driver, logs) = (self.driver.clone(), self.logs.clone());
        let mut acks = self.records.acks();
        let (sender, receiver) = mpsc::channel(MAX_WAITING_ACKS);
        tokio::spawn(async move {
            loop {
                match acks.recv().await {
                    Ok(ack) => {
                        if sender.send(Ok(ack)).await.is_err() {
                            return;
                        }
                    }
                    Err(RecvError::Lagged(_)) => {
                        let behind = Status::resource_exhausted("too far behind; connect again");
                        let _ = sender.send(Err(behind)).await;
                        return;
                    }
                    Err(RecvError::Closed) => return,
                }
            }
        });
        tokio::spawn(async move {
            while let Ok(Some(item)) = items.message().await {
                let taken = match item.item {
                    Some(v1::bulk_item::Item::Record(record)) => {
                        driver.call(Call::Input(Input::Record(record))).await
                    }
                    Some(v1::bulk_item::Item::Log(line)) => {
                        logs.append(&line).await;
                        Ok(())
                    }
                    None => Ok(()),
                };
                if taken.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

pub(crate) fn ended(_: Ended) -> Status {
    Status::unavailable("the coordinator is shutting down; try again")
}
