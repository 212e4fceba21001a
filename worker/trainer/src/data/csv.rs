//! Rows of numbers as text: features, then a class; without a header, gzipped where the name ends
//! in `.gz`.

use std::borrow::Cow;
use std::io::Read;
use std::path::Path;

use flate2::read::MultiGzDecoder;

use super::DataError;

/// What a row must be.
pub(super) struct Format {
    pub(super) num_features: usize,
    /// Labels are `0..num_classes`.
    pub(super) num_classes: u32,
    /// Features are divided by this.
    pub(super) scale: f64,
}

/// All rows of a file.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) features: Vec<f32>,
    pub(super) labels: Vec<u32>,
}

/// The rows of a file whose bytes on disk are `bytes`; blank lines are skipped.
///
/// # Errors
/// [`DataError`], which names the file, and the line of a row at fault.
pub(super) fn read(path: &Path, bytes: &[u8], format: &Format) -> Result<Table, DataError> {
    let is_gzipped = path
        .extension()
        .is_some_and(|extension| extension.eq_ignore_ascii_case("gz"));
    let error = |source| DataError::Io {
        path: path.to_owned(),
        source,
    };
    let text = if is_gzipped {
        let mut text = Vec::new();
        MultiGzDecoder::new(bytes)
            .read_to_end(&mut text)
            .map_err(error)?;
        Cow::Owned(text)
    } else {
        Cow::Borrowed(bytes)
    };
    let mut reader = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(&*text);
    let mut table = Table {
        features: Vec::new(),
        labels: Vec::new(),
    };
    let mut record = csv::ByteRecord::new();
    while reader
        .read_byte_record(&mut record)
        .map_err(|source| error(source.into()))?
    {
        format.read_row(&record, &mut table).map_err(|fault| {
            let line = record
                .position()
                .map_or(0, |position| line_of(&text, position));
            let is_first = table.labels.is_empty();
            let hint = if is_first {
                "; the file must not begin with a header line"
            } else {
                ""
            };
            DataError::BadRow {
                path: path.to_owned(),
                line,
                fault: format!("{fault}{hint}"),
            }
        })?;
    }
    Ok(table)
}

/// The line on which a record begins: its position is that of the blank lines before it.
fn line_of(text: &[u8], position: &csv::Position) -> u64 {
    let start = usize::try_from(position.byte()).unwrap_or(usize::MAX);
    let bytes = text.get(start..).unwrap_or_default().iter();
    let blank = bytes
        .take_while(|byte| b"\r\n".contains(byte))
        .filter(|byte| **byte == b'\n');
    position.line() + blank.count() as u64
}

impl Format {
    /// Appends a row to the table, or says what is wrong with it.
    fn read_row(&self, record: &csv::ByteRecord, table: &mut Table) -> Result<(), String> {
        if record.len() != self.num_features.saturating_add(1) {
            return Err(format!(
                "{} fields, expected {} features and a label; mend the row, or data.shape",
                record.len(),
                self.num_features
            ));
        }
        for (i, field) in record.iter().take(self.num_features).enumerate() {
            let value = std::str::from_utf8(field)
                .ok()
                .and_then(|text| text.parse::<f64>().ok());
            // A feature is used as f32, and must be finite as such.
            let scaled = value.map(|value| (value / self.scale) as f32);
            let Some(feature) = scaled.filter(|feature| feature.is_finite()) else {
                let found = quoted(field);
                return Err(format!(
                    "field {} is {found}, expected a finite number",
                    i + 1
                ));
            };
            table.features.push(feature);
        }
        let field = &record[self.num_features];
        let label = std::str::from_utf8(field)
            .ok()
            .and_then(|text| text.parse().ok());
        let Some(label) = label.filter(|&label| label < self.num_classes) else {
            let (found, last) = (quoted(field), self.num_classes.saturating_sub(1));
            return Err(format!(
                "the label is {found}, expected a whole number from 0 to {last}"
            ));
        };
        table.labels.push(label);
        Ok(())
    }
}

/// A field as a message shows it: its first characters, nothing that a terminal would obey.
fn quoted(field: &[u8]) -> String {
    const MOST: usize = 32;
    let text = String::from_utf8_lossy(field);
    let shown: String = text.chars().take(MOST).collect();
    let rest = if shown.len() < text.len() { "..." } else { "" };
    format!("{shown:?}{rest}")
}
