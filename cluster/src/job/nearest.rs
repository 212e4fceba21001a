//! Which known word a person may have meant.

/// The known word that is most likely meant by `word`, if one is near enough to be worth naming.
///
/// Near is: equal but for case; the beginning (`eps`); a part of the other
/// (`batch_size` of `global_batch_size`); the initials (`lr`); or at least 60 % equal by Damerau and Levenshtein's distance.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A long word is near to nothing, and comparing it would cost its length squared.
    if word.len() > 60 {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    let mut best = None;
    let mut best_score = 0.6;
    for candidate in known {
        let score = similarity(&word, candidate);
        if score > best_score || (best.is_none() && score >= best_score) {
            (best, best_score) = (Some(candidate), score);
        }
    }
    best
}

/// From 0 (nothing in common) to 1 (the same).
fn similarity(word: &str, candidate: &str) -> f64 {
    let distance = strsim::normalized_damerau_levenshtein(word, candidate);
    let is_part = |part: &str, whole: &str| part.len() >= 3 && whole.contains(part);
    let initials: String = candidate
        .split('_')
        .filter_map(|s| s.chars().next())
        .collect();
    if word.len() >= 3 && candidate.starts_with(word) {
        distance.max(0.9)
    } else if is_part(word, candidate) || is_part(candidate, word) {
        // Of two words that hold the same part, the one with less beside it.
        distance.max(0.6 + 0.3 * distance)
    } else if initials.len() >= 2 && initials == word {
        distance.max(0.7)
    } else {
        distance
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_parts_and_initials_find_their_word_and_others_find_none() {
        let known = [
            "epochs",
            "epsilon",
            "global_batch_size",
            "learning_rate",
            "seed",
            "steps",
        ];
        for (word, meant) in [
            ("sed", Some("seed")),
            ("Seed", Some("seed")),
            ("num_epochs", Some("epochs")),
            ("eps", Some("epsilon")),
            ("global-batch-size", Some("global_batch_size")),
            ("batch_size", Some("global_batch_size")),
            ("lr", Some("learning_rate")),
            ("colour", None),
            ("", None),
            ("ä", None),
        ] {
            assert_eq!(nearest(word, known), meant, "{word:?}");
        }
        assert_eq!(nearest(&"seed".repeat(100), known), None);
    }
}
