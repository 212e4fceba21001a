//! What a restart makes of the files, and what comes with a snapshot.

use super::*;

fn open(folder: &Path, index: u64, lengths: &[(&str, u64)]) -> Result<Records, RecordsError> {
    let lengths = lengths
        .iter()
        .map(|(job, length)| ((*job).to_owned(), *length));
    Records::open(folder, index, lengths.collect(), |error| panic!("{error}"))
}

fn append(records: &Records, job: &str, line: &str) {
    records.append(job.to_owned(), line.to_owned());
    assert!(records.sync());
}

fn text(folder: &Path, job: &str) -> String {
    fs::read_to_string(path_of(folder, job)).unwrap()
}

#[test]
fn files_go_back_to_what_the_snapshot_counts() {
    let folder = tempfile::tempdir().unwrap();
    let records = open(folder.path(), 1, &[]).unwrap();
    append(&records, "a", "one\n");
    append(&records, "a", "two\n");
    append(&records, "b", "three\n");
    assert_eq!(records.lengths()["a"], 8);
    // The log rests on a snapshot that counts one line; a crash tore what came later.
    fs::write(path_of(folder.path(), "a"), "one\n\0w").unwrap();
    let records = open(folder.path(), 9, &[("a", 4)]).unwrap();
    assert_eq!(records.lengths(), [("a".to_owned(), 4)].into());
    assert_eq!(*records.stream("a").1.borrow(), 4);
    assert_eq!(*records.stream("b").1.borrow(), 0);
    append(&records, "a", "two\n");
    append(&records, "b", "three\n");
    assert_eq!(text(folder.path(), "a"), "one\ntwo\n");
    let error = open(folder.path(), 9, &[("a", 100)]).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("8 bytes are there, and the snapshot counts 100"),
        "{error}"
    );
}

#[test]
fn what_comes_with_a_snapshot_continues_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let records = open(folder.path(), 1, &[]).unwrap();
    append(&records, "a", "one\n");
    let staging = staging_folder(folder.path(), 7);
    for old in [3, 7] {
        fs::create_dir(staging_folder(folder.path(), old)).unwrap();
    }
    fs::write(staging.join(Staged::name("a", 4)), "two\n").unwrap();
    fs::write(staging.join(Staged::name("new", 0)), "first\n").unwrap();
    let (_, stream) = records.stream("a");
    let lengths: Lengths = [("a".to_owned(), 8), ("new".to_owned(), 6)].into();
    records.install(7, lengths);
    assert!(records.sync());
    assert_eq!(*stream.borrow(), 8);
    assert_eq!(text(folder.path(), "a"), "one\ntwo\n");
    assert_eq!(text(folder.path(), "new"), "first\n");
    append(&records, "new", "second\n");
    assert!(!staging.exists() && !staging_folder(folder.path(), 3).exists());
    // The process died when it had begun: it does it again.
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join(Staged::name("a", 4)), "two\n").unwrap();
    fs::write(path_of(folder.path(), "a"), "one\ntw").unwrap();
    open(folder.path(), 7, &[("a", 8)]).unwrap();
    assert_eq!(text(folder.path(), "a"), "one\ntwo\n");
}

#[test]
fn more_jobs_than_open_files() {
    let folder = tempfile::tempdir().unwrap();
    let records = open(folder.path(), 1, &[]).unwrap();
    for round in 0..2 {
        for job in 0..MAX_OPEN_FILES + 10 {
            records.append(format!("job{job}"), format!("{round}\n"));
        }
    }
    assert!(records.sync());
    assert_eq!(text(folder.path(), "job5"), "0\n1\n");
}
