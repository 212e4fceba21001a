//! The other members, as this one speaks to them: a bounded queue and a connection each. What is said
//! may be lost: consensus says it again. Who they are follows from the log.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use muster_cluster::error_chain;
use muster_coordinator_core::Members;
use muster_coordinator_core::consensus::ReplicaId;
use muster_proto::v1::coordinators_client::CoordinatorsClient;
use muster_proto::{address, v1};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::calls::Handle;
use crate::driver::Note;
use crate::logs::Logs;
use crate::records::Records;

mod receive;
mod send;

pub(crate) use receive::CoordinatorsService;
pub(crate) use send::{PIECE_BYTES, Pieces};

/// Messages that may wait for a connection. Beyond, they are dropped.
const MAX_WAITING_MESSAGES: usize = 4096;

/// Messages that share a frame.
const MAX_FRAME_MESSAGES: usize = 256;
const MAX_FRAME_BYTES: usize = 4 << 20;

/// Between two attempts to connect; it doubles from the first to the second.
const MIN_WAIT: Duration = Duration::from_millis(20);
const MAX_WAIT: Duration = Duration::from_millis(500);

/// How long a connection between members may take to open.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the other end is asked whether it is there, and how long it may take to say so: a
/// connection that a partition cut must not be waited for when the partition is over.
const PING_INTERVAL: Duration = Duration::from_millis(500);
const PING_TIMEOUT: Duration = Duration::from_millis(1500);

/// The key of a refusal's metadata that says that the one who is refused must end.
const FINAL: &str = "muster-refused";

/// Another member does not listen to this one.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) reason: String,
    /// Whether this one is wrong, whatever it knows.
    pub(crate) is_final: bool,
}

/// The other members.
pub(crate) struct Peers {
    notes: mpsc::UnboundedSender<Note>,
    records: Records,
    logs: Logs,
    snapshots: PathBuf,
    all: BTreeMap<ReplicaId, Peer>,
    addresses: BTreeMap<ReplicaId, String>,
    handle: Option<Handle>,
}

struct Peer {
    address: String,
    messages: mpsc::Sender<Vec<u8>>,
    connection: AbortHandle,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Peers {
    /// Nobody yet.
    pub(crate) fn new(
        notes: mpsc::UnboundedSender<Note>,
        records: Records,
        logs: Logs,
        snapshots: PathBuf,
    ) -> Self {
        Self {
            notes,
            records,
            logs,
            snapshots,
            all: BTreeMap::new(),
            addresses: BTreeMap::new(),
            handle: None,
        }
    }

    /// Connections may open from now on.
    pub(crate) fn start(&mut self, handle: Handle) {
        self.handle = Some(handle);
    }

    /// Where a member is reached.
    pub(crate) fn address_of(&self, id: ReplicaId) -> Option<String> {
        self.addresses.get(&id).cloned()
    }

    /// The members are these now.
    pub(crate) fn are(&mut self, me: ReplicaId, members: &Members) {
        let members = members.iter();
        self.addresses = members
            .map(|(id, member)| (id, member.address.clone()))
            .collect();
        let Some(handle) = &self.handle else { return };
        let addresses = &self.addresses;
        self.all
            .retain(|id, peer| addresses.get(id) == Some(&peer.address));
        for (id, address) in addresses {
            if *id != me && !self.all.contains_key(id) {
                let (messages, receiver) = mpsc::channel(MAX_WAITING_MESSAGES);
                let connection = Connection {
                    to: *id,
                    address: address.clone(),
                    handle: handle.clone(),
                    notes: self.notes.clone(),
                    logs: self.logs.clone(),
                };
                let peer = Peer {
                    address: address.clone(),
                    messages,
                    connection: tokio::spawn(connection.keep(receiver)).abort_handle(),
                };
                self.all.insert(*id, peer);
            }
        }
    }

    /// Says something to a member; false where it cannot be said now.
    pub(crate) fn send(&self, to: ReplicaId, bytes: Vec<u8>) -> bool {
        let peer = self.all.get(&to);
        peer.is_none_or(|peer| peer.messages.try_send(bytes).is_ok())
    }

    /// Sends a snapshot, and then the message that came with it.
    pub(crate) fn send_snapshot(
        &self,
        to: ReplicaId,
        hello: v1::PeerHello,
        index: u64,
        message: Vec<u8>,
    ) {
        let sending = send::Sending {
            address: self.address_of(to).unwrap_or_default(),
            hello,
            index,
            message,
            snapshots: self.snapshots.clone(),
            records: self.records.clone(),
        };
        let notes = self.notes.clone();
        tracing::info!(peer = to.0, index, "sends a snapshot");
        tokio::spawn(async move {
            let sent = sending.run().await;
            if let Err(reason) = &sent {
                tracing::warn!(peer = to.0, index, reason, "a snapshot was not taken");
            }
            let is_there = sent.is_ok();
            // The driver may have ended.
            let _ = notes.send(Note::SnapshotSent { to, is_there });
        });
    }
}

/// The connection to one member.
struct Connection {
    to: ReplicaId,
    address: String,
    handle: Handle,
    notes: mpsc::UnboundedSender<Note>,
    logs: Logs,
}

impl Connection {
    async fn keep(self, mut messages: mpsc::Receiver<Vec<u8>>) {
        let mut wait = MIN_WAIT;
        loop {
            let began = tokio::time::Instant::now();
            match self.talk(&mut messages).await {
                // This coordinator ends, or the member is somewhere else.
                Ok(()) => return,
                Err(reason) => {
                    tracing::debug!(
                        peer = self.to.0,
                        address = self.address,
                        reason,
                        "a member is not reached"
                    );
                }
            }
            if began.elapsed() > MAX_WAIT {
                wait = MIN_WAIT;
            }
            let _ = self.notes.send(Note::Unreachable(self.to));
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(MAX_WAIT);
            // What waited meanwhile is out of date.
            while messages.try_recv().is_ok() {}
        }
    }

    async fn talk(&self, messages: &mut mpsc::Receiver<Vec<u8>>) -> Result<(), String> {
        let to = self.to;
        let Ok(hello) = self
            .handle
            .look(true, move |coordinator, _| coordinator.hello_to(to))
            .await
        else {
            return Ok(());
        };
        let mut client = connect(&self.address).await?;
        let (frames, receiver) = mpsc::channel(4);
        let first = v1::PeerFrame {
            frame: Some(v1::peer_frame::Frame::Hello(hello)),
        };
        // The queue is new and empty.
        let _ = frames.try_send(first);
        let exchange = client.exchange(ReceiverStream::new(receiver));
        tokio::pin!(exchange);
        let mut lines = self.logs.taken();
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                ended = &mut exchange => return Err(self.ended(ended)),
                line = lines.recv() => {
                    // Those that it is too slow for are lost, as any line may be.
                    if let Ok((job, record)) = line {
                        let line = v1::PeerLine { job, record: Some(record) };
                        let frame = Some(v1::peer_frame::Frame::Line(line));
                        let _ = frames.try_send(v1::PeerFrame { frame });
                    }
                }
                num = messages.recv_many(&mut batch, MAX_FRAME_MESSAGES) => {
                    if num == 0 {
                        return Ok(());
                    }
                    for frame in framed(batch.drain(..)) {
                        tokio::select! {
                            ended = &mut exchange => return Err(self.ended(ended)),
                            _ = frames.send(frame) => {}
                        }
                    }
                }
            }
        }
    }

    fn ended(&self, outcome: Result<Response<v1::PeerReply>, Status>) -> String {
        let Err(status) = outcome else {
            return "the connection was closed".to_owned();
        };
        if let Some(refused) = refusal_of(&status) {
            let _ = self.notes.send(Note::Refused(self.to, refused));
        }
        reason_of(&status)
    }
}

/// Messages in frames of a few megabytes at most, if no message is larger.
fn framed(messages: impl Iterator<Item = Vec<u8>>) -> Vec<v1::PeerFrame> {
    let mut frames: Vec<(usize, Vec<Vec<u8>>)> = Vec::new();
    for message in messages {
        match frames.last_mut() {
            Some((num_bytes, frame)) if *num_bytes + message.len() <= MAX_FRAME_BYTES => {
                *num_bytes += message.len();
                frame.push(message);
            }
            _ => frames.push((message.len(), vec![message])),
        }
    }
    let frame = |(_, messages)| v1::PeerFrame {
        frame: Some(v1::peer_frame::Frame::Messages(v1::PeerMessages {
            messages,
        })),
    };
    frames.into_iter().map(frame).collect()
}

async fn connect(to: &str) -> Result<CoordinatorsClient<Channel>, String> {
    let endpoint = address::endpoint(to)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    let channel = endpoint.connect().await;
    let channel = channel.map_err(|error| error_chain(&error))?;
    Ok(CoordinatorsClient::new(channel).max_decoding_message_size(crate::serve::MAX_MESSAGE_BYTES))
}

fn reason_of(status: &Status) -> String {
    status.message().to_owned()
}

/// What a member says of why it does not listen; `None` where the connection just broke.
fn refusal_of(status: &Status) -> Option<Refused> {
    let is_final = status.metadata().get(FINAL)? == "final";
    Some(Refused {
        reason: status.message().to_owned(),
        is_final,
    })
}
