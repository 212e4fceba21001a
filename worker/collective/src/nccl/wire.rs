//! The real line: a communicator of NCCL, a stream of its own, and an event behind each transfer.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use muster_cluster::RankId;

use super::communicator::Communicator;
use super::driver::{Context, Event, Stream};
use super::library::{Library, UniqueId};
use super::ordering::{self, Ordering};
use crate::device::owner::{Line, Pace, Stop};
use crate::device::{BulkError, Transfer};

/// How long a stream may take to come to rest behind an abort: the kernels of a collective look for
/// one all the time, and what is queued behind them is the tail of a transfer.
const REST_PATIENCE: Duration = Duration::from_secs(3);

/// The fields are dropped in this order: what was made in the context before it.
pub(super) struct Wire {
    communicator: Communicator,
    ordering: Box<dyn Ordering>,
    /// Of the transfers that are not complete, oldest first.
    under_way: VecDeque<Event>,
    spare: Vec<Event>,
    stream: Stream,
    size: usize,
    num_completed: u64,
    _context: Context,
}

impl Wire {
    /// Begins to connect to the other ranks, on the calling thread.
    pub(super) fn begin(
        library: &Library,
        id: UniqueId,
        rank: RankId,
        size: u32,
        ordinal: u32,
    ) -> Result<Self, BulkError> {
        let context = Context::of(ordinal)?;
        let stream = Stream::new()?;
        let ordering = ordering::of(&context)?;
        Ok(Self {
            communicator: Communicator::begin(library, id, rank, size)?,
            ordering,
            under_way: VecDeque::new(),
            spare: Vec::new(),
            stream,
            size: size as usize,
            num_completed: 0,
            _context: context,
        })
    }

    /// Retires the events that are reached.
    fn retire(&mut self) -> Result<(), BulkError> {
        while let Some(event) = self.under_way.pop_front() {
            if !event.is_reached()? {
                self.under_way.push_front(event);
                break;
            }
            self.spare.push(event);
            self.num_completed += 1;
        }
        Ok(())
    }

    /// Polls until `is_over`, or until a stop; whether it is over.
    fn poll(
        &mut self,
        stop: &Stop,
        mut is_over: impl FnMut(&mut Self) -> Result<bool, BulkError>,
    ) -> Result<bool, BulkError> {
        let mut pace = Pace::default();
        while !is_over(self)? {
            if stop.is_set() {
                return Ok(false);
            }
            pace.wait();
        }
        Ok(true)
    }
}

impl Line for Wire {
    fn is_connected(&mut self) -> Result<bool, BulkError> {
        self.communicator.is_settled()
    }

    fn begin(&mut self, transfer: &Transfer, stop: &Stop) -> Result<(), BulkError> {
        if self.ordering.needs_idle() {
            let is_idle = self.poll(stop, |wire| {
                wire.communicator.is_settled()?;
                wire.retire()?;
                Ok(wire.under_way.is_empty())
            })?;
            if !is_idle {
                return Ok(());
            }
        }
        self.ordering.order(&self.stream)?;
        self.communicator
            .enqueue(transfer, self.stream.raw(), self.size)?;
        // The library may still be connecting the two ends of it, in a thread of its own; only then
        // are its kernels on the stream.
        if self.poll(stop, |wire| wire.communicator.is_settled())? {
            let event = self.spare.pop().map_or_else(Event::new, Ok)?;
            event.record(&self.stream)?;
            self.under_way.push_back(event);
        }
        Ok(())
    }

    fn num_completed(&mut self) -> Result<u64, BulkError> {
        self.communicator.is_settled()?;
        self.retire()?;
        Ok(self.num_completed)
    }

    fn abort(self) -> bool {
        let Self {
            communicator,
            stream,
            under_way,
            spare,
            ordering,
            _context: context,
            ..
        } = self;
        // A failed abort is told by a stream that does not come to rest.
        let _ = communicator.abort();
        let until = Instant::now() + REST_PATIENCE;
        let mut pace = Pace::default();
        while !stream.is_idle() {
            if Instant::now() >= until {
                // The driver would wait for it to free these; the process is about to end.
                std::mem::forget((stream, under_way, spare, ordering, context));
                return false;
            }
            pace.wait();
        }
        true
    }

    fn close(mut self, stop: &Stop, until: Instant) -> bool {
        let begun = self.communicator.finalize();
        let is_over = begun.and_then(|()| {
            let mut has_time = true;
            let is_settled = self.poll(stop, |wire| {
                has_time = Instant::now() < until;
                Ok(wire.communicator.is_settled()? || !has_time)
            })?;
            Ok(is_settled && has_time)
        });
        if is_over == Ok(true) {
            // All transfers were complete before: nothing depends on how this ends.
            let _ = self.communicator.destroy();
            true
        } else {
            self.abort()
        }
    }
}
