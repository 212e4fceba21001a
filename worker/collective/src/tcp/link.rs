//! Established connections: a reader and a writer thread per peer, on blocking sockets.
//!
//! - The *outbox* of a connection takes frames of a collective without waiting: they share the
//!   memory of vectors that are alive anyway, and the protocol bounds their number.
//! - The *inbox* of the rank makes a reader wait when its rank is busy and the peer's lane is
//!   full; the kernel's buffers fill up, and then the peer's writer waits. A rank in an operation
//!   always empties its inbox, so nobody waits in a circle.
//! - A writer with nothing to write says that its rank is there; a reader that hears nothing at all
//!   tells its rank of a loss ([`super::silence`]). A reader that waits for room in the inbox does
//!   not listen, and blames nobody.
//! - The sizes of the kernel's buffers are left to its autotuning, which reaches megabytes; an
//!   explicit size would be capped at 208 KiB by Linux's defaults and switch autotuning off.

use std::collections::VecDeque;
use std::io::{self, BufReader, ErrorKind, IoSlice, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use muster_cluster::{RankId, Step};

use super::silence::{Listening, beat};
use crate::error::{Error, LossReason};
use crate::frame::{Body, Cause, Frame, HEADER_BYTES, ReadError};
use crate::group::{Event, Inbox, Transport};
use crate::queue::{Patience, PushError, Queue, Taken};
use crate::world::World;

/// How long a group that ends well waits for its peers to read what it still sends them.
const LINGER: Duration = Duration::from_secs(10);
/// The same after a failure: long enough for the goodbye. Tests ask for the goodbye itself, on machines
/// that may stand still for longer.
const LINGER_AFTER_FAILURE: Duration = Duration::from_millis(if cfg!(test) { 6_000 } else { 300 });

/// One write takes at most this many frames (Linux takes 1024 slices, two per frame), and no more
/// once it has this many bytes: a batch is on its way before the next one's checksums are made.
const MAX_BATCH_FRAMES: usize = 64;
const MAX_BATCH_BYTES: usize = 1 << 20;

/// Headers and notes are read through a buffer of this size; larger payloads go past it.
const READ_BUFFER_BYTES: usize = 32 * 1024;

/// The connections of one rank.
#[derive(Debug)]
pub(super) struct Links {
    /// By rank; none for this rank itself.
    links: Vec<Option<Link>>,
    threads: Vec<JoinHandle<()>>,
    /// Ends when the last thread has ended.
    running: Receiver<()>,
    /// How long `join` waits for them.
    linger: Duration,
}

#[derive(Debug)]
struct Link {
    stream: Arc<TcpStream>,
    outbox: Arc<Queue<Frame>>,
}

impl Links {
    /// Starts the threads of all connections; what they read goes to `inbox`.
    pub(super) fn start(
        world: &World,
        streams: Vec<Option<TcpStream>>,
        detect: Duration,
        inbox: &Arc<Inbox>,
    ) -> Result<Self, Error> {
        let (end, running) = mpsc::channel();
        let mut links = Self {
            links: Vec::new(),
            threads: Vec::new(),
            running,
            linger: Duration::ZERO,
        };
        for (peer, stream) in world.ranks().zip(streams) {
            let link =
                stream.map(|stream| links.start_link(world, peer, stream, detect, inbox, &end));
            match link.transpose() {
                Ok(link) => links.links.push(link),
                Err(error) => {
                    links.leave(None);
                    links.join();
                    return Err(error);
                }
            }
        }
        Ok(links)
    }

    fn start_link(
        &mut self,
        world: &World,
        peer: RankId,
        stream: TcpStream,
        detect: Duration,
        inbox: &Arc<Inbox>,
        end: &Sender<()>,
    ) -> Result<Link, Error> {
        stream
            .set_nodelay(true)
            .map_err(Error::system("set TCP_NODELAY"))?;
        Listening::prepare(&stream, detect)?;
        let stream = Arc::new(stream);
        let outbox = Arc::new(Queue::new());
        let link = Link {
            stream: Arc::clone(&stream),
            outbox: Arc::clone(&outbox),
        };
        let own = world.rank;
        let of_link = |body| Frame::new(world, 0, Step::default(), body);
        self.spawn(format!("send {own} to {peer}"), end, {
            let (stream, outbox) = (Arc::clone(&stream), Arc::clone(&outbox));
            let alive = of_link(Body::Alive);
            move || write(&stream, &outbox, &alive, beat(detect))
        })?;
        let inbox = Arc::clone(inbox);
        let goodbye = of_link(Body::Goodbye(Cause::Lost(peer)));
        let reader = move || read(&stream, detect, peer, &inbox, &outbox, goodbye);
        if let Err(error) = self.spawn(format!("read {own} from {peer}"), end, reader) {
            // The writer is not yet among those that `leave` ends.
            link.outbox.clear();
            return Err(error);
        }
        Ok(link)
    }

    fn spawn(
        &mut self,
        name: String,
        end: &Sender<()>,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), Error> {
        let end = end.clone();
        let work = move || {
            work();
            drop(end);
        };
        let thread = thread::Builder::new().name(name).spawn(work);
        self.threads
            .push(thread.map_err(Error::system("start a thread for a connection"))?);
        Ok(())
    }
}

impl Transport for Links {
    fn send(&self, to: RankId, frame: Frame, patience: Patience) -> Result<(), PushError> {
        let link = self.links.get(World::index(to)).and_then(Option::as_ref);
        link.ok_or(PushError::Closed)?
            .outbox
            .push(0, frame, patience)
    }

    fn leave(&mut self, goodbye: Option<Frame>) {
        self.linger = match goodbye.as_ref().map(|frame| &frame.body) {
            Some(Body::Goodbye(Cause::Done)) => LINGER,
            Some(_) => LINGER_AFTER_FAILURE,
            None => Duration::ZERO,
        };
        for link in self.links.iter().flatten() {
            if let Some(frame) = &goodbye {
                // An outbox that is full or closed belongs to a connection that is over.
                let _ = link.outbox.push(0, frame.clone(), Patience::Never);
            } else {
                let _ = link.stream.shutdown(Shutdown::Both);
            }
            link.outbox.close();
        }
    }

    fn join(&mut self) {
        // Nobody ever sends on the channel: this waits for the threads, but not for ever.
        let _ = self.running.recv_timeout(self.linger);
        for link in self.links.iter().flatten() {
            // Ends every read and write that still waits.
            let _ = link.stream.shutdown(Shutdown::Both);
            link.outbox.clear();
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has told so on stderr; the connection is closed anyway.
            let _ = thread.join();
        }
        self.links.clear();
    }
}

/// Sends what is queued, or `alive` where that is nothing for a `beat`, until the outbox is
/// closed; then says that nothing follows.
fn write(stream: &TcpStream, outbox: &Queue<Frame>, alive: &Frame, beat: Duration) {
    let mut frames = VecDeque::new();
    loop {
        match outbox.take(&mut frames, Instant::now().checked_add(beat)) {
            Taken::Items => {}
            Taken::TimedOut => frames.push_back(alive.clone()),
            Taken::Closed | Taken::Interrupted => break,
        }
        while !frames.is_empty() {
            let mut num_bytes = 0;
            let batch = frames.iter().take(MAX_BATCH_FRAMES).take_while(|frame| {
                let has_room = num_bytes < MAX_BATCH_BYTES;
                num_bytes += frame.num_bytes();
                has_room
            });
            let num_frames = batch.count();
            let batch: Vec<Frame> = frames.drain(..num_frames).collect();
            if write_batch(stream, &batch).is_err() {
                // The reader sees the end of the stream and tells the rank.
                let _ = stream.shutdown(Shutdown::Both);
                outbox.clear();
                return;
            }
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

fn write_batch(mut stream: &TcpStream, frames: &[Frame]) -> io::Result<()> {
    let payloads: Vec<_> = frames.iter().map(Frame::payload).collect();
    let headers: Vec<[u8; HEADER_BYTES]> = frames
        .iter()
        .zip(&payloads)
        .map(|(frame, payload)| frame.header(payload))
        .collect();
    let mut slices: Vec<IoSlice<'_>> = headers
        .iter()
        .zip(&payloads)
        .flat_map(|(header, payload)| [IoSlice::new(header), IoSlice::new(payload)])
        .filter(|slice| !slice.is_empty())
        .collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        match stream.write_vectored(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(len) => IoSlice::advance_slices(&mut rest, len),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads frames until the stream ends, is silent or cannot be trusted, and tells the rank which
/// it was. A peer that was silent gets `goodbye`.
fn read(
    stream: &TcpStream,
    detect: Duration,
    peer: RankId,
    inbox: &Inbox,
    outbox: &Queue<Frame>,
    goodbye: Frame,
) {
    let listening = Listening::new(stream, detect);
    let mut input = BufReader::with_capacity(READ_BUFFER_BYTES, listening);
    let lane = World::index(peer);
    let reason = loop {
        match Frame::read(&mut input) {
            Ok(frame) if frame.body == Body::Alive => {}
            Ok(frame) => {
                // A closed inbox belongs to a group that leaves: it reads on to the end of the
                // stream, so that its own last frames are not lost in a reset.
                let event = Event::Frame { from: peer, frame };
                let _ = inbox.push(lane, event, Patience::Until(None));
            }
            Err(ReadError::Closed(ErrorKind::WouldBlock)) => break LossReason::Silent,
            Err(ReadError::Closed(kind)) => break LossReason::Closed(kind),
            Err(ReadError::Refused(refusal)) => break LossReason::Garbage(refusal),
        }
    };
    let _ = inbox.push(lane, Event::Lost { rank: peer, reason }, Patience::Never);
    if reason == LossReason::Silent {
        // Should it be alive after all, an end without a goodbye would look like our death. What
        // else is queued is forgotten, so that nobody waits for room that will not come.
        outbox.end_with(goodbye);
        return;
    }
    if matches!(reason, LossReason::Garbage(_)) {
        // The connection stays open for our goodbye: to the peer, an end without one would look
        // like our death. Until then nothing that arrives is looked at.
        input.get_ref().forgive();
        let _ = io::copy(&mut input, &mut io::sink());
    }
    // Nobody reads what would still be sent. The writer ends and closes its half, which ends the
    // peer's wait for us.
    outbox.clear();
}
