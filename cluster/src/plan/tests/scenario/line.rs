//! One line of a scenario, taken apart: its words, its numbers, and what a rank says in it.

use crate::ids::{ProcessId, RankId, Step};
use crate::plan::Closed;
use crate::tree::Run;

/// The words of a line behind the first: plain ones, and those of the form `key=value`.
pub(super) struct Line<'a> {
    pub(super) text: &'a str,
    pub(super) words: Vec<&'a str>,
}

impl<'a> Line<'a> {
    pub(super) fn find(&self, key: &str) -> Option<&'a str> {
        let mut values = self
            .words
            .iter()
            .filter_map(|word| word.split_once('=').filter(|(name, _)| *name == key));
        values.next().map(|(_, value)| value)
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        let value = self.find(key)?;
        Some(
            value
                .parse()
                .unwrap_or_else(|_| panic!("{:?}: {key} is no number", self.text)),
        )
    }

    pub(super) fn need(&self, key: &str) -> u64 {
        self.number(key)
            .unwrap_or_else(|| panic!("{:?}: {key}= is missing", self.text))
    }

    pub(super) fn rank(&self) -> RankId {
        RankId(self.need("rank").try_into().unwrap())
    }

    pub(super) fn has(&self, flag: &str) -> bool {
        self.words.contains(&flag)
    }

    pub(super) fn process(&self) -> ProcessId {
        let number = self.words[1].strip_prefix('p');
        ProcessId(number.and_then(|number| number.parse().ok()).unwrap())
    }

    /// What a rank says that closed its world. The flags are no part of why it did.
    pub(super) fn closed(&self) -> Closed {
        const FLAGS: [&str; 4] = ["reduced", "evaluated", "paused", "partial"];
        let numbers = |key| self.find(key).into_iter().flat_map(|list| list.split(','));
        let runs = |key| {
            let runs = numbers(key).map(|run| {
                let (start, end) = run.split_once("..").unwrap();
                // A rank may report anything; `Run::new` refuses what does not fit.
                Run {
                    start: start.parse().unwrap(),
                    end: end.parse().unwrap(),
                }
            });
            runs.collect()
        };
        let plain = self.words[1..].iter();
        let plain = plain.filter(|word| !word.contains('=') && !FLAGS.contains(word));
        Closed {
            why: plain.copied().collect::<Vec<_>>().join(" "),
            paused: self.has("paused"),
            lost: numbers("lost")
                .map(|rank| RankId(rank.parse().unwrap()))
                .collect(),
            suspects: numbers("suspects")
                .map(|rank| RankId(rank.parse().unwrap()))
                .collect(),
            step: (self.find("step") != Some("none")).then(|| Step(self.need("step"))),
            shards: runs("has"),
            has_reduced: self.has("reduced"),
            evaluated: self.has("evaluated"),
            kept: runs("keeps"),
            is_whole: !self.has("partial"),
        }
    }

    /// What is said behind the first word and the settings.
    pub(super) fn rest(&self) -> String {
        let plain = self.words[1..].iter().filter(|word| !word.contains('='));
        plain.copied().collect::<Vec<_>>().join(" ")
    }
}
