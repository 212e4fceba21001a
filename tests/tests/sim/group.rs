//! What `muster_collective::Group` does around the machine of a reduction, without threads: it
//! matches frames to operations, keeps those that are early, and ends with one error.

use std::collections::VecDeque;

use muster_cluster::ids::{RankId, Step};
use muster_collective::frame::{Body, Cause, Frame, Part};
use muster_collective::reduction::{Input, Output};
use muster_collective::{Error, LossReason, Operation, Pool, Reduced, Reduction, World};

/// What came over a connection, in its order.
#[derive(Clone, Debug)]
pub(crate) enum Arrived {
    Frame { from: RankId, frame: Frame },
    Lost { rank: RankId, reason: LossReason },
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) world: World,
    pool: Pool,
    sequence: u64,
    running: Option<Reduction>,
    /// What the operation ended with before anybody asked.
    finished: Option<Reduced>,
    inbox: VecDeque<Arrived>,
    early: Vec<(RankId, Frame)>,
    mail: Vec<VecDeque<Vec<u8>>>,
    lost: Vec<(RankId, LossReason)>,
    failure: Option<Error>,
    pub(crate) is_revoked: bool,
    /// A bug of our own making: frames of other generations are let in.
    admits_all: bool,
    /// What is to be sent.
    pub(crate) out: Vec<(RankId, Frame)>,
}

impl Group {
    pub(crate) fn new(world: World, pool: Pool, admits_all: bool) -> Self {
        Self {
            world,
            pool,
            sequence: 0,
            running: None,
            finished: None,
            inbox: VecDeque::new(),
            early: Vec::new(),
            mail: vec![VecDeque::new(); world.size as usize],
            lost: Vec::new(),
            failure: None,
            is_revoked: false,
            admits_all,
            out: Vec::new(),
        }
    }

    pub(crate) fn arrived(&mut self, arrived: Arrived) {
        self.inbox.push_back(arrived);
    }

    pub(crate) fn waiting_for(&self) -> Vec<RankId> {
        self.running
            .as_ref()
            .map(Reduction::waiting_for)
            .unwrap_or_default()
    }

    fn frame(&self, body: Body) -> Frame {
        Frame {
            history: self.world.history,
            generation: self.world.generation,
            from: self.world.rank,
            sequence: self.sequence,
            step: Step::default(),
            body,
        }
    }

    fn usable(&self) -> Result<(), Error> {
        match &self.failure {
            Some(failure) => Err(failure.clone()),
            None if self.is_revoked => Err(Error::Revoked),
            None => Ok(()),
        }
    }

    fn fail(&mut self, error: Error) -> Error {
        self.running = None;
        self.failure.get_or_insert(error).clone()
    }

    /// Begins an operation, which [`Self::poll`] completes.
    pub(crate) fn start(&mut self, operation: Operation) -> Result<(), Error> {
        self.usable()?;
        let mut machine = Reduction::new(self.world, self.sequence, operation, &self.pool)?;
        let mut inputs = vec![Input::Start];
        let early = std::mem::take(&mut self.early).into_iter();
        inputs.extend(early.map(|(from, frame)| Input::Frame { from, frame }));
        let lost = self.lost.iter().copied();
        inputs.extend(lost.map(|(rank, reason)| Input::Lost { rank, reason }));
        let mut outputs = Vec::new();
        for input in inputs {
            machine.handle(input, &mut outputs);
        }
        self.running = Some(machine);
        if let Some(ended) = self.take(outputs) {
            self.finished = Some(ended?);
        }
        Ok(())
    }

    /// Carries out what the machine says; how it ended, if it did.
    fn take(&mut self, outputs: Vec<Output>) -> Option<Result<Reduced, Error>> {
        for output in outputs {
            match output {
                Output::Send { to, frame } => self.out.push((to, frame)),
                Output::Done => {
                    let machine = self.running.take()?;
                    self.sequence += 1;
                    return machine.finish().map(Ok);
                }
                Output::Failed(error) => {
                    self.sequence += 1;
                    return Some(Err(self.fail(error)));
                }
            }
        }
        None
    }

    /// Goes on with the operation that runs; its result once it has ended.
    pub(crate) fn poll(&mut self) -> Option<Result<Reduced, Error>> {
        if let Some(reduced) = self.finished.take() {
            return Some(Ok(reduced));
        }
        loop {
            let input = if self.is_revoked {
                Input::Revoke
            } else {
                let arrived = self.inbox.pop_front()?;
                match self.route(arrived) {
                    Ok(Some(input)) => input,
                    Ok(None) => continue,
                    Err(error) => return Some(Err(self.fail(error))),
                }
            };
            if let Some(ended) = self.input(input) {
                return Some(ended);
            }
        }
    }

    /// The time of the operation is over.
    pub(crate) fn time_out(&mut self) -> Option<Result<Reduced, Error>> {
        self.input(Input::Deadline)
    }

    fn input(&mut self, input: Input) -> Option<Result<Reduced, Error>> {
        let mut outputs = Vec::new();
        self.running.as_mut()?.handle(input, &mut outputs);
        self.take(outputs)
    }

    pub(crate) fn say(&mut self, to: RankId, bytes: Vec<u8>) {
        let part = Part {
            part: 0,
            num_parts: 1,
            bytes: bytes.into(),
        };
        let frame = self.frame(Body::Message(part));
        self.out.push((to, frame));
    }

    /// The next message from another rank, if it is there.
    pub(crate) fn hear(&mut self, from: RankId) -> Option<Result<Vec<u8>, Error>> {
        if let Err(error) = self.usable() {
            return Some(Err(self.fail(error)));
        }
        loop {
            if let Some(message) = self.mail[from.0 as usize].pop_front() {
                return Some(Ok(message));
            }
            let is_cause = |(rank, reason): &&(RankId, LossReason)| {
                *rank == from || *reason == LossReason::Reported { by: from }
            };
            if let Some((rank, reason)) = self.lost.iter().find(is_cause).copied() {
                let error = match reason {
                    LossReason::Revoked => Error::Revoked,
                    reason => Error::PeerLost { rank, reason },
                };
                return Some(Err(self.fail(error)));
            }
            let arrived = self.inbox.pop_front()?;
            if let Err(error) = self.route(arrived) {
                return Some(Err(self.fail(error)));
            }
        }
    }

    fn route(&mut self, arrived: Arrived) -> Result<Option<Input>, Error> {
        let (from, frame) = match arrived {
            Arrived::Lost { rank, reason } => return Ok(Some(self.lose(rank, reason))),
            Arrived::Frame { from, frame } => (from, frame),
        };
        if !self.admits_all && frame.admit(&self.world, from).is_err() {
            return Ok(None);
        }
        match &frame.body {
            Body::Message(part) => {
                self.mail[from.0 as usize].push_back(part.bytes.to_vec());
                Ok(None)
            }
            Body::Goodbye(cause) => {
                let (rank, reason) = cause.loss(from, &self.world);
                let input = self.lose(rank, reason);
                if rank != from {
                    self.lose(from, LossReason::GaveUp);
                }
                Ok(Some(input))
            }
            Body::Alive => Ok(None),
            Body::Note(_) | Body::Sum { .. } | Body::Total { .. } => self.match_frame(from, frame),
        }
    }

    fn match_frame(&mut self, from: RankId, frame: Frame) -> Result<Option<Input>, Error> {
        let next = self.sequence + u64::from(self.running.is_some());
        if frame.sequence < self.sequence {
            Ok(None)
        } else if frame.sequence < next {
            Ok(Some(Input::Frame { from, frame }))
        } else if frame.sequence == next {
            self.early.push((from, frame));
            Ok(None)
        } else {
            let what = format!("operation {} before {next}", frame.sequence);
            Err(Error::Protocol { rank: from, what })
        }
    }

    fn lose(&mut self, rank: RankId, reason: LossReason) -> Input {
        if !self.lost.contains(&(rank, reason)) {
            self.lost.push((rank, reason));
        }
        Input::Lost { rank, reason }
    }

    /// What this rank says when it leaves.
    pub(crate) fn goodbye(&self) -> Frame {
        let cause = match &self.failure {
            Some(Error::PeerLost { rank, .. }) => Cause::Lost(*rank),
            Some(Error::Revoked) => Cause::Revoked,
            None if self.is_revoked => Cause::Revoked,
            Some(_) => Cause::Failed,
            None => Cause::Done,
        };
        self.frame(Body::Goodbye(cause))
    }

    /// What it says to a peer that it does not hear.
    pub(crate) fn goodbye_to(&self, silent: RankId) -> Frame {
        self.frame(Body::Goodbye(Cause::Lost(silent)))
    }
}
