//! What holds for any text: it is read or refused, never a panic.

use std::path::Path;

use proptest::prelude::*;

use super::{JOB, understand};
use crate::job::keys::KEYS;
use crate::job::spec::TrainSpec;
use crate::job::{Error, JobDraft, Override};

#[test]
fn absurd_texts_are_refused_quickly_and_in_few_lines() {
    let many = |line: &str| line.repeat(100_000);
    for text in [
        "[".repeat(500_000),
        format!("a = {}", "[".repeat(500_000)),
        format!("a = {}", "{a=".repeat(300_000)),
        format!("a = \"{}", "\\".repeat(500_000)),
        "a.".repeat(400_000),
        format!("[{}]", vec!["a"; 400_000].join(".")),
        (0..100_000).map(|line| format!("k{line}=1\n")).collect(),
        many("[[a]]\n"),
        "x".repeat(2_000_000),
        format!("name = \"{}\"", "x".repeat(1_000_000)),
    ] {
        let error = understand(&text).unwrap_err();
        assert!(error.lines().len() <= Error::MAX_LINES);
        assert!(error.lines().iter().all(|line| line.len() < 600), "{error}");
    }
}

/// Reads any text, and holds what a reader promises about it.
fn read_anything(text: &str, set: &[Override]) -> Result<(), TestCaseError> {
    let lines = match JobDraft::parse(text, "job.toml", "folder", set) {
        Ok(draft) => {
            let again = JobDraft::parse(&draft.to_toml(), "stored", "other", &[]);
            prop_assert_eq!(again.as_ref(), Ok(&draft));
            let spec = draft.check(Path::new("/jobs"), "d1be57");
            let spec_again = again.unwrap().check(Path::new("/jobs"), "d1be57");
            prop_assert_eq!(spec_again.ok(), spec.as_ref().ok().cloned());
            match spec {
                Ok(spec) => {
                    let TrainSpec {
                        global_batch_size,
                        logical_shards,
                        ..
                    } = spec.train;
                    prop_assert_eq!(
                        spec.train.samples_per_shard() * logical_shards,
                        global_batch_size
                    );
                    prop_assert!(spec.workers.min <= spec.workers.max);
                    prop_assert!(spec.workers.max <= logical_shards);
                    Vec::new()
                }
                Err(error) => error.lines().to_vec(),
            }
        }
        Err(error) => error.lines().to_vec(),
    };
    for line in lines {
        prop_assert!(
            line.starts_with("job.toml:") || line.starts_with("--set "),
            "{}",
            line
        );
        prop_assert!(!line.chars().any(char::is_control), "{:?}", line);
    }
    Ok(())
}

/// Pieces that make a mutation more likely to stay TOML and reach the check.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~\n]{0,6}",
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:?}")),
        proptest::sample::select(vec![
            "0", "-1", "[", "]", "\"", "=", "\n", ".", "{", "}", "nan", "true", "16777216"
        ])
        .prop_map(str::to_owned),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn no_text_panics(text in any::<String>()) {
        read_anything(&text, &[])?;
    }

    #[test]
    fn no_mutation_of_a_good_file_panics(
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), 0..12usize, piece()), 1..4),
    ) {
        let mut chars: Vec<char> = JOB.chars().collect();
        for (at, num_removed, piece) in edits {
            let start = at.index(chars.len().max(1)).min(chars.len());
            let end = (start + num_removed).min(chars.len());
            chars.splice(start..end, piece.chars());
        }
        read_anything(&chars.into_iter().collect::<String>(), &[])?;
    }

    #[test]
    fn any_value_after_any_key_is_read_back_from_the_canonical_text(
        values in proptest::collection::vec((any::<proptest::sample::Index>(), piece()), 0..4),
    ) {
        let set = values.iter().map(|(key, piece)| Override::parse(&format!("{}={piece}", key.get(&KEYS).path)));
        let set = set.collect::<Result<Vec<_>, _>>().unwrap();
        read_anything(JOB, &set)?;
    }

    #[test]
    fn no_override_panics(text in any::<String>()) {
        if let Ok(one) = Override::parse(&text) {
            read_anything(JOB, &[one])?;
        }
    }
}
