//! A log that rests on a snapshot.

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
    store.rest_on(&mark(4, 1)).unwrap();
    // No more than the snapshot covers.
    store.discard(2).unwrap();
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
    store.discard(9).unwrap();
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
    tamper(folder.path(), |_, meta| {
        let value = meta.get(format::KEY_START).unwrap().unwrap();
        let mut bytes = value.to_vec();
        bytes[9] ^= 1;
        meta.insert(format::KEY_START, bytes).unwrap();
    });
    let damaged = reopen(folder.path()).unwrap_err().to_string();
    assert!(damaged.contains("start is damaged"), "{damaged}");
}
