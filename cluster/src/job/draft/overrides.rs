//! One key set on the command line. How it meets the file is in [`super::reading`].

use crate::job::error::{Error, plain, quoted};

/// One `--set section.key=value` of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    pub(super) path: String,
    pub(super) text: String,
}

impl Override {
    /// Reads `train.seed=7`. The value is TOML, or a bare string where it is no TOML.
    ///
    /// # Errors
    /// When there is no `=` or no key before it. Whether the key is known is asked later, in
    /// [`JobDraft::parse`](super::JobDraft::parse).
    pub fn parse(text: &str) -> Result<Self, Error> {
        match text.split_once('=') {
            Some((path, value)) if !path.trim().is_empty() => Ok(Self {
                path: path.trim().to_owned(),
                text: value.trim().to_owned(),
            }),
            _ => Err(Error::new(
                "--set",
                format!(
                    "{} is no override; expected section.key=value, e.g. --set train.seed=7",
                    quoted(text)
                ),
            )),
        }
    }

    /// What messages call it.
    pub(super) fn place(&self) -> String {
        format!("--set {}", plain(&self.path))
    }
}

impl std::str::FromStr for Override {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}
