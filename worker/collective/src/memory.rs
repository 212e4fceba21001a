//! The driver for ranks that are threads of one process: frames are handed over, not copied.

use std::sync::Arc;

use muster_cluster::{Generation, History, RankId};

use crate::error::LossReason;
use crate::frame::Frame;
use crate::group::{self, Counters, Event, Group, Inbox, Revoker, Transport};
use crate::queue::{Patience, PushError};
use crate::world::World;

/// The groups of a whole world, by rank, each to be moved to its thread.
#[must_use]
pub fn groups(history: History, generation: Generation, size: u32) -> Vec<Group> {
    let revokers: Vec<Revoker> = (0..size).map(|_| Revoker::default()).collect();
    let inboxes: Arc<[Arc<Inbox>]> = revokers.iter().map(Revoker::inbox).collect();
    let group = |(rank, revoker): (u32, Revoker)| {
        let rank = RankId(rank);
        let world = World {
            history,
            generation,
            rank,
            size,
        };
        revoker.claim();
        if size == 1 {
            return group::alone(world, revoker, Counters::default());
        }
        let transport = Memory {
            world,
            inboxes: Arc::clone(&inboxes),
        };
        Group::new(world, Box::new(transport), revoker, Counters::default())
    };
    (0..size).zip(revokers).map(group).collect()
}

#[derive(Debug)]
struct Memory {
    world: World,
    inboxes: Arc<[Arc<Inbox>]>,
}

impl Memory {
    fn push(&self, to: RankId, event: Event, patience: Patience) -> Result<(), PushError> {
        let inbox = self
            .inboxes
            .get(World::index(to))
            .ok_or(PushError::Closed)?;
        inbox.push(World::index(self.world.rank), event, patience)
    }
}

impl Transport for Memory {
    fn send(&self, to: RankId, frame: Frame, patience: Patience) -> Result<(), PushError> {
        self.push(
            to,
            Event::Frame {
                from: self.world.rank,
                frame,
            },
            patience,
        )
    }

    fn leave(&mut self, goodbye: Option<Frame>) {
        let rank = self.world.rank;
        for peer in self.world.peers() {
            let event = match &goodbye {
                Some(frame) => Event::Frame {
                    from: rank,
                    frame: frame.clone(),
                },
                None => {
                    let reason = LossReason::Closed(std::io::ErrorKind::UnexpectedEof);
                    Event::Lost { rank, reason }
                }
            };
            // A peer that is gone needs no goodbye; one whose lane is full at the limit of the
            // protocol has failed already.
            let _ = self.push(peer, event, Patience::Never);
        }
    }

    fn join(&mut self) {}
}
