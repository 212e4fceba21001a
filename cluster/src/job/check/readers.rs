//! The readers of a check: each takes one key of a draft, and refuses what is wrong with its value
//! alone. What a reader returns for a refused value is harmless and never given out.

use std::fmt;
use std::ops::Bound::{self, Excluded, Included};
use std::ops::{RangeBounds, RangeInclusive};

use super::{Check, Numbers};
use crate::device::DeviceSpec;
use crate::job::draft::Value;
use crate::job::error::quoted;
use crate::job::nearest::nearest;

/// The options that only some choices of their section have.
const OWNERS: [(&str, &[&str]); 17] = [
    ("model.channels", &["cnn"]),
    ("model.hidden", &["cnn", "mlp"]),
    ("model.layers", &["gpt"]),
    ("model.heads", &["gpt"]),
    ("model.width", &["gpt", "resnet"]),
    ("model.context", &["gpt"]),
    ("model.dropout", &["cnn", "gpt", "mlp"]),
    ("data.shape", &["csv"]),
    ("data.num_classes", &["csv"]),
    ("data.vocabulary", &["text", "tokens"]),
    ("data.scale", &["csv"]),
    ("optimizer.momentum", &["sgd"]),
    ("optimizer.beta1", &["adam", "adamw"]),
    ("optimizer.beta2", &["adam", "adamw"]),
    ("optimizer.epsilon", &["adam", "adamw"]),
    ("schedule.decay_steps", &["cosine"]),
    ("schedule.final_factor", &["cosine"]),
];

impl Check<'_> {
    pub(super) fn refuse(&mut self, path: &str, message: impl fmt::Display) {
        self.error.refuse(&self.draft.place(path), message);
    }

    pub(super) fn require(&mut self, path: &str) {
        if self.draft.value(path).is_none() {
            let (place, message) = self.draft.missing(path);
            self.error.refuse(&place, message);
        }
    }

    /// One of `names`; then the options of its section that belong to another one are refused.
    pub(super) fn choice(
        &mut self,
        path: &str,
        what: &str,
        default: Option<&'static str>,
        names: &[&'static str],
    ) -> Option<&'static str> {
        let chosen = match self.draft.value(path) {
            Some(Value::Text(text)) => {
                let found = names.iter().copied().find(|name| *name == text.as_str());
                if found.is_none() {
                    let list: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
                    let near = nearest(text, names.iter().copied());
                    let hint = near.map(|near| format!("; did you mean {near:?}?"));
                    let (text, list) = (quoted(text), list.join(", "));
                    let hint = hint.unwrap_or_default();
                    self.refuse(
                        path,
                        format!("unknown {what} {text}; expected one of {list}{hint}"),
                    );
                }
                found
            }
            _ if default.is_none() => {
                self.require(path);
                None
            }
            _ => default,
        }?;
        let (section, name) = path.split_once('.').unwrap_or(("", path));
        for (option, owners) in OWNERS {
            let is_here = option
                .strip_prefix(section)
                .is_some_and(|rest| rest.starts_with('.'));
            if is_here && !owners.contains(&chosen) && self.draft.value(option).is_some() {
                let owners: Vec<_> = owners.iter().map(|name| format!("{name:?}")).collect();
                let owners = owners.join(", ");
                let owners = match owners.rsplit_once(", ") {
                    Some((others, last)) => format!("{others} and {last}"),
                    None => owners,
                };
                let message = format!("{option} belongs to {owners}, and {name} is {chosen:?}");
                self.refuse(option, format!("{message}; remove it or change {name}"));
            }
        }
        Some(chosen)
    }

    /// What ranks run on.
    pub(super) fn device(&mut self) -> DeviceSpec {
        const PATH: &str = "workers.device";
        let Some(Value::Text(text)) = self.draft.value(PATH) else {
            return DeviceSpec::Cpu;
        };
        text.parse().unwrap_or_else(|_| {
            let list = DeviceSpec::NAMES.map(|name| format!("{name:?}")).join(", ");
            let near = nearest(text, DeviceSpec::NAMES);
            let hint = near.map(|near| format!("; did you mean {near:?}?"));
            let (text, hint) = (quoted(text), hint.unwrap_or_default());
            self.refuse(
                PATH,
                format!("unknown device {text}; expected one of {list}{hint}"),
            );
            DeviceSpec::Cpu
        })
    }

    pub(super) fn whole(
        &mut self,
        path: &str,
        default: Option<u64>,
        range: RangeInclusive<u64>,
    ) -> u64 {
        match self.draft.value(path) {
            Some(Value::Whole(value)) => self.in_range(path, *value, &range),
            _ => default.unwrap_or_else(|| {
                self.require(path);
                *range.start()
            }),
        }
    }

    pub(super) fn optional_whole(&mut self, path: &str, range: RangeInclusive<u64>) -> Option<u64> {
        self.draft.value(path)?;
        Some(self.whole(path, None, range))
    }

    pub(super) fn whole_u32(
        &mut self,
        path: &str,
        default: Option<u64>,
        range: RangeInclusive<u32>,
    ) -> u32 {
        let (low, high) = range.into_inner();
        let value = self.whole(path, default, u64::from(low)..=u64::from(high));
        u32::try_from(value).unwrap_or(high)
    }

    fn in_range(&mut self, path: &str, value: i64, range: &RangeInclusive<u64>) -> u64 {
        match u64::try_from(value) {
            Ok(value) if range.contains(&value) => value,
            _ => {
                let (low, high) = (range.start(), range.end());
                let expected = format!("expected a whole number from {low} to {high}");
                self.refuse(path, format!("{path} is {value}; {expected}"));
                *range.start()
            }
        }
    }

    /// 1 to `max_len` whole numbers, each from 1 to `max`.
    pub(super) fn widths(
        &mut self,
        path: &str,
        default: &[u32],
        max_len: usize,
        max: u32,
    ) -> Vec<u32> {
        let Some(Value::Wholes(values)) = self.draft.value(path) else {
            return default.to_vec();
        };
        let narrow = |value: &i64| u32::try_from(*value).ok().filter(|n| (1..=max).contains(n));
        let widths: Option<Vec<u32>> = values.iter().map(narrow).collect();
        match widths {
            Some(widths) if (1..=max_len).contains(&widths.len()) => widths,
            _ => {
                let found = Value::Wholes(values.clone()).describe();
                let expected = format!("1 to {max_len} whole numbers, each from 1 to {max}");
                self.refuse(path, format!("{path} is {found}; expected {expected}"));
                default.to_vec()
            }
        }
    }

    pub(super) fn number(&mut self, path: &str, default: Option<f64>, range: Numbers) -> f64 {
        let Some(Value::Number(value)) = self.draft.value(path) else {
            return default.unwrap_or_else(|| {
                self.require(path);
                1.0
            });
        };
        if !range.contains(value) {
            let low = match range.0 {
                Included(low) => format!("of at least {low:?}"),
                Excluded(low) => format!("above {low:?}"),
                Bound::Unbounded => String::new(),
            };
            let high = match range.1 {
                Included(high) => format!("at most {high:?}"),
                Excluded(high) => format!("below {high:?}"),
                Bound::Unbounded => String::new(),
            };
            let expected = format!("expected a number {low} and {high}");
            self.refuse(path, format!("{path} is {value:?}; {expected}"));
        }
        // -0.0 and 0.0 mean the same, and are to have the same bits.
        value + 0.0
    }

    pub(super) fn number_or(&mut self, path: &str, default: f64, range: Numbers) -> f64 {
        self.number(path, Some(default), range)
    }

    pub(super) fn optional_number(&mut self, path: &str, range: Numbers) -> Option<f64> {
        self.draft.value(path)?;
        Some(self.number(path, None, range))
    }

    pub(super) fn path(&mut self, path: &str, required: bool) -> Option<String> {
        const MAX_BYTES: usize = 4096;
        let Some(Value::Text(text)) = self.draft.value(path) else {
            if required {
                self.require(path);
            }
            return None;
        };
        let fault = if text.is_empty() || text.len() > MAX_BYTES || text.contains('\0') {
            format!("expected a path of 1 to {MAX_BYTES} bytes without a zero byte")
        } else if text.starts_with('~') {
            "\"~\" is not expanded here; write the whole path, or one relative to the job file"
                .to_owned()
        } else {
            return Some(text.clone());
        };
        let found = quoted(text);
        self.refuse(path, format!("{path} is {found}; {fault}"));
        None
    }
}
