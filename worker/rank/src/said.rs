//! What a rank has said and must say again to a worker that is new to it. It mirrors what a worker
//! keeps for a coordinator that is new to it.

use muster_proto::v1;
use muster_worker_core::last::LastWords;
use v1::rank_report::Report;

/// The reports that still count; files as what the rank was that wrote them.
#[derive(Debug, Default)]
pub(crate) struct Said {
    ready: Option<Report>,
    /// Files that no committed checkpoint has yet, as far as is known here.
    parts: Vec<(v1::RankKey, v1::CheckpointPart)>,
    last: LastWords,
}

impl Said {
    pub(crate) fn keep(&mut self, key: &v1::RankKey, report: &Report) {
        match report {
            Report::Ready(_) => self.ready = Some(report.clone()),
            Report::CheckpointPart(part) => self.parts.push((key.clone(), part.clone())),
            // The next world's rank 0 says it again.
            Report::SuspectSamples(_) => {}
            last => self.last.keep(last.clone()),
        }
    }

    /// The rank is to enter another world.
    pub(crate) fn enters(&mut self, key: &v1::RankKey) {
        self.last.enters();
        self.parts.retain(|(of, _)| of.history == key.history);
    }

    /// The checkpoint of a step counts, and with it all before it.
    pub(crate) fn committed(&mut self, step: u64) {
        self.parts.retain(|(_, part)| part.step > step);
    }

    /// All of it, in the order in which it counts.
    pub(crate) fn again(&self, present: &v1::RankKey) -> Vec<v1::RankReport> {
        let as_present = |report: &Report| (present.clone(), report.clone());
        let ready = self.ready.iter().map(as_present);
        let parts = self.parts.iter().cloned();
        let parts = parts.map(|(key, part)| (key, Report::CheckpointPart(part)));
        let all = ready
            .chain(parts)
            .chain(self.last.reports().map(as_present));
        all.map(|(key, report)| v1::RankReport {
            key: Some(key),
            report: Some(report),
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(history: u64, generation: u64) -> v1::RankKey {
        v1::RankKey {
            history,
            generation,
            ..Default::default()
        }
    }

    fn part(step: u64) -> Report {
        Report::CheckpointPart(v1::CheckpointPart {
            step,
            ..Default::default()
        })
    }

    fn said(key: v1::RankKey, report: Report) -> v1::RankReport {
        v1::RankReport {
            key: Some(key),
            report: Some(report),
        }
    }

    #[test]
    fn what_counts_is_said_again_and_nothing_of_a_world_or_history_that_is_over() {
        let mut all = Said::default();
        let ready = Report::Ready(v1::Ready {
            address: "127.0.0.1:4000".to_owned(),
            feed: "127.0.0.1:4001".to_owned(),
        });
        let closed = Report::Closed(v1::Closed::default());
        for report in [ready.clone(), part(5), part(10), closed.clone()] {
            all.keep(&key(1, 2), &report);
        }
        let expected = [
            said(key(1, 2), ready.clone()),
            said(key(1, 2), part(5)),
            said(key(1, 2), part(10)),
            said(key(1, 2), closed),
        ];
        assert_eq!(all.again(&key(1, 2)), expected);
        all.committed(5);
        all.enters(&key(1, 3));
        let expected = [said(key(1, 3), ready.clone()), said(key(1, 2), part(10))];
        assert_eq!(all.again(&key(1, 3)), expected);
        all.enters(&key(2, 4));
        assert_eq!(all.again(&key(2, 4)), [said(key(2, 4), ready)]);
    }
}
