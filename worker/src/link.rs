//! The coordinator's side: a connection for orders and reports and one for records and logs, so that
//! neither waits behind the other; both are opened again whenever one ends.

use std::time::{Duration, Instant};

use muster_cluster::error_chain;
use muster_proto::v1::workers_client::WorkersClient;
use muster_proto::{address, v1};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status, Streaming};

use crate::hub::{Lines, Note, Notes};
use crate::run::Error;

/// The first wait between two attempts; it doubles up to [`MAX_WAIT`].
const MIN_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(2);

/// How often the log says that nobody answers.
const COMPLAIN_EVERY: Duration = Duration::from_secs(5);

/// How long a coordinator may take to agree to a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Log lines that may wait for a slow connection; those beyond are dropped.
const MAX_WAITING_LINES: usize = 4096;

const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The addresses of coordinators, as given.
pub(crate) fn endpoints(join: &[String]) -> Result<Vec<(String, Endpoint)>, Error> {
    let endpoint = |address: &String| match address::endpoint(address) {
        Ok(endpoint) => Ok((address.clone(), endpoint)),
        Err(reason) => Err(Error::BadAddress(reason)),
    };
    join.iter().map(endpoint).collect()
}

/// Keeps a connection to the first coordinator that answers, until `ended`.
pub(crate) async fn keep(
    endpoints: Vec<(String, Endpoint)>,
    notes: Notes,
    ended: CancellationToken,
) {
    let mut wait = MIN_WAIT;
    let mut silent_since = Instant::now();
    let mut complained = None::<Instant>;
    for (address, endpoint) in endpoints.iter().cycle() {
        let outcome = tokio::select! {
            () = ended.cancelled() => return,
            outcome = talk(endpoint, &notes) => outcome,
        };
        let reason = match outcome {
            // It was connected: the next attempt follows at once.
            Ok(reason) => {
                (wait, silent_since, complained) = (MIN_WAIT, Instant::now(), None);
                tracing::warn!(coordinator = %address, reason, "the coordinator's stream ended");
                reason
            }
            Err(reason) => reason,
        };
        if complained.is_none_or(|at| at.elapsed() > COMPLAIN_EVERY) {
            complained = Some(Instant::now());
            let seconds = silent_since.elapsed().as_secs();
            tracing::warn!(coordinator = %address, reason, "the coordinator does not answer since {seconds} s; trying on");
        }
        tokio::select! {
            () = ended.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = (wait * 2).min(MAX_WAIT);
    }
}

/// Both connections, from their opening to the end of one. `Err` when they did not open; both say why.
async fn talk(endpoint: &Endpoint, notes: &Notes) -> Result<String, String> {
    let clients = Clients {
        control: client(endpoint).await?,
        bulk: client(endpoint).await?,
    };
    let (control, from_hub) = mpsc::unbounded_channel();
    let (records, records_from_hub) = mpsc::unbounded_channel();
    let (lines, lines_from_ranks) = mpsc::channel(MAX_WAITING_LINES);
    let up = Note::Connected {
        control,
        records,
        lines: Lines(lines),
    };
    notes.send(up).map_err(|_| "the worker ends".to_owned())?;
    let outcome = converse(clients, notes, from_hub, records_from_hub, lines_from_ranks).await;
    // The worker may be ending.
    let _ = notes.send(Note::Disconnected);
    outcome
}

struct Clients {
    control: WorkersClient<Channel>,
    bulk: WorkersClient<Channel>,
}

async fn client(endpoint: &Endpoint) -> Result<WorkersClient<Channel>, String> {
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| error_chain(&error))?;
    Ok(WorkersClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
}

async fn converse(
    mut clients: Clients,
    notes: &Notes,
    control: mpsc::UnboundedReceiver<v1::from_worker::Message>,
    records: mpsc::UnboundedReceiver<v1::StepRecord>,
    lines: mpsc::Receiver<v1::LogLine>,
) -> Result<String, String> {
    let messages = UnboundedReceiverStream::new(control).map(|message| v1::FromWorker {
        message: Some(message),
    });
    let orders = opened(clients.control.control(messages)).await?;
    let records = UnboundedReceiverStream::new(records).map(|record| v1::BulkItem {
        item: Some(v1::bulk_item::Item::Record(record)),
    });
    let lines = ReceiverStream::new(lines).map(|line| v1::BulkItem {
        item: Some(v1::bulk_item::Item::Log(line)),
    });
    let acks = opened(clients.bulk.bulk(records.merge(lines))).await?;
    Ok(tokio::select! {
        reason = read_orders(orders, notes) => reason,
        reason = read_acks(acks, notes) => reason,
    })
}

/// A stream that was asked for, once the coordinator has agreed. One that takes the connection and
/// says nothing must not keep the worker from trying another.
async fn opened<T>(answer: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_TIMEOUT, answer).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err(format!(
            "it took the connection and said nothing for {} s",
            ANSWER_TIMEOUT.as_secs()
        )),
    }
}

async fn read_orders(mut orders: Streaming<v1::ToWorker>, notes: &Notes) -> String {
    loop {
        match orders.message().await {
            Ok(Some(v1::ToWorker {
                message: Some(message),
            })) => {
                if notes.send(Note::FromCoordinator(message)).is_err() {
                    return "the worker ends".to_owned();
                }
            }
            Ok(Some(_)) => {}
            other => return reason_of(other.map(|_| ())),
        }
    }
}

async fn read_acks(mut acks: Streaming<v1::RecordAck>, notes: &Notes) -> String {
    loop {
        match acks.message().await {
            Ok(Some(ack)) => {
                if notes.send(Note::Ack(ack)).is_err() {
                    return "the worker ends".to_owned();
                }
            }
            other => return reason_of(other.map(|_| ())),
        }
    }
}

fn reason_of(outcome: Result<(), Status>) -> String {
    match outcome {
        Ok(()) => "it was closed".to_owned(),
        Err(status) => status.message().to_owned(),
    }
}
