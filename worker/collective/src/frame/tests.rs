//! The recorded frames, and every way in which bytes can be no frame.

use super::*;
use bytes::Bytes;
use proptest::prelude::*;

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let payload = frame.payload();
    [&frame.header(&payload)[..], &payload].concat()
}

fn examples() -> Vec<Frame> {
    let part = Part {
        part: 1,
        num_parts: 3,
        bytes: Bytes::from_static(b"a note"),
    };
    let values = Values::new(vec![1.5, -0.0, f32::MIN_POSITIVE, f32::INFINITY, -3.25e7]);
    let bodies = [
        Body::Note(part.clone()),
        Body::Sum {
            piece: 7,
            subtree: Run::new(4, 8),
            values: values.clone(),
        },
        Body::Total { piece: 9, values },
        Body::Message(Part {
            part: 0,
            num_parts: 1,
            bytes: Bytes::new(),
        }),
        Body::Goodbye(Cause::Done),
        Body::Goodbye(Cause::Revoked),
        Body::Goodbye(Cause::Lost(RankId(3))),
        Body::Goodbye(Cause::Failed),
        Body::Alive,
    ];
    let frame = |body| Frame {
        history: History(2),
        generation: Generation(0x0102_0304_0506_0708),
        from: RankId(5),
        sequence: 41,
        step: Step(1_000_000),
        body,
    };
    bodies.into_iter().map(frame).collect()
}

#[test]
fn the_recorded_frames_of_version_1_are_read_and_written_as_ever() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/frames-v1.bin");
    let written: Vec<u8> = examples().iter().flat_map(bytes_of).collect();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &written).expect("write the fixture");
    }
    let recorded = std::fs::read(path).expect("read the fixture");
    assert_eq!(recorded, written);
    let mut input = recorded.as_slice();
    for example in examples() {
        assert_eq!(Frame::read(&mut input).expect("a recorded frame"), example);
    }
    assert!(matches!(Frame::read(&mut input), Err(ReadError::Closed(_))));
}

/// The refusal of the example `Sum` with some bytes replaced, its checksum made right again.
fn refusal_with(at: usize, bytes: &[u8]) -> Refusal {
    let mut frame = bytes_of(&examples()[1]);
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    let (header, payload) = frame.split_at(HEADER_BYTES);
    let header = header.try_into().expect("a header");
    let checksum = checksum(header, payload).to_le_bytes();
    frame[60..64].copy_from_slice(&checksum);
    match Frame::read(&mut frame.as_slice()) {
        Err(ReadError::Refused(refusal)) => refusal,
        other => panic!("expected a refusal: {other:?}"),
    }
}

#[test]
fn each_wrong_field_is_refused_by_name() {
    assert_eq!(refusal_with(0, b"HTTP"), Refusal::Magic);
    assert_eq!(refusal_with(4, &2u16.to_le_bytes()), Refusal::Version);
    assert_eq!(refusal_with(6, &[9]), Refusal::Field);
    assert_eq!(refusal_with(7, &[1]), Refusal::Field);
    assert_eq!(refusal_with(48, &9u32.to_le_bytes()), Refusal::Field);
    assert_eq!(refusal_with(56, &u32::MAX.to_le_bytes()), Refusal::Length);
    assert_eq!(
        refusal_with(56, &(MAX_PAYLOAD_BYTES as u32 + 4).to_le_bytes()),
        Refusal::Length
    );
    assert_eq!(refusal_with(56, &3u32.to_le_bytes()), Refusal::Length);
}

#[test]
fn frames_of_other_worlds_and_senders_are_not_admitted() {
    let world = World {
        history: History(2),
        generation: Generation(6),
        rank: RankId(0),
        size: 8,
    };
    let frame = |history, generation, from| Frame {
        history: History(history),
        generation: Generation(generation),
        from: RankId(from),
        ..examples().remove(0)
    };
    assert_eq!(frame(2, 6, 5).admit(&world, RankId(5)), Ok(()));
    assert_eq!(frame(2, 5, 5).admit(&world, RankId(5)), Err(Refusal::Older));
    assert_eq!(frame(1, 9, 5).admit(&world, RankId(5)), Err(Refusal::Older));
    assert_eq!(
        frame(2, 7, 5).admit(&world, RankId(5)),
        Err(Refusal::Unknown)
    );
    assert_eq!(
        frame(2, 6, 4).admit(&world, RankId(5)),
        Err(Refusal::Sender)
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Frame::read(&mut noise.as_slice());
        let mut after_magic = [b"MSTR\x01\x00".to_vec(), noise].concat();
        after_magic.resize(after_magic.len().max(HEADER_BYTES), 0);
        prop_assert!(Frame::read(&mut after_magic.as_slice()).is_err());
    }

    #[test]
    fn one_flipped_bit_is_always_seen(example in 0usize..9, at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = bytes_of(&examples()[example]);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(Frame::read(&mut bytes.as_slice()).is_err());
    }

    #[test]
    fn a_text_of_any_length_is_put_together_again(len in 0usize..3 * PART_BYTES) {
        let text: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let mut assembly = Assembly::default();
        let parts: Vec<Part> = parts(&text.clone().into()).collect();
        let (last, others) = parts.split_last().expect("at least one part");
        for part in others {
            prop_assert_eq!(assembly.add(part), Ok(None));
        }
        prop_assert_eq!(assembly.add(last), Ok(Some(text)));
        prop_assert_eq!(assembly.add(&Part { part: 1, num_parts: 3, bytes: Bytes::new() }), Err(()));
    }
}
