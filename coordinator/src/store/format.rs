//! The bytes of the store's values, version 3; version 2 had no parts, version 1 no start. Where they
//! lie is in `store`.
//!
//! Numbers are little-endian; only the keys of the log are big-endian, so that their order is the
//! order of the entries. Every value begins with a CRC-32 (IEEE) of all that follows it, and of its
//! place before that, so that a value at the wrong place is noticed too. The value of an entry that
//! is larger than [`MAX_PART`] lies in parts, which are put together before they are read: values
//! beyond 128 KiB would be files that sled does not sync before its log points at them, and pages
//! of up to 26 values (16, and ten that were added) must be smaller than that, too.
//!
//! ```text
//! log   [index: u64 big-endian]  -> crc32(index, rest)  version: u8  kind: u8  term: u64  data
//! log   [index]  [part: u16 big-endian, from 1]  -> the bytes that follow the part before
//! meta  "hard_state"             -> crc32(key, rest)    term: u64  vote: u64  commit: u64
//! meta  "start"                  -> crc32(key, rest)    index: u64  term: u64  voters  learners
//!                                    each: how many: u64, and their ids: u64
//! meta  "cluster_id"             -> crc32(key, rest)    16 bytes
//! meta  "num_batches"            -> crc32(key, rest)    u64
//! meta  "format"                 -> version: u32
//! ```

use std::collections::BTreeSet;

use muster_coordinator_core::consensus::{
    Entry, EntryKind, HardState, Mark, Membership, ReplicaId,
};

/// The version of all of it. A store has the oldest version that can say what is in it: 1 while its
/// log begins with its first entry, 2 while no entry is large.
pub(super) const VERSION: u32 = 3;
pub(super) const VERSION_WITHOUT_PARTS: u32 = 2;
pub(super) const VERSION_WITHOUT_START: u32 = 1;

/// The largest value, in bytes.
const MAX_PART: usize = 2 << 10;

/// The version of an entry.
const ENTRY_VERSION: u8 = 1;

pub(super) const KEY_FORMAT: &[u8] = b"format";
pub(super) const KEY_HARD_STATE: &[u8] = b"hard_state";
pub(super) const KEY_NUM_BATCHES: &[u8] = b"num_batches";
pub(super) const KEY_START: &[u8] = b"start";
pub(super) const KEY_CLUSTER_ID: &[u8] = b"cluster_id";

/// Puts the checksum before a value for its key.
fn seal(key: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut value = checksum(key, rest).to_le_bytes().to_vec();
    value.extend_from_slice(rest);
    value
}

/// What stands behind the checksum, if it is right.
fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Result<&'a [u8], String> {
    let (crc, rest) = value
        .split_first_chunk()
        .ok_or("it is too short for a checksum")?;
    let (stored, computed) = (u32::from_le_bytes(*crc), checksum(key, rest));
    if stored != computed {
        return Err(format!(
            "its checksum is {stored:08x}, its bytes have {computed:08x}"
        ));
    }
    Ok(rest)
}

fn checksum(key: &[u8], rest: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(rest);
    hasher.finalize()
}

/// The key of a part of an entry.
pub(super) fn key(index: u64, part: u16) -> Vec<u8> {
    let mut key = index.to_be_bytes().to_vec();
    if part > 0 {
        key.extend_from_slice(&part.to_be_bytes());
    }
    key
}

/// An index and a part.
pub(super) fn decode_key(key: &[u8]) -> Result<(u64, u16), String> {
    let bad = || "a key is not an index, or an index and a part".to_owned();
    let (index, part) = key.split_first_chunk().ok_or_else(bad)?;
    let part = match part {
        [] => 0,
        part => u16::from_be_bytes(part.try_into().map_err(|_| bad())?),
    };
    Ok((u64::from_be_bytes(*index), part))
}

/// The keys and the values of an entry. It has at most 128 MiB.
pub(super) fn encode_entry(entry: &Entry) -> Vec<(Vec<u8>, Vec<u8>)> {
    let value = encode_value(entry);
    let parts = (0..).zip(value.chunks(MAX_PART));
    parts
        .map(|(part, bytes)| (key(entry.index, part), bytes.to_vec()))
        .collect()
}

fn encode_value(entry: &Entry) -> Vec<u8> {
    let kind = match entry.kind {
        EntryKind::Normal => 0,
        EntryKind::Config => 1,
    };
    let mut rest = vec![ENTRY_VERSION, kind];
    rest.extend_from_slice(&entry.term.to_le_bytes());
    rest.extend_from_slice(&entry.data);
    seal(&entry.index.to_be_bytes(), &rest)
}

pub(super) fn decode_entry(index: u64, value: &[u8]) -> Result<Entry, String> {
    let rest = unseal(&index.to_be_bytes(), value)?;
    let ([version, kind], rest) = rest
        .split_first_chunk()
        .ok_or("it is too short for an entry")?;
    if *version != ENTRY_VERSION {
        return Err(format!(
            "it has version {version}, this program reads {ENTRY_VERSION}"
        ));
    }
    let kind = match kind {
        0 => EntryKind::Normal,
        1 => EntryKind::Config,
        other => return Err(format!("its kind is {other}, which is none")),
    };
    let (term, data) = rest
        .split_first_chunk()
        .ok_or("it is too short for an entry")?;
    Ok(Entry {
        index,
        term: u64::from_le_bytes(*term),
        kind,
        data: data.to_vec(),
    })
}

pub(super) fn encode_hard_state(hard_state: &HardState) -> Vec<u8> {
    let numbers = [hard_state.term, hard_state.vote, hard_state.commit];
    seal(KEY_HARD_STATE, &numbers.map(u64::to_le_bytes).concat())
}

pub(super) fn decode_hard_state(value: &[u8]) -> Result<HardState, String> {
    let rest = unseal(KEY_HARD_STATE, value)?;
    let (numbers, []) = rest.as_chunks() else {
        return Err("it is not three numbers".to_owned());
    };
    let [term, vote, commit] = numbers else {
        return Err("it is not three numbers".to_owned());
    };
    let number = |bytes: &[u8; 8]| u64::from_le_bytes(*bytes);
    Ok(HardState {
        term: number(term),
        vote: number(vote),
        commit: number(commit),
    })
}

pub(super) fn encode_start(start: &Mark) -> Vec<u8> {
    let Membership { voters, learners } = &start.membership;
    let mut numbers = vec![start.index, start.term];
    for ids in [voters, learners] {
        numbers.push(ids.len() as u64);
        numbers.extend(ids.iter().map(|id| id.0));
    }
    let bytes: Vec<u8> = numbers.into_iter().flat_map(u64::to_le_bytes).collect();
    seal(KEY_START, &bytes)
}

pub(super) fn decode_start(value: &[u8]) -> Result<Mark, String> {
    let bad = || "it is not a place in a log and a group".to_owned();
    let (numbers, []) = unseal(KEY_START, value)?.as_chunks() else {
        return Err(bad());
    };
    let mut numbers = numbers.iter().map(|number| u64::from_le_bytes(*number));
    let mut next = || numbers.next().ok_or_else(bad);
    let (index, term) = (next()?, next()?);
    let mut ids = || -> Result<BTreeSet<ReplicaId>, String> {
        let count = next()?;
        (0..count).map(|_| next().map(ReplicaId)).collect()
    };
    let (voters, learners) = (ids()?, ids()?);
    let membership = Membership { voters, learners };
    if numbers.next().is_some() {
        return Err(bad());
    }
    Ok(Mark {
        index,
        term,
        membership,
    })
}

pub(super) fn encode_cluster_id(cluster_id: &[u8; 16]) -> Vec<u8> {
    seal(KEY_CLUSTER_ID, cluster_id)
}

pub(super) fn decode_cluster_id(value: &[u8]) -> Result<[u8; 16], String> {
    unseal(KEY_CLUSTER_ID, value)?
        .try_into()
        .map_err(|_| "it is not 16 bytes".to_owned())
}

pub(super) fn encode_num_batches(num_batches: u64) -> Vec<u8> {
    seal(KEY_NUM_BATCHES, &num_batches.to_le_bytes())
}

pub(super) fn decode_num_batches(value: &[u8]) -> Result<u64, String> {
    let number = unseal(KEY_NUM_BATCHES, value)?.try_into();
    number
        .map(u64::from_le_bytes)
        .map_err(|_| "it is not a number".to_owned())
}
