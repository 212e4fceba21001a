//! Why a job file is refused: one line per fault, made for the person who wrote the file.
//!
//! Nobody branches on these errors, so they are texts. What is repeated from a file is quoted,
//! shortened and free of control characters, so that a message stays one line in any terminal.

use std::fmt;

/// The faults of a job file, in the order in which they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Error {
    lines: Vec<String>,
}

impl Error {
    /// More faults than these are not looked for: who reads them mends the first ones first, and
    /// a file of a million wrong lines costs no more than one of twenty.
    pub const MAX_LINES: usize = 20;

    /// One line per fault: place, what was wrong, what was expected, what to do.
    #[must_use]
    pub fn lines(&self) -> &[String] {
        &self.lines
    }

    pub(super) fn new(place: &str, message: impl fmt::Display) -> Self {
        let mut error = Self::default();
        error.refuse(place, message);
        error
    }

    pub(super) fn refuse(&mut self, place: &str, message: impl fmt::Display) {
        if !self.is_full() {
            self.lines.push(one_line(&format!("{place}: {message}")));
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.lines.len() == Self::MAX_LINES
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    pub(super) fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))
    }
}

impl std::error::Error for Error {}

/// `text` in quotes, shortened, with everything escaped that a terminal could mistake.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", shortened(text))
}

/// Like [`quoted`], without the quotes: for names of keys and sections.
pub(super) fn plain(text: &str) -> String {
    shortened(text).escape_debug().to_string()
}

fn shortened(text: &str) -> String {
    const MAX_CHARS: usize = 60;
    let mut short: String = text.chars().take(MAX_CHARS).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}

fn one_line(text: &str) -> String {
    let escape = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_says_cannot_break_out_of_its_line() {
        let mut error = Error::new("a\nb.toml", quoted("\u{1b}[2J\u{202e}\n"));
        error.refuse("c", plain(&"x".repeat(1_000_000)));
        let expected = format!(
            "a\\nb.toml: \"\\u{{1b}}[2J\\u{{202e}}\\n\"\nc: {}...",
            "x".repeat(60)
        );
        assert_eq!(error.to_string(), expected);
    }
}
