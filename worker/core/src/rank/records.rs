//! The records of steps that are not acknowledged. Every rank makes and keeps them, or takes them over
//! with the state, and rank 0 sends them: so they outlive it.

use std::collections::VecDeque;

use muster_proto::v1;
use v1::step_record::Record;

/// A record's place in its history: an evaluation follows its step.
pub type Place = (u64, bool);

#[derive(Debug, Default)]
pub(super) struct Records {
    kept: VecDeque<(Place, v1::StepRecord)>,
    /// How many of `kept`, from the front, this process has sent.
    num_sent: usize,
    acked: Place,
}

impl Records {
    pub(super) fn push(&mut self, record: v1::StepRecord) {
        let place = match &record.record {
            Some(Record::Applied(applied)) => (applied.step, false),
            Some(Record::Evaluated(evaluated)) => (evaluated.step, true),
            None => return,
        };
        // An evaluation that a heal repeats is told once.
        let last = self.kept.back().map_or(self.acked, |(last, _)| *last);
        if place > last {
            self.kept.push_back((place, record));
        }
    }

    pub(super) fn kept(&self) -> impl Iterator<Item = &v1::StepRecord> {
        self.kept.iter().map(|(_, record)| record)
    }

    pub(super) fn take_unsent(&mut self) -> Vec<v1::StepRecord> {
        let unsent = self.kept.iter().skip(self.num_sent);
        let unsent = unsent.map(|(_, record)| record.clone()).collect();
        self.num_sent = self.kept.len();
        unsent
    }

    pub(super) fn send_all_again(&mut self) {
        self.num_sent = 0;
    }

    pub(super) fn acked(&mut self, place: Place) {
        self.acked = self.acked.max(place);
        while self.kept.pop_front_if(|(kept, _)| *kept <= place).is_some() {
            self.num_sent = self.num_sent.saturating_sub(1);
        }
    }

    pub(super) fn last_acked(&self) -> Place {
        self.acked
    }

    /// The oldest that is not acknowledged.
    pub(super) fn first(&self) -> Option<Place> {
        self.kept.front().map(|(place, _)| *place)
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }
}
