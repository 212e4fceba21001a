//! Holds ranks up at known moments: the other side of `worker/rank/src/halt.rs`. A rank that is
//! started with [`Halts::variable`] asks at each point whether it may go on.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;

use crate::wait::eventually;

/// How long a rank that has connected may take to say where it is.
const SAYS: Duration = Duration::from_secs(20);

/// A point that a rank came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// The number that the process has for life, from 1.
    pub process: u64,
    /// What it is in its world.
    pub rank: u64,
    /// Its world; 0 while it is in none.
    pub generation: u64,
    /// The steps that it has applied.
    pub step: u64,
    /// Its process id.
    pub pid: u32,
    /// Where it is, such as `reduce`.
    pub place: String,
}

type IsIt = Box<dyn Fn(&Point) -> bool + Send>;

#[derive(Default)]
struct Inner {
    /// What is to be held, each once, by number.
    wanted: Vec<(u64, IsIt)>,
    num_wanted: u64,
    held: Vec<(u64, Held)>,
    passed: Vec<Point>,
}

#[derive(Default)]
struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// A listener at which ranks ask whether they may go on.
pub struct Halts {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// A thread of a rank that waits. It goes on when this is dropped, if its process still lives.
#[derive(Debug)]
pub struct Held {
    /// Where it is.
    pub point: Point,
    _stream: TcpStream,
}

/// A thread of a rank that is to be held, unless this is dropped.
pub struct Hold<'a> {
    halts: &'a Halts,
    number: u64,
}

impl std::fmt::Debug for Halts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Halts").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Hold<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold").finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn came(&self, stream: TcpStream) {
        let mut line = String::new();
        // A connection that rests for a minute behind its end would be one of thousands.
        let _ = set_socket_linger(&stream, Some(Duration::ZERO));
        // A rank may be struck while it connects.
        if stream.set_read_timeout(Some(SAYS)).is_err()
            || BufReader::new(&stream).read_line(&mut line).is_err()
        {
            return;
        }
        let Some(point) = parse(&line) else { return };
        {
            let mut inner = self.lock();
            inner.passed.push(point.clone());
            if let Some(at) = inner.wanted.iter().position(|(_, is_it)| is_it(&point)) {
                let (number, _) = inner.wanted.remove(at);
                let held = Held {
                    point,
                    _stream: stream,
                };
                inner.held.push((number, held));
            }
        }
        self.changed.notify_all();
    }

    /// Waits until `look` finds something.
    #[track_caller]
    fn wait<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut look: impl FnMut(&mut Inner) -> Option<T>,
    ) -> T {
        let start = Instant::now();
        let mut inner = self.lock();
        loop {
            if let Some(found) = look(&mut inner) {
                return found;
            }
            let left = deadline.saturating_sub(start.elapsed());
            if left.is_zero() {
                let last = inner.passed.iter().rev().take(24).collect::<Vec<_>>();
                panic!("{what}: not so after {deadline:?}; the last points: {last:#?}");
            }
            let waited = self.changed.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn parse(line: &str) -> Option<Point> {
    let mut words = line.trim_end_matches('\n').splitn(6, '\t');
    let mut number = || words.next()?.parse::<u64>().ok();
    Some(Point {
        process: number()?,
        rank: number()?,
        generation: number()?,
        step: number()?,
        pid: u32::try_from(number()?).ok()?,
        place: words.next()?.to_owned(),
    })
}

impl Halts {
    /// Listens; ranks pass until something is to be held.
    ///
    /// # Panics
    /// When there is no port on this machine.
    #[must_use]
    pub fn new() -> Self {
        Self::at("127.0.0.1")
    }

    /// The same, at an address of this machine that others reach.
    ///
    /// # Panics
    /// When it is none.
    #[must_use]
    pub fn at(ip: &str) -> Self {
        let listener = TcpListener::bind((ip, 0)).expect("bind a port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let of_thread = Arc::downgrade(&shared);
        // It ends with the first connection behind the end of `Halts`, or with the test's process.
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept()
                && let Some(shared) = of_thread.upgrade()
            {
                thread::spawn(move || shared.came(stream));
            }
        });
        Self { address, shared }
    }

    /// The environment variable that leads ranks here.
    #[must_use]
    pub fn variable(&self) -> (&'static str, String) {
        ("MUSTER_RANK_HALT", self.address.to_string())
    }

    /// Holds the first thread that comes, from now on, to a point that `is_it` accepts.
    #[must_use]
    pub fn hold(&self, is_it: impl Fn(&Point) -> bool + Send + 'static) -> Hold<'_> {
        let mut inner = self.shared.lock();
        inner.num_wanted += 1;
        let number = inner.num_wanted;
        inner.wanted.push((number, Box::new(is_it)));
        let halts = self;
        Hold { halts, number }
    }

    /// Holds a rank, the first that is this one of its world, where it has applied so many steps and
    /// computed what it has of the next one: its world comes no further meanwhile.
    #[must_use]
    pub fn hold_at(&self, rank: u64, step: u64) -> Hold<'_> {
        self.hold(move |point| (point.rank, point.step) == (rank, step) && point.place == "reduce")
    }

    /// Looks until `look` finds something. The job gets on by one step between two looks, however
    /// long they take, so that it does not end before what is awaited.
    ///
    /// # Panics
    /// When nothing was found before the deadline; the text names `what` was awaited.
    #[track_caller]
    pub fn slowly<T>(
        &self,
        what: &str,
        deadline: Duration,
        mut look: impl FnMut() -> Option<T>,
    ) -> T {
        let next = || self.hold(|point| point.rank == 0 && point.place == "reduce");
        let (mut hold, mut held) = (next(), None);
        eventually(deadline, what, || {
            // A world that is made meanwhile comes to no step.
            if let Some(stands) = hold.held() {
                held = Some(stands);
            }
            let found = look();
            if found.is_none() && held.is_some() {
                hold = next();
                held = None;
            }
            found
        })
    }

    /// Waits until a rank has come, at any time, to a point that `is_it` accepts.
    ///
    /// # Panics
    /// When none has before the deadline; the text names `what` was awaited.
    #[track_caller]
    pub fn wait_for(&self, what: &str, deadline: Duration, is_it: impl Fn(&Point) -> bool) {
        self.shared.wait(what, deadline, |inner| {
            inner.passed.iter().any(&is_it).then_some(())
        });
    }

    /// The points that ranks came to, in the order in which they were heard of.
    #[must_use]
    pub fn passed(&self) -> Vec<Point> {
        self.shared.lock().passed.clone()
    }
}

impl Default for Halts {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut inner = self.halts.shared.lock();
        inner.wanted.retain(|(number, _)| *number != self.number);
        inner.held.retain(|(number, _)| *number != self.number);
    }
}

impl Hold<'_> {
    /// What is held, if it is by now.
    fn held(&self) -> Option<Held> {
        let mut inner = self.halts.shared.lock();
        let at = inner.held.iter().position(|(of, _)| *of == self.number)?;
        Some(inner.held.remove(at).1)
    }

    /// Waits until it is held.
    ///
    /// # Panics
    /// When nobody has come before the deadline; the text names `what` was awaited.
    #[must_use]
    #[track_caller]
    pub fn wait(self, what: &str, deadline: Duration) -> Held {
        self.halts.shared.wait(what, deadline, |inner| {
            let at = inner.held.iter().position(|(of, _)| *of == self.number)?;
            Some(inner.held.remove(at).1)
        })
    }
}
