//! The samples of a job: read whole, checked, and split into those to train on and those held out.
//!
//! Not here: in which order samples are read ([`crate::permutation`]).

mod csv;
mod tokens;

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use muster_cluster::job::spec::{DataFormat, DataSpec};

use self::tokens::Tokens;
use crate::learner::{Batch, Inputs};
use crate::permutation::Permutation;

/// Decides which rows are held out, whatever the seed: runs of one file can be compared. (Every
/// fifth row would not do: rows often come in a rhythm, and the digits' is ten.)
const HOLDOUT_KEY: u64 = 0x6d75_7374_6572_0001;

/// Why there are no samples.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file system refused, or a compressed file is damaged.
    #[error("could not read data file {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not the one that the job was submitted with.
    #[error(
        "data file {} has BLAKE3 {found}, and the job was submitted with {expected}; put the same \
         file here, or submit the job anew",
        path.display()
    )]
    WrongDigest {
        /// The file.
        path: PathBuf,
        /// As submitted, in hex.
        expected: String,
        /// As found, in hex.
        found: String,
    },
    /// A row is no sample.
    #[error("{}:{line}: {fault}", path.display())]
    BadRow {
        /// The file.
        path: PathBuf,
        /// The line on which the row begins, from 1; lines of the text, where it is compressed.
        line: u64,
        /// What was found and what was expected.
        fault: String,
    },
    /// A token is not in the vocabulary, or half a token is left at the end.
    #[error("{}: byte {byte}: {fault}", path.display())]
    BadToken {
        /// The file.
        path: PathBuf,
        /// Where the token begins, in bytes from 0.
        byte: u64,
        /// What was found and what was expected.
        fault: String,
    },
}

/// The samples of a job, in memory. Rows of a table, or windows of tokens: what is a row below is
/// the number of either.
#[derive(Clone, Debug)]
pub struct Dataset {
    shape: Vec<usize>,
    rows: Rows,
    /// The rows to train on, in the order of the file.
    train: Vec<u64>,
    /// The rows held out, in the order of the file.
    heldout: Vec<u64>,
}

/// All rows of a file.
#[derive(Clone, Debug)]
enum Rows {
    Table {
        num_features: usize,
        /// Row by row, divided by the scale.
        features: Vec<f32>,
        /// One for each row.
        labels: Vec<u32>,
    },
    Windows(Tokens),
}

impl Dataset {
    /// Reads and checks the file of a job.
    ///
    /// Of `n` rows the nearest whole number to `holdout * n` are held out; which ones depends on
    /// `n` alone.
    ///
    /// # Errors
    /// [`DataError`], with the file, and the place of a row or token at fault.
    pub fn load(spec: &DataSpec) -> Result<Self, DataError> {
        let path = &spec.source;
        let bytes = fs::read(path).map_err(|source| DataError::Io {
            path: path.clone(),
            source,
        })?;
        let found = blake3::hash(&bytes).to_hex().to_string();
        if found != spec.digest {
            let (path, expected) = (path.clone(), spec.digest.clone());
            return Err(DataError::WrongDigest {
                path,
                expected,
                found,
            });
        }
        let shape: Vec<usize> = spec.shape.iter().map(|&size| size as usize).collect();
        // A product beyond every file is refused with the first row.
        let num_features = shape
            .iter()
            .fold(1, |product: usize, &size| product.saturating_mul(size));
        let rows = match spec.format {
            DataFormat::Csv => {
                let format = csv::Format {
                    num_features,
                    num_classes: spec.num_classes,
                    scale: spec.scale,
                };
                let csv::Table { features, labels } = csv::read(path, &bytes, &format)?;
                Rows::Table {
                    num_features,
                    features,
                    labels,
                }
            }
            DataFormat::Text => Rows::Windows(Tokens::of_text(bytes, num_features)),
            DataFormat::Tokens => {
                let vocabulary = spec.num_classes;
                Rows::Windows(Tokens::of_ids(path, bytes, num_features, vocabulary)?)
            }
        };
        let num_rows = match &rows {
            Rows::Table { labels, .. } => labels.len(),
            Rows::Windows(tokens) => tokens.num_windows(),
        };
        let (heldout, train) = split(num_rows as u64, spec.holdout);
        Ok(Self {
            shape,
            rows,
            train,
            heldout,
        })
    }

    /// BLAKE3 of a file's bytes, in hex: what a job's specification holds.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn digest_file(path: &Path) -> Result<String, DataError> {
        let error = |source| DataError::Io {
            path: path.to_owned(),
            source,
        };
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader(File::open(path).map_err(error)?)
            .map_err(error)?;
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// The number of samples to train on.
    #[must_use]
    pub fn train_len(&self) -> u64 {
        self.train.len() as u64
    }

    /// The number of samples held out.
    #[must_use]
    pub fn heldout_len(&self) -> u64 {
        self.heldout.len() as u64
    }

    /// The training samples of those numbers, in that order.
    ///
    /// # Panics
    /// When a number is not below [`Dataset::train_len`].
    #[must_use]
    pub fn batch(&self, ids: &[u64]) -> Batch {
        self.rows(ids.iter().map(|&id| self.row(id)))
    }

    /// The row of the file, from 0, that a training sample is: its name in the trace.
    ///
    /// # Panics
    /// When `id` is not below [`Dataset::train_len`].
    #[must_use]
    pub fn row(&self, id: u64) -> u64 {
        self.train[id as usize]
    }

    /// A range of the samples held out.
    ///
    /// # Panics
    /// When the range ends beyond [`Dataset::heldout_len`].
    #[must_use]
    pub fn heldout_batch(&self, range: Range<u64>) -> Batch {
        let rows = &self.heldout[range.start as usize..range.end as usize];
        self.rows(rows.iter().copied())
    }

    fn rows(&self, rows: impl Iterator<Item = u64>) -> Batch {
        let rows = rows.map(|row| row as usize);
        let (inputs, labels) = match &self.rows {
            Rows::Table {
                num_features,
                features,
                labels,
            } => {
                let (mut inputs, mut classes) = (Vec::new(), Vec::new());
                for row in rows {
                    let start = row * num_features;
                    inputs.extend_from_slice(&features[start..start + num_features]);
                    classes.push(labels[row]);
                }
                (Inputs::Features(inputs), classes)
            }
            Rows::Windows(tokens) => {
                let (mut inputs, mut next) = (Vec::new(), Vec::new());
                for window in rows {
                    tokens.read(window, &mut inputs, &mut next);
                }
                (Inputs::Tokens(inputs), next)
            }
        };
        Batch {
            shape: self.shape.clone(),
            inputs,
            labels,
        }
    }
}

/// Rows held out, and rows to train on, each in order.
fn split(num_rows: u64, holdout: f64) -> (Vec<u64>, Vec<u64>) {
    if num_rows == 0 {
        return (Vec::new(), Vec::new());
    }
    let num_heldout = (num_rows as f64 * holdout).round() as u64;
    let permutation = Permutation::new(HOLDOUT_KEY, num_rows);
    (0..num_rows).partition(|&row| permutation.at(row) < num_heldout)
}

#[cfg(test)]
mod tests;
