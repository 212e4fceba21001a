//! The ranks' side: a loopback port where the processes that this worker started show their token,
//! and then say and hear what concerns them.

use std::io;
use std::time::Duration;

use muster_proto::{frame, v1};
use muster_worker_core::agent::place;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::hub::{Note, Notes};

/// How long a connection may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait after a connection could not be accepted, instead of spinning.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(100);

/// Admits connections until `ended`.
pub(crate) async fn admit(listener: TcpListener, notes: Notes, ended: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = ended.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (notes, ended) = (notes.clone(), ended.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        () = ended.cancelled() => {}
                        () = serve(stream, notes) => {}
                    }
                });
            }
            Err(error) => {
                // Mostly too many open files. Nobody tells when one is closed.
                tracing::warn!(%error, "a rank's connection could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY_WAIT).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, notes: Notes) {
    let refused = |reason: String| {
        tracing::warn!(reason, "a connection to the ranks' port was refused");
        let _ = notes.send(Note::Stranger);
    };
    let _ = stream.set_nodelay(true);
    let (mut reading, writing) = stream.into_split();
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, read(&mut reading)).await {
        Ok(Ok(Some(v1::FromRank {
            message: Some(v1::from_rank::Message::Hello(hello)),
        }))) => hello,
        Ok(Ok(_)) => return refused("it did not begin with a hello".to_owned()),
        Ok(Err(error)) => return refused(error.to_string()),
        Err(_) => return refused(format!("it said nothing for {} s", HELLO_TIMEOUT.as_secs())),
    };
    let (Some(key), is_bulk) = (hello.key.clone(), hello.bulk) else {
        return refused("its hello names no rank".to_owned());
    };
    let (sender, messages) = mpsc::unbounded_channel();
    let (admitted, answer) = oneshot::channel();
    let knock = Note::Knock {
        key: key.clone(),
        token: hello.token,
        is_bulk,
        is_new: hello.is_new,
        sender,
        admitted,
    };
    if notes.send(knock).is_err() || !answer.await.unwrap_or(false) {
        return refused(format!(
            "no process {} of job {:?} with this token was started here",
            key.process, key.job
        ));
    }
    tokio::spawn(write(writing, messages));
    // Which world it is in changes while the connection lives.
    let is_its_own =
        |said: Option<&v1::RankKey>| said.is_some_and(|said| place(said) == place(&key));
    loop {
        let message = match read(&mut reading).await {
            Ok(Some(message)) => message.message,
            Ok(None) => return,
            Err(error) => {
                return refused(format!(
                    "process {} of job {:?}: {error}",
                    key.process, key.job
                ));
            }
        };
        let note = match message {
            Some(v1::from_rank::Message::Report(report)) if is_its_own(report.key.as_ref()) => {
                Note::FromRank(report)
            }
            Some(v1::from_rank::Message::Record(record)) if is_its_own(record.key.as_ref()) => {
                Note::Record(record)
            }
            _ => {
                let _ = notes.send(Note::Stranger);
                continue;
            }
        };
        if notes.send(note).is_err() {
            return;
        }
    }
}

/// Sends what comes; the connection closes when nobody can send any more.
async fn write(
    mut writing: OwnedWriteHalf,
    mut messages: mpsc::UnboundedReceiver<v1::to_rank::Message>,
) {
    while let Some(message) = messages.recv().await {
        let bytes = frame::encode(&v1::ToRank {
            message: Some(message),
        });
        if writing.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

async fn read(stream: &mut OwnedReadHalf) -> io::Result<Option<v1::FromRank>> {
    let mut prefix = [0; 4];
    if stream.read(&mut prefix[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[1..]).await?;
    let len = frame::check_len(prefix)?;
    // A length is a claim: what is allocated grows with what came.
    let mut bytes = Vec::new();
    let read = stream.take(len as u64).read_to_end(&mut bytes).await?;
    if read < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    v1::FromRank::decode(&bytes[..])
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
