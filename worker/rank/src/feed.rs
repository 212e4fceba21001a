//! How a process feeds those that follow it: it listens, and serves each follower from threads of their
//! own. What is given to whom is decided in [`muster_worker_core::feed`].

pub(crate) mod wire;

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use muster_cluster::ids::ProcessId;
use muster_collective::tcp::Token;
use muster_collective::tcp::seal::HANDSHAKE_BYTES;
use muster_proto::v1;
use muster_trainer::{DeviceError, Head, Trainer};
use muster_worker_core::feed::{Feed, Item, Ticket};

use crate::last::Last;
use crate::shared::Shared;
use wire::{BadBytes, Frame, Handshake, Kind};

/// A follower speaks at once; who is silent for longer is a stranger.
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// A follower that takes nothing at all for so long is let go.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause when the system gives no connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// More connections than this are refused.
const MAX_CONNECTIONS: usize = 256;

/// The steps that may wait for a follower: so many at most, and at least these few, and in between so
/// many bytes.
const MAX_WAITING: usize = 64;
const MIN_WAITING: usize = 4;
const MAX_WAITING_BYTES: usize = 512 << 20;

/// What the handshakes of one process compare.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Badge {
    pub(crate) token: Token,
    pub(crate) history: u64,
    pub(crate) process: u64,
    /// A follower hears something four times in so long.
    pub(crate) detect: Duration,
}

/// A share of a state, and for which attempt.
#[derive(Debug)]
struct Share {
    attempt: u64,
    head: Head,
    values: Vec<f32>,
    /// Of the steps up to it, what is not known to be durable, and behind which record.
    records: Vec<v1::StepRecord>,
    acked: (u64, bool),
}

/// What the threads share that feed.
#[derive(Debug)]
pub(crate) struct Hub {
    feed: Mutex<Feed<Share, Arc<Last>>>,
    changed: Condvar,
    num_connections: AtomicU64,
    num_refused: AtomicU64,
}

impl Hub {
    /// Listens on `host`; the second is where.
    pub(crate) fn start(
        host: IpAddr,
        badge: Badge,
        num_elements: usize,
    ) -> io::Result<(Arc<Self>, SocketAddr)> {
        let listener = TcpListener::bind((host, 0))?;
        let address = listener.local_addr()?;
        let bytes = num_elements.saturating_mul(size_of::<f32>()).max(1);
        let max_waiting = (MAX_WAITING_BYTES / bytes).clamp(MIN_WAITING, MAX_WAITING);
        let hub = Arc::new(Self {
            feed: Mutex::new(Feed::new(max_waiting)),
            changed: Condvar::new(),
            num_connections: AtomicU64::new(0),
            num_refused: AtomicU64::new(0),
        });
        let of_thread = Arc::clone(&hub);
        thread::Builder::new()
            .name("feed".to_owned())
            .spawn(move || of_thread.accept(&listener, badge))?;
        Ok((hub, address))
    }

    fn lock(&self) -> MutexGuard<'_, Feed<Share, Arc<Last>>> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tickets that are held here, for the note of the next step.
    pub(crate) fn tickets(&self) -> Vec<Ticket> {
        self.lock().tickets()
    }

    /// Copies the shares that all agreed on behind this step.
    ///
    /// # Errors
    /// When the device that has the state cannot be read.
    pub(crate) fn copy(
        &self,
        tickets: &[Ticket],
        trainer: &Trainer,
        shared: &Shared,
    ) -> Result<(), DeviceError> {
        let agreed = self.lock().agreed(tickets);
        if agreed.is_empty() {
            return Ok(());
        }
        let (records, acked) = shared.tell(|machine| {
            let records: Vec<_> = machine.unacked().cloned().collect();
            (records, machine.last_acked())
        });
        for (connection, ticket) in agreed {
            let (place, count) = (usize::from(ticket.part), usize::from(ticket.parts));
            let range = share(trainer.num_state_values(), place, count);
            let share = Share {
                attempt: ticket.attempt,
                head: trainer.head(),
                values: trainer.values(range)?,
                records: records.clone(),
                acked,
            };
            self.lock().give(connection, ticket, share);
        }
        self.changed.notify_all();
        Ok(())
    }

    /// A step is applied here, or is about to be.
    pub(crate) fn applied(&self, last: &Arc<Last>) {
        let slow = self.lock().applied(last.step, last);
        if !slow.is_empty() {
            tracing::warn!(step = last.step, "a process is too slow to follow");
        }
        self.changed.notify_all();
    }

    /// Another world begins.
    pub(crate) fn entered(&self) {
        self.lock().entered();
        self.changed.notify_all();
    }

    /// The state is another one.
    pub(crate) fn restarted(&self, step: u64) {
        self.lock().restarted(step);
        self.changed.notify_all();
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener, badge: Badge) {
        let mut connection = 0;
        loop {
            let Ok((stream, _)) = listener.accept() else {
                thread::sleep(ACCEPT_PAUSE);
                continue;
            };
            let count = self.num_connections.fetch_add(1, Ordering::SeqCst);
            connection += 1;
            let hub = Arc::clone(self);
            let is_served = count < MAX_CONNECTIONS as u64
                && thread::Builder::new()
                    .name("follower".to_owned())
                    .spawn(move || {
                        hub.serve(connection, &stream, badge);
                        hub.num_connections.fetch_sub(1, Ordering::SeqCst);
                    })
                    .is_ok();
            if !is_served {
                self.num_connections.fetch_sub(1, Ordering::SeqCst);
                self.refuse(&BadBytes::Foreign);
            }
        }
    }

    fn refuse(&self, error: &dyn std::error::Error) {
        let count = self.num_refused.fetch_add(1, Ordering::SeqCst) + 1;
        tracing::debug!(%error, count, "a connection to the feed is refused");
    }

    /// Serves one follower until its connection ends.
    fn serve(self: &Arc<Self>, connection: u64, stream: &TcpStream, badge: Badge) {
        let follower = match admit(stream, badge) {
            Ok(follower) => follower,
            Err(error) => return self.refuse(&error),
        };
        self.lock().connected(connection);
        let sender = stream.try_clone().and_then(|stream| {
            let hub = Arc::clone(self);
            thread::Builder::new()
                .name("feeding".to_owned())
                .spawn(move || {
                    if let Err(error) = hub.send(connection, &stream, badge.detect / 4) {
                        tracing::debug!(%error, "a follower is lost");
                    }
                    let _ = stream.shutdown(Shutdown::Both);
                })
        });
        if sender.is_ok() {
            let mut reading = stream;
            while let Ok(Frame::Ask(ask)) = Frame::read(&mut reading, follower) {
                self.lock().asked(connection, ask);
                self.changed.notify_all();
            }
        }
        self.lock().gone(connection);
        self.changed.notify_all();
        let _ = stream.shutdown(Shutdown::Both);
    }

    /// Sends what there is, and at least a sign of life every `beat`.
    fn send(&self, connection: u64, mut stream: &TcpStream, beat: Duration) -> io::Result<()> {
        loop {
            let item = {
                let mut feed = self.lock();
                loop {
                    if !feed.has(connection) {
                        return Ok(());
                    }
                    if let Some(item) = feed.next(connection) {
                        break Some(item);
                    }
                    let waited = self.changed.wait_timeout(feed, beat);
                    let (again, time) = waited.unwrap_or_else(PoisonError::into_inner);
                    feed = again;
                    if time.timed_out() {
                        break None;
                    }
                }
            };
            match item {
                None => Frame::Alive.write(&mut stream)?,
                Some(Item::Refused(ask)) => Frame::Refused(ask).write(&mut stream)?,
                Some(Item::Level { step }) => Frame::Level { step }.write(&mut stream)?,
                Some(Item::Share(share)) => {
                    let begin = Frame::Share {
                        attempt: share.attempt,
                        head: share.head,
                        num_values: share.values.len() as u64,
                        acked: share.acked,
                        records: share.records,
                    };
                    begin.write(&mut stream)?;
                    wire::write_values(&mut stream, &share.values)?;
                }
                Some(Item::Step(last)) => {
                    let begin = Frame::Step {
                        step: last.step,
                        num_values: last.vector.len() as u64,
                        story: last.story.clone(),
                        notes: last.notes.clone(),
                    };
                    begin.write(&mut stream)?;
                    let vector = last.vector.view().host().map_err(io::Error::other)?;
                    wire::write_values(&mut stream, &vector)?;
                }
            }
            stream.flush()?;
        }
    }
}

/// Lets a follower of the job in.
fn admit(mut stream: &TcpStream, badge: Badge) -> io::Result<ProcessId> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO_TIMEOUT))?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut first = stream.take(HANDSHAKE_BYTES as u64);
    let hello = Handshake::read(&mut first, badge.token)?;
    let expected = Handshake {
        kind: Kind::Hello,
        history: badge.history,
        from: hello.from,
        to: badge.process,
    };
    if hello != expected {
        return Err(BadBytes::Stranger.into());
    }
    let welcome = Handshake {
        kind: Kind::Welcome,
        history: badge.history,
        from: badge.process,
        to: hello.from,
    };
    stream.write_all(&welcome.encode(badge.token))?;
    stream.set_read_timeout(None)?;
    Ok(ProcessId(hello.from))
}

/// The share of `len` values that giver `place` of `count` sends.
pub(crate) fn share(len: usize, place: usize, count: usize) -> Range<usize> {
    let at = |place: usize| len / count * place + (len % count).min(place);
    at(place)..at(place + 1)
}

#[cfg(test)]
mod tests;
