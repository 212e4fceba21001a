//! How an error is told: itself and its causes, as one sentence.

use std::error::Error;

/// An error with its causes, outermost first. A cause that its error tells already is left out.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text += &format!(": {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Told(&'static str, #[source] Option<Box<Told>>);

    #[test]
    fn causes_follow_and_none_is_told_twice() {
        let error = Told(
            "cannot open a: it is gone",
            Some(Box::new(Told(
                "it is gone",
                Some(Box::new(Told("why", None))),
            ))),
        );
        assert_eq!(chain(&error), "cannot open a: it is gone: why");
    }
}
