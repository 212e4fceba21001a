//! How a command ends when it does not succeed: a text for a person, and the exit code.

use std::process::ExitCode;

use crate::output::tell;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    /// One message, perhaps of several lines.
    pub(crate) text: String,
}

/// What a command comes to.
pub(crate) type Outcome = Result<ExitCode, Failure>;

/// The exit code of a run that was interrupted, as shells have it for SIGINT.
pub(crate) const INTERRUPTED: u8 = 130;

impl Failure {
    /// What was asked for cannot be done as asked; nothing was changed. Exit code 2.
    pub(crate) fn bad_input(text: impl Into<String>) -> Self {
        Self {
            code: 2,
            text: text.into(),
        }
    }

    /// It was tried, and failed. Exit code 1.
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self {
            code: 1,
            text: text.into(),
        }
    }

    /// Prints the text, and gives the exit code.
    pub(crate) fn exit(self) -> ExitCode {
        for line in self.text.lines() {
            tell(&format!("error: {line}"));
        }
        ExitCode::from(self.code)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_input_and_failures_are_told_apart_by_the_exit_code() {
        assert_eq!(Failure::bad_input("").exit(), ExitCode::from(2));
        assert_eq!(Failure::failed("").exit(), ExitCode::from(1));
        let error = std::io::Error::other("the disk is gone");
        assert_eq!(Failure::from(error).exit(), ExitCode::from(1));
    }
}
