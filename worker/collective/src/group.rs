//! The handle that a rank holds on its world: collective operations with deadlines.
//!
//! A group runs the machine of [`crate::reduction`] over a transport. It matches frames to
//! operations, keeps those of ranks that are one operation ahead, and turns whatever goes wrong
//! into one typed error within milliseconds. It never decides what to do about a loss.

mod alone;
mod awaited;
mod counters;
mod messages;
mod on_sent;
mod revoker;
mod vectors;
mod watch;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use muster_cluster::{RankId, Step};

use crate::error::{Error, LossReason};
use crate::frame::{Assembly, Body, Cause, Frame, Refusal};
use crate::queue::{Patience, PushError, Queue, Taken};
use crate::reduction::{Input, Operation, Output, Reduced, Reduction};
use crate::values::Pool;
use crate::world::World;

pub(crate) use alone::alone;
use awaited::Awaited;
pub use counters::Counters;
pub use on_sent::OnSent;
pub use revoker::Revoker;

/// What a transport puts into a rank's inbox; what one peer did stays in its order.
#[derive(Debug)]
pub(crate) enum Event {
    /// A frame came on the connection of `from`.
    Frame { from: RankId, frame: Frame },
    /// Nothing more will come from `rank`.
    Lost { rank: RankId, reason: LossReason },
}

pub(crate) type Inbox = Queue<Event>;

/// How frames get from one rank to another.
pub(crate) trait Transport: fmt::Debug + Send {
    /// Queues a frame. A receiver that is gone is no error here: its loss is told by the inbox.
    fn send(&self, to: RankId, frame: Frame, patience: Patience) -> Result<(), PushError>;

    /// Says goodbye to all, or ends all connections at once where there is none to say. Nothing is
    /// sent after it; it waits for nothing and is called once.
    fn leave(&mut self, goodbye: Option<Frame>);

    /// After `leave`: waits, not for ever, until what was queued is sent, and joins all threads.
    fn join(&mut self);
}

/// One rank's part in one world.
///
/// All ranks call the same operations in the same order. A group that has failed once gives the
/// same error to every later operation: the ranks no longer agree on what comes next, and only a
/// new generation can go on. Dropping a group says goodbye, closes its connections and joins its
/// threads, which waits for slow peers: seconds after a success, less than one after a failure.
/// [`Group::retire`] has that done elsewhere.
#[derive(Debug)]
pub struct Group {
    world: World,
    transport: Box<dyn Transport>,
    revoker: Revoker,
    inbox: Arc<Inbox>,
    pool: Pool,
    /// The operation that runs, or the next one.
    sequence: u64,
    is_running: bool,
    /// Taken from the inbox and not looked at yet.
    arrived: VecDeque<Event>,
    /// Frames of the next operation, from ranks that are ahead. No more than one operation's: a
    /// rank cannot end an operation before every other has begun it.
    early: VecDeque<(RankId, Frame)>,
    messages: Vec<Mailbox>,
    lost: Vec<(RankId, LossReason)>,
    failure: Option<Error>,
    counters: Counters,
    awaited: Option<(RankId, Duration)>,
    on_sent: Option<OnSent>,
    has_left: bool,
}

/// Messages from one rank that nobody has asked for yet.
#[derive(Debug, Default)]
struct Mailbox {
    assembly: Assembly,
    whole: VecDeque<Vec<u8>>,
}

/// A rank that has sent more whole messages than this without any being received is broken.
const MAX_MESSAGES: usize = 4096;

/// How long a send that waits for room does not see a revocation: the queue that it waits for is
/// the receiver's, and a revocation interrupts only this rank's.
const REVOCATION_TICK: Duration = Duration::from_millis(20);

/// What a wait for the next event ended with.
enum Next {
    Event(Event),
    Revoked,
    TimedOut,
}

impl Group {
    pub(crate) fn new(
        world: World,
        transport: Box<dyn Transport>,
        revoker: Revoker,
        counters: Counters,
    ) -> Self {
        Self {
            inbox: revoker.inbox(),
            messages: world.ranks().map(|_| Mailbox::default()).collect(),
            pool: Pool::default(),
            sequence: 0,
            is_running: false,
            arrived: VecDeque::new(),
            early: VecDeque::new(),
            lost: Vec::new(),
            failure: None,
            awaited: None,
            on_sent: None,
            has_left: false,
            world,
            transport,
            revoker,
            counters,
        }
    }

    /// The world that this group belongs to.
    #[must_use]
    pub fn world(&self) -> World {
        self.world
    }

    /// What was moved and refused so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whose frame completed the last operation, and how long after all had begun it: who sends or
    /// sums slowly is awaited longest. `None` in a world of one.
    #[must_use]
    pub fn awaited(&self) -> Option<(RankId, Duration)> {
        self.awaited
    }

    /// Closes this group's generation from another thread.
    #[must_use]
    pub fn revoker(&self) -> Revoker {
        self.revoker.clone()
    }

    /// Where the vectors of results come from; give them back with [`Pool::give_shared`].
    #[must_use]
    pub fn pool(&self) -> Pool {
        self.pool.clone()
    }

    /// Draws result vectors from `pool`, so that the vectors of an older generation are used again.
    pub fn set_pool(&mut self, pool: Pool) {
        self.pool = pool;
    }

    /// Has `on_sent` told of every frame of an operation, as soon as it is on its way.
    pub fn set_on_sent(&mut self, on_sent: OnSent) {
        self.on_sent = Some(on_sent);
    }

    /// Sums vectors over all logical shards, in canonical order, and tells everyone's note to
    /// everyone.
    ///
    /// # Errors
    /// Every kind of [`Error`]; after [`Error::Invalid`] the group can still be used.
    pub fn all_reduce(
        &mut self,
        operation: Operation,
        deadline: Duration,
    ) -> Result<Reduced, Error> {
        self.run(operation, deadline)
    }

    /// Tells `bytes` to everyone; gives everyone's bytes, by rank.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn all_gather(
        &mut self,
        bytes: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<Vec<u8>>, Error> {
        Ok(self.run(Operation::exchange(bytes), deadline)?.notes)
    }

    /// Gives everyone the bytes of `root`; the others' `bytes` are not used. Like every operation
    /// here it ends only after all ranks have begun it.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn broadcast(
        &mut self,
        root: RankId,
        bytes: Vec<u8>,
        deadline: Duration,
    ) -> Result<Vec<u8>, Error> {
        if root.0 >= self.world.size {
            return Err(self.no_such_rank(root));
        }
        let bytes = if root == self.world.rank {
            bytes
        } else {
            Vec::new()
        };
        let mut notes = self.run(Operation::exchange(bytes), deadline)?.notes;
        Ok(notes.swap_remove(World::index(root)))
    }

    /// Returns after every rank has called it.
    ///
    /// # Errors
    /// As [`Self::all_reduce`].
    pub fn barrier(&mut self, deadline: Duration) -> Result<(), Error> {
        self.run(Operation::exchange(Vec::new()), deadline)
            .map(|_| ())
    }

    /// Says goodbye and returns at once; what dropping a group waits for, a thread of its own
    /// (`retire`) waits for.
    ///
    /// The thread ends by itself, after seconds at most. A process that exits before it does may
    /// cut off what peers have not read yet, as a process that does not drop its group would.
    /// Where the system gives no thread, this is a plain drop.
    pub fn retire(mut self) {
        self.leave(Some(self.goodbye()));
        // A thread that cannot be started drops its work, and so the group, here.
        let _ = thread::Builder::new()
            .name("retire".to_owned())
            .spawn(move || drop(self));
    }

    /// Tells the peers that this rank leaves because of an error, and gives it back.
    pub(crate) fn give_up(mut self, error: Error) -> Error {
        let error = self.fail(error);
        self.retire();
        error
    }

    fn run(&mut self, operation: Operation, deadline: Duration) -> Result<Reduced, Error> {
        self.check_usable()?;
        let machine = Reduction::new(self.world, self.sequence, operation, &self.pool)?;
        let until = Instant::now().checked_add(deadline);
        self.is_running = true;
        let result = self.drive(machine, until);
        self.is_running = false;
        self.sequence += 1;
        result.map_err(|error| self.fail(error))
    }

    fn drive(&mut self, mut machine: Reduction, until: Option<Instant>) -> Result<Reduced, Error> {
        let mut outputs = Vec::new();
        let mut awaited = Awaited::new(&self.world);
        let mut num_sent = 0;
        let mut inputs: VecDeque<Input> = VecDeque::from([Input::Start]);
        for (from, frame) in self.early.drain(..) {
            inputs.push_back(Input::Frame { from, frame });
        }
        // After the frames: what a rank sent before it left may be all that is needed of it.
        for (rank, reason) in &self.lost {
            inputs.push_back(Input::Lost {
                rank: *rank,
                reason: *reason,
            });
        }
        loop {
            let input = match inputs.pop_front() {
                Some(input) => input,
                None => match self.next_event(until) {
                    Next::Event(event) => match self.route(event)? {
                        Some(input) => input,
                        None => continue,
                    },
                    Next::Revoked => Input::Revoke,
                    Next::TimedOut => Input::Deadline,
                },
            };
            if let Input::Frame { from, .. } = &input {
                awaited.hears(*from);
            }
            machine.handle(input, &mut outputs);
            for output in outputs.drain(..) {
                match output {
                    Output::Send { to, frame } => {
                        if self.transmit(to, frame, Patience::Never) == Err(PushError::Full) {
                            let what = "it takes no more frames".to_owned();
                            return Err(Error::Protocol { rank: to, what });
                        }
                        num_sent += 1;
                        if let Some(on_sent) = &mut self.on_sent {
                            on_sent.tell(num_sent, to);
                        }
                    }
                    Output::Done => {
                        self.awaited = awaited.last();
                        let whole = machine.finish();
                        return Ok(whole.expect("a machine that is done has its result"));
                    }
                    Output::Failed(error) => return Err(error),
                }
            }
        }
    }

    /// Decides what an event is to the operation that runs: an input, or nothing yet.
    fn route(&mut self, event: Event) -> Result<Option<Input>, Error> {
        let (from, frame) = match event {
            Event::Frame { from, frame } => (from, frame),
            Event::Lost { rank, reason } => {
                if let LossReason::Garbage(refusal) = reason {
                    self.counters.refuse(refusal);
                }
                return Ok(Some(self.lose(rank, reason)));
            }
        };
        match frame.admit(&self.world, from) {
            Ok(()) => {}
            Err(refusal @ Refusal::Sender) => {
                self.counters.refuse(refusal);
                return Ok(Some(self.lose(from, LossReason::Garbage(refusal))));
            }
            Err(refusal) => {
                self.counters.refuse(refusal);
                return Ok(None);
            }
        }
        self.counters.frames_received += 1;
        self.counters.bytes_received += frame.num_bytes() as u64;
        match &frame.body {
            Body::Message(part) => self.keep_message(from, part).map(|()| None),
            Body::Goodbye(cause) => {
                let (rank, reason) = cause.loss(from, &self.world);
                let input = self.lose(rank, reason);
                if rank != from {
                    // After the rank that it blames, so that operations blame that one too.
                    self.lose(from, LossReason::GaveUp);
                }
                Ok(Some(input))
            }
            // Only a connection asks for it; no driver hands one over.
            Body::Alive => Ok(None),
            Body::Note(_) | Body::Sum { .. } | Body::Total { .. } => self.match_frame(from, frame),
        }
    }

    /// Gives a frame to its operation: the one that runs, or the next.
    fn match_frame(&mut self, from: RankId, frame: Frame) -> Result<Option<Input>, Error> {
        let next = self.sequence + u64::from(self.is_running);
        if frame.sequence < self.sequence {
            self.counters.refuse(Refusal::Older);
            Ok(None)
        } else if frame.sequence < next {
            Ok(Some(Input::Frame { from, frame }))
        } else if frame.sequence == next {
            self.early.push_back((from, frame));
            Ok(None)
        } else {
            let sequence = frame.sequence;
            let what = format!("operation {sequence} before this rank has begun {next}");
            Err(Error::Protocol { rank: from, what })
        }
    }

    fn lose(&mut self, rank: RankId, reason: LossReason) -> Input {
        // In the order of arrival: the first account of a loss is the one nearest to its cause.
        if !self.lost.contains(&(rank, reason)) {
            self.lost.push((rank, reason));
        }
        Input::Lost { rank, reason }
    }

    fn next_event(&mut self, until: Option<Instant>) -> Next {
        if self.revoker.is_revoked() {
            return Next::Revoked;
        }
        if let Some(event) = self.arrived.pop_front() {
            return Next::Event(event);
        }
        if until.is_some_and(|until| until <= Instant::now()) {
            return Next::TimedOut;
        }
        match self.inbox.take(&mut self.arrived, until) {
            Taken::Items => self.arrived.pop_front().map_or(Next::TimedOut, Next::Event),
            Taken::Interrupted => Next::Revoked,
            // An inbox is closed by dropping the group, or with its last deadline.
            Taken::Closed | Taken::TimedOut => Next::TimedOut,
        }
    }

    fn transmit(&mut self, to: RankId, frame: Frame, patience: Patience) -> Result<(), PushError> {
        let num_bytes = frame.num_bytes() as u64;
        let sent = self.transport.send(to, frame, patience);
        if sent != Err(PushError::Full) {
            self.counters.frames_sent += 1;
            self.counters.bytes_sent += num_bytes;
        }
        sent
    }

    fn frame(&self, body: Body) -> Frame {
        Frame::new(&self.world, self.sequence, Step::default(), body)
    }

    pub(crate) fn check_usable(&self) -> Result<(), Error> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None if self.revoker.is_revoked() => Err(Error::Revoked),
            None => Ok(()),
        }
    }

    fn check_peer(&self, rank: RankId) -> Result<(), Error> {
        let is_peer = rank.0 < self.world.size && rank != self.world.rank;
        if is_peer {
            Ok(())
        } else {
            Err(self.no_such_rank(rank))
        }
    }

    fn no_such_rank(&self, rank: RankId) -> Error {
        let World {
            rank: own, size, ..
        } = self.world;
        let what = format!("rank {rank} is no peer of rank {own} in a world of {size} ranks");
        Error::Invalid { what }
    }

    pub(crate) fn fail(&mut self, error: Error) -> Error {
        self.failure.get_or_insert(error).clone()
    }

    /// Ends all connections without a goodbye, as a death would.
    #[cfg(test)]
    pub(crate) fn sever(mut self) {
        self.cut();
    }

    /// As [`Self::sever`], where the group lives on in what holds it.
    #[cfg(test)]
    pub(crate) fn cut(&mut self) {
        self.leave(None);
    }

    /// Sends nothing after `goodbye`, and takes nothing any more.
    fn leave(&mut self, goodbye: Option<Frame>) {
        if !std::mem::replace(&mut self.has_left, true) {
            // Readers that wait for room must see the goodbyes of others.
            self.inbox.clear();
            self.transport.leave(goodbye);
        }
    }

    /// What this rank says to its peers when it leaves.
    fn goodbye(&self) -> Frame {
        let cause = match &self.failure {
            Some(Error::PeerLost { rank, .. }) => Cause::Lost(*rank),
            Some(Error::Revoked) => Cause::Revoked,
            None if self.revoker.is_revoked() => Cause::Revoked,
            Some(_) => Cause::Failed,
            None => Cause::Done,
        };
        self.frame(Body::Goodbye(cause))
    }

    #[cfg(test)]
    pub(crate) fn transport(&self) -> &dyn Transport {
        &*self.transport
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.leave(Some(self.goodbye()));
        self.transport.join();
    }
}
