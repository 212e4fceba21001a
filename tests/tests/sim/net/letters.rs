//! Between coordinators: messages without a stream, which are lost, late, doubled and overtaken, as
//! consensus must take them.

use muster_proto::event::Event as Told;
use muster_proto::v1;

use super::{Event, MS, Net, Node, SECOND, Time};

/// Hosts above this are the seats of coordinators.
const SEATS: u32 = 1_000;

/// A seat as a place that can be cut off.
pub(crate) fn seat_place(seat: u32) -> u32 {
    SEATS + seat
}

/// What one coordinator says to another one.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) from: Node,
    /// The beginning of the connection that it came over.
    pub(crate) hello: v1::PeerHello,
    pub(crate) content: Content,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    Message(Vec<u8>),
    /// A snapshot's file, the events that it counts, and what consensus says of it.
    Snapshot {
        index: u64,
        file: Vec<u8>,
        events: Vec<(Told, String)>,
        bytes: Vec<u8>,
    },
    /// What became of a snapshot.
    Kept {
        index: u64,
        is_there: bool,
    },
    /// Nobody listens there.
    Unreachable,
    /// It is not listened to; the text says why, and the flag whether it must end.
    Refused {
        reason: String,
        is_final: bool,
    },
}

/// How many letters in a hundred meet with what.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) late: u64,
}

impl Net {
    /// Sends a letter from a seat to the process at another one.
    pub(crate) fn post(&mut self, seats: [u32; 2], to: Node, letter: &Letter) {
        let way = seats.map(seat_place);
        let Weather {
            lost,
            doubled,
            late,
        } = self.weather;
        let num = if self.rng.chance(doubled) { 2 } else { 1 };
        for _ in 0..num {
            let is_cut = self.cuts.get(&way).is_some_and(|cut| cut.until > self.now);
            if is_cut || self.rng.chance(lost) {
                continue;
            }
            let delay: Time = if self.rng.chance(late) {
                self.rng.between(5 * MS, SECOND)
            } else {
                self.rng.between(50, 4 * MS)
            };
            let event = Event::Letter(Box::new(letter.clone()));
            self.put(self.now + delay, to, event);
        }
    }
}
