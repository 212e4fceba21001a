//! The bytes of the store's values, version 4; the versions before it were kept in sled.
//!
//! Numbers are little-endian. Each value has a CRC-32 (IEEE) of all that follows it: the engine's own
//! checksums are of its batches, and are checked where it reads them, not where it puts them together.
//!
//! ```text
//! entry   crc32  index: u64  version: u8  kind: u8  term: u64  data
//! "head"  version: u32  crc32  cluster id: 16 bytes  batches: u64  last: u64
//!         term: u64  vote: u64  commit: u64  start
//!         start: index: u64  term: u64  voters  learners; each how many: u64, and their ids: u64
//! ```
//!
//! An entry lies in the engine as a protobuf message with one field of bytes, which is what it takes.
//! The head is written with every batch, so that it is always in the engine's last file.

use std::collections::BTreeSet;

use muster_coordinator_core::consensus::{
    Entry, EntryKind, HardState, Mark, Membership, ReplicaId,
};
use protobuf::well_known_types::BytesValue;

/// The version of all of it.
pub(super) const VERSION: u32 = 4;
pub(super) const LAST_VERSION_IN_SLED: u32 = 3;

/// The version of an entry.
const ENTRY_VERSION: u8 = 1;

pub(super) const KEY_HEAD: &[u8] = b"head";

/// All of a store but its entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) cluster_id: [u8; 16],
    /// How many batches were ever written; the number of the last one.
    pub(super) num_batches: u64,
    /// The index of the last entry, or where the snapshot ends.
    pub(super) last: u64,
    pub(super) hard_state: HardState,
    /// Where the snapshot ends that the log rests on; the default where it rests on none.
    pub(super) start: Mark,
}

impl Head {
    /// Of a store that has nothing.
    pub(super) fn new(cluster_id: [u8; 16]) -> Self {
        Self {
            cluster_id,
            num_batches: 0,
            last: 0,
            hard_state: HardState::default(),
            start: Mark::default(),
        }
    }
}

/// How the engine learns an entry's index.
#[derive(Clone, Debug)]
pub(super) struct Value;

impl raft_engine::MessageExt for Value {
    type Entry = BytesValue;

    fn index(value: &BytesValue) -> u64 {
        let index = value.value.get(4..).and_then(|rest| rest.first_chunk());
        index.copied().map_or(0, u64::from_le_bytes)
    }
}

/// Takes the checksum from a value, where it is right.
fn unseal(value: &[u8]) -> Result<&[u8], String> {
    let (crc, rest) = value
        .split_first_chunk()
        .ok_or("it is too short for a checksum")?;
    let (stored, computed) = (u32::from_le_bytes(*crc), crc32fast::hash(rest));
    if stored != computed {
        return Err(format!(
            "its checksum is {stored:08x}, its bytes have {computed:08x}"
        ));
    }
    Ok(rest)
}

/// Takes bytes from the front.
fn take<'a, const N: usize>(rest: &mut &'a [u8], of: &str) -> Result<&'a [u8; N], String> {
    let (front, behind) = rest
        .split_first_chunk()
        .ok_or_else(|| format!("it is too short for {of}"))?;
    *rest = behind;
    Ok(front)
}

/// The value of an entry.
pub(super) fn encode_entry(entry: &Entry) -> BytesValue {
    let kind = match entry.kind {
        EntryKind::Normal => 0,
        EntryKind::Config => 1,
    };
    let mut bytes = Vec::with_capacity(22 + entry.data.len());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&entry.index.to_le_bytes());
    bytes.extend_from_slice(&[ENTRY_VERSION, kind]);
    bytes.extend_from_slice(&entry.term.to_le_bytes());
    bytes.extend_from_slice(&entry.data);
    let crc = crc32fast::hash(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    let mut value = BytesValue::new();
    value.set_value(bytes);
    value
}

/// The entry of this index.
pub(super) fn decode_entry(index: u64, value: &BytesValue) -> Result<Entry, String> {
    let mut rest = unseal(value.get_value())?;
    let found = u64::from_le_bytes(*take(&mut rest, "an entry")?);
    if found != index {
        return Err(format!("its bytes are those of entry {found}"));
    }
    let [version, kind] = *take(&mut rest, "an entry")?;
    if version != ENTRY_VERSION {
        return Err(format!(
            "it has version {version}, this program reads {ENTRY_VERSION}"
        ));
    }
    let kind = match kind {
        0 => EntryKind::Normal,
        1 => EntryKind::Config,
        other => return Err(format!("its kind is {other}, which is none")),
    };
    let term = u64::from_le_bytes(*take(&mut rest, "an entry")?);
    Ok(Entry {
        index,
        term,
        kind,
        data: rest.to_vec(),
    })
}

/// The value of the head.
pub(super) fn encode_head(head: &Head) -> Vec<u8> {
    let HardState { term, vote, commit } = head.hard_state;
    let Mark {
        index,
        term: term_of_start,
        membership: Membership { voters, learners },
    } = &head.start;
    let mut numbers = vec![head.num_batches, head.last, term, vote, commit];
    numbers.extend([index, term_of_start]);
    for ids in [voters, learners] {
        numbers.push(ids.len() as u64);
        numbers.extend(ids.iter().map(|id| id.0));
    }
    let mut sealed = head.cluster_id.to_vec();
    sealed.extend(numbers.into_iter().flat_map(u64::to_le_bytes));
    let mut bytes = VERSION.to_le_bytes().to_vec();
    bytes.extend(crc32fast::hash(&sealed).to_le_bytes());
    bytes.extend(sealed);
    bytes
}

/// The version of a head, whatever it is.
pub(super) fn version_in(head: &[u8]) -> Result<u32, String> {
    let mut rest = head;
    Ok(u32::from_le_bytes(*take(&mut rest, "a version")?))
}

/// A head of this version.
pub(super) fn decode_head(value: &[u8]) -> Result<Head, String> {
    let mut rest = value;
    take::<4>(&mut rest, "a version")?;
    let mut rest = unseal(rest)?;
    let cluster_id = *take(&mut rest, "a cluster id")?;
    let mut next = || take(&mut rest, "a head").map(|bytes| u64::from_le_bytes(*bytes));
    let (num_batches, last) = (next()?, next()?);
    let hard_state = HardState {
        term: next()?,
        vote: next()?,
        commit: next()?,
    };
    let (index, term) = (next()?, next()?);
    let mut ids = || -> Result<BTreeSet<ReplicaId>, String> {
        let count = next()?;
        (0..count).map(|_| next().map(ReplicaId)).collect()
    };
    let (voters, learners) = (ids()?, ids()?);
    if !rest.is_empty() {
        return Err("it is longer than a head".to_owned());
    }
    Ok(Head {
        cluster_id,
        num_batches,
        last,
        hard_state,
        start: Mark {
            index,
            term,
            membership: Membership { voters, learners },
        },
    })
}
