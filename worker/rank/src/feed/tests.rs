//! A feed with a follower at its other end, on loopback.

use super::*;
use std::net::Ipv4Addr;

use crate::held::Reduced;
use crate::last::Story;
use muster_trainer::{Metrics, ShardId, ShardNote};
use muster_worker_core::feed::Ask;

const BADGE: Badge = Badge {
    token: Token(*b"sixteen letters."),
    history: 3,
    process: 4,
    detect: Duration::from_millis(400),
};

fn last(step: u64) -> Arc<Last> {
    let note = ShardNote {
        shard: ShardId(0),
        metrics: Metrics::default(),
        digest: [1; 32],
        not_finite: None,
    };
    Arc::new(Last {
        step,
        vector: Reduced::Host(Arc::new(vec![0.5, 1.5])),
        notes: vec![note],
        story: Story {
            generation: 2,
            acked: (step, false),
            evaluation: None,
        },
    })
}

fn hello(badge: Badge, to: u64) -> [u8; HANDSHAKE_BYTES] {
    let hello = Handshake {
        kind: Kind::Hello,
        history: badge.history,
        from: 9,
        to,
    };
    hello.encode(badge.token)
}

/// The next frame that is no sign of life.
fn next(stream: &mut TcpStream) -> Frame {
    loop {
        let frame = Frame::read(stream, ProcessId(9)).unwrap();
        if frame != Frame::Alive {
            return frame;
        }
    }
}

#[test]
fn a_follower_is_fed_what_it_asks_for_and_told_what_is_not_there() {
    let (hub, address) = Hub::start(Ipv4Addr::LOCALHOST.into(), BADGE, 2).unwrap();
    hub.restarted(6);
    hub.applied(&last(6));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(&hello(BADGE, 4)).unwrap();
    let welcome = Handshake::read(&mut stream, BADGE.token).unwrap();
    assert_eq!(
        (welcome.kind, welcome.from, welcome.to),
        (Kind::Welcome, 4, 9)
    );
    // It shows that it lives, where it has nothing to say.
    assert_eq!(
        Frame::read(&mut stream, ProcessId(9)).unwrap(),
        Frame::Alive
    );
    let too_old = Ask::Steps { from: 5 };
    Frame::Ask(too_old).write(&mut stream).unwrap();
    assert_eq!(next(&mut stream), Frame::Refused(too_old));
    Frame::Ask(Ask::Steps { from: 6 })
        .write(&mut stream)
        .unwrap();
    for step in [6, 7] {
        let expected = Frame::Step {
            step,
            num_values: 2,
            story: last(step).story.clone(),
            notes: last(step).notes.clone(),
        };
        assert_eq!(next(&mut stream), expected);
        let values = wire::read_values(&mut stream, 2, |_| {}).unwrap();
        assert_eq!(values, [0.5, 1.5]);
        assert_eq!(next(&mut stream), Frame::Level { step: step + 1 });
        if step == 6 {
            hub.applied(&last(7));
        }
    }
    // A ticket is held until it is agreed on, or another world begins.
    let ticket = Ticket {
        process: ProcessId(9),
        attempt: 1,
        part: 1,
        parts: 2,
    };
    Frame::Ask(Ask::State(ticket)).write(&mut stream).unwrap();
    while hub.tickets() != [ticket] {
        thread::yield_now();
    }
    hub.entered();
    while next(&mut stream) != Frame::Refused(Ask::State(ticket)) {}
    // Nonsense ends the connection.
    stream.write_all(&[7; 400]).unwrap();
    while Frame::read(&mut stream, ProcessId(9)).is_ok() {}
}

#[test]
fn strangers_are_refused_and_counted() {
    let (hub, address) = Hub::start(Ipv4Addr::LOCALHOST.into(), BADGE, 2).unwrap();
    let foreign = Badge {
        token: Token([0; 16]),
        ..BADGE
    };
    let older = Badge {
        history: 2,
        ..BADGE
    };
    for said in [
        hello(foreign, 4),
        hello(older, 4),
        hello(BADGE, 5),
        [b'G'; 80],
    ] {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&said).unwrap();
        assert!(Handshake::read(&mut stream, BADGE.token).is_err());
    }
    while hub.num_refused.load(Ordering::SeqCst) < 4 {
        thread::yield_now();
    }
    assert_eq!(hub.num_refused.load(Ordering::SeqCst), 4);
}
