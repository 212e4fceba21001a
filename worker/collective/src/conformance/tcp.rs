//! What the TCP driver must do besides: strangers at the door, and garbage on open connections.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};

use super::*;
use crate::error::Error;
use crate::frame::MAX_PAYLOAD_BYTES;
use crate::tcp::handshake::{Handshake, Kind};
use crate::tcp::mesh::HELLO_TIMEOUT;
use crate::tcp::seal::HANDSHAKE_BYTES;
use crate::tcp::{Listener, Token, connect};
use crate::values::Values;

pub(super) const TOKEN: Token = Token(*b"sixteen letters.");

/// Longer than any wait of a test that is not about silence.
pub(super) const DETECT: Duration = PATIENT;

pub(super) fn listen() -> Listener {
    Listener::bind(IpAddr::V4(Ipv4Addr::LOCALHOST)).expect("a free port")
}

pub(super) fn world(rank: u32, size: u32, generation: Generation) -> World {
    World {
        history: History(1),
        generation,
        rank: RankId(rank),
        size,
    }
}

fn meet(listener: &Listener, world: World, addrs: &[SocketAddr], detect: Duration) -> Group {
    let revoker = Revoker::default();
    let group = connect(listener, world, addrs, TOKEN, detect, &revoker, PATIENT);
    group.expect("all ranks come")
}

pub(super) fn tcp_world(size: u32, generation: Generation) -> Vec<Group> {
    listening_world(size, generation, DETECT)
}

/// A world whose ranks take each other for lost after a silence of `detect`.
pub(super) fn listening_world(size: u32, generation: Generation, detect: Duration) -> Vec<Group> {
    let listeners: Vec<Listener> = (0..size).map(|_| listen()).collect();
    let addrs: Vec<SocketAddr> = listeners.iter().map(Listener::addr).collect();
    thread::scope(|scope| {
        let addrs = &addrs;
        let threads: Vec<_> = (0..size)
            .zip(listeners)
            .map(|(rank, listener)| {
                scope.spawn(move || meet(&listener, world(rank, size, generation), addrs, detect))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    })
}

/// A connection that has said `bytes` and goes on being open.
pub(super) fn say(addr: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(addr).expect("the port is open");
    stream.write_all(bytes).expect("the backlog takes it");
    stream
}

fn hello(generation: u64, from: u32, to: u32, token: Token) -> [u8; HANDSHAKE_BYTES] {
    let world = world(from, 2, Generation(generation));
    Handshake::new(Kind::Hello, &world, RankId(to)).encode(token)
}

/// What `from` says to `to` in the first generation of a world of `size`.
pub(super) fn hello_of(from: u32, to: u32, size: u32) -> [u8; HANDSHAKE_BYTES] {
    let world = world(from, size, Generation(1));
    Handshake::new(Kind::Hello, &world, RankId(to)).encode(TOKEN)
}

#[test]
fn strangers_are_refused_by_reason_and_disturb_nobody() {
    let listeners = [listen(), listen()];
    let addrs = [listeners[0].addr(), listeners[1].addr()];
    let door = addrs[1];
    let mut absurd = hello(7, 0, 1, TOKEN);
    absurd[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut version = hello(7, 0, 1, TOKEN);
    version[8] = 9;
    let says: Vec<&[u8]> = vec![b"GET / HTTP/1.1\r\n\r\n", &absurd, &version, b"", b"MSTRHA"];
    let wrong = [
        hello(7, 0, 1, Token([0; 16])),
        hello(6, 0, 1, TOKEN),
        hello(8, 0, 1, TOKEN),
        hello(7, 0, 0, TOKEN),
        hello(7, 1, 1, TOKEN),
    ];
    let mut strangers: Vec<TcpStream> = says.iter().map(|bytes| say(door, bytes)).collect();
    strangers.extend(wrong.iter().map(|bytes| say(door, bytes)));
    // One says a little and hangs up.
    drop(say(door, b"MSTR"));

    let begun = Instant::now();
    let groups = thread::scope(|scope| {
        let meet_as = |rank: u32, listener| {
            let world = world(rank, 2, Generation(7));
            scope.spawn(move || meet(&listener, world, &addrs, DETECT))
        };
        let [first, second] = listeners;
        [meet_as(0, first), meet_as(1, second)].map(|thread| thread.join().expect("no panic"))
    });
    let refused = [
        (Refusal::Magic, 1),
        (Refusal::Length, 1),
        (Refusal::Version, 1),
        (Refusal::Token, 1),
        (Refusal::Older, 1),
        (Refusal::Unknown, 1),
        (Refusal::Receiver, 1),
        (Refusal::Sender, 1),
    ];
    let mut counted = groups[1].counters().refused.clone();
    // One hangs up; the other two count where the ranks took so long that they have been silent for long.
    let most = if begun.elapsed() < HELLO_TIMEOUT {
        1
    } else {
        3
    };
    let silent = counted.remove(&Refusal::Silent);
    assert!(
        silent.is_some_and(|num| (1..=most).contains(&num)),
        "{silent:?} of at most {most}"
    );
    assert_eq!(counted, refused.into());
    on_ranks(groups.into(), |mut group| {
        group.barrier(PATIENT).expect("undisturbed");
    });

    // A rank of the job is told that it is refused; a stranger is told nothing.
    let mut answer = Vec::new();
    strangers[6].read_to_end(&mut answer).expect("an answer");
    let answer = Handshake::decode(&answer, TOKEN)
        .expect("ours")
        .expect("whole");
    assert_eq!(
        (answer.kind, answer.generation),
        (Kind::Refused, Generation(7))
    );
    let mut silence = Vec::new();
    // The end of the stream or a reset, but not a byte.
    let _ = strangers[0].read_to_end(&mut silence);
    assert_eq!(silence, b"");
}

#[test]
fn a_crowd_of_silent_connections_does_not_close_the_door() {
    let listeners = [listen(), listen()];
    let addrs = [listeners[0].addr(), listeners[1].addr()];
    let crowd: Vec<TcpStream> = (0..200).map(|_| say(addrs[1], b"")).collect();
    let begun = Instant::now();
    let groups = thread::scope(|scope| {
        let threads = [0, 1].into_iter().zip(listeners).map(|(rank, listener)| {
            scope.spawn(move || meet(&listener, world(rank, 2, Generation(1)), &addrs, DETECT))
        });
        let threads: Vec<_> = threads.collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect::<Vec<_>>()
    });
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    assert!(groups[1].counters().refused[&Refusal::Crowded] >= 134);
    drop(crowd);
}

#[test]
fn ranks_that_do_not_come_are_named_at_the_deadline() {
    let listener = listen();
    // Rank 0 would dial; at the address of rank 2 nobody listens any more.
    let gone = listen().addr();
    let addrs = [gone, listener.addr(), gone];
    let world = world(1, 3, Generation(1));
    let deadline = Duration::from_millis(60);
    let error = connect(
        &listener,
        world,
        &addrs,
        TOKEN,
        DETECT,
        &Revoker::default(),
        deadline,
    );
    let waiting_for = vec![RankId(0), RankId(2)];
    assert_eq!(error.map(|_| ()), Err(Error::TimedOut { waiting_for }));
}

#[test]
fn a_revocation_ends_the_wait_for_ranks() {
    let listener = listen();
    let addrs = [listener.addr(), listen().addr()];
    let revoker = Revoker::default();
    let begun = Instant::now();
    let own = world(0, 2, Generation(1));
    let error = thread::scope(|scope| {
        let connecting =
            scope.spawn(|| connect(&listener, own, &addrs, TOKEN, DETECT, &revoker, PATIENT));
        revoker.revoke();
        connecting.join().expect("no panic")
    });
    assert_eq!(error.map(|_| ()), Err(Error::Revoked));
    assert!(begun.elapsed() < PROMPT);
    let again = connect(
        &listen(),
        world(0, 2, Generation(2)),
        &addrs,
        TOKEN,
        DETECT,
        &revoker,
        PATIENT,
    );
    assert!(
        matches!(again, Err(Error::Invalid { .. })),
        "a revoker belongs to one group"
    );
}

/// Rank 1 of two, connected with a rank 0 that is only a stream.
pub(super) fn with_raw_peer(detect: Duration) -> (Group, TcpStream) {
    let listener = listen();
    let addrs = [listen().addr(), listener.addr()];
    let mut raw = say(addrs[1], &hello(1, 0, 1, TOKEN));
    let group = meet(&listener, world(1, 2, Generation(1)), &addrs, detect);
    let mut welcome = [0; HANDSHAKE_BYTES];
    raw.read_exact(&mut welcome).expect("a welcome");
    let welcome = Handshake::decode(&welcome, TOKEN)
        .expect("ours")
        .expect("whole");
    assert_eq!((welcome.kind, welcome.from), (Kind::Welcome, RankId(1)));
    (group, raw)
}

fn good_frame() -> Vec<u8> {
    let body = Body::Total {
        piece: 0,
        values: Values::new(vec![1.0; 100]),
    };
    let frame = Frame::new(&world(0, 2, Generation(1)), 0, Step(0), body);
    let payload = frame.payload();
    [&frame.header(&payload)[..], &payload].concat()
}

#[test]
fn garbage_on_an_open_connection_is_refused_and_names_the_rank() {
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good_frame();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let cases = [
        (vec![0xa5; 5000], Refusal::Magic),
        (
            b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: something-or-other/1.0\r\n\r\n"
                .to_vec(),
            Refusal::Magic,
        ),
        (with(4, &[9, 9]), Refusal::Version),
        (with(6, &[77]), Refusal::Field),
        (with(56, &u32::MAX.to_le_bytes()), Refusal::Length),
        (
            with(56, &(MAX_PAYLOAD_BYTES as u32 + 4).to_le_bytes()),
            Refusal::Length,
        ),
        (with(44, &[1]), Refusal::Checksum),
        (with(100, &[1]), Refusal::Checksum),
    ];
    for (bytes, refusal) in cases {
        let (mut group, mut raw) = with_raw_peer(DETECT);
        raw.write_all(&bytes).expect("the connection is open");
        let begun = Instant::now();
        let reason = LossReason::Garbage(refusal);
        assert_eq!(
            group.barrier(PATIENT),
            Err(Error::PeerLost {
                rank: RankId(0),
                reason
            })
        );
        assert!(begun.elapsed() < PROMPT);
        assert_eq!(group.counters().refused, [(refusal, 1)].into());

        // The rank that sent garbage is told that it is lost, so that it does not take the end of
        // the connection for a death.
        let leaving = thread::spawn(move || drop(group));
        let goodbye = loop {
            match Frame::read(&mut raw)
                .expect("a goodbye comes before the end")
                .body
            {
                Body::Goodbye(cause) => break cause,
                other => assert!(matches!(other, Body::Note(_)), "{other:?}"),
            }
        };
        drop(raw);
        leaving.join().expect("no panic");
        assert_eq!(goodbye, Cause::Lost(RankId(0)));
    }
}

#[test]
fn a_connection_cut_within_a_frame_names_the_rank() {
    for len in [1, 63, 64, 65, 300] {
        let (mut group, mut raw) = with_raw_peer(DETECT);
        raw.write_all(&good_frame()[..len])
            .expect("the connection is open");
        drop(raw);
        let begun = Instant::now();
        let error = group.barrier(PATIENT).expect_err("rank 0 is gone");
        let Error::PeerLost {
            rank: RankId(0),
            reason,
        } = error
        else {
            panic!("{error:?}")
        };
        assert_closed(reason);
        assert!(begun.elapsed() < PROMPT);
    }
}

#[test]
fn a_peer_that_neither_reads_nor_writes_cannot_hold_up_an_end() {
    let (mut group, raw) = with_raw_peer(DETECT);
    let operation = operation(&group, 0, 2, 20_000_000);
    let begun = Instant::now();
    let error = group.all_reduce(operation, Duration::from_millis(50));
    assert_eq!(
        error.map(|_| ()),
        Err(Error::TimedOut {
            waiting_for: vec![RankId(0)]
        })
    );
    drop(group);
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    drop(raw);
}

#[test]
fn leaving_does_not_wait_for_a_peer_that_stays() {
    let mut groups = tcp_world(2, Generation(1));
    let begun = Instant::now();
    drop(groups.pop());
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "it took {:?}",
        begun.elapsed()
    );
    let error = groups[0].barrier(PATIENT);
    let reason = LossReason::Left;
    assert_eq!(
        error,
        Err(Error::PeerLost {
            rank: RankId(1),
            reason
        })
    );
}

#[test]
fn retiring_does_not_wait_for_a_peer_that_neither_reads_nor_leaves() {
    // A machine that does other things may stand still for longer, but not each time.
    let took = [(); 3].map(|()| {
        let took = time_to_retire();
        (took >= Duration::from_secs(1)).then_some(took)
    });
    assert!(took.contains(&None), "it took {took:?}");
}

/// Retires from a peer that reads only then, which it shows to get all that was sent.
fn time_to_retire() -> Duration {
    let (mut group, mut raw) = with_raw_peer(DETECT);
    // More than the kernel takes: a drop would wait for the peer to read it, for seconds.
    let vector = vec![0; 32 << 20];
    group.send(RankId(0), vector, PATIENT).expect("queued");
    let begun = Instant::now();
    group.retire();
    let took = begun.elapsed();
    // All of it is sent nevertheless, with the goodbye at its end.
    let mut num_parts = 0;
    let cause = loop {
        match Frame::read(&mut raw).expect("a frame").body {
            Body::Message(_) => num_parts += 1,
            Body::Goodbye(cause) => break cause,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((num_parts, cause), (128, Cause::Done));
    took
}
