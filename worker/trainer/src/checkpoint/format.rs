//! What is in a checkpoint file, version 1.
//!
//! A safetensors file whose header's metadata has one key, `muster`: a JSON object with the keys
//! `version`, `job`, `identity`, `history`, `step` and `trace`, in this order. Equal states give
//! equal bytes. `params` has a tensor for each entry of the layout, under its name; `optimizer`
//! has one for each state vector and each entry but buffers, under `<vector>.<entry>`. All are
//! f32.

use std::collections::{BTreeMap, HashMap};

use muster_cluster::Step;
use muster_cluster::ids::{History, JobName};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::{CheckpointError, FILES};
use crate::arena::{Entry, Group, Layout};
use crate::trainer::Snapshot;

const VERSION: u32 = 1;
/// No job gets there; beyond it, the next step's number would have an end.
const MAX_STEP: u64 = 1 << 62;
const METADATA_KEY: &str = "muster";

/// Whose checkpoint it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The job.
    pub job: JobName,
    /// The digest of its identity, in hex.
    pub identity: String,
    /// The line of steps that it was written in.
    pub history: History,
}

/// The value of the one metadata key; fields are written in this order.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    job: String,
    identity: String,
    history: u64,
    step: u64,
    trace: String,
}

/// A state as two files gave it back.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) step: Step,
    pub(crate) trace: [u8; 32],
    pub(crate) arena: Vec<f32>,
    /// In the order of the vectors that were asked for.
    pub(crate) optimizer: Vec<Vec<f32>>,
}

/// The bytes of one of the files of a checkpoint.
///
/// # Panics
/// When `logical_name` is not one of [`FILES`].
#[must_use]
pub fn encode(snapshot: &Snapshot, logical_name: &str, meta: &Meta) -> Vec<u8> {
    assert!(
        FILES.contains(&logical_name),
        "{logical_name} is not one of {FILES:?}"
    );
    let tensors: Vec<(String, TensorView<'_>)> = if logical_name == FILES[0] {
        let entries = snapshot.entries.iter();
        entries
            .map(|entry| (entry.name.clone(), view(entry, &snapshot.arena)))
            .collect()
    } else {
        let vectors = snapshot.optimizer.iter();
        let named = vectors.flat_map(|vector| {
            let entries = with_state(&snapshot.entries);
            entries.map(|entry| (state_name(vector.name, entry), view(entry, &vector.values)))
        });
        named.collect()
    };
    let header = Header {
        version: VERSION,
        job: meta.job.to_string(),
        identity: meta.identity.clone(),
        history: meta.history.0,
        step: snapshot.step.0,
        trace: snapshot.trace(),
    };
    let header = serde_json::to_string(&header).expect("numbers and texts are always JSON");
    // One key: the order of a HashMap's keys is not fixed.
    let metadata = HashMap::from([(METADATA_KEY.to_owned(), header)]);
    safetensors::serialize(tensors, Some(metadata)).expect("every tensor has its shape's length")
}

fn with_state(entries: &[Entry]) -> impl Iterator<Item = &Entry> {
    entries.iter().filter(|entry| entry.group != Group::Buffer)
}

fn state_name(vector: &str, entry: &Entry) -> String {
    format!("{vector}.{}", entry.name)
}

fn view<'a>(entry: &Entry, values: &'a [f32]) -> TensorView<'a> {
    let bytes = bytemuck::cast_slice(&values[entry.range()]);
    TensorView::new(Dtype::F32, entry.shape.clone(), bytes)
        .expect("an entry has its shape's length")
}

/// Reads the files of a checkpoint for an arena of that layout and an optimizer with these state
/// vectors. Trusts nothing in them.
///
/// # Errors
/// [`CheckpointError::Malformed`] or [`CheckpointError::Mismatch`], which name the file.
pub(crate) fn decode(
    params: &[u8],
    optimizer: &[u8],
    layout: &Layout,
    vectors: &[&str],
    identity: &str,
) -> Result<Restored, CheckpointError> {
    let params = Parsed::new(FILES[0], params)?;
    let optimizer = Parsed::new(FILES[1], optimizer)?;
    params.expect("the identity", identity, &params.header.identity)?;
    let (first, second) = (&params.header, &optimizer.header);
    optimizer.expect("the identity", &first.identity, &second.identity)?;
    optimizer.expect("the job", &first.job, &second.job)?;
    optimizer.expect(
        "the history",
        &first.history.to_string(),
        &second.history.to_string(),
    )?;
    optimizer.expect(
        "the step",
        &first.step.to_string(),
        &second.step.to_string(),
    )?;
    optimizer.expect("the trace", &first.trace, &second.trace)?;
    if first.step > MAX_STEP {
        return Err(params.malformed(format!(
            "its step is {}, at most {MAX_STEP} is possible",
            first.step
        )));
    }
    let trace = blake3::Hash::from_hex(&first.trace).map_err(|_| {
        params.malformed(format!("the trace {:?} is not 64 hex digits", first.trace))
    })?;

    let mut arena = vec![0.0; layout.len()];
    params.expect_count(layout.entries().len())?;
    for entry in layout.entries() {
        params.read(&entry.name, &entry.shape, &mut arena[entry.range()])?;
    }
    optimizer.expect_count(with_state(layout.entries()).count() * vectors.len())?;
    let mut state = Vec::with_capacity(vectors.len());
    for vector in vectors {
        let mut values = vec![0.0; layout.len()];
        for entry in with_state(layout.entries()) {
            optimizer.read(
                &state_name(vector, entry),
                &entry.shape,
                &mut values[entry.range()],
            )?;
        }
        state.push(values);
    }
    Ok(Restored {
        step: Step(first.step),
        trace: trace.into(),
        arena,
        optimizer: state,
    })
}

/// One file, its structure checked and its tensors not yet.
struct Parsed<'a> {
    file: &'static str,
    header: Header,
    tensors: BTreeMap<String, TensorView<'a>>,
}

impl<'a> Parsed<'a> {
    fn new(file: &'static str, bytes: &'a [u8]) -> Result<Self, CheckpointError> {
        let malformed = |reason: String| CheckpointError::Malformed { file, reason };
        let (_, metadata) =
            SafeTensors::read_metadata(bytes).map_err(|error| malformed(format!("{error:?}")))?;
        let text = metadata
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(METADATA_KEY));
        let text =
            text.ok_or_else(|| malformed(format!("its metadata has no key {METADATA_KEY:?}")))?;
        // The version first: another version may have other keys.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let json = |error: serde_json::Error| malformed(format!("its metadata: {error}"));
        let Versioned { version } = serde_json::from_str(text).map_err(json)?;
        if version != VERSION {
            return Err(CheckpointError::Mismatch {
                file,
                what: "the format version".to_owned(),
                expected: VERSION.to_string(),
                found: version.to_string(),
            });
        }
        let header = serde_json::from_str(text).map_err(json)?;
        let tensors =
            SafeTensors::deserialize(bytes).map_err(|error| malformed(format!("{error:?}")))?;
        Ok(Self {
            file,
            header,
            tensors: tensors.tensors().into_iter().collect(),
        })
    }

    fn malformed(&self, reason: String) -> CheckpointError {
        CheckpointError::Malformed {
            file: self.file,
            reason,
        }
    }

    fn expect(&self, what: &str, expected: &str, found: &str) -> Result<(), CheckpointError> {
        if expected == found {
            return Ok(());
        }
        let [what, expected, found] = [what, expected, found].map(str::to_owned);
        Err(CheckpointError::Mismatch {
            file: self.file,
            what,
            expected,
            found,
        })
    }

    fn expect_count(&self, expected: usize) -> Result<(), CheckpointError> {
        self.expect(
            "the number of tensors",
            &expected.to_string(),
            &self.tensors.len().to_string(),
        )
    }

    fn read(&self, name: &str, shape: &[usize], out: &mut [f32]) -> Result<(), CheckpointError> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| self.malformed(format!("it has no tensor {name:?}")))?;
        self.expect(
            &format!("the type of {name}"),
            "F32",
            &format!("{:?}", tensor.dtype()),
        )?;
        self.expect(
            &format!("the shape of {name}"),
            &format!("{shape:?}"),
            &format!("{:?}", tensor.shape()),
        )?;
        // The file's tensors need not lie on addresses that an f32 may have.
        let (values, rest) = tensor.data().as_chunks();
        if values.len() != out.len() || !rest.is_empty() {
            return Err(
                self.malformed(format!("tensor {name:?} has {} bytes", tensor.data().len()))
            );
        }
        for (out, value) in out.iter_mut().zip(values) {
            *out = f32::from_le_bytes(*value);
        }
        Ok(())
    }
}
