//! The coordinator's side: a connection for orders and reports and one for records and logs, so that
//! neither waits behind the other; both are opened again whenever one ends, at the coordinator that
//! leads. Where that is, [`Route`] says.

use std::time::{Duration, Instant};

use muster_cluster::error_chain;
use muster_proto::leader::{self, Next, Route};
use muster_proto::v1;
use muster_proto::v1::workers_client::WorkersClient;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

use crate::hub::{Lines, Note, Notes};

/// The first wait between two attempts; it doubles up to [`MAX_WAIT`].
const MIN_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(2);

/// How often the log says that nobody answers.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);

/// How long the only coordinator may take to agree to a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Log lines that may wait for a slow connection; those beyond are dropped.
const MAX_WAITING_LINES: usize = 4096;

const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Keeps a connection to the coordinator that leads, until `ended`.
pub(crate) async fn keep(mut route: Route, notes: Notes, ended: CancellationToken) {
    let mut wait = MIN_WAIT;
    let mut silent_since = Instant::now();
    let mut complained = None::<Instant>;
    loop {
        let address = route.current().to_owned();
        let start = Instant::now();
        let outcome = tokio::select! {
            () = ended.cancelled() => return,
            outcome = talk(&route, &notes) => outcome,
        };
        let status = match outcome {
            // It was connected: the next attempt follows soon.
            Ok(status) => {
                (wait, silent_since, complained) = (MIN_WAIT, Instant::now(), None);
                // One that ends each stream as it begins, and names another one, has not led.
                if start.elapsed() > MIN_WAIT {
                    route.answered();
                }
                let reason = status.message();
                tracing::warn!(coordinator = %address, reason, "the coordinator's stream ended");
                status
            }
            Err(status) => status,
        };
        if route.heard(&status) == Next::AtOnce {
            tracing::info!(coordinator = %route.current(), named_by = %address, "goes to the leader");
            continue;
        }
        if complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY) {
            complained = Some(Instant::now());
            let seconds = silent_since.elapsed().as_secs();
            let reason = status.message();
            tracing::warn!(coordinator = %address, reason, "no coordinator takes this worker since {seconds} s; trying on");
        }
        tokio::select! {
            () = ended.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(MAX_WAIT);
    }
}

/// Both connections, from their opening to the end of one. `Err` when they did not open; both say why.
async fn talk(route: &Route, notes: &Notes) -> Result<Status, Status> {
    let endpoint = route.endpoint().map_err(Status::unavailable)?;
    let clients = Clients {
        control: client(&endpoint).await?,
        bulk: client(&endpoint).await?,
        patience: if route.has_others() {
            leader::PATIENCE
        } else {
            ANSWER_TIMEOUT
        },
    };
    let (control, from_hub) = mpsc::unbounded_channel();
    let (records, records_from_hub) = mpsc::unbounded_channel();
    let up = Note::Connected { control, records };
    notes.send(up).map_err(|_| worker_ends())?;
    let outcome = converse(clients, notes, from_hub, records_from_hub).await;
    // The worker may be ending.
    let _ = notes.send(Note::Disconnected);
    outcome
}

fn worker_ends() -> Status {
    Status::cancelled("the worker ends")
}

struct Clients {
    control: WorkersClient<Channel>,
    bulk: WorkersClient<Channel>,
    /// How long it may take to agree to a stream.
    patience: Duration,
}

async fn client(endpoint: &Endpoint) -> Result<WorkersClient<Channel>, Status> {
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| Status::unavailable(error_chain(&error)))?;
    Ok(WorkersClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

async fn converse(
    mut clients: Clients,
    notes: &Notes,
    control: mpsc::UnboundedReceiver<v1::from_worker::Message>,
    records: mpsc::UnboundedReceiver<v1::StepRecord>,
) -> Result<Status, Status> {
    let patience = clients.patience;
    let messages = UnboundedReceiverStream::new(control).map(|message| v1::FromWorker {
        message: Some(message),
    });
    let orders = opened(clients.control.control(messages), patience).await?;
    let records = UnboundedReceiverStream::new(records).map(|record| v1::BulkItem {
        item: Some(v1::bulk_item::Item::Record(record)),
    });
    let (lines, lines_from_ranks) = mpsc::channel(MAX_WAITING_LINES);
    let lines_from_ranks = ReceiverStream::new(lines_from_ranks).map(|line| v1::BulkItem {
        item: Some(v1::bulk_item::Item::Log(line)),
    });
    let items = records.merge(lines_from_ranks);
    let acks = opened(clients.bulk.bulk(items), patience).await?;
    // Only now: lines that are told to one who refuses are lost.
    let listens = Note::Listens(Lines(lines));
    notes.send(listens).map_err(|_| worker_ends())?;
    Ok(tokio::select! {
        status = read_orders(orders, notes) => status,
        status = read_acks(acks, notes) => status,
    })
}

/// A stream that was asked for, once the coordinator has agreed. One that takes the connection and
/// says nothing must not keep the worker from trying another.
async fn opened<T>(
    answer: impl Future<Output = Result<Response<T>, Status>>,
    patience: Duration,
) -> Result<T, Status> {
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::unavailable(format!(
            "it took the connection and said nothing for {} s",
            patience.as_secs()
        ))),
    }
}

async fn read_orders(mut orders: Streaming<v1::ToWorker>, notes: &Notes) -> Status {
    loop {
        match orders.message().await {
            Ok(Some(v1::ToWorker {
                message: Some(message),
            })) => {
                if notes.send(Note::FromCoordinator(message)).is_err() {
                    return worker_ends();
                }
            }
            Ok(Some(_)) => {}
            other => return end_of(other),
        }
    }
}

async fn read_acks(mut acks: Streaming<v1::RecordAck>, notes: &Notes) -> Status {
    loop {
        match acks.message().await {
            Ok(Some(ack)) => {
                if notes.send(Note::Ack(ack)).is_err() {
                    return worker_ends();
                }
            }
            other => return end_of(other),
        }
    }
}

fn end_of<T>(outcome: Result<T, Status>) -> Status {
    match outcome {
        Ok(_) => Status::unavailable("it was closed"),
        Err(status) => status,
    }
}

#[cfg(test)]
mod tests;
