//! One type per number or name that must not be mistaken for another.

use std::fmt;
use std::sync::Arc;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            /// The next one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

number!(
    /// The number of a job's line of committed steps; raised only when a job falls back.
    History(u64), "h"
);
number!(
    /// The number of a world; it fences everything older.
    Generation(u64), "g"
);
number!(
    /// The number of updates applied so far: step `s` turns state `s` into state `s + 1`.
    Step(u64), ""
);
number!(
    /// A rank's place in its world, from 0.
    RankId(u32), ""
);
number!(
    /// A process of a job, numbered from 1 through the job's life: it may be a rank of many worlds.
    ProcessId(u64), "p"
);
number!(
    /// A fixed slice of a step's global batch, from 0.
    ShardId(u32), ""
);
number!(
    /// One life of a worker daemon: a restarted daemon has another, larger one.
    Incarnation(u64), "i"
);

/// Why a name is not one; the text names the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is no name: expected 1 to 63 letters, digits, '-', '_' or '.', starting with a letter or digit"
)]
pub struct BadName {
    name: String,
}

fn is_name(text: &str) -> bool {
    let first_is_plain = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    let all_are_safe = text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    first_is_plain && all_are_safe && text.len() <= 63
}

// A name is kept in many places: copies share its text.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Accepts 1 to 63 letters, digits, `-`, `_` or `.`, starting with a letter or digit,
            /// so that a name is always safe in a path and in a terminal.
            ///
            /// # Errors
            /// [`BadName`], which repeats the text and states the rule.
            pub fn new(text: &str) -> Result<Self, BadName> {
                if is_name(text) { Ok(Self(text.into())) } else { Err(BadName { name: text.to_owned() }) }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// What a user calls a job; unique in a cluster.
    JobName
);
name!(
    /// What a worker calls itself; unique in a cluster.
    WorkerName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_in_paths_and_terminals() {
        assert!(JobName::new("digits-2.b_c").is_ok());
        for bad in [
            "",
            ".hidden",
            "a/b",
            "a b",
            "ä",
            "\u{1b}[2J",
            &"x".repeat(64),
        ] {
            assert!(JobName::new(bad).is_err(), "{bad:?}");
        }
    }
}
