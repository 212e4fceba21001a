//! The service for other members: what they say, and the snapshots that they send.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use muster_coordinator_core::Snapshot;
use muster_coordinator_core::consensus::ReplicaId;
use muster_coordinator_core::coordinator::Stranger;
use muster_proto::v1;
use muster_proto::v1::coordinators_server::Coordinators;
use tokio::sync::{Mutex, oneshot};
use tonic::{Request, Response, Status, Streaming};
use v1::peer_frame::Frame;
use v1::snapshot_piece::Piece;

use super::FINAL;
use crate::calls::{Ended, Handle, PeerCall};
use crate::driver::lengths_of;
use crate::identity::write_durably;
use crate::logs::Logs;
use crate::records::{Records, Staged, staging_folder};
use crate::snapshots;

/// The service.
#[derive(Debug)]
pub(crate) struct CoordinatorsService {
    driver: Handle,
    records: Records,
    logs: Logs,
    snapshots: PathBuf,
    /// One snapshot at a time.
    receiving: Arc<Mutex<()>>,
}

impl CoordinatorsService {
    pub(crate) fn new(driver: Handle, records: Records, logs: Logs, snapshots: PathBuf) -> Self {
        Self {
            driver,
            records,
            logs,
            snapshots,
            receiving: Arc::new(Mutex::new(())),
        }
    }

    /// Lets a member speak, or says why not.
    async fn admit(&self, hello: Option<v1::PeerHello>) -> Result<ReplicaId, Status> {
        let Some(hello) = hello else {
            return Err(Status::invalid_argument(
                "the first message of a member must be its hello",
            ));
        };
        let speaker = hello.from.as_ref().map_or(0, |from| from.id);
        let (answer, receiver) = oneshot::channel();
        self.driver
            .peer_call(PeerCall::Hello { hello, answer })
            .await?;
        match receiver.await.map_err(|_| Ended)? {
            Ok(member) => Ok(ReplicaId(member.id)),
            Err(stranger) => {
                tracing::warn!(peer = speaker, reason = %stranger, "a member is refused");
                Err(refusal(speaker, &stranger))
            }
        }
    }
}

/// What a member is told that is not listened to.
fn refusal(speaker: u64, stranger: &Stranger) -> Status {
    let is_final = match stranger {
        Stranger::OtherDisk { id } | Stranger::NoMember(id) => *id == speaker,
        Stranger::OtherCluster { .. } | Stranger::NotMe { .. } => false,
    };
    let mut status = Status::failed_precondition(stranger.to_string());
    let word = if is_final { "final" } else { "now" };
    if let Ok(word) = word.parse() {
        status.metadata_mut().insert(FINAL, word);
    }
    status
}

#[tonic::async_trait]
impl Coordinators for CoordinatorsService {
    async fn exchange(
        &self,
        request: Request<Streaming<v1::PeerFrame>>,
    ) -> Result<Response<v1::PeerReply>, Status> {
        let mut frames = request.into_inner();
        let first = frames.message().await?.and_then(|first| first.frame);
        let hello = match first {
            Some(Frame::Hello(hello)) => Some(hello),
            _ => None,
        };
        let from = self.admit(hello).await?;
        while let Some(frame) = frames.message().await? {
            match frame.frame {
                Some(Frame::Messages(v1::PeerMessages { messages })) => {
                    let call = PeerCall::Messages { from, messages };
                    self.driver.peer_call(call).await?;
                }
                Some(Frame::Line(line)) => self.logs.keep(line).await,
                Some(Frame::Hello(_)) | None => {}
            }
        }
        Ok(Response::new(v1::PeerReply {}))
    }

    async fn offer(
        &self,
        request: Request<v1::SnapshotOffer>,
    ) -> Result<Response<v1::SnapshotWants>, Status> {
        let offer = request.into_inner();
        self.admit(offer.hello).await?;
        self.records.written().await;
        let mine = self.records.lengths();
        let wants = offer.events.into_iter().filter_map(|offered| {
            let bytes = mine.get(&offered.job).copied().unwrap_or_default();
            let job = offered.job;
            (bytes < offered.bytes).then_some(v1::EventBytes { job, bytes })
        });
        let from = wants.collect();
        Ok(Response::new(v1::SnapshotWants { from }))
    }

    async fn send(
        &self,
        request: Request<Streaming<v1::SnapshotPiece>>,
    ) -> Result<Response<v1::PeerReply>, Status> {
        let mut pieces = request.into_inner();
        let first = pieces.message().await?.and_then(|first| first.piece);
        let Some(Piece::Head(head)) = first else {
            return Err(Status::invalid_argument("a snapshot begins with its head"));
        };
        let index = head.index;
        let from = self.admit(head.hello).await?;
        let Ok(_receiving) = self.receiving.try_lock() else {
            return Err(Status::unavailable("another snapshot is arriving"));
        };
        tracing::info!(peer = from.0, index, "receives a snapshot");
        let failed =
            |error: io::Error| Status::internal(format!("the snapshot cannot be kept: {error}"));
        let staging = staging_folder(self.records.folder(), index);
        let mut arriving = Arriving::new(staging).map_err(failed)?;
        let message = loop {
            let Some(piece) = pieces.message().await? else {
                return Err(Status::invalid_argument(
                    "the snapshot ended before its end",
                ));
            };
            match piece.piece {
                Some(Piece::Message(message)) => break message,
                Some(piece) => arriving.take(piece).map_err(failed)?,
                None => {}
            }
        };
        let folder = self.snapshots.clone();
        let kept = tokio::task::spawn_blocking(move || arriving.keep(&folder, index)).await;
        let kept = kept.map_err(|error| Status::internal(error.to_string()))?;
        let snapshot = Box::new(kept.map_err(Status::data_loss)?);
        let call = PeerCall::Snapshot {
            from,
            bytes: message,
            snapshot,
        };
        self.driver.peer_call(call).await?;
        Ok(Response::new(v1::PeerReply {}))
    }
}

/// A snapshot that is arriving.
struct Arriving {
    staging: PathBuf,
    /// The bytes of its file.
    file: Vec<u8>,
    /// The files of events: where each began, and how long it is with that.
    events: BTreeMap<String, (u64, u64)>,
}

impl Arriving {
    fn new(staging: PathBuf) -> io::Result<Self> {
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::create_dir_all(&staging)?;
        Ok(Self {
            staging,
            file: Vec::new(),
            events: BTreeMap::new(),
        })
    }

    fn take(&mut self, piece: Piece) -> io::Result<()> {
        match piece {
            Piece::File(bytes) => self.file.extend(bytes),
            Piece::Events(v1::EventPiece { job, offset, bytes }) => {
                // The name becomes a file's.
                if muster_proto::convert::job_name(&job).is_err() {
                    return Err(io::Error::other(format!("{job:?} is no job")));
                }
                let (start, end) = self.events.entry(job.clone()).or_insert((offset, offset));
                if *end != offset {
                    return Err(io::Error::other(format!(
                        "events of {job} have a gap at byte {end}"
                    )));
                }
                let path = self.staging.join(Staged::name(&job, *start));
                let mut file = fs::OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(path)?;
                file.write_all(&bytes)?;
                *end += bytes.len() as u64;
            }
            Piece::Head(_) | Piece::Message(_) => {}
        }
        Ok(())
    }

    /// Makes it durable, if it is whole; an error says what is wrong.
    fn keep(self, folder: &std::path::Path, index: u64) -> Result<Snapshot, String> {
        let snapshot = snapshots::parse(&self.file)?;
        let lengths = lengths_of(&snapshot);
        for (job, (_, end)) in &self.events {
            if lengths.get(job) != Some(end) {
                return Err(format!("the events of {job} end at byte {end}"));
            }
        }
        let io = |error: io::Error| error.to_string();
        let synced = fs::File::open(&self.staging).and_then(|staging| {
            rustix::fs::syncfs(staging)?;
            Ok(())
        });
        synced.map_err(io)?;
        write_durably(&snapshots::path_of(folder, index), &self.file).map_err(io)?;
        Ok(snapshot)
    }
}
