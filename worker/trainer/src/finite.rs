//! Values that are no numbers: where the first one of a vector is, and what it means for a step. What
//! comes of such a step is the trainer's to decide ([`crate::trainer`]).

use std::fmt;

use muster_cluster::ShardId;

use crate::arena::Layout;

/// How many values are looked at together.
const BLOCK: usize = 4096;

/// How many rows of the data a message names.
const MAX_ROWS: usize = 8;

/// The first value of a vector that is NaN or infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite {
    /// Its place in the vector.
    pub at: u64,
    /// What it is.
    pub value: NoNumber,
}

/// What a vector says of itself before a step is made of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Facts {
    /// The L2 norm of what is no buffer, as [`crate::clip::global_norm`] has it.
    pub(crate) norm: f64,
    /// The first value that is no number.
    pub(crate) not_finite: Option<NotFinite>,
}

/// A value that is not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoNumber {
    /// Not a number, whatever its payload.
    Nan,
    /// Above all numbers.
    Infinity,
    /// Below all numbers.
    NegativeInfinity,
}

impl fmt::Display for NoNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoNumber::Nan => "NaN",
            NoNumber::Infinity => "inf",
            NoNumber::NegativeInfinity => "-inf",
        })
    }
}

impl NotFinite {
    /// Looks for the first value that is NaN or infinite.
    #[must_use]
    pub fn find(values: &[f32]) -> Option<Self> {
        // Without an early exit inside a block, several values are looked at in one instruction.
        let is_bad = |block: &[f32]| block.iter().fold(false, |bad, x| bad | !x.is_finite());
        let block = values.chunks(BLOCK).position(is_bad)?;
        let start = block * BLOCK;
        let at = start + values[start..].iter().position(|x| !x.is_finite())?;
        let value = values[at];
        Some(Self {
            at: at as u64,
            value: if value.is_nan() {
                NoNumber::Nan
            } else if value > 0.0 {
                NoNumber::Infinity
            } else {
                NoNumber::NegativeInfinity
            },
        })
    }

    /// It in words, by the name of its entry: `NaN in conv1.weight, element 12`.
    pub(crate) fn describe(self, layout: &Layout) -> String {
        let at = self.at;
        let entry = layout.entries().iter().find(|entry| {
            let range = entry.range();
            (range.start as u64..range.end as u64).contains(&at)
        });
        match entry {
            Some(entry) => {
                let element = at - entry.offset as u64;
                format!("{} in {}, element {element}", self.value, entry.name)
            }
            None => format!("{} in element {at}", self.value),
        }
    }
}

/// Why the update of a step cannot be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A shard's contribution is not finite.
    Contribution {
        /// The first such shard.
        shard: ShardId,
        /// The first such value of its contribution, in words.
        what: String,
        /// The rows of the data file, from 0, that its samples are.
        rows: Vec<u64>,
        /// How many shards more have such values.
        num_others: usize,
    },
    /// Every contribution is finite, and their sum is not.
    Sum {
        /// The first such value, in words.
        what: String,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Contribution {
                shard,
                what,
                rows,
                num_others,
            } => {
                let named = &rows[..rows.len().min(MAX_ROWS)];
                let named: Vec<String> = named.iter().map(u64::to_string).collect();
                write!(
                    f,
                    "the gradient of shard {shard} is not finite ({what}); its samples are rows {}",
                    named.join(", ")
                )?;
                match rows.len().saturating_sub(MAX_ROWS) {
                    0 => {}
                    more => write!(f, " and {more} more")?,
                }
                f.write_str(" of the data, counted from 0")?;
                match num_others {
                    0 => Ok(()),
                    1 => f.write_str("; nor is that of 1 other shard"),
                    others => write!(f, "; nor are those of {others} other shards"),
                }
            }
            Fault::Sum { what } => write!(
                f,
                "the gradient is not finite ({what}), although that of each shard is: their sum overflows"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Group;

    #[test]
    fn the_first_value_that_is_no_number_is_found_wherever_it_is() {
        let finite = vec![f32::MAX; 3 * BLOCK + 5];
        assert_eq!(NotFinite::find(&finite), None);
        assert_eq!(NotFinite::find(&[]), None);
        let kinds = [
            (f32::NAN, NoNumber::Nan),
            (-f32::NAN, NoNumber::Nan),
            (f32::INFINITY, NoNumber::Infinity),
            (f32::NEG_INFINITY, NoNumber::NegativeInfinity),
        ];
        for at in [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 17, 3 * BLOCK + 4] {
            for (bad, value) in kinds {
                let mut values = finite.clone();
                values[at] = bad;
                // What comes behind it is not asked for.
                values[3 * BLOCK + 4] = bad;
                let at = at as u64;
                assert_eq!(NotFinite::find(&values), Some(NotFinite { at, value }));
            }
        }
    }

    #[test]
    fn a_value_is_named_by_its_entry_and_a_fault_by_its_shard_and_samples() {
        let mut layout = Layout::default();
        layout.push("weight", [2, 3], Group::Weight);
        layout.push("bias", [3], Group::Bias);
        let named = |at| {
            let value = NoNumber::NegativeInfinity;
            NotFinite { at, value }.describe(&layout)
        };
        assert_eq!(named(5), "-inf in weight, element 5");
        assert_eq!(named(6), "-inf in bias, element 0");
        // Another rank may say anything.
        assert_eq!(named(9), "-inf in element 9");
        let fault = |num_rows, num_others| {
            let fault = Fault::Contribution {
                shard: ShardId(3),
                what: "NaN in bias, element 0".to_owned(),
                rows: (10..).take(num_rows).collect(),
                num_others,
            };
            fault.to_string()
        };
        assert_eq!(
            fault(3, 0),
            "the gradient of shard 3 is not finite (NaN in bias, element 0); its samples are rows \
             10, 11, 12 of the data, counted from 0"
        );
        assert!(
            fault(10, 0).contains("rows 10, 11, 12, 13, 14, 15, 16, 17 and 2 more of the data")
        );
        assert!(fault(1, 1).ends_with("; nor is that of 1 other shard"));
        assert!(fault(1, 4).ends_with("; nor are those of 4 other shards"));
    }
}
