//! The records of steps that a worker keeps until the coordinator has them. Several processes of a
//! job may send the same ones, after another world made another of them rank 0.

use std::collections::{BTreeMap, VecDeque};

use muster_proto::v1;
use v1::step_record::Record;

/// Records that are not acknowledged.
#[derive(Debug, Default)]
pub struct Unacked {
    /// Per job and history, in the order of their places; each place once.
    streams: BTreeMap<(String, u64), VecDeque<v1::StepRecord>>,
}

impl Unacked {
    /// Keeps a record, and says whether it is news. One whose place is taken, or that names no
    /// stream or no place in it, is not kept.
    pub fn keep(&mut self, record: &v1::StepRecord) -> bool {
        let (Some(key), Some(place)) = (&record.key, place(record)) else {
            return false;
        };
        let stream = self
            .streams
            .entry((key.job.clone(), key.history))
            .or_default();
        match stream.binary_search_by_key(&Some(place), self::place) {
            Ok(_) => false,
            Err(index) => {
                stream.insert(index, record.clone());
                true
            }
        }
    }

    /// Forgets a record, and all before it in its stream.
    pub fn acknowledged(&mut self, ack: &v1::RecordAck) {
        let name = (ack.job.clone(), ack.history);
        let Some(stream) = self.streams.get_mut(&name) else {
            return;
        };
        stream.retain(|record| place(record) > Some((ack.step, ack.evaluated)));
        if stream.is_empty() {
            self.streams.remove(&name);
        }
    }

    /// What a new stream to the coordinator has to bring, in order.
    pub fn iter(&self) -> impl Iterator<Item = &v1::StepRecord> {
        self.streams.values().flatten()
    }
}

/// A record's place among those of its history: an evaluation follows its step.
fn place(record: &v1::StepRecord) -> Option<(u64, bool)> {
    match record.record.as_ref()? {
        Record::Applied(applied) => Some((applied.step, false)),
        Record::Evaluated(evaluated) => Some((evaluated.step, true)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(process: u64, step: u64, is_evaluation: bool) -> v1::StepRecord {
        let record = if is_evaluation {
            Record::Evaluated(v1::Evaluated {
                step,
                ..Default::default()
            })
        } else {
            Record::Applied(v1::StepApplied {
                step,
                ..Default::default()
            })
        };
        v1::StepRecord {
            key: Some(v1::RankKey {
                job: "job".to_owned(),
                history: 1,
                process,
                ..Default::default()
            }),
            time: 0.0,
            record: Some(record),
        }
    }

    fn ack(history: u64, step: u64, evaluated: bool) -> v1::RecordAck {
        v1::RecordAck {
            job: "job".to_owned(),
            history,
            step,
            evaluated,
        }
    }

    fn places(unacked: &Unacked) -> Vec<(u64, bool)> {
        unacked.iter().filter_map(place).collect()
    }

    #[test]
    fn another_rank_0_repeats_records_and_each_is_kept_once_and_in_order() {
        let mut unacked = Unacked::default();
        for (step, is_evaluation) in [(5, false), (5, true), (6, false)] {
            assert!(unacked.keep(&record(1, step, is_evaluation)));
        }
        // Process 2 knows of fewer acknowledgements, and of a later step.
        let news = [(4, false), (5, false), (5, true), (6, false), (7, false)]
            .map(|(step, is_evaluation)| unacked.keep(&record(2, step, is_evaluation)));
        assert_eq!(news, [true, false, false, false, true]);
        assert_eq!(
            places(&unacked),
            [(4, false), (5, false), (5, true), (6, false), (7, false)]
        );
    }

    #[test]
    fn an_acknowledgement_covers_what_came_before_in_its_history_only() {
        let mut unacked = Unacked::default();
        for (step, is_evaluation) in [(1, false), (2, false), (2, true)] {
            assert!(unacked.keep(&record(1, step, is_evaluation)));
        }
        unacked.acknowledged(&ack(2, 9, true));
        assert_eq!(places(&unacked).len(), 3);
        unacked.acknowledged(&ack(1, 2, false));
        assert_eq!(places(&unacked), [(2, true)]);
        unacked.acknowledged(&ack(1, 2, true));
        assert_eq!(places(&unacked), []);
        assert!(
            unacked.keep(&record(2, 2, false)),
            "whoever missed the acknowledgement hears another"
        );
    }

    #[test]
    fn a_record_of_nothing_is_not_kept() {
        let mut unacked = Unacked::default();
        let nothing = v1::StepRecord {
            record: None,
            ..record(1, 1, false)
        };
        let nobodys = v1::StepRecord {
            key: None,
            ..record(1, 1, false)
        };
        assert!(!unacked.keep(&nothing));
        assert!(!unacked.keep(&nobodys));
        assert_eq!(places(&unacked), []);
    }
}
