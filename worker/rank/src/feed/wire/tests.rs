//! The recorded bytes of a feed, and what is refused of others.

use super::*;
use muster_trainer::{Metrics, ShardId};

const TOKEN: Token = Token(*b"sixteen letters.");

const HELLO: Handshake = Handshake {
    kind: Kind::Hello,
    history: 2,
    from: 9,
    to: 4,
};

fn frames() -> Vec<Frame> {
    let ticket = Ticket {
        process: ProcessId(9),
        attempt: 3,
        part: 1,
        parts: 4,
    };
    let head = Head {
        step: Step(70),
        trace: [7; 32],
    };
    let note = ShardNote {
        shard: ShardId(2),
        metrics: Metrics::default(),
        digest: [5; 32],
        not_finite: None,
    };
    let evaluated = v1::Evaluated {
        step: 70,
        metrics: [("loss".to_owned(), 0.5)].into(),
    };
    let record = v1::StepRecord {
        record: Some(v1::step_record::Record::Evaluated(evaluated)),
        ..v1::StepRecord::default()
    };
    let story = Story {
        generation: 3,
        acked: (68, true),
        evaluation: Some(record.clone()),
    };
    vec![
        Frame::Ask(Ask::State(ticket)),
        Frame::Ask(Ask::Steps { from: 70 }),
        Frame::Refused(Ask::State(ticket)),
        Frame::Refused(Ask::Steps { from: 70 }),
        Frame::Share {
            attempt: 3,
            head,
            num_values: 12,
            acked: (68, false),
            records: vec![record],
        },
        Frame::Step {
            step: 70,
            num_values: 3,
            story,
            notes: vec![note],
        },
        Frame::Level { step: 71 },
        Frame::Alive,
    ]
}

/// One of everything.
fn written() -> Vec<u8> {
    let mut bytes = HELLO.encode(TOKEN).to_vec();
    for frame in frames() {
        frame.write(&mut bytes).unwrap();
    }
    write_values(&mut bytes, &[1.0, -2.5, 0.0]).unwrap();
    bytes
}

#[test]
fn the_recorded_feed_of_version_1_is_read_and_written_as_ever() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/feed-v1.bin");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, written()).expect("write the fixture");
    }
    let recorded = std::fs::read(path).expect("read the fixture");
    assert_eq!(recorded, written());
    let mut rest = &recorded[..];
    assert_eq!(Handshake::read(&mut rest, TOKEN).unwrap(), HELLO);
    for frame in frames() {
        assert_eq!(Frame::read(&mut rest, ProcessId(9)).unwrap(), frame);
    }
    let mut heard = Vec::new();
    let values = read_values(&mut rest, 3, |at| heard.push(at)).unwrap();
    assert_eq!((values, heard), (vec![1.0, -2.5, 0.0], vec![3]));
    assert!(rest.is_empty());
}

#[test]
fn strangers_garbage_and_damage_are_refused() {
    let bytes = HELLO.encode(TOKEN);
    let read = |bytes: &[u8], token| Handshake::read(&mut &bytes[..], token);
    assert!(read(&bytes, Token([0; 16])).is_err());
    assert!(read(b"GET / HTTP/1.1\r\n", TOKEN).is_err());
    assert!(read(&bytes[..79], TOKEN).is_err());
    for at in 0..HANDSHAKE_BYTES {
        let mut bytes = bytes;
        bytes[at] ^= 1;
        assert!(read(&bytes, TOKEN).is_err(), "byte {at}");
    }
    for frame in frames() {
        let mut bytes = Vec::new();
        frame.write(&mut bytes).unwrap();
        for at in (0..bytes.len()).filter(|at| !(1..4).contains(at)) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x40;
            let read = Frame::read(&mut &bytes[..], ProcessId(9));
            assert!(read.is_err(), "byte {at} of {frame:?}");
        }
    }
    let mut bytes = Vec::new();
    write_values(&mut bytes, &[1.0, 2.0]).unwrap();
    bytes[41] ^= 1;
    assert!(read_values(&mut &bytes[..], 2, |_| {}).is_err());
    assert!(read_values(&mut &bytes[..], 1, |_| {}).is_err());
}

#[test]
fn a_ticket_with_an_impossible_part_is_refused() {
    for (part, parts) in [(0, 0), (2, 2), (0, MAX_PARTS + 1)] {
        let ask = Ask::State(Ticket {
            process: ProcessId(9),
            attempt: 1,
            part,
            parts,
        });
        let mut bytes = Vec::new();
        Frame::Ask(ask).write(&mut bytes).unwrap();
        assert!(Frame::read(&mut &bytes[..], ProcessId(9)).is_err());
    }
}
