//! What must hold of the members of the control plane's group, whatever happens to them: one leader a
//! term, one sequence of entries, one stream of events, one state behind each entry, and nothing that
//! was acknowledged is lost, told otherwise later, or missing from what is read after it.

use std::collections::BTreeMap;

use muster_cluster::apply::Answer;
use muster_coordinator_core::Coordinator;
use muster_coordinator_core::consensus::{Entry, Role, Status};

use crate::rng::mix;

/// The states behind entries of these numbers are compared.
const COMPARE_EVERY: u64 = 4;

/// An entry: its term, and a hash of what is in it.
type Trace = (u64, u64);

/// The log of one replica, as it was written.
#[derive(Debug, Default)]
pub(crate) struct Written(BTreeMap<u64, Trace>);

impl Written {
    pub(crate) fn of(entries: &[Entry]) -> Self {
        let mut written = Self::default();
        written.append(entries);
        written
    }

    pub(crate) fn append(&mut self, entries: &[Entry]) {
        if let Some(first) = entries.first() {
            self.0.split_off(&first.index);
        }
        let trace = |entry: &Entry| (entry.index, (entry.term, hash(&entry.data)));
        self.0.extend(entries.iter().map(trace));
    }

    pub(crate) fn at(&self, index: u64) -> Option<Trace> {
        self.0.get(&index).copied()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

fn hash(bytes: &[u8]) -> u64 {
    let fold = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// What is known of all replicas.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    violations: Vec<String>,
    leaders: BTreeMap<u64, u64>,
    entries: BTreeMap<u64, Trace>,
    events: Vec<u64>,
    states: BTreeMap<u64, u64>,
    /// The last entry that anybody applied.
    newest: u64,
    answers: BTreeMap<u64, Answer>,
    /// What was applied and acknowledged when a read was asked for.
    reads: BTreeMap<u64, (u64, Vec<u64>)>,
    pub(crate) num_elections: u64,
    pub(crate) num_reads: u64,
}

impl Replicas {
    pub(super) fn take_violations(&mut self) -> Vec<String> {
        std::mem::take(&mut self.violations)
    }

    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// What a member says of its part.
    pub(crate) fn led(&mut self, id: u64, status: &Status) {
        if status.role != Role::Leader {
            return;
        }
        let mut is_new = false;
        let first = *self.leaders.entry(status.term).or_insert_with(|| {
            is_new = true;
            id
        });
        self.num_elections += u64::from(is_new);
        if first != id {
            self.violations
                .push(format!("{first} and {id} lead term {}", status.term));
        }
    }

    /// A member applied an entry of its log.
    pub(crate) fn applied(&mut self, id: u64, index: u64, trace: Option<Trace>) {
        let Some(trace) = trace else {
            let violation = format!("{id} applied entry {index}, which it never wrote");
            self.violations.push(violation);
            return;
        };
        self.newest = self.newest.max(index);
        let first = *self.entries.entry(index).or_insert(trace);
        if first != trace {
            self.violations.push(format!(
                "{id} applied entry {index} of term {}, and another one was applied there, of term {}",
                trace.0, first.0
            ));
        }
    }

    /// A member's state is the one behind an entry.
    pub(crate) fn is_at(&mut self, machine: &Coordinator, index: u64) {
        if index.is_multiple_of(COMPARE_EVERY) {
            self.compare(machine, index);
        }
    }

    /// A member's state was taken from a snapshot.
    pub(crate) fn restored(&mut self, machine: &Coordinator, index: u64) {
        if index > self.newest {
            let violation = format!("a snapshot covers entry {index}, which nobody applied");
            self.violations.push(violation);
        }
        self.compare(machine, index);
    }

    pub(crate) fn compare(&mut self, machine: &Coordinator, index: u64) {
        let state = hash(&machine.snapshot().encode());
        let first = *self.states.entry(index).or_insert(state);
        if first != state {
            let id = machine.options().id.0;
            self.violations.push(format!(
                "{id} has another state behind entry {index} than a member before it"
            ));
        }
    }

    /// A member tells an event, behind so many.
    pub(crate) fn told(&mut self, id: u64, at: usize, line: &str) {
        let event = hash(line.as_bytes());
        match self.events.get(at) {
            Some(first) if *first == event => {}
            None if at == self.events.len() => self.events.push(event),
            _ => self.violations.push(format!(
                "{id} tells another event at {at} than a member before it: {line}"
            )),
        }
    }

    /// All that a member has told, where it took that from another one.
    pub(crate) fn has_told<'a>(&mut self, id: u64, lines: impl Iterator<Item = &'a str>) {
        for (at, line) in lines.enumerate() {
            self.told(id, at, line);
        }
    }

    /// How many events there are.
    pub(crate) fn num_events(&self) -> usize {
        self.events.len()
    }

    /// A client got an answer. Whoever asks again gets the same.
    pub(crate) fn answered(&mut self, number: u64, answer: &Answer) {
        let first = self.answers.entry(number).or_insert_with(|| answer.clone());
        let words = |answer: &Answer| answer.clone().map_err(|refusal| refusal.to_string());
        if words(first) != words(answer) {
            let violation =
                format!("request {number} was answered with {first:?}, and then with {answer:?}");
            self.violations.push(violation);
        }
    }

    /// Somebody asks what is true now.
    pub(crate) fn asks(&mut self, number: u64) {
        let known = self.answers.keys().copied().collect();
        self.reads.insert(number, (self.newest, known));
    }

    /// A member shows what is true.
    pub(crate) fn reads(&mut self, number: u64, machine: &Coordinator) {
        let Some((index, known)) = self.reads.remove(&number) else {
            return;
        };
        self.num_reads += 1;
        let (id, applied) = (machine.options().id.0, machine.status().applied);
        if applied < index {
            self.violations.push(format!(
                "{id} shows what is true behind entry {applied}, and {index} was applied before it was asked"
            ));
        }
        let is_unknown = |number: &&u64| {
            let request = u128::from(**number).to_le_bytes();
            machine.state().answered.answer_to(request).is_none()
        };
        if let Some(number) = known.iter().find(is_unknown) {
            self.violations.push(format!(
                "{id} shows a state without request {number}, which was answered before it was asked"
            ));
        }
    }
}
