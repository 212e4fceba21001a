//! What crosses between the ranks of a world: in order between two of them, and lost with a sender that
//! dies before all of it was on its way.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::rng::Rng;

/// What one rank sends another one.
#[derive(Clone, Debug)]
pub(super) enum Frame {
    Hello,
    /// The reduced vector of the step before.
    Reduced(u64),
    /// How far a state is; its values follow.
    Head(u64),
    /// A share: the optimizer's value, and the parameter that belongs to it.
    Share([u64; 2]),
    Contribution {
        shards: BTreeMap<u32, u64>,
        pause: Option<String>,
    },
    /// Parameters, in the order of the shares that are told.
    Told(Vec<u64>),
}

/// What is next from a peer.
#[derive(Debug)]
pub(super) enum Next {
    Frame(Frame),
    Nothing,
    /// It will not send anything more in this world.
    End,
}

/// The connections of all worlds, each with the number of its world.
#[derive(Debug, Default)]
pub(super) struct Links {
    waiting: BTreeMap<(u64, u64, u64), VecDeque<Frame>>,
    dead: BTreeSet<u64>,
    left: BTreeSet<(u64, u64)>,
}

impl Links {
    pub(super) fn send(&mut self, world: u64, [from, to]: [u64; 2], frame: Frame) {
        let waiting = self.waiting.entry((world, from, to)).or_default();
        waiting.push_back(frame);
    }

    pub(super) fn next(&mut self, world: u64, [from, to]: [u64; 2]) -> Next {
        let waiting = self.waiting.get_mut(&(world, from, to));
        match waiting.and_then(VecDeque::pop_front) {
            Some(frame) => Next::Frame(frame),
            None if self.dead.contains(&from) || self.left.contains(&(world, from)) => Next::End,
            None => Next::Nothing,
        }
    }

    /// A process has closed a world; what it has sent arrives.
    pub(super) fn leave(&mut self, world: u64, process: u64) {
        self.left.insert((world, process));
    }

    /// A process is no more. Of what nobody has read yet, some was not on its way.
    pub(super) fn die(&mut self, process: u64, chance: &mut Rng) {
        self.dead.insert(process);
        for ((_, from, _), frames) in &mut self.waiting {
            if *from == process && !frames.is_empty() {
                let len = frames.len() as u64;
                let left = chance.below(len + 1);
                frames.truncate(usize::try_from(left).unwrap_or(0));
            }
        }
    }
}
