//! A snapshot on its way to a member that is too far behind for the log, in pieces, with what the
//! member lacks of the events.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use muster_proto::v1;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, Take};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use v1::snapshot_piece::Piece;

use super::{connect, reason_of};
use crate::driver::lengths_of;
use crate::records::{self, Records};
use crate::snapshots;

/// Bytes of a piece.
pub(crate) const PIECE_BYTES: usize = 256 << 10;

/// Pieces that may wait for the connection.
const MAX_WAITING_PIECES: usize = 4;

/// What is to be sent, and where.
pub(super) struct Sending {
    pub(super) address: String,
    pub(super) hello: v1::PeerHello,
    pub(super) index: u64,
    pub(super) message: Vec<u8>,
    pub(super) snapshots: PathBuf,
    pub(super) records: Records,
}

impl Sending {
    /// Sends it; an error says why it did not arrive.
    pub(super) async fn run(self) -> Result<(), String> {
        let (folder, index) = (self.snapshots.clone(), self.index);
        let snapshot = tokio::task::spawn_blocking(move || snapshots::load(&folder, index));
        let snapshot = snapshot.await.map_err(|error| error.to_string())?;
        let snapshot = snapshot.map_err(|error| muster_cluster::error_chain(&error))?;
        let lengths = lengths_of(&snapshot);
        drop(snapshot);
        let mut client = connect(&self.address).await?;
        let events = lengths.iter().map(|(job, bytes)| v1::EventBytes {
            job: job.clone(),
            bytes: *bytes,
        });
        let offer = v1::SnapshotOffer {
            hello: Some(self.hello.clone()),
            index,
            events: events.collect(),
        };
        let wants = client.offer(offer).await;
        let wants = wants.map_err(|status| reason_of(&status))?.into_inner();
        let (pieces, receiver) = mpsc::channel(MAX_WAITING_PIECES);
        let send = client.send(ReceiverStream::new(receiver));
        let (sent, fed) = tokio::join!(send, self.feed(wants, &lengths, pieces));
        sent.map_err(|status| reason_of(&status))?;
        fed
    }

    async fn feed(
        &self,
        wants: v1::SnapshotWants,
        lengths: &records::Lengths,
        pieces: mpsc::Sender<v1::SnapshotPiece>,
    ) -> Result<(), String> {
        let give = async |piece| {
            let piece = v1::SnapshotPiece { piece: Some(piece) };
            // The other end says why it wants no more.
            pieces
                .send(piece)
                .await
                .map_err(|_| "the stream ended".to_owned())
        };
        let io = |error: io::Error| error.to_string();
        give(Piece::Head(v1::SnapshotHead {
            hello: Some(self.hello.clone()),
            index: self.index,
            term: 0,
        }))
        .await?;
        let path = snapshots::path_of(&self.snapshots, self.index);
        let mut pieces = Pieces::open(&path, 0..u64::MAX).await.map_err(io)?;
        while let Some((_, bytes)) = pieces.next().await.map_err(io)? {
            give(Piece::File(bytes)).await?;
        }
        for want in wants.from {
            let end = lengths.get(&want.job).copied().unwrap_or_default();
            let path = records::path_of(self.records.folder(), &want.job);
            let mut pieces = Pieces::open(&path, want.bytes..end).await.map_err(io)?;
            while let Some((offset, bytes)) = pieces.next().await.map_err(io)? {
                let job = want.job.clone();
                give(Piece::Events(v1::EventPiece { job, offset, bytes })).await?;
            }
        }
        give(Piece::Message(self.message.clone())).await
    }
}

/// A part of a file, as far as there is any, in pieces.
pub(crate) struct Pieces {
    file: Take<File>,
    offset: u64,
}

impl Pieces {
    pub(crate) async fn open(path: &Path, part: Range<u64>) -> io::Result<Self> {
        let mut file = File::open(path).await?;
        file.seek(io::SeekFrom::Start(part.start)).await?;
        Ok(Self {
            file: file.take(part.end.saturating_sub(part.start)),
            offset: part.start,
        })
    }

    /// The next one, and where it begins in the file.
    pub(crate) async fn next(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        let mut bytes = vec![0; PIECE_BYTES];
        let num = self.file.read(&mut bytes).await?;
        bytes.truncate(num);
        let offset = self.offset;
        self.offset += num as u64;
        Ok((num > 0).then_some((offset, bytes)))
    }
}
