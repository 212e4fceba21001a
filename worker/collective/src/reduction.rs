//! The sans-IO machine of one canonical all-reduce: who sends which piece when.
//!
//! The arena is cut into one chunk per rank, its owner, and each chunk into pieces.
//!
//! ```text
//! New --Start--> Running --all pieces and notes are here--> Ended (Done)
//!                   \-----Deadline, Revoke, Lost, a broken rule--> Ended (Failed)
//! ```
//!
//! 1. *Reduce-scatter:* every rank sends the pieces of its subtree sums to their owners, and its
//!    note to everyone. An owner adds up a piece, in the order of the canonical tree, as soon as
//!    it has that piece of every subtree.
//! 2. *All-gather:* the owner sends the sum of the piece to everyone.
//!
//! Each element is summed along the one tree over the logical shards wherever it is summed, so the
//! bits do not depend on the number of ranks or on who holds what. A rank is done when it has
//! every piece and every note; every other rank has then started the operation. That is why ranks
//! are never more than one operation apart.
//!
//! The machine knows no clock and no socket, and does not fence generations: its driver admits
//! frames ([`crate::frame`]) and matches them to operations ([`crate::group`]).

mod operation;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use muster_cluster::tree::{self, Run};
use muster_cluster::{RankId, Step};

use crate::chunks::Chunks;
use crate::error::{Error, LossReason};
use crate::frame::{self, Assembly, Body, Frame, Part};
use crate::values::{Pool, Subtree, Values};
use crate::world::World;

pub(crate) use operation::holders;
pub use operation::{MAX_NOTE_BYTES, Operation};

/// What every rank has after an all-reduce.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduced {
    /// The sum over all logical shards: one value per element of the arena.
    pub vector: Arc<Vec<f32>>,
    /// Every rank's note, by rank.
    pub notes: Vec<Vec<u8>>,
}

/// What a machine is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// Begin; once.
    Start,
    /// An admitted frame of this operation. Frames of one rank come in the order it sent them;
    /// they may come before `Start`.
    Frame {
        /// The rank whose connection it came on.
        from: RankId,
        /// What it sent.
        frame: Frame,
    },
    /// The operation's time is over.
    Deadline,
    /// The generation is closed.
    Revoke,
    /// A rank is gone; what it sent before was handed over before.
    Lost {
        /// The rank that is gone.
        rank: RankId,
        /// How that was seen.
        reason: LossReason,
    },
}

/// What a machine asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Send this frame.
    Send {
        /// The receiver, never this rank itself.
        to: RankId,
        /// What to send.
        frame: Frame,
    },
    /// The result is whole: call [`Reduction::finish`]. Nothing follows.
    Done,
    /// The operation has failed. Nothing follows.
    Failed(Error),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    New,
    Running,
    Ended,
}

/// One canonical all-reduce, as one rank sees it.
#[derive(Debug)]
pub struct Reduction {
    world: World,
    sequence: u64,
    step: Step,
    num_shards: u32,
    chunks: Chunks,
    /// All held subtrees with their holders, in tree order.
    leaves: Vec<(Run, RankId)>,
    mine: Vec<Subtree>,
    note: Bytes,
    /// The pieces of this rank's chunk that are not summed yet.
    sums: Vec<PieceSum>,
    /// Per owner, which totals have arrived.
    totals: Vec<Vec<bool>>,
    notes: Vec<NoteState>,
    /// Per rank, how many sums, totals and whole notes are still to come from it.
    owed: Vec<usize>,
    vector: Vec<f32>,
    /// The result of a world of one rank that already holds it.
    whole: Option<Arc<Vec<f32>>>,
    phase: Phase,
}

/// A piece on its way to its sum: what is here of it, by leaf.
#[derive(Debug)]
struct PieceSum {
    parts: Vec<Option<Values>>,
    missing: usize,
}

#[derive(Debug)]
enum NoteState {
    Coming(Assembly),
    Whole(Vec<u8>),
}

impl Reduction {
    /// Checks `operation` and sets up its machine as operation number `sequence` of `world`. The
    /// result's vector is taken from `pool`.
    ///
    /// # Errors
    /// [`Error::Invalid`], which says what of the operation is impossible.
    pub fn new(
        world: World,
        sequence: u64,
        operation: Operation,
        pool: &Pool,
    ) -> Result<Self, Error> {
        let invalid = |what| Error::Invalid { what };
        if let Some(what) = world.problem() {
            return Err(invalid(what));
        }
        let leaves = operation::leaves(&world, &operation).map_err(invalid)?;
        let Operation {
            step,
            num_shards,
            num_elements,
            holdings,
            mine,
            note,
        } = operation;
        let chunks = Chunks {
            num_elements,
            num_owners: world.size,
        };

        // Alone with one sum, that sum is the result: nothing is sent, added or copied.
        let whole = match mine.as_slice() {
            [only] if world.size == 1 && leaves.len() == 1 => Some(Arc::clone(&only.values)),
            [] if num_elements == 0 => Some(Arc::default()),
            _ => None,
        };
        let is_whole = whole.is_some();
        let num_pieces = |owner| {
            if is_whole {
                0
            } else {
                chunks.num_pieces(owner)
            }
        };

        let mut reduction = Self {
            sums: Vec::new(),
            totals: world
                .ranks()
                .map(|owner| vec![false; num_pieces(owner)])
                .collect(),
            notes: world
                .ranks()
                .map(|_| NoteState::Coming(Assembly::default()))
                .collect(),
            owed: vec![0; world.len()],
            vector: if is_whole {
                Vec::new()
            } else {
                pool.take(num_elements)
            },
            note: note.into(),
            phase: Phase::New,
            world,
            sequence,
            step,
            num_shards,
            chunks,
            leaves,
            mine,
            whole,
        };
        for peer in world.peers() {
            let held = holdings.get(World::index(peer)).map_or(0, Vec::len);
            reduction.owed[World::index(peer)] =
                1 + held * num_pieces(world.rank) + num_pieces(peer);
        }
        reduction.notes[World::index(world.rank)] = NoteState::Whole(reduction.note.to_vec());
        for piece in 0..num_pieces(world.rank) {
            let sum = reduction.own_parts(piece);
            reduction.sums.push(sum);
        }
        Ok(reduction)
    }

    /// The one surface of the machine: takes an input, appends what is to be done.
    ///
    /// After `Done` or `Failed` every input is ignored.
    pub fn handle(&mut self, input: Input, outputs: &mut Vec<Output>) {
        if self.phase == Phase::Ended {
            return;
        }
        let result = match input {
            Input::Start => self.start(outputs),
            Input::Frame { from, frame } => self.receive(from, frame, outputs),
            Input::Deadline => Err(Error::TimedOut {
                waiting_for: self.waiting_for(),
            }),
            Input::Revoke => Err(Error::Revoked),
            Input::Lost { rank, reason } => self.lose(rank, reason),
        };
        match result {
            Err(error) => {
                self.phase = Phase::Ended;
                outputs.push(Output::Failed(error));
            }
            Ok(()) if self.phase == Phase::Running && self.owed.iter().all(|owed| *owed == 0) => {
                self.phase = Phase::Ended;
                outputs.push(Output::Done);
            }
            Ok(()) => {}
        }
    }

    /// The ranks from which something is still to come, in order.
    #[must_use]
    pub fn waiting_for(&self) -> Vec<RankId> {
        self.world
            .ranks()
            .filter(|rank| self.needs(*rank))
            .collect()
    }

    /// The result, or `None` before [`Output::Done`].
    #[must_use]
    pub fn finish(self) -> Option<Reduced> {
        if self.phase != Phase::Ended || self.owed.iter().any(|owed| *owed > 0) {
            return None;
        }
        let note = |note| match note {
            NoteState::Whole(note) => Some(note),
            NoteState::Coming(_) => None,
        };
        let notes = self.notes.into_iter().map(note).collect::<Option<_>>()?;
        let vector = self.whole.unwrap_or_else(|| Arc::new(self.vector));
        Some(Reduced { vector, notes })
    }

    fn start(&mut self, outputs: &mut Vec<Output>) -> Result<(), Error> {
        if self.phase != Phase::New {
            return Ok(());
        }
        self.phase = Phase::Running;
        for part in frame::parts(&self.note) {
            for to in self.world.peers() {
                outputs.push(self.send(to, Body::Note(part.clone())));
            }
        }
        // First the first piece for every owner, so that all of them have work at once.
        let most_pieces = self.totals.iter().map(Vec::len).max().unwrap_or(0);
        for piece in 0..most_pieces {
            for to in self.world.peers() {
                let Some(range) = self.piece(to, piece) else {
                    continue;
                };
                for subtree in &self.mine {
                    let values = Values::slice(&subtree.values, range.clone());
                    let body = Body::Sum {
                        piece: number(piece),
                        subtree: subtree.run,
                        values,
                    };
                    outputs.push(self.send(to, body));
                }
            }
        }
        for piece in 0..self.sums.len() {
            // What peers sent before the start may have completed a piece already.
            if self.sums[piece].missing == 0 && !self.totals[World::index(self.world.rank)][piece] {
                self.sum(piece, outputs);
            }
        }
        Ok(())
    }

    fn receive(
        &mut self,
        from: RankId,
        frame: Frame,
        outputs: &mut Vec<Output>,
    ) -> Result<(), Error> {
        let broken = |what: String| Error::Protocol { rank: from, what };
        if from == self.world.rank || from.0 >= self.world.size {
            return Err(broken("it is no peer of this world".to_owned()));
        }
        if frame.step != self.step {
            let (theirs, ours) = (frame.step, self.step);
            return Err(broken(format!(
                "it is at step {theirs} where this rank is at step {ours}"
            )));
        }
        match frame.body {
            Body::Note(part) => self.receive_note(from, &part).map_err(broken),
            Body::Sum {
                piece,
                subtree,
                values,
            } => {
                let piece = piece as usize;
                if self
                    .receive_sum(from, piece, subtree, values)
                    .map_err(broken)?
                {
                    self.sum(piece, outputs);
                }
                Ok(())
            }
            Body::Total { piece, values } => self
                .receive_total(from, piece as usize, &values)
                .map_err(broken),
            Body::Message(_) | Body::Goodbye(_) | Body::Alive => Err(broken(
                "a frame that is no part of an all-reduce".to_owned(),
            )),
        }
    }

    fn receive_note(&mut self, from: RankId, part: &Part) -> Result<(), String> {
        let index = World::index(from);
        let NoteState::Coming(assembly) = &mut self.notes[index] else {
            return Err("a second note".to_owned());
        };
        let text = assembly.add(part).map_err(|()| {
            format!(
                "part {} of {} of its note out of order",
                part.part, part.num_parts
            )
        })?;
        if let Some(text) = text {
            self.notes[index] = NoteState::Whole(text);
            self.owed[index] -= 1;
        }
        Ok(())
    }

    /// Keeps a piece of a subtree; whether it was the last one of its piece.
    fn receive_sum(
        &mut self,
        from: RankId,
        piece: usize,
        subtree: Run,
        values: Values,
    ) -> Result<bool, String> {
        let range = self.piece(self.world.rank, piece);
        let range = range.ok_or_else(|| format!("a sum of piece {piece}, which does not exist"))?;
        if values.len() != range.len() {
            let (expected, len) = (range.len(), values.len());
            return Err(format!(
                "{len} values for piece {piece}, which has {expected}"
            ));
        }
        let leaf = self.leaves.binary_search(&(subtree, from));
        let leaf =
            leaf.map_err(|_| format!("a sum of shards {subtree}, which it does not hold"))?;
        // A piece that is already summed has no parts any more.
        let sum = &mut self.sums[piece];
        match sum.parts.get_mut(leaf) {
            Some(part @ None) => *part = Some(values),
            _ => {
                return Err(format!(
                    "a second sum of shards {subtree} for piece {piece}"
                ));
            }
        }
        sum.missing -= 1;
        self.owed[World::index(from)] -= 1;
        Ok(sum.missing == 0)
    }

    fn receive_total(&mut self, from: RankId, piece: usize, values: &Values) -> Result<(), String> {
        let range = self.piece(from, piece);
        let range = range.ok_or_else(|| format!("total {piece}, which does not exist"))?;
        if values.len() != range.len() {
            let (expected, len) = (range.len(), values.len());
            return Err(format!(
                "{len} values for total {piece}, which has {expected}"
            ));
        }
        let index = World::index(from);
        if std::mem::replace(&mut self.totals[index][piece], true) {
            return Err(format!("total {piece} a second time"));
        }
        self.vector[range].copy_from_slice(values);
        self.owed[index] -= 1;
        Ok(())
    }

    /// Adds up a piece of which every part is here, and sends the sum to everyone.
    fn sum(&mut self, piece: usize, outputs: &mut Vec<Output>) {
        let mut parts = std::mem::take(&mut self.sums[piece].parts);
        let leaves = &self.leaves;
        let mut leaf = |node: Run| {
            let at = leaves.binary_search_by_key(&node, |(run, _)| *run).ok()?;
            parts[at].take()
        };
        let sum = tree::fold(Run::new(0, self.num_shards), &mut leaf, &mut Values::add)
            .expect("the holdings were checked to cover the tree, and no part is missing");
        let range = self
            .piece(self.world.rank, piece)
            .expect("a piece that is summed exists");
        self.vector[range].copy_from_slice(&sum);
        self.totals[World::index(self.world.rank)][piece] = true;
        for to in self.world.peers() {
            let body = Body::Total {
                piece: number(piece),
                values: sum.clone(),
            };
            outputs.push(self.send(to, body));
        }
    }

    fn lose(&self, rank: RankId, reason: LossReason) -> Result<(), Error> {
        // A rank that has left after it sent all that this operation needs is no loss to it.
        let is_needed = match reason {
            LossReason::Reported { by } => self.needs(rank) || self.needs(by),
            _ => self.needs(rank),
        };
        match reason {
            _ if !is_needed => Ok(()),
            LossReason::Revoked => Err(Error::Revoked),
            reason => Err(Error::PeerLost { rank, reason }),
        }
    }

    fn needs(&self, rank: RankId) -> bool {
        self.owed
            .get(World::index(rank))
            .is_some_and(|owed| *owed > 0)
    }

    /// The elements of a piece that is reduced and not just kept.
    fn piece(&self, owner: RankId, piece: usize) -> Option<Range<usize>> {
        if self.whole.is_some() {
            None
        } else {
            self.chunks.piece(owner, piece)
        }
    }

    /// The parts of a piece that this rank holds itself.
    fn own_parts(&self, piece: usize) -> PieceSum {
        let mut parts = vec![None; self.leaves.len()];
        let mut missing = parts.len();
        if let Some(range) = self.piece(self.world.rank, piece) {
            for subtree in &self.mine {
                if let Ok(leaf) = self.leaves.binary_search(&(subtree.run, self.world.rank)) {
                    parts[leaf] = Some(Values::slice(&subtree.values, range.clone()));
                    missing -= 1;
                }
            }
        }
        PieceSum { parts, missing }
    }

    fn send(&self, to: RankId, body: Body) -> Output {
        Output::Send {
            to,
            frame: Frame::new(&self.world, self.sequence, self.step, body),
        }
    }
}

fn number(piece: usize) -> u32 {
    u32::try_from(piece).expect("the number of pieces was checked to fit")
}

#[cfg(test)]
mod tests;
