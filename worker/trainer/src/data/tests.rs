//! What is read, what is held out, and what is refused, with its line.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

struct Case {
    folder: tempfile::TempDir,
    spec: DataSpec,
}

/// A file of that name with those bytes, and a spec of two features and three classes over it.
fn case(name: &str, bytes: &[u8]) -> Case {
    let folder = tempfile::tempdir().expect("a folder");
    let source = folder.path().join(name);
    fs::write(&source, bytes).expect("writable");
    let digest = Dataset::digest_file(&source).expect("readable");
    let spec = DataSpec {
        source,
        format: DataFormat::Csv,
        shape: vec![1, 2],
        num_classes: 3,
        scale: 4.0,
        holdout: 0.25,
        digest,
    };
    Case { folder, spec }
}

fn refusal(name: &str, bytes: &[u8]) -> String {
    let case = case(name, bytes);
    let text = Dataset::load(&case.spec).expect_err("bad data").to_string();
    text.replace(&format!("{}/", case.folder.path().display()), "")
}

fn gzipped(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).expect("memory");
    encoder.finish().expect("memory")
}

fn rows(count: u32) -> String {
    (0..count)
        .map(|i| format!("{i},{},{}\n", i * 2, i % 3))
        .collect()
}

#[test]
fn every_row_is_read_once_scaled_and_in_its_place() {
    let case = case("rows.csv", rows(12).as_bytes());
    let data = Dataset::load(&case.spec).expect("good rows");
    assert_eq!((data.train_len(), data.heldout_len()), (9, 3));
    let ids: Vec<u64> = (0..9).rev().collect();
    let batch = data.batch(&ids);
    assert_eq!(batch.shape, [1, 2]);
    for (i, &id) in ids.iter().enumerate() {
        let row = data.row(id) as f32;
        assert_eq!(
            batch.inputs.features()[2 * i..2 * i + 2],
            [row / 4.0, row / 2.0]
        );
        assert_eq!(batch.labels[i], data.row(id) as u32 % 3);
    }
    let heldout = data.heldout_batch(0..3);
    let mut all: Vec<u64> = (0..9).map(|id| data.row(id)).collect();
    all.extend(
        heldout
            .inputs
            .features()
            .chunks(2)
            .map(|features| (features[0] * 4.0) as u64),
    );
    all.sort_unstable();
    assert!(all.into_iter().eq(0..12));
    assert_eq!(
        data.heldout_batch(1..2).inputs.features(),
        &heldout.inputs.features()[2..4]
    );
}

#[test]
fn gzipped_rows_are_the_same_rows() {
    let plain = case("rows.csv", rows(12).as_bytes());
    // Two members, as `cat a.gz b.gz` makes them.
    let text = rows(12);
    let (first, second) = text.split_at(30);
    let gz = case("rows.csv.gz", &[gzipped(first), gzipped(second)].concat());
    let (plain, gz) = (Dataset::load(&plain.spec), Dataset::load(&gz.spec));
    let ids: Vec<u64> = (0..9).collect();
    assert_eq!(
        plain.expect("good").batch(&ids),
        gz.expect("good").batch(&ids)
    );
}

#[test]
fn spaces_blank_lines_and_a_missing_last_newline_are_fine() {
    let case = case("rows.csv", b"1, 2 ,0\r\n\r\n-3,4e0,1\n 5,6,2");
    let data = Dataset::load(&case.spec).expect("good rows");
    assert_eq!(data.train_len() + data.heldout_len(), 3);
    let Rows::Table { features, .. } = data.rows else {
        panic!("rows of a table")
    };
    assert_eq!(features, [0.25, 0.5, -0.75, 1.0, 1.25, 1.5]);
}

#[test]
fn bad_rows_are_named_by_file_and_line() {
    let cases: [(&[u8], &str); 9] = [
        (
            b"1,2,0\n1,2\n",
            "rows.csv:2: 2 fields, expected 2 features and a label; mend the row, or data.shape",
        ),
        (
            b"1,2,0\n\n\n1,2,0,5\n",
            "rows.csv:4: 4 fields, expected 2 features and a label; mend the row, or data.shape",
        ),
        (
            b"1,2,0\n1,x,0\n",
            "rows.csv:2: field 2 is \"x\", expected a finite number",
        ),
        (
            b"1,2,0\nnan,2,0\n",
            "rows.csv:2: field 1 is \"nan\", expected a finite number",
        ),
        (
            b"1,2,0\n1,1e300,0\n",
            "rows.csv:2: field 2 is \"1e300\", expected a finite number",
        ),
        (
            b"1,2,0\n1,,0\n",
            "rows.csv:2: field 2 is \"\", expected a finite number",
        ),
        (
            b"1,2,0\n1,2,3\n",
            "rows.csv:2: the label is \"3\", expected a whole number from 0 to 2",
        ),
        (
            b"1,2,0\n1,2,1.0\n",
            "rows.csv:2: the label is \"1.0\", expected a whole number from 0 to 2",
        ),
        (
            b"1,2,0\n1,2,-1\n",
            "rows.csv:2: the label is \"-1\", expected a whole number from 0 to 2",
        ),
    ];
    for (bytes, expected) in cases {
        assert_eq!(refusal("rows.csv", bytes), expected);
    }
    assert_eq!(
        refusal("rows.csv", b"height,width,class\n1,2,0\n"),
        "rows.csv:1: field 1 is \"height\", expected a finite number; the file must not begin with a header line"
    );
    let long = [&b"1,2,0\n1,\x1b[2J\xff"[..], &[b'y'; 100], b",0\n"].concat();
    let text = refusal("rows.csv", &long);
    assert!(
        text.starts_with("rows.csv:2: field 2 is \"\\u{1b}[2J\u{fffd}yyy"),
        "{text}"
    );
    assert!(
        text.contains("y\"..., expected") && text.len() < 120,
        "{text}"
    );
}

#[test]
fn damaged_and_missing_files_are_named() {
    let whole = gzipped(&rows(500));
    let text = refusal("rows.csv.gz", &whole[..whole.len() / 2]);
    assert_eq!(text, "could not read data file rows.csv.gz");
    assert_eq!(
        refusal("rows.csv.gz", rows(5).as_bytes()),
        "could not read data file rows.csv.gz"
    );
    let missing = Path::new("/nowhere/rows.csv");
    let text = Dataset::digest_file(missing)
        .expect_err("missing")
        .to_string();
    assert_eq!(text, "could not read data file /nowhere/rows.csv");
}

#[test]
fn another_file_than_the_submitted_one_is_refused() {
    let case = case("rows.csv", rows(12).as_bytes());
    fs::write(&case.spec.source, rows(13)).expect("writable");
    let refusal = Dataset::load(&case.spec).expect_err("another file");
    let DataError::WrongDigest {
        expected, found, ..
    } = refusal
    else {
        panic!("{refusal}")
    };
    assert_eq!(expected, case.spec.digest);
    assert_eq!(
        found,
        Dataset::digest_file(&case.spec.source).expect("readable")
    );
}

#[test]
fn empty_file_has_no_samples() {
    let data = Dataset::load(&case("rows.csv", b"").spec).expect("no bad row");
    assert_eq!((data.train_len(), data.heldout_len()), (0, 0));
}

/// Rows in a rhythm of ten, as the digits come: each class is held out in about its share.
#[test]
fn rhythm_of_the_rows_is_not_the_rhythm_of_the_holdout() {
    let (heldout, train) = split(10_000, 0.2);
    assert_eq!((heldout.len(), train.len()), (2000, 8000));
    for class in 0..10 {
        let count = heldout.iter().filter(|&row| row % 10 == class).count() as f64;
        // Five deviations of a hypergeometric draw: sqrt(1000 * 0.2 * 0.8 * 0.9).
        assert!(
            (count - 200.0).abs() < 5.0 * 12.0,
            "{count} of class {class}"
        );
    }
}

#[test]
fn windows_of_tokens_are_split_into_those_to_train_on_and_those_held_out() {
    let mut case = case("a.txt", &(0..=40).collect::<Vec<u8>>());
    case.spec.format = DataFormat::Text;
    case.spec.shape = vec![4];
    case.spec.num_classes = 256;
    let data = Dataset::load(&case.spec).expect("bytes");
    // A quarter of ten, rounded.
    assert_eq!((data.train_len(), data.heldout_len()), (7, 3));
    let batch = data.batch(&[6, 0]);
    let (last, first) = (4 * data.row(6) as u32, 4 * data.row(0) as u32);
    let inputs: Vec<u32> = (last..last + 4).chain(first..first + 4).collect();
    assert_eq!(batch.shape, [4]);
    assert_eq!(batch.inputs, Inputs::Tokens(inputs.clone()));
    let next: Vec<u32> = inputs.iter().map(|token| token + 1).collect();
    assert_eq!(batch.labels, next);
    let mut windows: Vec<u64> = (0..7).map(|id| data.row(id)).collect();
    let Inputs::Tokens(heldout) = data.heldout_batch(0..3).inputs else {
        panic!("tokens")
    };
    windows.extend(heldout.chunks(4).map(|window| u64::from(window[0] / 4)));
    windows.sort_unstable();
    assert!(windows.into_iter().eq(0..10));
}
