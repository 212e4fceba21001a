//! What connects the devices of the double: matches what the ranks begin, and copies.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use muster_cluster::RankId;

use super::Device;
use crate::device::Region;
use crate::device::bulk::{BulkError, Leg, Transfer};
use crate::world::World;

/// The connections of one world of devices, and the strings that tests pull. Clones are the same.
#[derive(Clone, Debug)]
pub struct Fabric {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    ports: Vec<Port>,
}

/// One rank's end.
#[derive(Debug)]
struct Port {
    device: Device,
    /// What has begun and is not complete, in order.
    queue: VecDeque<Pending>,
    num_begun: u64,
    num_completed: u64,
    failure: Option<BulkError>,
    /// Ended by its own rank.
    is_ended: bool,
    /// Nothing goes in or out.
    is_held: bool,
    /// Does not let go of its memory when it is aborted.
    is_stuck: bool,
}

#[derive(Debug)]
struct Pending {
    transfer: Transfer,
    /// By leg of an exchange.
    done: Vec<bool>,
}

impl Fabric {
    pub(super) fn new(devices: &[Device]) -> Self {
        let port = |device: &Device| Port {
            device: device.clone(),
            queue: VecDeque::new(),
            num_begun: 0,
            num_completed: 0,
            failure: None,
            is_ended: false,
            is_held: false,
            is_stuck: false,
        };
        let state = State {
            ports: devices.iter().map(port).collect(),
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
        }
    }

    /// Lets nothing in or out of a rank until [`Self::release`]: it is slow, or dead.
    pub fn hold(&self, rank: RankId) {
        self.with(rank, |port| port.is_held = true);
    }

    /// Ends a [`Self::hold`].
    pub fn release(&self, rank: RankId) {
        self.with(rank, |port| port.is_held = false);
    }

    /// Has the library of a rank fail with these words.
    pub fn fail(&self, rank: RankId, what: &str) {
        self.with(rank, |port| port.failure = Some(BulkError::new(what)));
    }

    /// Has an abort of a rank not end, as that of a device which no longer answers.
    pub fn jam(&self, rank: RankId) {
        self.with(rank, |port| port.is_stuck = true);
    }

    /// How many transfers a rank has begun.
    #[must_use]
    pub fn num_begun(&self, rank: RankId) -> u64 {
        let state = self.lock();
        let port = state.ports.get(World::index(rank));
        port.map_or(0, |port| port.num_begun)
    }

    pub(super) fn begin(&self, rank: RankId, transfer: Transfer) -> Result<(), BulkError> {
        let mut state = self.lock();
        let port = &mut state.ports[World::index(rank)];
        port.check()?;
        let num_legs = match &transfer {
            Transfer::Exchange(legs) => legs.len(),
            _ => 0,
        };
        port.num_begun += 1;
        port.queue.push_back(Pending {
            transfer,
            done: vec![false; num_legs],
        });
        drop(state);
        self.advance();
        Ok(())
    }

    pub(super) fn wait(
        &self,
        rank: RankId,
        number: u64,
        at_most: Duration,
    ) -> Result<bool, BulkError> {
        let until = Instant::now() + at_most;
        let mut state = self.lock();
        loop {
            let port = &state.ports[World::index(rank)];
            if port.num_completed >= number {
                return Ok(true);
            }
            port.check()?;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn abort(&self, rank: RankId, _: Duration) -> bool {
        let mut state = self.lock();
        let port = &mut state.ports[World::index(rank)];
        port.is_ended = true;
        port.queue.clear();
        !port.is_stuck
    }

    pub(super) fn close(&self, rank: RankId) {
        // What has begun is complete, so that nobody waits for this rank any more.
        self.with(rank, |port| port.is_ended = true);
    }

    fn with(&self, rank: RankId, change: impl FnOnce(&mut Port)) {
        if let Some(port) = self.lock().ports.get_mut(World::index(rank)) {
            change(port);
        }
        self.advance();
    }

    /// Completes whatever can be.
    fn advance(&self) {
        let mut state = self.lock();
        while state.match_legs() || state.match_collective() {
            for port in &mut state.ports {
                let is_complete = |pending: &Pending| {
                    matches!(pending.transfer, Transfer::Exchange(_))
                        && pending.done.iter().all(|done| *done)
                };
                while port.is_open() && port.queue.front().is_some_and(is_complete) {
                    port.queue.pop_front();
                    port.num_completed += 1;
                }
            }
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.shared.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Port {
    fn is_open(&self) -> bool {
        !self.is_ended && !self.is_held && self.failure.is_none()
    }

    fn check(&self) -> Result<(), BulkError> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None if self.is_ended => Err(BulkError::new("this communicator was ended")),
            None => Ok(()),
        }
    }

    /// The legs of the exchange at the head of the queue.
    fn legs(&self) -> &[Leg] {
        match self.queue.front() {
            Some(Pending {
                transfer: Transfer::Exchange(legs),
                ..
            }) if self.is_open() => legs,
            _ => &[],
        }
    }

    /// The first leg that is not done and that `wanted` takes for its own.
    fn first(&self, wanted: impl Fn(&Leg) -> Option<Region>) -> Option<(usize, Region)> {
        let done = self.queue.front().map_or(&[][..], |pending| &pending.done);
        let mut legs = self.legs().iter().zip(done).enumerate();
        legs.find_map(|(at, (leg, done))| {
            let region = wanted(leg).filter(|_| !done)?;
            Some((at, region))
        })
    }

    fn done(&mut self, leg: usize) {
        if let Some(pending) = self.queue.front_mut() {
            pending.done[leg] = true;
        }
    }
}

impl State {
    /// Copies what one rank sends and another receives; whether there was something. An exchange
    /// without legs counts, for it is complete.
    fn match_legs(&mut self) -> bool {
        let is_empty = |port: &Port| {
            let head = port.queue.front().map(|pending| &pending.transfer);
            port.is_open() && head == Some(&Transfer::Exchange(Vec::new()))
        };
        let mut has_matched = self.ports.iter().any(is_empty);
        let ranks = 0..self.ports.len();
        for (from, to) in ranks
            .clone()
            .flat_map(|from| ranks.clone().map(move |to| (from, to)))
        {
            let sent = self.ports[from].first(|leg| match leg {
                Leg::Send { to: peer, values } if World::index(*peer) == to => Some(*values),
                _ => None,
            });
            let received = self.ports[to].first(|leg| match leg {
                Leg::Receive { from: peer, into } if World::index(*peer) == from => Some(*into),
                _ => None,
            });
            let (Some((sent, values)), Some((received, into))) = (sent, received) else {
                continue;
            };
            let copied = self.ports[from].device.read(values);
            let copied = copied.and_then(|values| self.ports[to].device.write(into, &values));
            if let Err(error) = copied {
                self.ports[from].failure = Some(error.clone());
                self.ports[to].failure = Some(error);
            }
            self.ports[from].done(sent);
            self.ports[to].done(received);
            has_matched = true;
        }
        has_matched
    }

    /// Completes the collective that every rank is at; whether there is one.
    fn match_collective(&mut self) -> bool {
        let head = |port: &Port| {
            let pending = port.queue.front().filter(|_| port.is_open())?;
            match &pending.transfer {
                Transfer::Exchange(_) => None,
                transfer => Some(transfer.clone()),
            }
        };
        let Some(transfers) = self.ports.iter().map(head).collect::<Option<Vec<_>>>() else {
            return false;
        };
        if transfers.is_empty() {
            return false;
        }
        let result = self.collect(&transfers);
        for port in &mut self.ports {
            port.queue.pop_front();
            match &result {
                Ok(()) => port.num_completed += 1,
                Err(error) => port.failure = Some(error.clone()),
            }
        }
        true
    }

    fn collect(&self, transfers: &[Transfer]) -> Result<(), BulkError> {
        let regions = |transfer: &Transfer| match transfer {
            Transfer::AllReduce { input, output } => (0, *input, *output),
            Transfer::ReduceScatter { input, output } => (1, *input, *output),
            Transfer::AllGather { input, output } => (2, *input, *output),
            Transfer::Exchange(_) => (3, Region::default(), Region::default()),
        };
        let regions: Vec<_> = transfers.iter().map(regions).collect();
        let (kind, ..) = regions[0];
        let mut inputs = Vec::new();
        for (port, (other, input, _)) in self.ports.iter().zip(&regions) {
            inputs.push(port.device.read(*input)?);
            if *other != kind || inputs[0].len() != input.num_elements {
                return Err(BulkError::new("the ranks are at different collectives"));
            }
        }
        let whole = match kind {
            2 => inputs.concat(),
            // From the last rank on, so that nobody takes the order for the tree's.
            _ => inputs
                .into_iter()
                .rev()
                .reduce(|mut sum, values| {
                    let terms = sum.iter_mut().zip(values);
                    terms.for_each(|(sum, value)| *sum += value);
                    sum
                })
                .unwrap_or_default(),
        };
        let mut start = 0;
        for (port, (_, _, output)) in self.ports.iter().zip(&regions) {
            let end = start + output.num_elements;
            let part = if kind == 1 {
                whole.get(start..end)
            } else {
                Some(&whole[..])
            };
            let part = part.ok_or_else(|| BulkError::new("the parts are longer than the whole"))?;
            port.device.write(*output, part)?;
            start = end;
        }
        Ok(())
    }
}
