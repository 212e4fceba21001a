//! The machine alone: any world, any holdings, any order of arrival, and every broken rule.

use std::collections::VecDeque;

use muster_cluster::{Generation, History};
use proptest::prelude::*;

use super::*;
use crate::testing::{bits, tree_sum};

fn world(rank: u32, size: u32) -> World {
    World {
        history: History(0),
        generation: Generation(1),
        rank: RankId(rank),
        size,
    }
}

/// Machines of a world whose rank `r` holds `holdings[r]`.
fn machines(holdings: &[Vec<Run>], num_shards: u32, num_elements: usize) -> Vec<Reduction> {
    let size = holdings.len() as u32;
    let machine = |rank: u32| {
        let mine = holdings[rank as usize]
            .iter()
            .map(|run| subtree(*run, num_elements))
            .collect();
        let operation = Operation {
            step: Step(3),
            num_shards,
            num_elements,
            holdings: holdings.to_vec(),
            mine,
            note: vec![rank as u8; rank as usize * 3],
        };
        Reduction::new(world(rank, size), 0, operation, &Pool::default()).expect("possible")
    };
    (0..size).map(machine).collect()
}

fn subtree(run: Run, num_elements: usize) -> Subtree {
    Subtree {
        run,
        values: Arc::new(tree_sum(run, num_elements)),
    }
}

/// Contiguous runs, as the planner assigns them.
fn contiguous(num_shards: u32, size: u32) -> Vec<Vec<Run>> {
    let runs = tree::runs(num_shards, size).expect("no more ranks than shards");
    runs.into_iter()
        .map(|run| tree::subtrees(num_shards, run))
        .collect()
}

/// Cuts the tree anywhere and deals the subtrees to any ranks, as after a salvage.
fn scattered(num_shards: u32, size: u32, mut choose: impl FnMut(u32) -> u32) -> Vec<Vec<Run>> {
    let mut holdings = vec![Vec::new(); size as usize];
    let mut nodes = vec![Run::new(0, num_shards)];
    while let Some(node) = nodes.pop() {
        match tree::split(node) {
            Some((left, right)) if choose(3) > 0 => nodes.extend([left, right]),
            _ => holdings[choose(size) as usize].push(node),
        }
    }
    holdings
}

/// Runs all machines in one thread; `choose(n)` picks which of `n` possible things happens next:
/// a machine starts, or the oldest frame between two ranks arrives.
fn run(mut machines: Vec<Reduction>, mut choose: impl FnMut(u32) -> u32) -> Vec<Reduced> {
    let size = machines.len();
    let mut wires: Vec<VecDeque<Frame>> = vec![VecDeque::new(); size * size];
    let mut unstarted: Vec<usize> = (0..size).collect();
    let mut num_done = 0;
    let mut outputs = Vec::new();
    loop {
        let ready: Vec<usize> = (0..wires.len()).filter(|w| !wires[*w].is_empty()).collect();
        let num_choices = unstarted.len() + ready.len();
        if num_choices == 0 {
            break;
        }
        let choice = choose(num_choices as u32) as usize;
        let (rank, input) = if choice < unstarted.len() {
            (unstarted.swap_remove(choice), Input::Start)
        } else {
            let wire = ready[choice - unstarted.len()];
            let frame = wires[wire].pop_front().expect("the wire is not empty");
            (
                wire % size,
                Input::Frame {
                    from: RankId((wire / size) as u32),
                    frame,
                },
            )
        };
        machines[rank].handle(input, &mut outputs);
        for output in outputs.drain(..) {
            match output {
                Output::Send { to, frame } => {
                    assert_ne!(World::index(to), rank, "no rank sends to itself");
                    wires[rank * size + World::index(to)].push_back(frame);
                }
                Output::Done => num_done += 1,
                Output::Failed(error) => panic!("rank {rank}: {error}"),
            }
        }
    }
    assert_eq!(num_done, size, "every rank is done, once");
    machines
        .into_iter()
        .map(|m| m.finish().expect("done"))
        .collect()
}

fn assert_reduced(results: &[Reduced], num_shards: u32, num_elements: usize) {
    let expected = bits(&tree_sum(Run::new(0, num_shards), num_elements));
    let notes: Vec<Vec<u8>> = (0..results.len()).map(|r| vec![r as u8; r * 3]).collect();
    for (rank, result) in results.iter().enumerate() {
        assert!(
            bits(&result.vector) == expected,
            "rank {rank} has other bits"
        );
        assert_eq!(result.notes, notes, "rank {rank}");
    }
}

/// A seeded `choose`.
fn chooser(seed: u64) -> impl FnMut(u32) -> u32 {
    let mut state = seed | 1;
    move |n| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as u32 % n
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_world_and_any_order_of_arrival_give_the_bits_of_the_plain_tree_sum(
        num_shards in 1u32..20, size in 1u32..20, num_elements in 0usize..5000, seed in any::<u64>(),
    ) {
        prop_assume!(size <= num_shards);
        let machines = machines(&contiguous(num_shards, size), num_shards, num_elements);
        assert_reduced(&run(machines, chooser(seed)), num_shards, num_elements);
    }

    #[test]
    fn any_holdings_give_the_same_bits(
        num_shards in 1u32..20, size in 1u32..6, num_elements in 0usize..5000, seed in any::<u64>(),
    ) {
        let holdings = scattered(num_shards, size, chooser(seed));
        let machines = machines(&holdings, num_shards, num_elements);
        assert_reduced(&run(machines, chooser(seed.rotate_left(17))), num_shards, num_elements);
    }
}

#[test]
fn chunks_of_many_pieces_give_the_same_bits_in_any_order() {
    let (num_shards, num_elements) = (5, 500_000);
    for seed in 1..6 {
        let machines = machines(&contiguous(num_shards, 2), num_shards, num_elements);
        assert_reduced(&run(machines, chooser(seed)), num_shards, num_elements);
    }
}

#[test]
fn alone_with_the_whole_sum_nothing_is_copied() {
    let mut machine = machines(&[vec![Run::new(0, 4)]], 4, 100).remove(0);
    let address = machine.mine[0].values.as_ptr();
    let mut outputs = Vec::new();
    machine.handle(Input::Start, &mut outputs);
    assert_eq!(outputs, [Output::Done]);
    assert_eq!(machine.finish().expect("done").vector.as_ptr(), address);
}

/// Rank 0 of two with 2000 elements, started, and the frames that rank 1 has for it.
fn started() -> (Reduction, Vec<Frame>) {
    let mut machines = machines(&contiguous(2, 2), 2, 2000);
    let mut outputs = Vec::new();
    machines[1].handle(Input::Start, &mut outputs);
    let to_rank_0 = |output| match output {
        Output::Send { frame, .. } => Some(frame),
        _ => None,
    };
    let frames = outputs.drain(..).filter_map(to_rank_0).collect();
    machines[0].handle(Input::Start, &mut Vec::new());
    (machines.remove(0), frames)
}

fn outcome(machine: &mut Reduction, input: Input) -> Vec<Output> {
    let mut outputs = Vec::new();
    machine.handle(input, &mut outputs);
    outputs.retain(|output| !matches!(output, Output::Send { .. }));
    outputs
}

#[test]
fn a_deadline_names_the_ranks_that_are_missing() {
    let (mut machine, _) = started();
    let error = Error::TimedOut {
        waiting_for: vec![RankId(1)],
    };
    assert_eq!(
        outcome(&mut machine, Input::Deadline),
        [Output::Failed(error)]
    );
    assert_eq!(
        outcome(&mut machine, Input::Revoke),
        [],
        "nothing follows a failure"
    );
    assert_eq!(machine.finish(), None);
}

#[test]
fn a_revocation_ends_the_operation() {
    let (mut machine, _) = started();
    assert_eq!(
        outcome(&mut machine, Input::Revoke),
        [Output::Failed(Error::Revoked)]
    );
}

#[test]
fn a_rank_that_leaves_is_lost_only_while_something_of_it_is_missing() {
    let lost = |rank, reason| Input::Lost {
        rank: RankId(rank),
        reason,
    };
    let (mut machine, _) = started();
    let error = Error::PeerLost {
        rank: RankId(1),
        reason: LossReason::Left,
    };
    assert_eq!(
        outcome(&mut machine, lost(1, LossReason::Left)),
        [Output::Failed(error)]
    );

    let (mut machine, _) = started();
    let error = Output::Failed(Error::Revoked);
    assert_eq!(outcome(&mut machine, lost(1, LossReason::Revoked)), [error]);

    // Of three ranks, rank 1 has sent everything it ever would and leaves; rank 2 then dies.
    let mut machines = machines(&[vec![Run::new(0, 1)], vec![], vec![]], 1, 0);
    let mut outputs = Vec::new();
    machines[1].handle(Input::Start, &mut outputs);
    let Some(Output::Send { frame, .. }) = outputs.pop() else {
        panic!("a note")
    };
    let machine = &mut machines[0];
    assert_eq!(outcome(machine, Input::Start), []);
    assert_eq!(
        outcome(
            machine,
            Input::Frame {
                from: RankId(1),
                frame
            }
        ),
        []
    );
    assert_eq!(outcome(machine, lost(1, LossReason::Left)), []);
    let reason = LossReason::Reported { by: RankId(1) };
    let error = Error::PeerLost {
        rank: RankId(2),
        reason,
    };
    assert_eq!(outcome(machine, lost(2, reason)), [Output::Failed(error)]);
}

#[test]
fn every_broken_rule_names_the_rank_that_broke_it() {
    let (_, frames) = started();
    let [note, sum] = frames.as_slice() else {
        panic!("a note and a sum: {frames:?}")
    };
    let with = |body: Body| Frame {
        body,
        ..sum.clone()
    };
    let values = |len| Values::new(vec![0.0; len]);
    let sum_of = |piece, start, end, len| {
        with(Body::Sum {
            piece,
            subtree: Run::new(start, end),
            values: values(len),
        })
    };
    let total = |piece, len| {
        with(Body::Total {
            piece,
            values: values(len),
        })
    };
    let part = |part, num_parts| Part {
        part,
        num_parts,
        bytes: Bytes::new(),
    };
    let broken: &[(&str, Vec<Frame>)] = &[
        ("a second note", vec![note.clone(), note.clone()]),
        ("out of order", vec![with(Body::Note(part(1, 2)))]),
        ("out of order", vec![with(Body::Note(part(0, 2)))]),
        ("a second sum", vec![sum.clone(), sum.clone()]),
        ("does not exist", vec![sum_of(u32::MAX, 1, 2, 1024)]),
        ("which has 1024", vec![sum_of(0, 1, 2, 1000)]),
        ("does not hold", vec![sum_of(0, 0, 1, 1024)]),
        ("does not hold", vec![sum_of(0, 0, 2, 1024)]),
        ("does not exist", vec![total(1, 976)]),
        ("which has 976", vec![total(0, 1024)]),
        ("a second time", vec![total(0, 976), total(0, 976)]),
        (
            "no part of an all-reduce",
            vec![with(Body::Message(part(0, 1)))],
        ),
        (
            "at step 4",
            vec![Frame {
                step: Step(4),
                ..note.clone()
            }],
        ),
    ];
    for (expected, frames) in broken {
        let (mut machine, _) = started();
        let mut outputs = Vec::new();
        for frame in frames {
            machine.handle(
                Input::Frame {
                    from: RankId(1),
                    frame: frame.clone(),
                },
                &mut outputs,
            );
        }
        match outputs.last() {
            Some(Output::Failed(Error::Protocol {
                rank: RankId(1),
                what,
            })) => {
                assert!(what.contains(expected), "{what:?} should say {expected:?}");
            }
            other => panic!("expected {expected:?}: {other:?}"),
        }
    }
}

#[test]
fn impossible_operations_are_refused_before_anything_is_sent() {
    let good = || Operation {
        step: Step(0),
        num_shards: 4,
        num_elements: 10,
        holdings: contiguous(4, 2),
        mine: vec![subtree(Run::new(0, 2), 10)],
        note: Vec::new(),
    };
    let check = |operation| Reduction::new(world(0, 2), 0, operation, &Pool::default()).map(|_| ());
    assert_eq!(check(good()), Ok(()));
    let run = |start, end| vec![Run::new(start, end)];
    let bad = [
        (
            "expected at least one shard",
            Operation {
                num_shards: 0,
                ..good()
            },
        ),
        (
            "holdings for each",
            Operation {
                holdings: vec![run(0, 4)],
                ..good()
            },
        ),
        (
            "no node",
            Operation {
                holdings: vec![run(0, 2), run(2, 5)],
                ..good()
            },
        ),
        (
            "no node",
            Operation {
                holdings: vec![run(0, 1), run(1, 3)],
                ..good()
            },
        ),
        (
            "each shard once",
            Operation {
                holdings: vec![run(0, 2), run(0, 4)],
                ..good()
            },
        ),
        (
            "nobody holds",
            Operation {
                holdings: vec![run(0, 2), vec![]],
                ..good()
            },
        ),
        (
            "expected",
            Operation {
                mine: vec![],
                ..good()
            },
        ),
        (
            "9 elements",
            Operation {
                mine: vec![subtree(Run::new(0, 2), 9)],
                ..good()
            },
        ),
    ];
    for (expected, operation) in bad {
        match check(operation) {
            Err(Error::Invalid { what }) => assert!(what.contains(expected), "{what}"),
            other => panic!("expected {expected:?}: {other:?}"),
        }
    }
    let nobody = Reduction::new(world(2, 2), 0, good(), &Pool::default());
    assert!(matches!(nobody, Err(Error::Invalid { .. })));
}
