//! A bounded queue with lanes: the inbox of a rank (one lane per peer) and the outbox of a
//! connection (one lane).

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// What a push does when its lane is full.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// It fails at [`MAX_QUEUED`]. For frames of a collective: they share memory with vectors
    /// that are alive anyway, their number is bounded by the protocol, and a rank that waited
    /// here would not read, so that two ranks could wait for each other.
    Never,
    /// It waits while the lane holds [`MAX_WAITING`] or more, until there is room, the queue is
    /// closed or the time has come. For a reader of a socket: the sender then waits too.
    Until(Option<Instant>),
}

/// A lane never holds more than this. An arena of 64 Gi elements over two ranks comes to half.
const MAX_QUEUED: usize = 1 << 20;

/// 64 MiB of full pieces: what a rank that is busy computing holds for each peer.
const MAX_WAITING: usize = 256;

/// Why a push failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    Full,
    Closed,
}

/// How a wait for items ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    Items,
    /// Closed and empty.
    Closed,
    Interrupted,
    TimedOut,
}

#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    arrived: Condvar,
    room: Condvar,
    interrupted: AtomicBool,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    /// How many of `items` came by each lane.
    queued: Vec<usize>,
    is_closed: bool,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        let state = State {
            items: VecDeque::new(),
            queued: Vec::new(),
            is_closed: false,
        };
        Self {
            state: Mutex::new(state),
            arrived: Condvar::new(),
            room: Condvar::new(),
            interrupted: AtomicBool::new(false),
        }
    }

    /// Adds an item after all that came by the same lane.
    pub(crate) fn push(&self, lane: usize, item: T, patience: Patience) -> Result<(), PushError> {
        let mut state = self.lock();
        if state.queued.len() <= lane {
            state.queued.resize(lane + 1, 0);
        }
        while !state.is_closed {
            let until = match patience {
                Patience::Never if state.queued[lane] >= MAX_QUEUED => return Err(PushError::Full),
                Patience::Until(until) if state.queued[lane] >= MAX_WAITING => until,
                _ => {
                    state.items.push_back(item);
                    state.queued[lane] += 1;
                    drop(state);
                    self.arrived.notify_one();
                    return Ok(());
                }
            };
            state = wait(&self.room, state, until).ok_or(PushError::Full)?;
        }
        Err(PushError::Closed)
    }

    /// Moves all items to the end of `into`, waiting for the first one.
    pub(crate) fn take(&self, into: &mut VecDeque<T>, until: Option<Instant>) -> Taken {
        let mut state = self.lock();
        loop {
            if self.is_interrupted() {
                return Taken::Interrupted;
            }
            if !state.items.is_empty() {
                into.append(&mut state.items);
                state.queued.fill(0);
                drop(state);
                self.room.notify_all();
                return Taken::Items;
            }
            if state.is_closed {
                return Taken::Closed;
            }
            match wait(&self.arrived, state, until) {
                Some(again) => state = again,
                None => return Taken::TimedOut,
            }
        }
    }

    /// Refuses further items; what is queued can still be taken.
    pub(crate) fn close(&self) {
        self.lock().is_closed = true;
        self.arrived.notify_all();
        self.room.notify_all();
    }

    /// Refuses further items and forgets what is queued.
    pub(crate) fn clear(&self) {
        let forgotten = {
            let mut state = self.lock();
            state.is_closed = true;
            state.queued.fill(0);
            std::mem::take(&mut state.items)
        };
        self.arrived.notify_all();
        self.room.notify_all();
        drop(forgotten);
    }

    /// Forgets what is queued, has `last` taken instead, and refuses further items. What a queue
    /// that is closed already still holds stays.
    pub(crate) fn end_with(&self, last: T) {
        let forgotten = {
            let mut state = self.lock();
            if state.is_closed {
                return;
            }
            state.is_closed = true;
            state.queued.fill(0);
            std::mem::replace(&mut state.items, VecDeque::from([last]))
        };
        self.arrived.notify_all();
        self.room.notify_all();
        drop(forgotten);
    }

    /// Makes every [`Self::take`], also a waiting one, answer [`Taken::Interrupted`].
    pub(crate) fn interrupt(&self) {
        // Under the lock, so that no waiter is between its check and its sleep.
        let state = self.lock();
        self.interrupted.store(true, Ordering::SeqCst);
        drop(state);
        self.arrived.notify_all();
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code of ours panics while it holds the lock in a state that is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for `condition`; `None` when the time has come.
fn wait<'a, T>(
    condition: &Condvar,
    state: MutexGuard<'a, State<T>>,
    until: Option<Instant>,
) -> Option<MutexGuard<'a, State<T>>> {
    let Some(until) = until else {
        return Some(
            condition
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner),
        );
    };
    let left = until
        .checked_duration_since(Instant::now())
        .filter(|left| !left.is_zero())?;
    Some(
        condition
            .wait_timeout(state, left)
            .unwrap_or_else(PoisonError::into_inner)
            .0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn a_patient_push_goes_on_when_its_lane_has_room() {
        let queue = Arc::new(Queue::new());
        for item in 0..MAX_WAITING {
            queue.push(0, item, Patience::Until(None)).expect("room");
        }
        let now = Some(Instant::now());
        assert_eq!(queue.push(0, 0, Patience::Until(now)), Err(PushError::Full));
        queue
            .push(1, MAX_WAITING, Patience::Until(now))
            .expect("the other lane has room");
        let pusher = thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.push(0, MAX_WAITING + 1, Patience::Until(None))
        });
        let mut items = VecDeque::new();
        while items.len() < MAX_WAITING + 2 {
            assert_eq!(queue.take(&mut items, None), Taken::Items);
        }
        assert_eq!(pusher.join().expect("no panic"), Ok(()));
        assert!(items.into_iter().eq(0..MAX_WAITING + 2));
    }

    #[test]
    fn closing_and_interrupting_end_a_wait() {
        let queue = Arc::new(Queue::<u8>::new());
        let waiter = thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.take(&mut VecDeque::new(), None)
        });
        queue.interrupt();
        assert_eq!(waiter.join().expect("no panic"), Taken::Interrupted);

        let queue = Queue::new();
        queue.push(0, 7, Patience::Never).expect("room");
        queue.close();
        assert_eq!(queue.push(0, 8, Patience::Never), Err(PushError::Closed));
        let mut items = VecDeque::new();
        assert_eq!(queue.take(&mut items, None), Taken::Items);
        assert_eq!(queue.take(&mut items, None), Taken::Closed);
        assert_eq!(items, [7]);

        let queue = Queue::new();
        for item in 0..MAX_WAITING {
            queue.push(0, item, Patience::Never).expect("room");
        }
        for last in [7, 8] {
            queue.end_with(last);
        }
        assert_eq!(
            queue.push(0, 9, Patience::Until(None)),
            Err(PushError::Closed)
        );
        let mut items = VecDeque::new();
        assert_eq!(queue.take(&mut items, None), Taken::Items);
        assert_eq!(queue.take(&mut items, None), Taken::Closed);
        assert_eq!(items, [7], "the first last item stays");
    }
}
