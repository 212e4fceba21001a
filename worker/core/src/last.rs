//! What a process has said of its work that a daemon or a coordinator which is new to it has to hear
//! again: how far it is while it waits, and how its work in its present world ended.

use muster_proto::v1::rank_report::Report;

/// The reports of one process that still count.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LastWords {
    following: Option<Report>,
    end: Option<Report>,
}

impl LastWords {
    /// It said how far it is, or how its work in a world ended.
    pub fn keep(&mut self, report: Report) {
        match (&self.end, &report) {
            (_, Report::Following(_)) => self.following = Some(report),
            // A process that has failed takes part in nothing more, whatever it still answers.
            (Some(Report::Failed(_)), _) => {}
            _ => self.end = Some(report),
        }
    }

    /// It is to enter another world.
    pub fn enters(&mut self) {
        self.following = None;
        self.end.take_if(|end| !matches!(end, Report::Failed(_)));
    }

    /// It is no more: what it held it holds no more, and whoever heard it would count on it.
    pub fn exited(&mut self) {
        self.following = None;
        self.end.take_if(|end| matches!(end, Report::Closed(_)));
    }

    /// What still counts, in the order in which it was said.
    pub fn reports(&self) -> impl Iterator<Item = &Report> {
        self.following.iter().chain(&self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_proto::v1;

    #[test]
    fn a_later_report_takes_the_place_of_those_that_it_overtakes_only() {
        let following = Report::Following(v1::Following::default());
        let closed = Report::Closed(v1::Closed::default());
        let failed = Report::Failed(v1::Failed::default());
        let said = |words: &LastWords| -> Vec<Report> { words.reports().cloned().collect() };

        let mut words = LastWords::default();
        words.keep(closed.clone());
        words.keep(following.clone());
        assert_eq!(said(&words), [following.clone(), closed.clone()]);
        let mut gone = words.clone();
        gone.exited();
        assert_eq!(said(&gone), []);
        words.enters();
        assert_eq!(said(&words), []);

        words.keep(failed.clone());
        words.keep(closed);
        words.enters();
        words.exited();
        assert_eq!(said(&words), [failed]);
    }
}
