//! What is said of a file counts only for that file, and what ended processes left behind goes.

use std::collections::BTreeSet;

use super::*;

#[test]
fn jobs_are_known_of_the_file_that_they_were_said_of() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    assert_eq!(known_jobs(path), None, "nothing is there");
    fs::write(path.join("known.db"), "kernels").unwrap();
    let digest = digest(&path.join("known.db")).unwrap();
    let hash = blake3::hash(b"a contribution");
    let text = format!("{digest}\n{hash} a job none\n");
    fs::write(path.join("known.jobs"), &text).unwrap();
    let known = known_jobs(path).unwrap();
    assert_eq!(
        known,
        BTreeMap::from([("a job none".to_owned(), hash.into())])
    );
    for bad in [format!("{text}x"), text.replace(' ', ""), String::new()] {
        fs::write(path.join("known.jobs"), bad).unwrap();
        assert_eq!(known_jobs(path), None);
    }
    fs::write(path.join("known.jobs"), &text).unwrap();
    fs::write(path.join("known.db"), "other kernels").unwrap();
    assert_eq!(known_jobs(path), None, "another file");
}

#[test]
fn files_of_ended_processes_are_swept_and_those_of_living_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for file in [
        "run-1-a.lock",
        "run-1-a.db",
        "run-1-a.db-wal",
        "run-2-b.lock",
        "run-2-b.db",
        "known.db",
    ] {
        fs::write(path.join(file), "").unwrap();
    }
    let life = File::open(path.join("run-2-b.lock")).unwrap();
    life.lock().unwrap();
    assert!(!sweep(path), "one lives");
    let mut left: Vec<String> = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["known.db", "run-2-b.db", "run-2-b.lock"]);
    drop(life);
    assert!(sweep(path));
}

#[test]
fn a_lock_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let first = locked(&path).unwrap();
    thread::scope(|scope| {
        let second = scope.spawn(|| locked(&path).map(drop));
        drop(first);
        second.join().unwrap().unwrap();
    });
}

#[test]
fn folders_that_nobody_opens_for_long_go() {
    let root = tempfile::tempdir().unwrap();
    let old = SystemTime::now() - UNUSED - Duration::from_secs(1);
    let now = SystemTime::now();
    let folder = |name: &str, opened: SystemTime, files: &[&str]| {
        let path = root.path().join(name);
        fs::create_dir(&path).unwrap();
        for file in files {
            fs::write(path.join(file), "").unwrap();
        }
        File::open(&path).unwrap().set_modified(opened).unwrap();
        path
    };
    let kept = ["lock", "known.db", "known.jobs"];
    folder("unused", old, &kept);
    folder("used", now, &kept);
    folder("none of ours", old, &["lock"]);
    let locked = folder("found out in", old, &kept).join("lock");
    let running = folder("long job", old, &["lock", "known.jobs", "run-1-a.lock"]);
    let own = folder("own", old, &kept);
    let files = [locked, running.join("run-1-a.lock")].map(|file| File::open(file).unwrap());
    for file in &files {
        file.lock().unwrap();
    }
    remove_unused(&own, now);
    let entries = fs::read_dir(root.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let left: BTreeSet<String> = names.collect();
    let expected = ["found out in", "long job", "none of ours", "own", "used"];
    assert_eq!(left, expected.map(str::to_owned).into());
}
