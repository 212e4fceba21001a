//! The connection of a follower to one process: dialled again while it is wanted, and read by a thread of
//! its own.

use std::io::{self, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use muster_cluster::ids::ProcessId;
use muster_worker_core::feed::Ask;

use super::{Event, Share};
use crate::feed::Badge;
use crate::feed::wire::{self, BadBytes, Frame, Handshake, Kind};
use crate::held::Reduced;
use crate::last::Last;
use crate::shared::Shared;

/// The pause before the second call; each later one waits twice as long, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long a process may take nothing of what it is asked.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// How many values the vectors have that may come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lengths {
    pub(super) num_elements: usize,
    pub(super) num_state_values: usize,
}

#[derive(Debug, Default)]
struct Line {
    stream: Option<TcpStream>,
    is_over: bool,
}

/// See above.
#[derive(Debug)]
pub(super) struct Call {
    process: ProcessId,
    line: Mutex<Line>,
    over: Condvar,
}

impl Call {
    /// Begins to call.
    pub(super) fn start(
        process: ProcessId,
        address: SocketAddr,
        badge: Badge,
        lengths: Lengths,
        shared: &Arc<Shared>,
    ) -> io::Result<Arc<Self>> {
        let call = Arc::new(Self {
            process,
            line: Mutex::new(Line::default()),
            over: Condvar::new(),
        });
        let (of_thread, shared) = (Arc::clone(&call), Arc::clone(shared));
        thread::Builder::new()
            .name("following".to_owned())
            .spawn(move || of_thread.keep(address, badge, lengths, &shared))?;
        Ok(call)
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the process; nothing comes of it when the connection is lost, which is told.
    pub(super) fn ask(&self, ask: Ask) {
        if let Some(stream) = &self.lock().stream
            && Frame::Ask(ask).write(&mut &*stream).is_err()
        {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Leaves the process.
    pub(super) fn hang_up(&self) {
        let mut line = self.lock();
        line.is_over = true;
        if let Some(stream) = &line.stream {
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.over.notify_all();
    }

    /// Calls again and again until it is over.
    fn keep(&self, address: SocketAddr, badge: Badge, lengths: Lengths, shared: &Shared) {
        let mut pause = FIRST_PAUSE;
        loop {
            let since = Instant::now();
            let mut is_level = false;
            let ended = self.connect(address, badge).and_then(|mut stream| {
                if shared.offer(Event::Reached(self.process)) {
                    let me = ProcessId(badge.process);
                    self.hear(&mut stream, me, lengths, shared, &mut is_level)
                } else {
                    Ok(())
                }
            });
            self.lock().stream = None;
            let reason = match ended {
                Ok(()) => "it closed the connection".to_owned(),
                Err(error) => in_words(&error),
            };
            let event = Event::Lost(self.process, reason);
            if !shared.offer(event) {
                return;
            }
            // Whoever is let go for being slow again and again asks for the state ever more seldom.
            if is_level || since.elapsed() > LONGEST_PAUSE {
                pause = FIRST_PAUSE;
            }
            if self.rest(pause) {
                return;
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// Waits before the next call; whether there is to be none.
    fn rest(&self, pause: Duration) -> bool {
        let until = Instant::now() + pause;
        let mut line = self.lock();
        while !line.is_over {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let waited = self.over.wait_timeout(line, left);
            line = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        line.is_over
    }

    fn connect(&self, address: SocketAddr, badge: Badge) -> io::Result<TcpStream> {
        // A follower is in no hurry: what holds a machine up for a moment is no loss.
        let silence = 2 * badge.detect;
        let mut stream = TcpStream::connect_timeout(&address, silence)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(silence))?;
        stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
        let hello = Handshake {
            kind: Kind::Hello,
            history: badge.history,
            from: badge.process,
            to: self.process.0,
        };
        stream.write_all(&hello.encode(badge.token))?;
        let welcome = Handshake {
            kind: Kind::Welcome,
            history: badge.history,
            from: self.process.0,
            to: badge.process,
        };
        if Handshake::read(&mut stream, badge.token)? != welcome {
            return Err(BadBytes::Stranger.into());
        }
        let mut line = self.lock();
        if line.is_over {
            return Err(io::ErrorKind::Interrupted.into());
        }
        line.stream = Some(stream.try_clone()?);
        Ok(stream)
    }

    /// Passes on what comes, until nothing does or nobody wants it.
    fn hear(
        &self,
        stream: &mut TcpStream,
        me: ProcessId,
        lengths: Lengths,
        shared: &Shared,
        is_level: &mut bool,
    ) -> io::Result<()> {
        let from = self.process;
        let mut wanted = true;
        while wanted {
            let event = match Frame::read(stream, me)? {
                Frame::Alive => continue,
                Frame::Level { step } => {
                    *is_level = true;
                    Event::Level { from, step }
                }
                Frame::Refused(ask) => Event::Refused { from, ask },
                Frame::Share {
                    attempt,
                    head,
                    num_values,
                    acked,
                    records,
                } => {
                    let num_values = usize::try_from(num_values).unwrap_or(usize::MAX);
                    if num_values > lengths.num_state_values {
                        return Err(BadBytes::Senseless.into());
                    }
                    let bytes = |values: usize| (values * size_of::<f32>()) as u64;
                    shared.offer(Event::Share {
                        from,
                        attempt,
                        head,
                        bytes: bytes(num_values),
                    });
                    let values = wire::read_values(stream, num_values, |at| {
                        // The last piece is told with the values.
                        if at < num_values {
                            let bytes = bytes(at);
                            shared.offer(Event::Arrived {
                                from,
                                attempt,
                                bytes,
                            });
                        }
                    })?;
                    Event::Whole {
                        from,
                        attempt,
                        share: Share {
                            values,
                            acked,
                            records,
                        },
                    }
                }
                Frame::Step {
                    step,
                    num_values,
                    story,
                    notes,
                } => {
                    if usize::try_from(num_values) != Ok(lengths.num_elements) {
                        return Err(BadBytes::Senseless.into());
                    }
                    shared.step_begins(step);
                    let vector = wire::read_values(stream, lengths.num_elements, |_| {})?;
                    let last = Last {
                        step,
                        vector: Reduced::Host(Arc::new(vector)),
                        notes,
                        story,
                    };
                    Event::Step { from, last }
                }
                Frame::Ask(_) => return Err(BadBytes::Senseless.into()),
            };
            wanted = shared.offer(event);
        }
        Ok(())
    }
}

/// What a lost connection is called.
fn in_words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it does not answer".to_owned(),
        io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        io::ErrorKind::ConnectionRefused => "it refuses the connection".to_owned(),
        _ => error.to_string(),
    }
}
