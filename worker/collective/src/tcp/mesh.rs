//! Opens the connections of a world: one loop over the listener, the strangers at the door and
//! the dials to higher ranks, none of which can hold up the others.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use muster_cluster::{RankId, Step};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};

use super::Token;
use super::handshake::{Handshake, Kind};
use super::seal::HANDSHAKE_BYTES;
use super::silence::beat;
use crate::error::Error;
use crate::frame::{Body, Frame, Refusal};
use crate::group::{Counters, Revoker};
use crate::world::World;

/// A dialling rank speaks at once; who is silent for longer is a stranger.
pub(crate) const HELLO_TIMEOUT: Duration = Duration::from_secs(2);

/// The pause before a peer is dialled again, and the longest time until a revocation is seen.
const TICK: Duration = Duration::from_millis(10);

/// Beyond one connection per rank, this many strangers may be silent at the same time; then the
/// oldest has to go.
const MAX_STRANGERS: usize = 64;

/// What is needed to let the right ranks in.
#[derive(Debug)]
pub(super) struct Door<'a> {
    pub(super) socket: &'a TcpListener,
    pub(super) world: World,
    pub(super) peers: &'a [SocketAddr],
    pub(super) token: Token,
    pub(super) detect: Duration,
}

/// A connection from someone who has not said who they are.
#[derive(Debug)]
struct Stranger {
    stream: TcpStream,
    said: Vec<u8>,
    until: Instant,
}

/// A connection to a higher rank.
#[derive(Debug)]
struct Dial {
    peer: RankId,
    state: DialState,
    /// For how long nobody has answered at its address.
    unanswered: Duration,
}

/// ```text
/// Waiting --time--> Connecting --writable--> Answering --Welcome--> (done)
///    ^----------------- any failure -------------/
/// ```
#[derive(Debug)]
enum DialState {
    Waiting { until: Instant },
    Connecting(TcpStream),
    Answering { stream: TcpStream, said: Vec<u8> },
}

/// What reading a part of a handshake gave.
enum Heard {
    Whole(Handshake),
    NotYet,
    Refused(Refusal),
}

impl Door<'_> {
    /// Connects with every peer: `streams`, by rank, which do not block yet. Where it fails they are those that
    /// stand, whose ends must hear why.
    pub(super) fn open(
        &self,
        streams: &mut [Option<TcpStream>],
        revoker: &Revoker,
        deadline: Duration,
        counters: &mut Counters,
    ) -> Result<(), Error> {
        let now = Instant::now();
        let end = now.checked_add(deadline);
        let mut strangers: VecDeque<Stranger> = VecDeque::new();
        let mut last_look = now;
        let mut next_beat = now.checked_add(beat(self.detect));
        let mut dials: Vec<Dial> = self
            .world
            .ranks()
            .filter(|peer| *peer > self.world.rank)
            .map(|peer| Dial {
                peer,
                state: DialState::Waiting { until: now },
                unanswered: Duration::ZERO,
            })
            .collect();
        loop {
            let missing: Vec<RankId> = self
                .world
                .peers()
                .filter(|peer| streams[World::index(*peer)].is_none())
                .collect();
            if missing.is_empty() {
                break;
            }
            if revoker.is_revoked() {
                return Err(Error::Revoked);
            }
            if end.is_some_and(|end| end <= Instant::now()) {
                let mut waiting_for = missing;
                waiting_for.sort_unstable();
                return Err(Error::TimedOut { waiting_for });
            }
            self.accept(&mut strangers, counters);
            self.hear(&mut strangers, streams, counters);
            dials.retain_mut(|dial| match self.advance(dial, counters) {
                Some(stream) => {
                    streams[World::index(dial.peer)] = Some(stream);
                    false
                }
                None => true,
            });
            let unreachable = self.unreachable(&mut dials, last_look.elapsed());
            last_look = Instant::now();
            if !unreachable.is_empty() {
                return Err(Error::TimedOut {
                    waiting_for: unreachable,
                });
            }
            // A peer that has met everyone listens already, and must not take for silent who
            // still waits for others.
            let now = Instant::now();
            if next_beat.is_some_and(|at| at <= now) {
                next_beat = now.checked_add(beat(self.detect));
                streams.iter().flatten().for_each(|s| self.say_alive(s));
            }
            self.wait(&strangers, &dials)?;
        }
        Ok(())
    }

    /// The peers at whose addresses nobody has answered for twice `detect`, in which a first packet
    /// may be lost, where the last look was so long ago. A rank that is busy with something else is
    /// none of them: its system answers for it.
    fn unreachable(&self, dials: &mut [Dial], since: Duration) -> Vec<RankId> {
        // A thread that was held up itself has not waited all the while.
        let waited = since.min(2 * TICK);
        for dial in &mut *dials {
            dial.unanswered = match dial.state {
                DialState::Waiting { .. } | DialState::Connecting(_) => dial.unanswered + waited,
                DialState::Answering { .. } => Duration::ZERO,
            };
        }
        let is_out = |dial: &&Dial| dial.unanswered > self.detect.saturating_mul(2);
        dials.iter().filter(is_out).map(|dial| dial.peer).collect()
    }

    /// Waits until a socket has something to say, or one tick.
    fn wait(&self, strangers: &VecDeque<Stranger>, dials: &[Dial]) -> Result<(), Error> {
        let mut fds = vec![PollFd::new(self.socket, PollFlags::IN)];
        fds.extend(
            strangers
                .iter()
                .map(|s| PollFd::new(&s.stream, PollFlags::IN)),
        );
        fds.extend(dials.iter().filter_map(|dial| match &dial.state {
            DialState::Waiting { .. } => None,
            DialState::Connecting(stream) => Some(PollFd::new(stream, PollFlags::OUT)),
            DialState::Answering { stream, .. } => Some(PollFd::new(stream, PollFlags::IN)),
        }));
        let tick = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(TICK.subsec_nanos()),
        };
        match poll(&mut fds, Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(Error::system("wait for connections")(error.into())),
        }
    }

    fn accept(&self, strangers: &mut VecDeque<Stranger>, counters: &mut Counters) {
        // An error is the end of the backlog, or a connection that is gone before it was
        // accepted, or a lack of file descriptors that the next tick may find mended.
        while let Ok((stream, _)) = self.socket.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let until = Instant::now() + HELLO_TIMEOUT;
            strangers.push_back(Stranger {
                stream,
                said: Vec::new(),
                until,
            });
            if strangers.len() > self.world.len() + MAX_STRANGERS {
                strangers.pop_front();
                counters.refuse(Refusal::Crowded);
            }
        }
    }

    fn hear(
        &self,
        strangers: &mut VecDeque<Stranger>,
        streams: &mut [Option<TcpStream>],
        counters: &mut Counters,
    ) {
        for mut stranger in std::mem::take(strangers) {
            let refusal = match self.listen(&stranger.stream, &mut stranger.said) {
                Heard::NotYet if stranger.until > Instant::now() => {
                    strangers.push_back(stranger);
                    continue;
                }
                Heard::NotYet => Refusal::Silent,
                Heard::Refused(refusal) => refusal,
                Heard::Whole(hello) => match self.check(&hello, Kind::Hello) {
                    Ok(()) if hello.from < self.world.rank => {
                        // A rank dials again only after its last connection failed, so that the
                        // newest is the one to keep.
                        if self.say(&stranger.stream, Kind::Welcome, hello.from) {
                            streams[World::index(hello.from)] = Some(stranger.stream);
                        }
                        continue;
                    }
                    Ok(()) => Refusal::Sender,
                    Err(refusal) => {
                        // One of ours, so it may know that it is refused and try again.
                        self.say(&stranger.stream, Kind::Refused, hello.from);
                        refusal
                    }
                },
            };
            counters.refuse(refusal);
        }
    }

    /// Takes a dial one step further; its stream when the peer has welcomed this rank.
    fn advance(&self, dial: &mut Dial, counters: &mut Counters) -> Option<TcpStream> {
        let again = DialState::Waiting {
            until: Instant::now() + TICK,
        };
        match std::mem::replace(&mut dial.state, again) {
            DialState::Waiting { until } if until > Instant::now() => {
                dial.state = DialState::Waiting { until };
            }
            DialState::Waiting { .. } => {
                if let Some(stream) = start_dial(self.peers[World::index(dial.peer)]) {
                    dial.state = DialState::Connecting(stream);
                }
            }
            DialState::Connecting(stream) => match (stream.take_error(), stream.peer_addr()) {
                (Ok(None), Ok(_)) if self.say(&stream, Kind::Hello, dial.peer) => {
                    dial.state = DialState::Answering {
                        stream,
                        said: Vec::new(),
                    };
                }
                (Ok(None), Err(error)) if error.kind() == ErrorKind::NotConnected => {
                    dial.state = DialState::Connecting(stream);
                }
                _ => {}
            },
            DialState::Answering { stream, mut said } => match self.listen(&stream, &mut said) {
                Heard::NotYet => dial.state = DialState::Answering { stream, said },
                // The peer closed: it may have refused, or left. It is dialled again.
                Heard::Refused(Refusal::Silent) => {}
                Heard::Refused(refusal) => counters.refuse(refusal),
                Heard::Whole(answer) => match self.check(&answer, Kind::Welcome) {
                    Ok(()) if answer.from == dial.peer => return Some(stream),
                    Ok(()) => counters.refuse(Refusal::Sender),
                    // Its own counters say why it refused.
                    Err(_) if answer.kind == Kind::Refused => {}
                    Err(refusal) => counters.refuse(refusal),
                },
            },
        }
        None
    }

    fn check(&self, handshake: &Handshake, expected: Kind) -> Result<(), Refusal> {
        handshake.admit(&self.world)?;
        if handshake.kind == expected {
            Ok(())
        } else {
            Err(Refusal::Field)
        }
    }

    /// Whether a whole handshake was written; it always fits an empty socket buffer.
    fn say(&self, mut stream: &TcpStream, kind: Kind, to: RankId) -> bool {
        let bytes = Handshake::new(kind, &self.world, to).encode(self.token);
        matches!(stream.write(&bytes), Ok(HANDSHAKE_BYTES))
    }

    /// Tells a peer that this rank is there, unless so much is on its way already that it knows.
    fn say_alive(&self, mut stream: &TcpStream) {
        // A socket is writable only while a third of its buffer is free (Linux,
        // `sk_stream_is_writeable`), which takes a whole header at once.
        let mut fds = [PollFd::new(&stream, PollFlags::OUT)];
        if poll(&mut fds, Some(&Timespec::default())) == Ok(1) {
            let alive = Frame::new(&self.world, 0, Step::default(), Body::Alive);
            // A connection that has ended shows as soon as its reader starts.
            let _ = stream.write(&alive.header(&[]));
        }
    }

    /// Reads what is there of a handshake, and nothing behind it.
    fn listen(&self, mut stream: &TcpStream, said: &mut Vec<u8>) -> Heard {
        let mut buffer = [0; HANDSHAKE_BYTES];
        loop {
            match Handshake::decode(said, self.token) {
                Ok(Some(handshake)) => return Heard::Whole(handshake),
                Ok(None) => {}
                Err(refusal) => return Heard::Refused(refusal),
            }
            match stream.read(&mut buffer[said.len()..]) {
                Ok(0) => return Heard::Refused(Refusal::Silent),
                Ok(len) => {
                    let start = said.len();
                    said.extend_from_slice(&buffer[start..start + len]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Heard::NotYet,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Heard::Refused(Refusal::Silent),
            }
        }
    }
}

/// Begins to connect, without waiting.
fn start_dial(addr: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).ok()?;
    socket.set_nonblocking(true).ok()?;
    match socket.connect(&addr.into()) {
        Ok(()) => {}
        Err(error)
            if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
        Err(_) => return None,
    }
    Some(TcpStream::from(socket))
}
