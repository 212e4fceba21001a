//! The thread that owns a communicator, and the handle that others hold on it.
//!
//! A communicator's calls come from one thread, with the device's context current; what it waits
//! for is polled, so that an abort is heard within microseconds. The thread decides nothing.
//!
//! ```text
//! Starting --connected--> Ready --close--> Ended
//!     \                     |                ^
//!      \---- a failure ---> Failed --abort--/
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{BulkError, Transfer};

/// What the thread drives: a communicator on a stream.
pub(crate) trait Line {
    /// Whether all ranks are connected.
    fn is_connected(&mut self) -> Result<bool, BulkError>;

    /// Queues a transfer, or carries it out; gives up when `stop` is asked for.
    fn begin(&mut self, transfer: &Transfer, stop: &Stop) -> Result<(), BulkError>;

    /// How many transfers are complete.
    fn num_completed(&mut self) -> Result<u64, BulkError>;

    /// Ends it whatever it waits for; returns when nothing touches the regions any more, or
    /// `false` where that takes longer than the library should.
    fn abort(self) -> bool;

    /// Ends it with the others, or by an abort when `stop` is asked for or the time has come.
    fn close(self, stop: &Stop, until: Instant) -> bool;
}

/// Whether an abort was asked for.
#[derive(Debug, Default)]
pub(crate) struct Stop(AtomicBool);

impl Stop {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Polls without a rest at first: a transfer between devices of one host takes tens of
/// microseconds, and a thread that sleeps takes as long to wake.
const NUM_BUSY_POLLS: u32 = 200;

/// The rest between later polls; an order ends it.
const REST: Duration = Duration::from_micros(50);

/// The wait of a thread that polls, without an order to hear.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    num_polls: u32,
}

impl Pace {
    /// How long to rest before the next poll.
    fn rest(&mut self) -> Duration {
        self.num_polls = self.num_polls.saturating_add(1);
        if self.num_polls <= NUM_BUSY_POLLS {
            Duration::ZERO
        } else {
            REST
        }
    }

    pub(crate) fn wait(&mut self) {
        match self.rest() {
            Duration::ZERO => thread::yield_now(),
            rest => thread::park_timeout(rest),
        }
    }
}

#[derive(Debug)]
enum Phase {
    Starting,
    Ready,
    Failed(BulkError),
    /// Nothing touches the regions of its transfers any more.
    Ended,
    /// The library did not come to an end.
    Stuck,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    orders: VecDeque<Transfer>,
    num_completed: u64,
    /// A clean end is asked for, until then.
    close: Option<Instant>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stop: Stop,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits for a change, at most until then; whether there is time left.
    fn wait<'a>(
        &'a self,
        state: MutexGuard<'a, State>,
        until: Instant,
    ) -> (MutexGuard<'a, State>, bool) {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return (state, false);
        }
        let waited = self.changed.wait_timeout(state, left);
        (waited.unwrap_or_else(PoisonError::into_inner).0, true)
    }
}

/// The handle on the thread; dropping it aborts, and leaves the thread to itself.
pub(crate) struct Owner {
    shared: Arc<Shared>,
    num_begun: u64,
    thread: Option<JoinHandle<()>>,
}

impl Owner {
    /// Starts the thread, which makes its line there.
    pub(crate) fn start<L: Line>(
        make: impl FnOnce(&Stop) -> Result<L, BulkError> + Send + 'static,
    ) -> Result<Self, BulkError> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                phase: Phase::Starting,
                orders: VecDeque::new(),
                num_completed: 0,
                close: None,
            }),
            changed: Condvar::new(),
            stop: Stop::default(),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("communicator".to_owned())
            .spawn(move || own(&theirs, make))
            .map_err(|error| BulkError::new(format!("could not start a thread: {error}")))?;
        Ok(Self {
            shared,
            num_begun: 0,
            thread: Some(thread),
        })
    }

    /// Waits until all ranks are connected, at most so long; whether they are.
    pub(crate) fn wait_ready(&self, at_most: Duration) -> Result<bool, BulkError> {
        let until = Instant::now() + at_most;
        let mut state = self.shared.lock();
        loop {
            match &state.phase {
                Phase::Ready => return Ok(true),
                Phase::Starting => {}
                phase => return Err(over(phase)),
            }
            let (again, has_time) = self.shared.wait(state, until);
            state = again;
            if !has_time {
                return Ok(false);
            }
        }
    }

    /// Hands a transfer over; its number.
    pub(crate) fn begin(&mut self, transfer: Transfer) -> Result<u64, BulkError> {
        let mut state = self.shared.lock();
        match &state.phase {
            Phase::Starting | Phase::Ready if state.close.is_none() => {}
            phase => return Err(over(phase)),
        }
        state.orders.push_back(transfer);
        drop(state);
        self.shared.changed.notify_all();
        self.num_begun += 1;
        Ok(self.num_begun)
    }

    /// Waits for a transfer, at most so long; whether it is complete.
    pub(crate) fn wait(&self, number: u64, at_most: Duration) -> Result<bool, BulkError> {
        let until = Instant::now() + at_most;
        let mut state = self.shared.lock();
        loop {
            if state.num_completed >= number {
                return Ok(true);
            }
            match &state.phase {
                Phase::Starting | Phase::Ready => {}
                phase => return Err(over(phase)),
            }
            let (again, has_time) = self.shared.wait(state, until);
            state = again;
            if !has_time {
                return Ok(false);
            }
        }
    }

    /// Aborts, and waits at most so long until nothing touches the regions any more; whether so.
    pub(crate) fn abort(&mut self, at_most: Duration) -> bool {
        self.stop();
        self.join(at_most)
    }

    /// Ends in good order, or by an abort when the time has come.
    pub(crate) fn close(&mut self, at_most: Duration) {
        let until = Instant::now() + at_most;
        self.shared.update(|state| state.close = Some(until));
        if !self.join(at_most) {
            self.abort(at_most);
        }
    }

    fn stop(&self) {
        // Under the lock, so that the thread is not between its look and its rest.
        let state = self.shared.lock();
        self.shared.stop.0.store(true, Ordering::SeqCst);
        drop(state);
        self.shared.changed.notify_all();
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    fn join(&mut self, at_most: Duration) -> bool {
        let until = Instant::now() + at_most;
        let mut state = self.shared.lock();
        let is_free = loop {
            match state.phase {
                Phase::Ended => break true,
                Phase::Stuck => break false,
                _ => {}
            }
            let (again, has_time) = self.shared.wait(state, until);
            state = again;
            if !has_time {
                // It is left to itself: somewhere inside of the library it does not come back.
                return false;
            }
        };
        drop(state);
        if let Some(thread) = self.thread.take() {
            // It has said its last word, and a panic of its own is told by its phase.
            let _ = thread.join();
        }
        is_free
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        let (begun, completed) = (self.num_begun, state.num_completed);
        write!(
            f,
            "Owner({:?}, {completed} of {begun} complete)",
            state.phase
        )
    }
}

fn over(phase: &Phase) -> BulkError {
    match phase {
        Phase::Failed(error) => error.clone(),
        _ => BulkError::new("this communicator was ended"),
    }
}

/// The life of the thread.
fn own<L: Line>(shared: &Shared, make: impl FnOnce(&Stop) -> Result<L, BulkError>) {
    // Whatever happens below, nobody waits for a thread that is gone.
    let _last = Last(shared);
    let mut line = match make(&shared.stop) {
        Ok(line) => line,
        Err(error) => {
            shared.update(|state| state.phase = Phase::Failed(error));
            await_stop(shared);
            return shared.update(|state| state.phase = Phase::Ended);
        }
    };
    let is_free = match serve(shared, &mut line) {
        Ok(Some(until)) => line.close(&shared.stop, until),
        Ok(None) => line.abort(),
        Err(error) => {
            shared.update(|state| state.phase = Phase::Failed(error));
            // The regions belong to the transfers until somebody wants them back.
            await_stop(shared);
            line.abort()
        }
    };
    let last = if is_free { Phase::Ended } else { Phase::Stuck };
    shared.update(|state| state.phase = last);
}

/// Says that nothing is known where the thread ends by a panic.
struct Last<'a>(&'a Shared);

impl Drop for Last<'_> {
    fn drop(&mut self) {
        self.0.update(|state| {
            if !matches!(state.phase, Phase::Ended) {
                state.phase = Phase::Stuck;
            }
        });
    }
}

fn await_stop(shared: &Shared) {
    let mut state = shared.lock();
    while !shared.stop.is_set() && state.close.is_none() {
        let waited = shared.changed.wait(state);
        state = waited.unwrap_or_else(PoisonError::into_inner);
    }
}

/// Connects, and carries out orders until there is an end: a clean one, or (`None`) an abort.
fn serve<L: Line>(shared: &Shared, line: &mut L) -> Result<Option<Instant>, BulkError> {
    let mut pace = Pace::default();
    while !line.is_connected()? {
        if shared.stop.is_set() {
            return Ok(None);
        }
        pace.wait();
    }
    shared.update(|state| state.phase = Phase::Ready);
    let (mut num_begun, mut num_completed) = (0, 0);
    let mut pace = Pace::default();
    loop {
        if shared.stop.is_set() {
            return Ok(None);
        }
        let mut state = shared.lock();
        if let Some(transfer) = state.orders.pop_front() {
            drop(state);
            line.begin(&transfer, &shared.stop)?;
            num_begun += 1;
            pace = Pace::default();
            continue;
        }
        if num_completed == num_begun {
            if let Some(until) = state.close {
                return Ok(Some(until));
            }
            if !shared.stop.is_set() {
                // Nothing to poll for: an order or an end wakes it.
                drop(shared.changed.wait(state));
            }
            continue;
        }
        drop(state);
        let now_completed = line.num_completed()?;
        if now_completed > num_completed {
            num_completed = now_completed;
            shared.update(|state| state.num_completed = now_completed);
            pace = Pace::default();
            continue;
        }
        match pace.rest() {
            Duration::ZERO => thread::yield_now(),
            rest => {
                let state = shared.lock();
                if state.orders.is_empty() && !shared.stop.is_set() {
                    drop(shared.changed.wait_timeout(state, rest));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
