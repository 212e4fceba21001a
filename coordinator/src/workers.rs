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

use crate::calls::{Call, Handle, orders};
use crate::door::Refusals;
use crate::logs::Logs;

/// Acknowledgements that may wait for one stream.
const MAX_WAITING_ACKS: usize = 64;

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The service.
#[derive(Debug)]
pub(crate) struct WorkersService {
    driver: Handle,
    logs: Logs,
    refusals: Refusals,
    num_sessions: AtomicU64,
}

impl WorkersService {
    pub(crate) fn new(driver: Handle, logs: Logs, refusals: Refusals) -> Self {
        Self {
            driver,
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
        let hello = |answer| Call::Hello {
            session,
            hello,
            orders,
            answer,
        };
        self.driver.ask(hello).await??;
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
        let lead = self.driver.lead();
        let last_word = tokio_stream::once(()).filter_map(move |()| {
            let check = lead.borrow().check();
            check.err().map(Err)
        });
        Ok(Response::new(Box::pin(replies.chain(last_word))))
    }

    async fn bulk(
        &self,
        request: Request<Streaming<v1::BulkItem>>,
    ) -> Result<Response<Self::BulkStream>, Status> {
        let epoch = {
            let lead = self.driver.lead();
            let lead = lead.borrow();
            lead.check()?;
            lead.epoch
        };
        let mut items = request.into_inner();
        let (driver, logs) = (self.driver.clone(), self.logs.clone());
        let mut acks = self.driver.acks.subscribe();
        let handle = self.driver.clone();
        let (sender, receiver) = mpsc::channel(MAX_WAITING_ACKS);
        tokio::spawn(async move {
            let deposed = handle.deposed(epoch);
            tokio::pin!(deposed);
            loop {
                let ack = tokio::select! {
                    ack = acks.recv() => ack,
                    () = sender.closed() => return,
                    status = &mut deposed => {
                        let _ = sender.send(Err(status)).await;
                        return;
                    }
                };
                match ack {
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
                        driver.call(Call::Record { epoch, record }).await
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
