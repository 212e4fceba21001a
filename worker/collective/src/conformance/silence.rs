//! Who is silent over TCP and who is not. Time has to pass here; it passes in waits for messages
//! that do not come.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use super::tcp::{DETECT, TOKEN, hello_of, listen, listening_world, say, with_raw_peer, world};
use super::*;
use crate::frame::Part;
use crate::tcp::connect;
use crate::tcp::seal::HANDSHAKE_BYTES;

/// What a scripted peer hears before it is told to go.
fn goodbye(raw: &mut impl Read) -> Cause {
    loop {
        let frame = Frame::read(raw).expect("a goodbye comes before the end");
        match frame.body {
            Body::Goodbye(cause) => return cause,
            other => assert!(matches!(other, Body::Note(_) | Body::Alive), "{other:?}"),
        }
    }
}

#[test]
fn a_peer_that_stays_and_says_nothing_is_lost_and_is_told_so() {
    let detect = Duration::from_millis(100);
    let (mut group, mut raw) = with_raw_peer(detect);
    let begun = Instant::now();
    let silent = Error::PeerLost {
        rank: RankId(0),
        reason: LossReason::Silent,
    };
    assert_eq!(group.barrier(PATIENT), Err(silent));
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    // The group is still there: the connection itself says goodbye, and ends.
    assert_eq!(goodbye(&mut raw), Cause::Lost(RankId(0)));
    assert_eq!(raw.read(&mut [0]).expect("the end"), 0);
    let begun = Instant::now();
    drop(group);
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
}

#[test]
fn a_watch_beside_transfers_sees_a_peer_that_says_nothing() {
    let detect = Duration::from_millis(100);
    let begun = Instant::now();
    let (mut group, raw) = with_raw_peer(detect);
    let at_first = group.watch(Duration::ZERO);
    assert!(at_first == Ok(()) || begun.elapsed() >= detect);
    let begun = Instant::now();
    let silent = Error::PeerLost {
        rank: RankId(0),
        reason: LossReason::Silent,
    };
    assert_eq!(group.watch(PATIENT), Err(silent.clone()));
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    assert_eq!(group.watch(Duration::ZERO), Err(silent), "it stays so");
    drop(raw);
}

#[test]
fn a_sender_that_waits_for_a_silent_peer_goes_on() {
    let (mut group, raw) = with_raw_peer(Duration::from_millis(100));
    let begun = Instant::now();
    // More than the kernel and the outbox take.
    for _ in 0..8 {
        let sent = group.send(RankId(0), vec![0; 32 << 20], PATIENT);
        sent.expect("what is sent to a rank that is lost is forgotten");
    }
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
    let error = group.recv(RankId(0), PATIENT).expect_err("it is lost");
    let reason = LossReason::Silent;
    let rank = RankId(0);
    assert_eq!(error, Error::PeerLost { rank, reason });
    drop(raw);
}

#[test]
fn ranks_that_have_nothing_to_say_are_not_lost() {
    in_some_time(Duration::from_millis(400), |detect| {
        let groups = listening_world(3, Generation(1), detect);
        let ranks = on_ranks(groups, |mut group| {
            let next = RankId((group.world().rank.0 + 1) % 3);
            let waiting_for = vec![next];
            let nothing = Err(Error::TimedOut { waiting_for });
            for _ in 0..4 {
                let heard = (group.recv(next, detect), group.barrier(PATIENT));
                if heard != (nothing.clone(), Ok(())) {
                    return Err(format!("{heard:?}"));
                }
            }
            assert!(group.counters().refused.is_empty());
            Ok(())
        });
        ranks.into_iter().collect()
    });
}

#[test]
fn a_frame_that_trickles_is_no_silence() {
    let part = Part {
        part: 0,
        num_parts: 1,
        bytes: b"slow".to_vec().into(),
    };
    let frame = Frame::new(&world(0, 2, Generation(1)), 0, Step(0), Body::Message(part));
    let payload = frame.payload();
    let bytes = [&frame.header(&payload)[..], &payload].concat();
    let waiting_for = vec![RankId(0)];
    let nothing = Err(Error::TimedOut { waiting_for });
    in_some_time(Duration::from_millis(500), |detect| {
        let (mut group, mut raw) = with_raw_peer(detect);
        for some in bytes.chunks(bytes.len().div_ceil(12)) {
            let heard = group.recv(RankId(0), detect / 5);
            if heard != nothing {
                return Err(format!("before all of it has come: {heard:?}"));
            }
            raw.write_all(some).map_err(|error| error.to_string())?;
        }
        let heard = group.recv(RankId(0), PATIENT);
        (heard == Ok(b"slow".to_vec()))
            .then_some(())
            .ok_or_else(|| format!("{heard:?}"))
    });
}

#[test]
fn a_rank_that_waits_for_others_tells_those_it_has_met_that_it_is_there() {
    // The system answers for the third, whose rank does not come.
    let (listener, third) = (listen(), listen());
    let addrs = [listen().addr(), listener.addr(), third.addr()];
    let mut raw = say(addrs[1], &hello_of(0, 1, 3));
    let (own, revoker) = (world(1, 3, Generation(1)), Revoker::default());
    let detect = Duration::from_millis(40);
    thread::scope(|scope| {
        let connecting =
            scope.spawn(|| connect(&listener, own, &addrs, TOKEN, detect, &revoker, PATIENT));
        let mut welcome = [0; HANDSHAKE_BYTES];
        raw.read_exact(&mut welcome).expect("a welcome");
        for _ in 0..5 {
            let frame = Frame::read(&mut raw).expect("a frame of an open connection");
            assert_eq!((frame.from, frame.body), (RankId(1), Body::Alive));
        }
        revoker.revoke();
        let error = connecting.join().expect("no panic");
        assert_eq!(error.map(|_| ()), Err(Error::Revoked));
    });
    let never = connect(
        &listen(),
        own,
        &addrs,
        TOKEN,
        Duration::ZERO,
        &revoker,
        DETECT,
    );
    assert!(matches!(never, Err(Error::Invalid { .. })), "{never:?}");
}

#[test]
fn a_peer_at_whose_address_nobody_answers_is_named_long_before_the_deadline() {
    let detect = Duration::from_millis(200);
    let own = world(0, 2, Generation(1));
    let connect_to = |addr| {
        let (begun, revoker) = (Instant::now(), Revoker::default());
        let addrs = [addr, addr];
        let error = connect(&listen(), own, &addrs, TOKEN, detect, &revoker, PATIENT);
        let waiting_for = vec![RankId(1)];
        assert_eq!(error.map(|_| ()), Err(Error::TimedOut { waiting_for }));
        let took = begun.elapsed();
        assert!(took > detect && took < PROMPT, "it took {took:?}");
    };
    // Where a queue of connections is full, the system drops the first packet of any other.
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("a free port");
    socket.listen(0).expect("it is bound");
    let addr = socket.local_addr().ok().and_then(|addr| addr.as_socket());
    let addr = addr.expect("an address of IPv4");
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&addr, detect) {
        queued.push(stream);
    }
    connect_to(addr);
    // And where there is no such port any more, it refuses.
    drop(socket);
    connect_to(addr);
}

/// Of three the last cannot be reached by the second, which the first has met.
#[test]
fn a_rank_that_cannot_reach_another_one_says_goodbye_to_those_that_it_has_met() {
    let (listener, gone) = (listen(), listen().addr());
    let addrs = [gone, listener.addr(), gone];
    let mut raw = say(addrs[1], &hello_of(0, 1, 3));
    let (own, revoker) = (world(1, 3, Generation(1)), Revoker::default());
    let detect = Duration::from_millis(100);
    let error = connect(&listener, own, &addrs, TOKEN, detect, &revoker, PATIENT);
    let waiting_for = vec![RankId(2)];
    assert_eq!(error.map(|_| ()), Err(Error::TimedOut { waiting_for }));
    let mut welcome = [0; HANDSHAKE_BYTES];
    raw.read_exact(&mut welcome).expect("a welcome");
    assert_eq!(goodbye(&mut raw), Cause::Failed);
    assert_eq!(raw.read(&mut [0]).expect("the end"), 0);
}
