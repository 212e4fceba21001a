//! The way of a process that waits from nothing to the step that the ranks are at, and back.

use super::*;

struct Scene {
    follower: Follower,
    report: v1::Following,
}

fn ids(numbers: &[u64]) -> BTreeSet<ProcessId> {
    numbers.iter().copied().map(ProcessId).collect()
}

fn steps(of: u64, from: u64) -> Output {
    Output::Ask(ProcessId(of), Ask::Steps { from })
}

impl Scene {
    /// Process 9, told of these ranks.
    fn new(ranks: &[u64]) -> Self {
        let mut scene = Self {
            follower: Follower::new(ProcessId(9)),
            report: v1::Following::default(),
        };
        let calls = scene.told(ranks, &[]);
        let expected: Vec<_> = ranks
            .iter()
            .map(|one| Output::Call(ProcessId(*one)))
            .collect();
        assert_eq!(calls, expected);
        scene
    }

    /// What it does but report.
    fn handle(&mut self, input: Input) -> Vec<Output> {
        let mut outputs = Vec::new();
        self.follower.handle(input, &mut outputs);
        outputs.retain(|output| match output {
            Output::Report(report) => {
                self.report = report.clone();
                false
            }
            _ => true,
        });
        outputs
    }

    fn told(&mut self, ranks: &[u64], others: &[u64]) -> Vec<Output> {
        self.handle(Input::Told {
            ranks: ids(ranks),
            others: ids(others),
        })
    }

    fn reached(&mut self, process: u64) -> Vec<Output> {
        self.handle(Input::Reached(ProcessId(process)))
    }

    fn lost(&mut self, process: u64) -> Vec<Output> {
        self.handle(Input::Lost {
            process: ProcessId(process),
            reason: "connection refused".to_owned(),
        })
    }

    fn share(&mut self, from: u64, attempt: u64, step: u64) -> Vec<Output> {
        let from = ProcessId(from);
        let mut outputs = self.handle(Input::Share {
            from,
            attempt,
            step,
            bytes: 160,
        });
        outputs.extend(self.handle(Input::Arrived {
            from,
            attempt,
            bytes: 160,
        }));
        outputs
    }

    fn step(&mut self, from: u64, step: u64) -> Vec<Output> {
        let from = ProcessId(from);
        self.handle(Input::Step { from, step })
    }

    fn level(&mut self, from: u64, step: u64) {
        let from = ProcessId(from);
        assert_eq!(self.handle(Input::Level { from, step }), []);
    }

    fn refused(&mut self, from: u64, ask: Ask) -> Vec<Output> {
        let from = ProcessId(from);
        self.handle(Input::Refused { from, ask })
    }

    /// Follows rank 2 of ranks 1 and 2 at step 7.
    fn following() -> Self {
        let mut scene = Self::new(&[1, 2]);
        scene.reached(1);
        scene.reached(2);
        assert_eq!(scene.share(1, 1, 7), []);
        let givers = vec![ProcessId(2), ProcessId(1)];
        assert_eq!(
            scene.share(2, 1, 7),
            [Output::TakeOver(givers, 1), steps(2, 7)]
        );
        scene.level(2, 7);
        assert_eq!(scene.report.step, Some(7));
        scene
    }
}

fn ticket(attempt: u64, part: u8, parts: u8) -> Ticket {
    Ticket {
        process: ProcessId(9),
        attempt,
        part,
        parts,
    }
}

fn state(of: u64, attempt: u64, part: u8, parts: u8) -> Output {
    Output::Ask(ProcessId(of), Ask::State(ticket(attempt, part, parts)))
}

#[test]
fn it_takes_the_state_of_all_it_reaches_and_then_the_steps_behind_it() {
    let mut scene = Scene::new(&[1, 2, 3]);
    assert_eq!(scene.reached(1), []);
    assert_eq!(scene.lost(3), []);
    assert_eq!(scene.reached(2), [state(2, 1, 0, 2), state(1, 1, 1, 2)]);
    assert_eq!(scene.report.unreached.len(), 1);
    assert_eq!(scene.share(1, 1, 7), []);
    assert_eq!(
        (scene.report.bytes_taken, scene.report.bytes_total),
        (160, 160)
    );
    let givers = vec![ProcessId(2), ProcessId(1)];
    assert_eq!(
        scene.share(2, 1, 7),
        [Output::TakeOver(givers, 1), steps(2, 7)]
    );
    // It has not caught up before it is told so.
    assert_eq!(scene.step(2, 7), [Output::Apply]);
    assert_eq!(scene.report.step, None);
    scene.level(2, 8);
    assert_eq!(scene.report.step, Some(8));
    // Nothing twice, nothing out of order, nothing of somebody else.
    assert_eq!(scene.step(2, 7), []);
    assert_eq!(scene.step(2, 9), []);
    assert_eq!(scene.step(1, 8), []);
    assert_eq!(scene.step(2, 8), [Output::Apply]);
}

#[test]
fn when_its_source_is_lost_another_one_has_the_step() {
    let mut scene = Scene::following();
    assert_eq!(scene.step(2, 7), [Output::Apply]);
    assert_eq!(scene.lost(2), [steps(1, 8)]);
    assert_eq!(scene.report.step, Some(7), "it follows all the while");
    assert_eq!(scene.told(&[1], &[]), [Output::HangUp(ProcessId(2))]);
    assert_eq!(scene.step(1, 8), [Output::Apply]);
}

#[test]
fn when_nobody_has_the_step_it_takes_a_state_again() {
    let mut scene = Scene::following();
    assert_eq!(scene.refused(2, Ask::Steps { from: 7 }), [steps(1, 7)]);
    assert_eq!(
        scene.refused(1, Ask::Steps { from: 7 }),
        [state(2, 2, 0, 2), state(1, 2, 1, 2)]
    );
    assert_eq!(scene.report.step, None);
    // What is left of the first attempt is not mixed in.
    assert_eq!(scene.share(1, 1, 7), []);
    assert_eq!(scene.refused(1, Ask::State(ticket(1, 1, 2))), []);
    assert_eq!(scene.share(1, 2, 9), []);
    let givers = vec![ProcessId(2), ProcessId(1)];
    assert_eq!(
        scene.share(2, 2, 9),
        [Output::TakeOver(givers, 2), steps(2, 9)]
    );
}

#[test]
fn a_giver_that_is_lost_or_refuses_begins_another_attempt() {
    let mut scene = Scene::new(&[1, 2]);
    scene.reached(1);
    scene.reached(2);
    assert_eq!(scene.lost(1), [state(2, 2, 0, 1)]);
    assert_eq!(
        scene.refused(2, Ask::State(ticket(2, 0, 1))),
        [state(2, 3, 0, 1)]
    );
    // A rank that left its world is asked for nothing.
    assert_eq!(
        scene.told(&[3], &[2]),
        [Output::HangUp(ProcessId(1)), Output::Call(ProcessId(3))]
    );
    assert_eq!(scene.reached(3), [state(3, 4, 0, 1)]);
    // Shares of different steps are no state.
    let mut scene = Scene::new(&[1, 2]);
    scene.reached(1);
    scene.reached(2);
    assert_eq!(scene.share(1, 1, 7), []);
    assert_eq!(scene.share(2, 1, 8), [state(2, 2, 0, 2), state(1, 2, 1, 2)]);
}

#[test]
fn others_that_wait_are_reached_and_give_nothing() {
    let mut scene = Scene::new(&[1]);
    assert_eq!(scene.told(&[1], &[5]), [Output::Call(ProcessId(5))]);
    assert_eq!(scene.reached(5), []);
    assert_eq!(scene.reached(1), [state(1, 1, 0, 1)]);
    assert_eq!(scene.report.reached, [1, 5]);
    assert_eq!(scene.lost(5), []);
    assert_eq!(scene.report.reached, [1]);
    // It enters: what it was reached by before counts.
    assert_eq!(scene.told(&[1, 5], &[]), []);
}
