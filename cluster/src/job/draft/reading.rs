//! From a TOML document and overrides to the values of a draft: known keys, right types, places.

use std::ops::Range;

use toml_edit::{Item, TableLike};

use super::{JobDraft, Override, Value, Written};
use crate::job::error::{Error, plain, quoted};
use crate::job::keys::{self, KEYS, Key, Kind, SECTIONS};
use crate::job::nearest::nearest;

/// A draft in the making.
pub(super) struct Reading<'a> {
    pub(super) text: &'a str,
    pub(super) draft: JobDraft,
    pub(super) error: Error,
}

impl Reading<'_> {
    /// `file:line` of a span of the text.
    pub(super) fn place(&self, span: Option<Range<usize>>) -> String {
        let Some(span) = span else {
            return self.draft.file_name.clone();
        };
        // What is missing at the end is missing on the last line, not on the one after it.
        let start = span.start.min(self.text.trim_end().len());
        let line = 1 + self
            .text
            .bytes()
            .take(start)
            .filter(|byte| *byte == b'\n')
            .count();
        format!("{}:{line}", self.draft.file_name)
    }

    /// Takes the sections and keys of the file.
    pub(super) fn document(&mut self, root: &dyn TableLike) {
        for (name, item) in root.iter() {
            if self.error.is_full() {
                return;
            }
            let span = root
                .key(name)
                .and_then(toml_edit::Key::span)
                .or_else(|| item.span());
            let place = self.place(span);
            if let Some(key) = keys::of_section("").find(|key| key.name() == name) {
                self.value(key, item, place);
            } else if let Some(section) = SECTIONS.into_iter().find(|section| *section == name) {
                match item.as_table_like() {
                    Some(table) => self.section(section, table, place),
                    None => self.error.refuse(
                        &place,
                        format!(
                            "{section} is {}; expected a section: [{section}] and its keys below",
                            describe(item)
                        ),
                    ),
                }
            } else if item.is_table_like() || item.is_array_of_tables() {
                self.error.refuse(&place, unknown_section(name));
            } else {
                self.error.refuse(&place, unknown_key("", name));
            }
        }
    }

    fn section(&mut self, section: &'static str, table: &dyn TableLike, place: String) {
        self.draft.sections.insert(section, place);
        for (name, item) in table.iter() {
            if self.error.is_full() {
                return;
            }
            let span = table
                .key(name)
                .and_then(toml_edit::Key::span)
                .or_else(|| item.span());
            let place = self.place(span);
            match keys::of_section(section).find(|key| key.name() == name) {
                Some(key) => self.value(key, item, place),
                None => self.error.refuse(&place, unknown_key(section, name)),
            }
        }
    }

    fn value(&mut self, key: &'static Key, item: &Item, place: String) {
        match read(key, item) {
            Ok(value) => {
                self.draft.values.insert(key.path, Written { value, place });
            }
            Err(message) => self.error.refuse(&place, message),
        }
    }

    /// Takes the keys of the command line, which replace those of the file.
    pub(super) fn overrides(&mut self, overrides: &[Override]) {
        let stops = ["train.epochs", "train.steps"];
        if overrides
            .iter()
            .any(|one| stops.contains(&one.path.as_str()))
        {
            for stop in stops {
                self.draft.values.remove(stop);
            }
        }
        for one in overrides {
            let place = one.place();
            let (section, name) = one.path.split_once('.').unwrap_or(("", &one.path));
            if let Some(key) = keys::find(&one.path) {
                let bare = || Item::Value(toml_edit::Value::from(one.text.as_str()));
                let item = match one.text.parse::<toml_edit::Value>() {
                    // `--set name=7` means the text, whatever else TOML would make of it.
                    Ok(value) if key.kind != Kind::Text || value.is_str() => Item::Value(value),
                    _ => bare(),
                };
                self.value(key, &item, place);
            } else if SECTIONS.contains(&one.path.as_str()) {
                let example = keys::of_section(&one.path)
                    .next()
                    .map_or("", |key| key.path);
                let path = &one.path;
                self.error.refuse(
                    &place,
                    format!("{path} is a section; set one of its keys, e.g. --set {example}=..."),
                );
            } else if section.is_empty() || SECTIONS.contains(&section) {
                self.error.refuse(&place, unknown_key(section, name));
            } else {
                self.error.refuse(&place, unknown_section(section));
            }
        }
    }
}

/// The value of `key`, or why it is none.
fn read(key: &Key, item: &Item) -> Result<Value, String> {
    let whole = || item.as_integer().map(Value::Whole);
    // A whole number is a number too; its nearest f64 is what was meant.
    let number = || {
        item.as_float()
            .or_else(|| item.as_integer().map(|value| value as f64))
    };
    let wholes = || {
        let values = item.as_array()?.iter().map(toml_edit::Value::as_integer);
        values.collect::<Option<Vec<i64>>>().map(Value::Wholes)
    };
    let value = match key.kind {
        Kind::Whole => whole(),
        Kind::Number => number()
            .filter(|value| value.is_finite())
            .map(Value::Number),
        Kind::Text => item.as_str().map(|text| Value::Text(text.to_owned())),
        Kind::Wholes => wholes(),
        Kind::WholeOrWholes => whole().or_else(wholes),
    };
    value.ok_or_else(|| {
        let Key { path, kind, .. } = key;
        let (found, expected, line) = (describe(item), kind.words(), key.example_line());
        format!("{path} is {found}; expected {expected}, e.g. {line}")
    })
}

/// For a message: the type of what was found, and the value where it is short.
fn describe(item: &Item) -> String {
    match item {
        Item::Value(toml_edit::Value::String(text)) => {
            format!("the string {}", quoted(text.value()))
        }
        Item::Value(toml_edit::Value::Integer(value)) => {
            format!("the whole number {}", value.value())
        }
        Item::Value(toml_edit::Value::Float(value)) => format!("the number {:?}", value.value()),
        Item::Value(toml_edit::Value::Boolean(value)) => format!("the boolean {}", value.value()),
        Item::Value(toml_edit::Value::Datetime(_)) => "a date".to_owned(),
        Item::Value(toml_edit::Value::Array(array)) => {
            // One entry of the wrong type is what makes an array wrong.
            let wrong = array.iter().find(|entry| !entry.is_integer());
            match wrong {
                Some(entry) => format!("an array with {}", describe(&Item::Value(entry.clone()))),
                None => "an array".to_owned(),
            }
        }
        Item::Value(toml_edit::Value::InlineTable(_)) | Item::Table(_) => "a table".to_owned(),
        Item::ArrayOfTables(_) => "an array of tables".to_owned(),
        Item::None => "nothing".to_owned(),
    }
}

fn unknown_key(section: &str, name: &str) -> String {
    let is_top = section.is_empty();
    let at = if is_top {
        "at the top".to_owned()
    } else {
        format!("in [{section}]")
    };
    let unknown = format!("unknown key {} {at}", quoted(name));
    if let Some(near) = nearest(name, keys::of_section(section).map(Key::name)) {
        return format!("{unknown}; did you mean {near:?}?");
    }
    if let Some(near) = nearest(name, KEYS.iter().map(Key::name)) {
        let homes = KEYS.iter().filter(|key| key.name() == near);
        let homes: Vec<_> = homes.map(|key| format!("[{}]", key.section())).collect();
        return format!(
            "{unknown}; did you mean {near:?} in {}?",
            homes.join(" or ")
        );
    }
    let known: Vec<_> = keys::of_section(section).map(Key::name).collect();
    let known = known.join(", ");
    if is_top {
        format!(
            "{unknown}; expected {known} or a section: {}",
            SECTIONS.join(", ")
        )
    } else {
        format!("{unknown}; expected one of {known}")
    }
}

fn unknown_section(name: &str) -> String {
    let unknown = format!("unknown section [{}]", plain(name));
    match nearest(name, SECTIONS) {
        Some(near) => format!("{unknown}; did you mean [{near}]?"),
        None => format!("{unknown}; expected one of {}", SECTIONS.join(", ")),
    }
}
