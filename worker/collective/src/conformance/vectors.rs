//! Vectors from one rank to another.

use super::*;

/// Bits of every kind, NaNs with payloads too.
fn vector(num_elements: usize) -> Vec<f32> {
    let bits = (0..num_elements as u32).map(|at| at.wrapping_mul(0x9e37_79b9) ^ 0x7fc0_0001);
    bits.map(f32::from_bits).collect()
}

pub(super) fn vectors_of_any_length_arrive_bit_by_bit(driver: Driver) {
    // The last is longer than one message of 64 MiB.
    let lengths = [0, 1, 100_001, (16 << 20) + 3, 2];
    on_ranks(driver(3, Generation(1)), |mut group| {
        match group.world().rank {
            RankId(0) => {
                for len in lengths {
                    group
                        .send_vector(RankId(2), &vector(len), PATIENT)
                        .expect("sent");
                    group
                        .send(RankId(2), b"between".to_vec(), PATIENT)
                        .expect("sent");
                }
                group.barrier(PATIENT).expect("all ranks are there");
            }
            RankId(1) => group.barrier(PATIENT).expect("all ranks are there"),
            _ => {
                for len in lengths {
                    let received = group.recv_vector(RankId(0), len, PATIENT);
                    let received = received.expect("it is on its way");
                    assert!(bits(&received) == bits(&vector(len)), "other bits of {len}");
                    let message = group.recv(RankId(0), PATIENT);
                    assert_eq!(message, Ok(b"between".to_vec()));
                }
                group.barrier(PATIENT).expect("all ranks are there");
            }
        }
    });
}

pub(super) fn a_vector_of_another_length_is_a_broken_rule(driver: Driver) {
    type Send = fn(&mut Group) -> Result<(), Error>;
    let cases: [(Send, &str); 4] = [
        (
            |group| group.send_vector(RankId(1), &[1.0; 11], PATIENT),
            "a vector of 11 elements: expected a vector of 10 elements",
        ),
        (
            |group| group.send_vector(RankId(1), &[], PATIENT),
            "a vector of 0 elements: expected a vector of 10 elements",
        ),
        (
            |group| group.send(RankId(1), vec![0; 40], PATIENT),
            "a message of 40 bytes: expected a vector of 10 elements",
        ),
        (
            |group| {
                group.send(RankId(1), vec![10, 0, 0, 0, 0, 0, 0, 0], PATIENT)?;
                group.send(RankId(1), vec![0; 41], PATIENT)
            },
            "41 bytes of a vector: expected 40",
        ),
    ];
    for (send, expected) in cases {
        on_ranks(driver(2, Generation(1)), |mut group| {
            if group.world().rank == RankId(0) {
                return send(&mut group).expect("sent");
            }
            let broken = Error::Protocol {
                rank: RankId(0),
                what: expected.to_owned(),
            };
            let result = group.recv_vector(RankId(0), 10, PATIENT);
            assert_eq!(result, Err(broken.clone()));
            assert_eq!(group.barrier(PATIENT), Err(broken), "it stays so");
        });
    }
}

pub(super) fn a_vector_that_stops_on_its_way_fails_and_one_that_does_not_begin_harms_nothing(
    driver: Driver,
) {
    let (stopped, to_stop) = mpsc::channel::<()>();
    let to_stop = Mutex::new(to_stop);
    on_ranks(driver(2, Generation(1)), |mut group| {
        let timed_out = Error::TimedOut {
            waiting_for: vec![RankId(0)],
        };
        if group.world().rank == RankId(0) {
            group.barrier(PATIENT).expect("the group can still be used");
            // A vector of one element is said to come, and does not.
            let opening = vec![1, 0, 0, 0, 0, 0, 0, 0];
            group.send(RankId(1), opening, PATIENT).expect("sent");
            group.barrier(PATIENT).expect("all ranks are there");
            let stopped = to_stop.lock().expect("no panic").recv_timeout(PATIENT);
            return stopped.expect("rank 1 has given up");
        }
        let soon = Duration::from_millis(20);
        let result = group.recv_vector(RankId(0), 1, soon);
        assert_eq!(result, Err(timed_out.clone()));
        group.barrier(PATIENT).expect("the group can still be used");
        group.barrier(PATIENT).expect("the opening comes before it");
        let result = group.recv_vector(RankId(0), 1, soon);
        assert_eq!(result, Err(timed_out.clone()));
        assert_eq!(group.barrier(PATIENT), Err(timed_out), "it stays so");
        stopped.send(()).expect("rank 0 listens");
    });
}

pub(super) fn a_revocation_ends_a_send_that_waits_for_room(driver: Driver) {
    let mut groups = driver(2, Generation(1));
    let mut receiver = groups.pop().expect("two ranks");
    let mut sender = groups.pop().expect("two ranks");
    let revoker = sender.revoker();
    let begun = Instant::now();
    thread::scope(|scope| {
        let sending = scope.spawn(move || {
            let begin = b"begin".to_vec();
            sender
                .send(RankId(1), begin, PATIENT)
                .expect("there is room");
            // More than all queues and the kernel hold.
            sender.send(RankId(1), vec![0; 512 << 20], PATIENT)
        });
        let begin = receiver.recv(RankId(0), PATIENT);
        assert_eq!(begin, Ok(b"begin".to_vec()));
        // It takes some of the rest, and then nothing more, but does not leave.
        let waiting_for = vec![RankId(0)];
        let unfinished = receiver.recv(RankId(0), Duration::from_millis(5));
        assert_eq!(unfinished, Err(Error::TimedOut { waiting_for }));
        revoker.revoke();
        assert_eq!(sending.join().expect("no panic"), Err(Error::Revoked));
    });
    assert!(begun.elapsed() < PROMPT, "it took {:?}", begun.elapsed());
}
