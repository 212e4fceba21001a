//! What a store gives back, what it refuses, and how batches share a sync. Deaths of the process
//! are in `durability`.

mod rests;

mod joined;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};

use muster_coordinator_core::consensus::{
    Entry, EntryKind, HardState, Mark, Membership, Recovered, ReplicaId,
};
use tempfile::TempDir;

use super::format::{self, Head};
use super::thread::{Batch, Report, Stopped, StoreThread};
use super::{ENTRIES, GROUP, SIZES, Store, StoreError, open_engine, read_head, read_log};

fn entry(index: u64, term: u64) -> Entry {
    Entry {
        index,
        term,
        kind: EntryKind::Normal,
        data: format!("{index} of {term}").into_bytes(),
    }
}

fn entries(range: std::ops::RangeInclusive<u64>, term: u64) -> Vec<Entry> {
    range.map(|index| entry(index, term)).collect()
}

fn hard_state(term: u64) -> HardState {
    HardState {
        term,
        vote: 2,
        commit: 1,
    }
}

/// Opens, or says why not.
fn reopen(folder: &Path) -> Result<Recovered, StoreError> {
    Store::open(folder).map(|(_, recovered, _)| recovered)
}

/// A store with five entries, closed.
fn five_entries() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, recovered, _) = Store::open(folder.path()).unwrap();
    assert_eq!(recovered, Recovered::default());
    store
        .append(&entries(1..=5, 1), Some(hard_state(1)), None)
        .unwrap();
    store.sync().unwrap();
    folder
}

/// Changes the store behind its back: the bytes of its entries, by their index from 1, and of its head.
fn tamper(folder: &Path, change: impl FnOnce(&mut Vec<Vec<u8>>, &mut Vec<u8>)) {
    let (engine, _) = open_engine(folder, SIZES).unwrap();
    let mut head = engine.get(GROUP, format::KEY_HEAD).unwrap();
    let mut found = Vec::new();
    let last = engine.last_index(GROUP).unwrap_or(0);
    engine
        .fetch_entries_to::<format::Value>(GROUP, 1, last + 1, None, &mut found)
        .unwrap();
    let mut values: Vec<_> = found.iter().map(|value| value.value.clone()).collect();
    change(&mut values, &mut head);
    let mut batch = raft_engine::LogBatch::default();
    for (at, value) in found.iter_mut().zip(values) {
        at.set_value(value);
    }
    batch.add_entries::<format::Value>(GROUP, &found).unwrap();
    batch.put(GROUP, format::KEY_HEAD.to_vec(), head).unwrap();
    engine.write(&mut batch, true).unwrap();
}

#[test]
fn a_store_gives_back_what_was_appended() {
    let folder = tempfile::tempdir().unwrap();
    // A folder that is not there yet, and a large value.
    let path = folder.path().join("new/store");
    let (mut store, _, meta) = Store::open(&path).unwrap();
    let large = Entry {
        data: vec![7; 3 << 20],
        kind: EntryKind::Config,
        ..entry(3, 4)
    };
    store
        .append(&entries(1..=2, 1), Some(hard_state(1)), None)
        .unwrap();
    store
        .append(std::slice::from_ref(&large), Some(hard_state(4)), None)
        .unwrap();
    store.append(&[], None, None).unwrap();
    store.sync().unwrap();
    drop(store);

    let (_, recovered, same) = Store::open(&path).unwrap();
    assert_eq!(
        recovered,
        Recovered {
            hard_state: hard_state(4),
            entries: vec![entry(1, 1), entry(2, 1), large],
            ..Recovered::default()
        }
    );
    assert_eq!(same, meta);
    let other = tempfile::tempdir().unwrap();
    assert_ne!(
        Store::open(other.path()).unwrap().2,
        meta,
        "each store draws an id of its own"
    );
}

#[test]
fn the_log_ends_with_the_last_entry_of_a_batch() {
    let folder = five_entries();
    let (mut store, ..) = Store::open(folder.path()).unwrap();
    store.append(&entries(3..=4, 2), None, None).unwrap();
    store
        .append(&entries(5..=6, 2), Some(hard_state(2)), None)
        .unwrap();
    store.append(&entries(6..=6, 3), None, None).unwrap();
    store.sync().unwrap();
    drop(store);
    let expected = [entries(1..=2, 1), entries(3..=5, 2), entries(6..=6, 3)].concat();
    assert_eq!(
        reopen(folder.path()).unwrap(),
        Recovered {
            hard_state: hard_state(2),
            entries: expected,
            ..Recovered::default()
        }
    );
}

#[test]
fn a_batch_that_leaves_a_gap_is_not_written() {
    let folder = five_entries();
    let (mut store, ..) = Store::open(folder.path()).unwrap();
    let gaps = [
        (entries(7..=8, 1), 6, 7),
        (vec![entry(6, 1), entry(8, 1)], 7, 8),
        (entries(0..=1, 1), 1, 0),
    ];
    for (gap, expected_index, found_index) in gaps {
        match store.append(&gap, Some(hard_state(9)), None) {
            Err(StoreError::Gap {
                expected, found, ..
            }) => assert_eq!((expected, found), (expected_index, found_index)),
            other => panic!("{other:?}"),
        }
    }
    drop(store);
    let expected = Recovered {
        hard_state: hard_state(1),
        entries: entries(1..=5, 1),
        ..Recovered::default()
    };
    assert_eq!(reopen(folder.path()).unwrap(), expected);
}

#[test]
fn a_second_open_says_who_is_in_the_way() {
    let folder = five_entries();
    let store = Store::open(folder.path()).unwrap();
    let error = Store::open(folder.path()).unwrap_err();
    assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("in use") && text.contains(folder.path().to_str().unwrap()),
        "{text}"
    );
    drop(store);
    reopen(folder.path()).unwrap();
}

#[test]
fn a_flipped_bit_is_reported_with_the_index() {
    let folder = five_entries();
    let num_bits = format::encode_entry(&entry(3, 1)).get_value().len() * 8;
    let flip = |bit: usize| {
        tamper(folder.path(), |values, _| {
            values[2][bit / 8] ^= 1 << (bit % 8);
        });
    };
    // Where the index is, the engine would put it elsewhere.
    for bit in (0..num_bits)
        .step_by(7)
        .filter(|bit| !(4..12).contains(&(bit / 8)))
    {
        flip(bit);
        let text = reopen(folder.path()).unwrap_err().to_string();
        assert!(text.contains("entry 3 is damaged"), "bit {bit}: {text}");
        flip(bit);
    }
    assert_eq!(reopen(folder.path()).unwrap().entries, entries(1..=5, 1));
}

#[test]
fn damage_beside_the_log_is_reported() {
    type Change = fn(&mut Vec<u8>);
    let cases: [(Change, &str); 5] = [
        (|head| head[30] ^= 1, "head is damaged: its checksum is"),
        (|head| head.truncate(20), "head is damaged: its checksum is"),
        (|head| head.truncate(6), "too short for a checksum"),
        (Vec::clear, "head is damaged: it is too short for a version"),
        (|head| head[0] = 5, "has format 5, this program reads 4"),
    ];
    for (change, expected) in cases {
        let folder = five_entries();
        tamper(folder.path(), |_, head| change(head));
        let text = reopen(folder.path()).unwrap_err().to_string();
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn entries_that_are_missing_are_reported() {
    let folder = five_entries();
    tamper(folder.path(), |_, head| {
        let longer = Head {
            last: 7,
            ..format::decode_head(head).unwrap()
        };
        *head = format::encode_head(&longer);
    });
    let text = format!("{:?}", reopen(folder.path()).unwrap_err());
    assert!(text.contains("EntryNotFound"), "{text}");

    let folder = five_entries();
    let (engine, _) = open_engine(folder.path(), SIZES).unwrap();
    engine.compact_to(GROUP, 3);
    let head = read_head(folder.path(), &engine).unwrap().unwrap();
    let text = read_log(folder.path(), &engine, &head).unwrap_err();
    let text = text.to_string();
    assert!(text.contains("entries 1 to 2 are missing"), "{text}");
}

#[test]
fn a_store_of_an_older_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["db", "conf"] {
        fs::write(folder.path().join(name), "sled").unwrap();
    }
    let text = reopen(folder.path()).unwrap_err().to_string();
    assert!(
        text.contains("has format 3, this program reads 4"),
        "{text}"
    );
}

#[test]
fn a_lost_tail_is_reported() {
    let folder = five_entries();
    // The engine cuts off what it cannot read, as if it had never been written.
    let file = folder.path().join(ENTRIES).join("0000000000000001.raftlog");
    let earlier = fs::read(&file).unwrap();
    let (mut store, ..) = Store::open(folder.path()).unwrap();
    store.append(&[], Some(hard_state(2)), None).unwrap();
    store.sync().unwrap();
    drop(store);
    fs::write(file, earlier).unwrap();
    for _ in 0..2 {
        let text = reopen(folder.path()).unwrap_err().to_string();
        assert!(
            text.contains("batch 3 was durable, but it ends with batch 2"),
            "{text}"
        );
    }
    fs::remove_file(folder.path().join("watermark")).unwrap();
    for _ in 0..2 {
        let text = reopen(folder.path()).unwrap_err().to_string();
        assert!(text.contains("watermark is missing"), "{text}");
    }
}

#[test]
fn a_store_whose_first_opening_was_cut_short_can_be_opened() {
    // What a loss of power leaves of the watermark between its name and its bytes.
    for unwritten in [&[][..], &[0; 12]] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("watermark"), unwritten).unwrap();
        assert_eq!(reopen(folder.path()).unwrap(), Recovered::default());
        // But not where something was written.
        fs::write(folder.path().join("watermark"), unwritten).unwrap();
        let text = reopen(folder.path()).unwrap_err().to_string();
        assert!(
            text.contains("watermark is not as it was written"),
            "{text}"
        );
    }
}

#[test]
fn an_entry_of_another_version_or_place_is_refused() {
    let recorded = [
        0xe9, 0x4f, 0xae, 0x2b, 5, 0, 0, 0, 0, 0, 0, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0, 0, b'h', b'i',
    ];
    let value = |bytes: &[u8]| {
        let mut value = protobuf::well_known_types::BytesValue::new();
        value.set_value(bytes.to_vec());
        value
    };
    let hi = Entry {
        index: 5,
        term: 6,
        kind: EntryKind::Normal,
        data: b"hi".to_vec(),
    };
    assert_eq!(format::encode_entry(&hi), value(&recorded));
    assert_eq!(
        format::decode_entry(5, &value(&recorded)),
        Ok(hi),
        "version 1 as recorded; its checksum is zlib's"
    );
    let text = format::decode_entry(4, &value(&recorded)).unwrap_err();
    assert_eq!(text, "its bytes are those of entry 5");
    let mut newer = recorded;
    newer[12] = 2;
    let crc = crc32fast::hash(&newer[4..]);
    newer[..4].copy_from_slice(&crc.to_le_bytes());
    let text = format::decode_entry(5, &value(&newer)).unwrap_err();
    assert_eq!(text, "it has version 2, this program reads 1");
}

/// Copies the store's folder, with one file changed.
fn damaged_copy(from: &Path, file: &Path, change: impl FnOnce(&mut Vec<u8>)) -> TempDir {
    let to = tempfile::tempdir().unwrap();
    fs::create_dir(to.path().join(ENTRIES)).unwrap();
    for name in files_of(from) {
        fs::copy(from.join(&name), to.path().join(&name)).unwrap();
    }
    let mut bytes = fs::read(to.path().join(file)).unwrap();
    change(&mut bytes);
    fs::write(to.path().join(file), bytes).unwrap();
    to
}

/// The names of a store's files, the engine's among them.
fn files_of(folder: &Path) -> Vec<PathBuf> {
    let list = |part: &str| {
        let names = fs::read_dir(folder.join(part))
            .unwrap()
            .map(|file| file.unwrap().file_name());
        names
            .map(|name| Path::new(part).join(name))
            .collect::<Vec<_>>()
    };
    let all = [list(""), list(ENTRIES)].concat();
    all.into_iter()
        .filter(|name| folder.join(name).is_file())
        .collect()
}

#[test]
fn damaged_files_never_panic_and_never_lose_anything_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, ..) = Store::open(folder.path()).unwrap();
    let mut written = entries(1..=200, 1);
    written[100].data = vec![7; 200 << 10];
    for entry in &written {
        store
            .append(std::slice::from_ref(entry), Some(hard_state(1)), None)
            .unwrap();
        if entry.index % 3 == 0 {
            store.sync().unwrap();
        }
    }
    store.sync().unwrap();
    drop(store);

    let files = files_of(folder.path());
    let is_there = |name: &str| files.iter().any(|file| file.ends_with(name));
    assert!(
        is_there("0000000000000001.raftlog") && is_there("watermark"),
        "{files:?}"
    );
    let expected = Recovered {
        hard_state: hard_state(1),
        entries: written,
        ..Recovered::default()
    };
    let mut num_refused = 0;
    for file in files {
        let file = file.as_path();
        let length = fs::metadata(folder.path().join(file)).unwrap().len() as usize;
        if length == 0 {
            continue;
        }
        let lengths = [
            0,
            1,
            4,
            length / 8,
            length / 3,
            length / 2,
            length - length / 4,
            length - 1,
        ];
        let copies =
            lengths.map(|length| damaged_copy(folder.path(), file, |bytes| bytes.truncate(length)));
        let flip = |at: usize| damaged_copy(folder.path(), file, |bytes| bytes[at] ^= 0x10);
        let flips = (0..8).map(|part| flip((length - 1) * part / 7));
        for copy in copies.into_iter().chain(flips) {
            match reopen(copy.path()) {
                // Not every byte is in use.
                Ok(recovered) => assert_eq!(recovered, expected),
                Err(_) => num_refused += 1,
            }
        }
    }
    assert!(num_refused > 0, "no damage was noticed");
}

fn batch(batch: u64, entries: Vec<Entry>) -> Batch {
    Batch {
        batch,
        entries,
        hard_state: None,
        restore: None,
    }
}

/// A batch's number or what went wrong, and the number of syncs before it was reported.
type Reported = (Result<u64, String>, u64);

/// A thread on a new store that stops in its first report until told to go on.
fn gated_thread(folder: &Path) -> (StoreThread, Sender<()>, Receiver<Reported>) {
    let (store, ..) = Store::open(folder).unwrap();
    let num_syncs = store.num_syncs.clone();
    let (open_gate, gate) = channel();
    let (sender, reports) = channel();
    let thread = StoreThread::spawn(store, move |report| {
        let num_syncs = num_syncs.load(Ordering::SeqCst);
        let report = match report {
            Report::Durable { batch } => Ok(batch),
            Report::Rests { mark } => panic!("{mark:?}"),
            Report::Failed(error) => Err(error.to_string()),
        };
        sender.send((report, num_syncs)).unwrap();
        let _ = gate.recv();
    });
    (thread.unwrap(), open_gate, reports)
}

#[test]
fn waiting_batches_share_one_sync_and_are_reported_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let (thread, open_gate, reports) = gated_thread(folder.path());
    let before = thread.syncs().num();
    thread.write(batch(1, entries(1..=1, 1))).unwrap();
    assert_eq!(
        reports.recv().unwrap(),
        (Ok(1), before + 1),
        "one batch, one sync before its report"
    );
    // The thread stands in its report while these arrive.
    for index in 2..=9 {
        thread
            .write(batch(index * 10, entries(index..=index, 1)))
            .unwrap();
    }
    drop(open_gate);
    let after: Vec<_> = reports.iter().take(8).collect();
    assert_eq!(
        after,
        (2..=9)
            .map(|index| (Ok(index * 10), before + 2))
            .collect::<Vec<_>>()
    );
    assert_eq!(thread.syncs().num(), before + 2);
    thread.shutdown();
    assert_eq!(reopen(folder.path()).unwrap().entries, entries(1..=9, 1));
}

#[test]
fn shutdown_writes_what_waits_and_closes_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let (thread, open_gate, reports) = gated_thread(folder.path());
    drop(open_gate);
    for index in 1..=50 {
        thread
            .write(batch(index, entries(index..=index, 1)))
            .unwrap();
    }
    thread.shutdown();
    assert_eq!(
        reports
            .iter()
            .map(|(report, _)| report.unwrap())
            .collect::<Vec<_>>(),
        (1..=50).collect::<Vec<_>>()
    );
    assert_eq!(reopen(folder.path()).unwrap().entries, entries(1..=50, 1));
}

#[test]
fn a_failure_is_reported_once_and_ends_the_thread() {
    let folder = tempfile::tempdir().unwrap();
    let (thread, open_gate, reports) = gated_thread(folder.path());
    drop(open_gate);
    thread.write(batch(1, entries(4..=4, 1))).unwrap();
    let (report, _) = reports.recv().unwrap();
    assert!(
        report
            .unwrap_err()
            .contains("entry 4 was given where entry 1 belongs")
    );
    assert!(reports.recv().is_err(), "the thread has ended");
    assert_eq!(thread.write(batch(2, entries(1..=1, 1))), Err(Stopped));
    // And the store is closed.
    assert_eq!(reopen(folder.path()).unwrap(), Recovered::default());
}
