//! A log that rests on a snapshot.

use super::super::Sizes;
use super::*;

fn mark(index: u64, term: u64) -> Mark {
    Mark {
        index,
        term,
        membership: Membership {
            voters: [1, 2, 3].map(ReplicaId).into(),
            learners: [4].map(ReplicaId).into(),
        },
    }
}

#[test]
fn a_log_that_rests_on_a_snapshot_begins_where_it_was_cut() {
    let folder = five_entries();
    let (mut store, ..) = Store::open(folder.path()).unwrap();
    store.rest_on(&mark(4, 1));
    // No more than the snapshot covers.
    store.discard(2);
    store.append(&entries(6..=6, 1), None, None).unwrap();
    store.sync().unwrap();
    drop(store);
    let expected = |entries| Recovered {
        hard_state: hard_state(1),
        start: mark(4, 1),
        entries,
    };
    assert_eq!(reopen(folder.path()).unwrap(), expected(entries(3..=6, 1)));
    let (mut store, ..) = Store::open(folder.path()).unwrap();
    store.discard(9);
    let gap = store.append(&entries(4..=4, 1), None, None);
    assert!(
        matches!(gap, Err(StoreError::Gap { expected: 5, .. })),
        "{gap:?}"
    );
    store.sync().unwrap();
    drop(store);
    assert_eq!(reopen(folder.path()).unwrap(), expected(entries(5..=6, 1)));
}

#[test]
fn a_snapshot_that_is_restored_takes_the_place_of_the_whole_log() {
    let folder = five_entries();
    let (mut store, ..) = Store::open(folder.path()).unwrap();
    let later = mark(40, 3);
    store
        .append(&[], Some(hard_state(3)), Some(&later))
        .unwrap();
    store.append(&entries(41..=42, 3), None, None).unwrap();
    store.sync().unwrap();
    drop(store);
    let expected = Recovered {
        hard_state: hard_state(3),
        start: later,
        entries: entries(41..=42, 3),
    };
    assert_eq!(reopen(folder.path()).unwrap(), expected);
}

#[test]
fn what_stands_behind_a_snapshot_that_is_restored_does_not_come_back() {
    let folder = five_entries();
    let (mut store, ..) = Store::open(folder.path()).unwrap();
    store.append(&[], None, Some(&mark(3, 2))).unwrap();
    store.sync().unwrap();
    drop(store);
    let mut expected = Recovered {
        hard_state: hard_state(1),
        start: mark(3, 2),
        entries: Vec::new(),
    };
    assert_eq!(reopen(folder.path()).unwrap(), expected);
    let (mut store, ..) = Store::open(folder.path()).unwrap();
    store.append(&entries(4..=4, 2), None, None).unwrap();
    store.sync().unwrap();
    drop(store);
    expected.entries = entries(4..=4, 2);
    assert_eq!(reopen(folder.path()).unwrap(), expected);
}

#[test]
fn files_of_discarded_entries_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let sizes = Sizes {
        file: 16 << 10,
        all: 64 << 10,
    };
    let (mut store, ..) = Store::open_sized(folder.path(), sizes).unwrap();
    for index in 1..=3000 {
        store.append(&[entry(index, 1)], None, None).unwrap();
        if index % 100 == 0 {
            store.rest_on(&mark(index - 20, 1));
            store.discard(index - 30);
        }
        store.sync().unwrap();
    }
    drop(store);
    let num_files = files_of(folder.path()).len();
    assert!(num_files < 12, "{num_files} files");
    let found = reopen(folder.path()).unwrap();
    assert_eq!(found.start, mark(2980, 1));
    assert_eq!(found.entries, entries(2971..=3000, 1));
}
