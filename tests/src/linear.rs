//! Decides whether what clients saw of a thing is what they could have seen had each operation happened
//! at one moment between its call and its return (Herlihy and Wing, "Linearizability", 1990), by the
//! search of Wing and Gong with Lowe's memory of what was tried ("Testing for linearizability", 2017).
//! What the thing is, a [`Model`] says.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// A thing that does one operation behind the other.
pub trait Model {
    /// What it is between two operations.
    type State: Clone + Debug + Eq + Hash;
    /// What is asked of it.
    type Ask: Debug;
    /// What it answers.
    type Answer: Debug + PartialEq;

    /// What it is before the first one.
    fn first() -> Self::State;

    /// What it answers, and what it is then.
    fn apply(state: &Self::State, ask: &Self::Ask) -> (Self::State, Self::Answer);

    /// Whether this never changes what it is.
    fn only_looks(ask: &Self::Ask) -> bool;
}

/// What one client asked, and what it saw. Times are of one clock for all clients.
#[derive(Clone, Debug)]
pub struct Operation<Ask, Answer> {
    /// What was asked.
    pub ask: Ask,
    /// When.
    pub called: u64,
    /// When it was answered, and what; `None`: it may have happened at any time since, or never.
    pub answer: Option<(u64, Answer)>,
}

/// Whether there is an order of these operations in which each happens between its call and its
/// return.
///
/// # Errors
/// With the longest order that was found before one that was answered had no place.
pub fn linearizable<M: Model>(operations: &[Operation<M::Ask, M::Answer>]) -> Result<(), String> {
    Search::<M>::new(operations).run()
}

struct Happened<M: Model> {
    /// The event of its call.
    event: usize,
    before: M::State,
    /// It only looks, and saw what was: an order in which it looks later allows no more.
    is_certain: bool,
}

struct Search<'a, M: Model> {
    operations: &'a [Operation<M::Ask, M::Answer>],
    /// Calls and returns in their order: which operation, and whether it is its return.
    events: Vec<(usize, bool)>,
    /// Which operations have happened.
    done: Vec<bool>,
    /// How many that were answered have not.
    num_open: usize,
    state: M::State,
    /// What happened so far.
    order: Vec<Happened<M>>,
    /// What was tried.
    tried: HashSet<(Vec<bool>, M::State)>,
    longest: Vec<usize>,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(operations: &'a [Operation<M::Ask, M::Answer>]) -> Self {
        let mut events = Vec::new();
        for (number, operation) in operations.iter().enumerate() {
            // At one moment calls come first: then neither is before the other.
            events.push((operation.called, false, number));
            if let Some((returned, _)) = &operation.answer {
                events.push((*returned, true, number));
            }
        }
        events.sort_unstable();
        let events = events.into_iter();
        let answered = operations.iter().filter(|one| one.answer.is_some());
        Self {
            operations,
            events: events
                .map(|(_, returns, number)| (number, returns))
                .collect(),
            done: vec![false; operations.len()],
            num_open: answered.count(),
            state: M::first(),
            order: Vec::new(),
            tried: HashSet::new(),
            longest: Vec::new(),
        }
    }

    fn run(mut self) -> Result<(), String> {
        let mut at = 0;
        while self.num_open > 0 {
            let Some((number, returns)) = self.events.get(at).copied() else {
                // Only what was never answered is left before the end of the events.
                unreachable!("an answered operation that has not happened returns later");
            };
            if self.done[number] {
                at += 1;
            } else if returns {
                // It has to happen before: something that happened before it did not.
                let Some(event) = self.undo() else {
                    return Err(self.told());
                };
                at = event + 1;
            } else if self.happens(at) {
                at = 0;
            } else {
                at += 1;
            }
        }
        Ok(())
    }

    /// Has an operation happen next, by the event of its call, if it can and was not tried.
    fn happens(&mut self, event: usize) -> bool {
        let (number, _) = self.events[event];
        let operation = &self.operations[number];
        let (after, answer) = M::apply(&self.state, &operation.ask);
        let seen = operation.answer.as_ref().map(|(_, seen)| seen);
        if seen.is_some_and(|seen| *seen != answer) {
            return false;
        }
        // What was not answered and changes nothing need not happen now.
        if seen.is_none() && after == self.state {
            return false;
        }
        let is_certain = M::only_looks(&operation.ask);
        self.done[number] = true;
        if !is_certain && !self.tried.insert((self.done.clone(), after.clone())) {
            self.done[number] = false;
            return false;
        }
        self.num_open -= usize::from(seen.is_some());
        self.order.push(Happened {
            event,
            before: std::mem::replace(&mut self.state, after),
            is_certain,
        });
        if self.order.len() > self.longest.len() {
            let order = self.order.iter();
            self.longest = order.map(|one| self.events[one.event].0).collect();
        }
        true
    }

    /// Takes back the last choice; the event of its call, behind which others are tried. `None` where
    /// there was no choice.
    fn undo(&mut self) -> Option<usize> {
        loop {
            let last = self.order.pop()?;
            let (number, _) = self.events[last.event];
            self.done[number] = false;
            self.num_open += usize::from(self.operations[number].answer.is_some());
            self.state = last.before;
            if !last.is_certain {
                return Some(last.event);
            }
        }
    }

    fn told(&self) -> String {
        let mut state = M::first();
        let mut lines = vec!["the longest order that was found:".to_owned()];
        for number in &self.longest {
            let one = &self.operations[*number];
            state = M::apply(&state, &one.ask).0;
            lines.push(format!("  {one:?}\n    -> {state:?}"));
        }
        lines.push("without a place behind it:".to_owned());
        let others = self.operations.iter().enumerate();
        let others = others.filter(|(number, _)| !self.longest.contains(number));
        lines.extend(others.map(|(_, one)| format!("  {one:?}")));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A number that is added to, and that says what it was.
    struct Counter;

    #[derive(Clone, Copy, Debug)]
    enum Ask {
        Add(u64),
        Set(u64),
        Read,
    }

    impl Model for Counter {
        type State = u64;
        type Ask = Ask;
        type Answer = u64;

        fn first() -> u64 {
            0
        }

        fn apply(state: &u64, ask: &Ask) -> (u64, u64) {
            match ask {
                Ask::Add(num) => (state + num, 0),
                Ask::Set(num) => (*num, 0),
                Ask::Read => (*state, *state),
            }
        }

        fn only_looks(ask: &Ask) -> bool {
            matches!(ask, Ask::Read)
        }
    }

    fn answered(ask: Ask, called: u64, returned: u64, answer: u64) -> Operation<Ask, u64> {
        Operation {
            ask,
            called,
            answer: Some((returned, answer)),
        }
    }

    fn unanswered(ask: Ask, called: u64) -> Operation<Ask, u64> {
        Operation {
            ask,
            called,
            answer: None,
        }
    }

    fn is_linearizable(operations: &[Operation<Ask, u64>]) -> bool {
        linearizable::<Counter>(operations).is_ok()
    }

    #[test]
    fn what_happens_one_behind_the_other_is_linearizable() {
        let operations = [
            answered(Ask::Read, 0, 1, 0),
            answered(Ask::Add(5), 2, 3, 0),
            answered(Ask::Read, 4, 5, 5),
        ];
        assert!(is_linearizable(&operations));
        assert!(is_linearizable(&[]));
    }

    #[test]
    fn a_stale_read_is_not() {
        let operations = [answered(Ask::Add(5), 0, 1, 0), answered(Ask::Read, 2, 3, 0)];
        let told = linearizable::<Counter>(&operations).unwrap_err();
        let (found, left) = told.split_once("without a place").unwrap();
        assert!(found.contains("Add(5)") && left.contains("Read"), "{told}");
    }

    #[test]
    fn a_read_that_goes_back_is_not_though_each_alone_would_be() {
        let add = answered(Ask::Add(5), 0, 9, 0);
        let new = answered(Ask::Read, 1, 2, 5);
        let old = answered(Ask::Read, 3, 4, 0);
        assert!(is_linearizable(&[add.clone(), new.clone()]));
        assert!(is_linearizable(&[add.clone(), old.clone()]));
        assert!(!is_linearizable(&[add, new, old]));
    }

    #[test]
    fn a_lost_write_is_not() {
        let operations = [
            answered(Ask::Add(5), 0, 1, 0),
            answered(Ask::Add(2), 2, 3, 0),
            answered(Ask::Read, 4, 5, 2),
        ];
        assert!(!is_linearizable(&operations));
    }

    #[test]
    fn a_double_application_is_not() {
        let operations = [
            answered(Ask::Add(5), 0, 1, 0),
            answered(Ask::Read, 2, 3, 10),
        ];
        assert!(!is_linearizable(&operations));
        let unsure = [unanswered(Ask::Add(5), 0), answered(Ask::Read, 2, 3, 10)];
        assert!(!is_linearizable(&unsure));
    }

    #[test]
    fn what_overlaps_may_have_happened_in_any_order() {
        let first = answered(Ask::Add(1), 0, 9, 0);
        let second = answered(Ask::Add(2), 1, 8, 0);
        for seen in [0, 1, 2, 3] {
            let read = answered(Ask::Read, 2, 7, seen);
            assert!(is_linearizable(&[first.clone(), second.clone(), read]));
        }
        let read = answered(Ask::Read, 2, 7, 4);
        assert!(!is_linearizable(&[first, second, read]));
    }

    #[test]
    fn what_changes_nothing_now_may_have_happened_when_it_did() {
        let operations = [
            answered(Ask::Set(5), 0, 1, 0),
            answered(Ask::Set(5), 2, 9, 0),
            answered(Ask::Set(7), 3, 4, 0),
            answered(Ask::Read, 5, 6, 5),
        ];
        assert!(is_linearizable(&operations));
        let [first, _, third, last] = operations;
        assert!(!is_linearizable(&[first, third, last]));
    }

    #[test]
    fn what_was_not_answered_may_happen_late_or_never_but_not_before_its_call() {
        let lost = unanswered(Ask::Add(5), 2);
        let before = answered(Ask::Read, 0, 1, 0);
        let much_later = [
            answered(Ask::Read, 10, 11, 0),
            answered(Ask::Read, 12, 13, 5),
        ];
        assert!(is_linearizable(
            &[&[lost.clone(), before], &much_later[..]].concat()
        ));
        assert!(is_linearizable(&[
            lost.clone(),
            answered(Ask::Read, 10, 11, 0)
        ]));
        assert!(!is_linearizable(&[
            lost.clone(),
            answered(Ask::Read, 0, 1, 5)
        ]));
        let taken_back = [
            answered(Ask::Read, 10, 11, 5),
            answered(Ask::Read, 12, 13, 0),
        ];
        assert!(!is_linearizable(&[&[lost], &taken_back[..]].concat()));
    }

    /// Among many that overlap and were not answered there are more orders than can be tried one by one.
    #[test]
    fn many_that_overlap_are_decided_soon() {
        let lost = (0..12).map(|at| unanswered(Ask::Add(1), at));
        let reads = (0..40).map(|at| answered(Ask::Read, 100 + at, 200 + at, 12));
        let mut operations: Vec<_> = lost.chain(reads).collect();
        assert!(is_linearizable(&operations));
        operations.push(answered(Ask::Read, 300, 301, 13));
        assert!(!is_linearizable(&operations));
    }
}
