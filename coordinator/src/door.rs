//! Who gets in at the coordinator's port: connections that begin as HTTP/2 does. Everything else is
//! refused before it reaches the services, and counted.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::Connected;

/// The first bytes of every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How much was refused at the coordinator's port: connections, and messages on them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals(Arc<AtomicU64>);

impl Refusals {
    /// Counts one, and says so.
    pub(crate) fn count(&self, from: Option<SocketAddr>, reason: &str) {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        let from = from.map_or_else(|| "an unknown address".to_owned(), |from| from.to_string());
        tracing::warn!(from, reason, count, "refused");
    }

    #[cfg(test)]
    pub(crate) fn num(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The connections to a listener, each of them watched until it has shown that it is HTTP/2.
pub(crate) fn admit(
    listener: TcpListener,
    refusals: Refusals,
) -> impl Stream<Item = io::Result<Guarded>> {
    TcpListenerStream::new(listener).map(move |stream| {
        let stream = stream?;
        // Small orders must not wait for more to come.
        stream.set_nodelay(true)?;
        Ok(Guarded {
            stream,
            num_seen: 0,
            refusals: refusals.clone(),
        })
    })
}

/// A connection whose first bytes are compared with what HTTP/2 begins with.
#[derive(Debug)]
pub(crate) struct Guarded {
    stream: TcpStream,
    /// How many bytes of the preface have come.
    num_seen: usize,
    refusals: Refusals,
}

impl Guarded {
    fn check(&mut self, bytes: &[u8]) -> io::Result<()> {
        let expected = &PREFACE[self.num_seen..];
        let num = bytes.len().min(expected.len());
        if bytes[..num] != expected[..num] {
            let reason = "it does not begin as HTTP/2 does";
            self.refusals.count(self.stream.peer_addr().ok(), reason);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        self.num_seen += num;
        Ok(())
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let checked = self.check(&buffer.filled()[before..]);
        if checked.is_err() {
            // A failed read has read nothing.
            buffer.set_filled(before);
        }
        Poll::Ready(checked)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connected for Guarded {
    type ConnectInfo = <TcpStream as Connected>::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What a reader behind the door gets of these bytes, and how many refusals were counted.
    async fn read(bytes: &[u8]) -> (io::Result<Vec<u8>>, u64) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let refusals = Refusals::default();
        let mut connections = Box::pin(admit(listener, refusals.clone()));
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(bytes).await.unwrap();
        client.shutdown().await.unwrap();
        let mut guarded = connections.next().await.unwrap().unwrap();
        let mut got = Vec::new();
        let outcome = guarded.read_to_end(&mut got).await;
        (outcome.map(|_| got), refusals.num())
    }

    #[tokio::test]
    async fn http_2_gets_in_and_everything_else_is_counted() {
        let good = [PREFACE, &[7; 100][..]].concat();
        let (got, num) = read(&good).await;
        assert_eq!((got.unwrap(), num), (good, 0));
        for bad in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            &[0xff; 64],
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r!",
        ] {
            let (got, num) = read(bad).await;
            assert_eq!(
                (got.unwrap_err().kind(), num),
                (io::ErrorKind::InvalidData, 1)
            );
        }
        // A connection that ends early broke no rule.
        assert_eq!(read(&PREFACE[..5]).await.1, 0);
    }
}
