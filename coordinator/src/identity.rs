//! Who a coordinator is, in a file beside its log: which cluster, which number, and which disk. It is
//! written once, before the first vote, and never changed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use muster_coordinator_core::consensus::ReplicaId;
use serde::{Deserialize, Serialize};

use crate::store::WAY_OUT;

/// The format that this program writes and reads.
const FORMAT: u32 = 1;

const NAME: &str = "identity.json";

/// Who a coordinator is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) cluster_id: [u8; 16],
    pub(crate) id: ReplicaId,
    /// The log that it was made with.
    pub(crate) store_id: [u8; 16],
    /// The members that founded the group, and where they were reached; empty for one that joined.
    pub(crate) founders: BTreeMap<ReplicaId, String>,
    /// Where one that joined is reached, as the group was told.
    pub(crate) address: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Written {
    format: u32,
    cluster: String,
    member: u64,
    store: String,
    founders: BTreeMap<u64, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<String>,
}

/// Why it is not known who a coordinator is.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk.
    #[error("{}: cannot be read or written", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// It is not as it was written.
    #[error("{}: {reason}; {}", .path.display(), WAY_OUT)]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Another version wrote it.
    #[error("{}: it has format {found}, this program reads {FORMAT}; use the version that wrote it", .path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The format.
        found: u32,
    },
}

impl Identity {
    /// What a folder says; `None` where nobody used it yet.
    pub(crate) fn read(data: &Path) -> Result<Option<Self>, IdentityError> {
        let path = data.join(NAME);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(IdentityError::Io { path, source }),
        };
        let damaged = |reason: String| IdentityError::Damaged {
            path: path.clone(),
            reason,
        };
        let value: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let format = value.get("format").and_then(serde_json::Value::as_u64);
        match format.and_then(|format| u32::try_from(format).ok()) {
            Some(FORMAT) => {}
            Some(found) => return Err(IdentityError::Version { path, found }),
            None => return Err(damaged("it says no format".to_owned())),
        }
        let written: Written =
            serde_json::from_value(value).map_err(|error| damaged(error.to_string()))?;
        let founders = written.founders.into_iter();
        Ok(Some(Self {
            cluster_id: from_hex(&written.cluster)
                .ok_or_else(|| damaged("cluster is no id".to_owned()))?,
            id: ReplicaId(written.member),
            store_id: from_hex(&written.store)
                .ok_or_else(|| damaged("store is no id".to_owned()))?,
            founders: founders
                .map(|(id, address)| (ReplicaId(id), address))
                .collect(),
            address: written.address,
        }))
    }

    /// Makes it durable.
    pub(crate) fn write(&self, data: &Path) -> Result<(), IdentityError> {
        let path = data.join(NAME);
        let founders = self.founders.iter();
        let written = Written {
            format: FORMAT,
            cluster: to_hex(&self.cluster_id),
            member: self.id.0,
            store: to_hex(&self.store_id),
            founders: founders
                .map(|(id, address)| (id.0, address.clone()))
                .collect(),
            address: self.address.clone(),
        };
        let written = serde_json::to_vec_pretty(&written)
            .map_err(io::Error::other)
            .and_then(|text| write_durably(&path, &text));
        written.map_err(|source| IdentityError::Io { path, source })
    }
}

/// Writes a file whole, so that it is there as it should be or as it was.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_parts_durably(path, |file| file.write_all(bytes))
}

/// The same for what is not in memory as a whole: `write` is given the file.
pub(crate) fn write_parts_durably<T>(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<T>,
) -> io::Result<T> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    let written = write(&mut file)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(written)
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 16]> {
    let mut bytes = [0; 16];
    if text.len() != 32 || !text.is_ascii() {
        return None;
    }
    for (place, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_it_is_comes_back_and_what_is_damaged_or_newer_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Identity::read(folder.path()).unwrap(), None);
        let identity = Identity {
            cluster_id: [0xab; 16],
            id: ReplicaId(2),
            store_id: [3; 16],
            founders: BTreeMap::from([(ReplicaId(2), "b:4600".to_owned())]),
            address: Some("c:4600".to_owned()),
        };
        identity.write(folder.path()).unwrap();
        assert_eq!(Identity::read(folder.path()).unwrap(), Some(identity));
        let path = folder.path().join(NAME);
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
        let error = Identity::read(folder.path()).unwrap_err();
        assert!(error.to_string().contains("format 2"), "{error}");
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        let error = Identity::read(folder.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Damaged { .. }), "{error}");
    }
}
