//! The handshake that opens a connection between two ranks: its bytes, and who is refused.
//!
//! The dialling rank says `Hello`; the other answers `Welcome`, or `Refused` to a rank of the
//! same job, or closes without a word to a stranger. Each is 80 bytes ([`super::seal`]), with the
//! letters `MSTRHAND`, sealed with the world's token. The body, numbers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 0 | kind: 1 hello, 2 welcome, 3 refused |
//! | 1..4 | 0 |
//! | 4..12, 12..20 | history, generation |
//! | 20..24, 24..28, 28..32 | sender, receiver, world size |

use muster_cluster::{Generation, History, RankId};

use super::Token;
use super::seal::{BODY_BYTES, HANDSHAKE_BYTES, Seal};
use crate::frame::Refusal;
use crate::world::World;

const SEAL: Seal = Seal {
    magic: *b"MSTRHAND",
    version: 1,
    context: "muster collective handshake v1",
};

/// What a handshake says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Hello,
    Welcome,
    Refused,
}

/// One handshake, its signature checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Handshake {
    pub(crate) kind: Kind,
    pub(crate) history: History,
    pub(crate) generation: Generation,
    pub(crate) from: RankId,
    pub(crate) to: RankId,
    pub(crate) size: u32,
}

impl Handshake {
    /// What `world`'s rank says to `to`.
    pub(crate) fn new(kind: Kind, world: &World, to: RankId) -> Self {
        let World {
            history,
            generation,
            rank: from,
            size,
        } = *world;
        Self {
            kind,
            history,
            generation,
            from,
            to,
            size,
        }
    }

    pub(crate) fn encode(&self, token: Token) -> [u8; HANDSHAKE_BYTES] {
        let mut body = [0; BODY_BYTES];
        body[0] = match self.kind {
            Kind::Hello => 1,
            Kind::Welcome => 2,
            Kind::Refused => 3,
        };
        body[4..12].copy_from_slice(&self.history.0.to_le_bytes());
        body[12..20].copy_from_slice(&self.generation.0.to_le_bytes());
        for (at, number) in [(20, self.from.0), (24, self.to.0), (28, self.size)] {
            body[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        SEAL.close(body, token)
    }

    /// Reads a handshake, of which perhaps only the beginning is there: `None` while it may
    /// still become one. Garbage is refused as early as it shows.
    pub(crate) fn decode(bytes: &[u8], token: Token) -> Result<Option<Self>, Refusal> {
        let Some(body) = SEAL.open(bytes, token)? else {
            return Ok(None);
        };
        let u32_at =
            |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().expect("a range of four"));
        let u64_at =
            |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("a range of eight"));
        let kind = match body[0..4] {
            [1, 0, 0, 0] => Kind::Hello,
            [2, 0, 0, 0] => Kind::Welcome,
            [3, 0, 0, 0] => Kind::Refused,
            _ => return Err(Refusal::Field),
        };
        Ok(Some(Self {
            kind,
            history: History(u64_at(4)),
            generation: Generation(u64_at(12)),
            from: RankId(u32_at(20)),
            to: RankId(u32_at(24)),
            size: u32_at(28),
        }))
    }

    /// Whether the sender belongs to `world` and means its rank.
    pub(crate) fn admit(&self, world: &World) -> Result<(), Refusal> {
        match (self.history, self.generation).cmp(&(world.history, world.generation)) {
            std::cmp::Ordering::Less => return Err(Refusal::Older),
            std::cmp::Ordering::Greater => return Err(Refusal::Unknown),
            std::cmp::Ordering::Equal => {}
        }
        if self.to != world.rank || self.size != world.size {
            return Err(Refusal::Receiver);
        }
        let is_peer = self.from.0 < world.size && self.from != world.rank;
        if is_peer {
            Ok(())
        } else {
            Err(Refusal::Sender)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: Token = Token(*b"sixteen letters.");

    fn world(history: u64, generation: u64, rank: u32, size: u32) -> World {
        let (history, generation) = (History(history), Generation(generation));
        World {
            history,
            generation,
            rank: RankId(rank),
            size,
        }
    }

    fn hello() -> Handshake {
        Handshake::new(Kind::Hello, &world(1, 7, 0, 3), RankId(2))
    }

    #[test]
    fn the_recorded_handshake_of_version_1_is_read_and_written_as_ever() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/handshake-v1.bin");
        let written = hello().encode(TOKEN);
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            std::fs::write(path, written).expect("write the fixture");
        }
        let recorded = std::fs::read(path).expect("read the fixture");
        assert_eq!(recorded, written);
        assert_eq!(Handshake::decode(&recorded, TOKEN), Ok(Some(hello())));
    }

    #[test]
    fn a_beginning_is_waited_for_and_garbage_refused_as_early_as_it_shows() {
        let bytes = hello().encode(TOKEN);
        for len in 0..HANDSHAKE_BYTES {
            assert_eq!(
                Handshake::decode(&bytes[..len], TOKEN),
                Ok(None),
                "{len} bytes"
            );
        }
        let with = |at: usize, byte: u8, len: usize| {
            let mut bytes = bytes;
            bytes[at] = byte;
            Handshake::decode(&bytes[..len], TOKEN)
        };
        assert_eq!(
            Handshake::decode(b"GET / HTTP/1.1", TOKEN),
            Err(Refusal::Magic)
        );
        assert_eq!(with(8, 2, 12), Err(Refusal::Version));
        assert_eq!(with(15, 0xff, 16), Err(Refusal::Length));
        assert_eq!(with(16, 2, HANDSHAKE_BYTES), Err(Refusal::Token));
        assert_eq!(with(79, !bytes[79], HANDSHAKE_BYTES), Err(Refusal::Token));
        assert_eq!(
            Handshake::decode(&bytes, Token([0; 16])),
            Err(Refusal::Token)
        );
    }

    #[test]
    fn only_ranks_of_the_same_world_are_admitted() {
        let hello = hello();
        assert_eq!(hello.admit(&world(1, 7, 2, 3)), Ok(()));
        assert_eq!(hello.admit(&world(1, 8, 2, 3)), Err(Refusal::Older));
        assert_eq!(hello.admit(&world(2, 1, 2, 3)), Err(Refusal::Older));
        assert_eq!(hello.admit(&world(1, 6, 2, 3)), Err(Refusal::Unknown));
        assert_eq!(hello.admit(&world(1, 7, 1, 3)), Err(Refusal::Receiver));
        assert_eq!(hello.admit(&world(1, 7, 2, 4)), Err(Refusal::Receiver));
        let from_nobody = Handshake {
            from: RankId(3),
            ..hello
        };
        assert_eq!(from_nobody.admit(&world(1, 7, 2, 3)), Err(Refusal::Sender));
    }
}
