//! A job as written: the keys and values of a TOML file, with `--set` overrides merged.
//!
//! A draft holds only known keys with values of the right type, each with the place where it was
//! written. Whether the values make sense is not asked here but in [`JobDraft::check`].

mod overrides;
mod reading;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml_edit::Document;

use self::reading::Reading;
use super::error::{Error, plain, quoted};
use super::keys::{self, KEYS, Key};

pub use self::overrides::Override;

/// What a person typed in a job file. Two drafts are equal when they say the same, wherever it
/// was written.
#[derive(Clone, Debug)]
pub struct JobDraft {
    file_name: String,
    /// By path, as in [`keys::KEYS`].
    values: BTreeMap<&'static str, Written>,
    /// Where a section opens.
    sections: BTreeMap<&'static str, String>,
}

/// A value and where it stands, such as `job.toml:14` or `--set train.seed`.
#[derive(Clone, Debug)]
struct Written {
    value: Value,
    place: String,
}

/// A value of the type that its key asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Whole(i64),
    Number(f64),
    Text(String),
    Wholes(Vec<i64>),
}

impl PartialEq for JobDraft {
    fn eq(&self, other: &Self) -> bool {
        let same = |a: &Written, b: &Written| a.value == b.value;
        self.values.len() == other.values.len()
            && self
                .values
                .iter()
                .all(|(path, a)| other.values.get(path).is_some_and(|b| same(a, b)))
    }
}

impl JobDraft {
    /// The longest text that is read: a job file is written by hand.
    pub const MAX_BYTES: usize = 1 << 20;

    /// Reads a job file's text. `file_name` is what messages call it; `default_name` (the name of
    /// the file's folder) is the job's name where the text gives none.
    ///
    /// An override replaces what the text says. One of `train.steps` also replaces the text's
    /// `train.epochs`, and the other way round, because a job stops at one of them.
    ///
    /// # Errors
    /// Text that is not TOML, unknown sections and keys, and values of the wrong type, each as
    /// one line with its place.
    pub fn parse(
        text: &str,
        file_name: &str,
        default_name: &str,
        overrides: &[Override],
    ) -> Result<Self, Error> {
        let file_name = plain(file_name);
        if text.len() > Self::MAX_BYTES {
            let message = format!(
                "{} bytes are too many for a job file; expected at most {}",
                text.len(),
                Self::MAX_BYTES
            );
            return Err(Error::new(&file_name, message));
        }
        let draft = JobDraft {
            file_name,
            values: BTreeMap::new(),
            sections: BTreeMap::new(),
        };
        let mut reading = Reading {
            text,
            draft,
            error: Error::default(),
        };
        match Document::parse(text) {
            Ok(document) => reading.document(document.as_table()),
            Err(error) => {
                let place = reading.place(error.span());
                let message = format!("this is not TOML: {}; mend this line", error.message());
                return Err(Error::new(&place, message));
            }
        }
        reading.overrides(overrides);
        let Reading {
            mut draft, error, ..
        } = reading;
        let place = draft.file_name.clone();
        let name = || Written {
            value: Value::Text(default_name.to_owned()),
            place,
        };
        draft.values.entry("name").or_insert_with(name);
        error.or(draft)
    }

    /// The canonical text: what [`JobDraft::parse`] reads back to an equal draft, the name filled
    /// in and overrides merged. It is what travels and what is stored.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let mut section = "";
        for key in &KEYS {
            let Some(written) = self.values.get(key.path) else {
                continue;
            };
            if key.section() != section {
                section = key.section();
                out.push_str(&format!("\n[{section}]\n"));
            }
            out.push_str(&format!("{} = {}\n", key.name(), written.value.to_toml()));
        }
        out
    }

    /// What the job is called, as written; the check says whether it is a name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self.value("name") {
            Some(Value::Text(name)) => name,
            _ => "",
        }
    }

    /// The file that holds the data; a relative path is taken from `base_dir`, the job file's
    /// folder. Asked before the check, which needs the file's digest.
    ///
    /// # Errors
    /// When the draft names no source.
    pub fn data_source(&self, base_dir: &Path) -> Result<PathBuf, Error> {
        match self.value("data.source") {
            Some(Value::Text(source)) => Ok(resolve(base_dir, source)),
            _ => {
                let (place, message) = self.missing("data.source");
                Err(Error::new(&place, message))
            }
        }
    }

    /// Where `data.source` is written, for a message about the file that it names.
    #[must_use]
    pub fn place_of_data_source(&self) -> String {
        self.place("data.source")
    }

    pub(super) fn value(&self, path: &str) -> Option<&Value> {
        self.values.get(path).map(|written| &written.value)
    }

    /// Where `path` is written, else where its section opens, else the file.
    pub(super) fn place(&self, path: &str) -> String {
        let section = path.split_once('.').map_or("", |(section, _)| section);
        let written = self.values.get(path).map(|written| &written.place);
        written
            .or_else(|| self.sections.get(section))
            .unwrap_or(&self.file_name)
            .clone()
    }

    /// The place and the message for a required key that is not there.
    pub(super) fn missing(&self, path: &str) -> (String, String) {
        let (section, name) = path.split_once('.').unwrap_or(("", path));
        let line = keys::find(path).map(Key::example_line).unwrap_or_default();
        let message = if self.sections.contains_key(section) {
            format!("[{section}] lacks {name}; add a line such as {line}")
        } else {
            format!("there is no {path}; add a section [{section}] with a line such as {line}")
        };
        (self.place(path), message)
    }
}

impl Value {
    /// For a message: the type and the value.
    pub(super) fn describe(&self) -> String {
        match self {
            Value::Whole(value) => value.to_string(),
            Value::Number(value) => format!("{value:?}"),
            Value::Text(value) => quoted(value),
            Value::Wholes(values) if values.len() > 8 => format!("{:?} and more", &values[..8]),
            Value::Wholes(values) => format!("{values:?}"),
        }
    }

    fn to_toml(&self) -> String {
        match self {
            Value::Whole(value) => value.to_string(),
            // The shortest text that reads back to the same bits; its form is valid TOML.
            Value::Number(value) => format!("{value:?}"),
            Value::Text(value) => toml_edit::Value::from(value.as_str()).to_string(),
            Value::Wholes(values) => format!("{values:?}"),
        }
    }
}

pub(super) fn resolve(base_dir: &Path, path: &str) -> PathBuf {
    // Components leave out `.`; `..` stays, because what it means is up to symbolic links.
    base_dir.join(path).components().collect()
}
