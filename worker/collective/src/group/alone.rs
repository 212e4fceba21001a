//! A world of one rank, which needs no transport.

use muster_cluster::RankId;

use super::{Counters, Group, Revoker, Transport};
use crate::frame::Frame;
use crate::queue::{Patience, PushError};
use crate::world::World;

/// The transport of a world of one rank.
#[derive(Debug)]
struct Alone;

impl Transport for Alone {
    fn send(&self, _: RankId, _: Frame, _: Patience) -> Result<(), PushError> {
        Err(PushError::Closed)
    }

    fn leave(&mut self, _: Option<Frame>) {}

    fn join(&mut self) {}
}

/// The group of a world of one rank: no thread, no socket, no copy.
pub(crate) fn alone(world: World, revoker: Revoker, counters: Counters) -> Group {
    Group::new(world, Box::new(Alone), revoker, counters)
}
