//! What is in a checkpoint file, version 1.
//!
//! A safetensors file whose header's metadata has one key, `muster`: a JSON object with the keys
//! `version`, `job`, `identity`, `history`, `step` and `trace`, in this order. Equal states give
//! equal bytes. `params` has a tensor for each entry of the layout, under its name; `optimizer`
//! has one for each state vector and each entry but buffers, under `<vector>.<entry>`.
//! `optimizer.NN` has the same of share `NN` alone: an entry that is not all in the share gives the
//! elements `a..b` of its flat tensor, under `<vector>.<entry>[a..b]`. All are f32.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use muster_cluster::Step;
use muster_cluster::ids::{History, JobName};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::{CheckpointError, Content};
use crate::arena::{Entry, Group, Layout};
use crate::shares::{self, Cut};
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

/// A state as files gave it back.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) step: Step,
    pub(crate) trace: [u8; 32],
    pub(crate) arena: Vec<f32>,
    /// The shares that were asked for.
    pub(crate) shares: BTreeMap<u32, Vec<f32>>,
}

/// The bytes of one of the files of a checkpoint.
///
/// # Panics
/// When the snapshot has not all that is in the file.
#[must_use]
pub fn encode(snapshot: &Snapshot, content: Content, meta: &Meta) -> Vec<u8> {
    let whole: Vec<Vec<f32>>;
    let layout = &snapshot.layout;
    let vectors = snapshot.optimizer.vectors;
    let tensors: Vec<(String, TensorView<'_>)> = match content {
        Content::Params => {
            let arena = snapshot.arena.as_ref().expect("the parameters were copied");
            let entries = layout.entries().iter();
            entries
                .map(|entry| {
                    let values = &arena[entry.range()];
                    (entry.name.clone(), view(entry.shape.clone(), values))
                })
                .collect()
        }
        Content::Optimizer => {
            whole = joined(snapshot);
            let named = vectors.iter().zip(&whole).flat_map(|(vector, values)| {
                with_state(layout).map(move |entry| {
                    let values = &values[entry.range()];
                    (state_name(vector, entry), view(entry.shape.clone(), values))
                })
            });
            named.collect()
        }
        Content::Share(share) => {
            let range = Cut::new(layout.len()).range(share);
            let values = &snapshot.optimizer.shares[&share];
            let named = vectors.iter().enumerate().flat_map(|(number, vector)| {
                let values = &values[number * range.len()..(number + 1) * range.len()];
                let start = range.start;
                pieces(layout, range.clone()).map(move |piece| {
                    let inside = piece.inside.start - start..piece.inside.end - start;
                    (piece.name(vector), view(piece.shape(), &values[inside]))
                })
            });
            named.collect()
        }
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

fn with_state(layout: &Layout) -> impl Iterator<Item = &Entry> {
    let entries = layout.entries().iter();
    entries.filter(|entry| entry.group != Group::Buffer)
}

fn state_name(vector: &str, entry: &Entry) -> String {
    format!("{vector}.{}", entry.name)
}

/// What a share has of an entry that has a state.
struct Piece<'a> {
    entry: &'a Entry,
    /// In elements of the arena.
    inside: Range<usize>,
}

fn pieces(layout: &Layout, range: Range<usize>) -> impl Iterator<Item = Piece<'_>> {
    let entries = layout.entries_in(range);
    let pieces = entries.map(|(entry, inside)| Piece { entry, inside });
    pieces.filter(|piece| piece.entry.group != Group::Buffer)
}

impl Piece<'_> {
    fn is_whole(&self) -> bool {
        self.inside == self.entry.range()
    }

    fn name(&self, vector: &str) -> String {
        let name = state_name(vector, self.entry);
        if self.is_whole() {
            return name;
        }
        let offset = self.entry.offset;
        let (start, end) = (self.inside.start - offset, self.inside.end - offset);
        format!("{name}[{start}..{end}]")
    }

    fn shape(&self) -> Vec<usize> {
        if self.is_whole() {
            self.entry.shape.clone()
        } else {
            vec![self.inside.len()]
        }
    }
}

/// The vectors of an optimizer's state of which all shares are there.
fn joined(snapshot: &Snapshot) -> Vec<Vec<f32>> {
    let state = &snapshot.optimizer;
    let cut = Cut::new(snapshot.layout.len());
    let vector = |number: usize| {
        let parts = shares::all().flat_map(|share| {
            let len = cut.range(share).len();
            &state.shares[&share][number * len..(number + 1) * len]
        });
        parts.copied().collect()
    };
    (0..state.vectors.len()).map(vector).collect()
}

fn view(shape: Vec<usize>, values: &[f32]) -> TensorView<'_> {
    TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(values))
        .expect("a piece has its shape's length")
}

/// Reads the files of a checkpoint, by their logical names, for an arena of that layout and the
/// shares of an optimizer's state that are `kept`, of vectors of those names. Trusts nothing in them.
///
/// # Errors
/// [`CheckpointError::Malformed`] or [`CheckpointError::Mismatch`], which name the file, or
/// [`CheckpointError::Missing`].
pub(crate) fn decode(
    files: &BTreeMap<String, Vec<u8>>,
    layout: &Layout,
    vectors: &[&str],
    kept: &[u32],
    identity: &str,
) -> Result<Restored, CheckpointError> {
    let missing = |content: Content| CheckpointError::Missing {
        file: content.to_string(),
    };
    let of = |content: Content| files.get(&content.to_string());
    let params = of(Content::Params).ok_or_else(|| missing(Content::Params))?;
    let params = Parsed::new(Content::Params, params)?;
    params.expect("the identity", identity, &params.header.identity)?;
    let first = &params.header;
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
    let mut restored = Restored {
        step: Step(first.step),
        trace: trace.into(),
        arena,
        shares: BTreeMap::new(),
    };
    if let Some(bytes) = of(Content::Optimizer) {
        let optimizer = Parsed::new(Content::Optimizer, bytes)?;
        optimizer.expect_same(first)?;
        restored.shares = optimizer.whole_state(layout, vectors, kept)?;
        return Ok(restored);
    }
    for share in kept.iter().copied() {
        let content = Content::Share(share);
        let bytes = of(content).ok_or_else(|| missing(content))?;
        let parsed = Parsed::new(content, bytes)?;
        parsed.expect_same(first)?;
        let values = parsed.share(layout, vectors, share)?;
        restored.shares.insert(share, values);
    }
    Ok(restored)
}

/// One file, its structure checked and its tensors not yet.
struct Parsed<'a> {
    file: Content,
    header: Header,
    tensors: BTreeMap<String, TensorView<'a>>,
}

impl<'a> Parsed<'a> {
    fn new(file: Content, bytes: &'a [u8]) -> Result<Self, CheckpointError> {
        let malformed = |reason: String| CheckpointError::Malformed {
            file: file.to_string(),
            reason,
        };
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
                file: file.to_string(),
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

    /// It is of the same state as the file with that header.
    fn expect_same(&self, first: &Header) -> Result<(), CheckpointError> {
        let own = &self.header;
        let pairs = [
            ("the identity", first.identity.clone(), &own.identity),
            ("the job", first.job.clone(), &own.job),
            (
                "the history",
                first.history.to_string(),
                &own.history.to_string(),
            ),
            ("the step", first.step.to_string(), &own.step.to_string()),
            ("the trace", first.trace.clone(), &own.trace),
        ];
        let mut pairs = pairs.into_iter();
        pairs.try_for_each(|(what, expected, found)| self.expect(what, &expected, found))
    }

    /// The shares that are `kept`, out of a file of all of them.
    fn whole_state(
        &self,
        layout: &Layout,
        vectors: &[&str],
        kept: &[u32],
    ) -> Result<BTreeMap<u32, Vec<f32>>, CheckpointError> {
        self.expect_count(with_state(layout).count() * vectors.len())?;
        let cut = Cut::new(layout.len());
        let mut shares: BTreeMap<u32, Vec<f32>> =
            kept.iter().map(|share| (*share, Vec::new())).collect();
        for vector in vectors {
            let mut values = vec![0.0; layout.len()];
            for entry in with_state(layout) {
                let name = state_name(vector, entry);
                self.read(&name, &entry.shape, &mut values[entry.range()])?;
            }
            for (share, part) in &mut shares {
                part.extend_from_slice(&values[cut.range(*share)]);
            }
        }
        Ok(shares)
    }

    /// One share, out of a file of its own.
    fn share(
        &self,
        layout: &Layout,
        vectors: &[&str],
        share: u32,
    ) -> Result<Vec<f32>, CheckpointError> {
        let range = Cut::new(layout.len()).range(share);
        self.expect_count(pieces(layout, range.clone()).count() * vectors.len())?;
        let mut values = vec![0.0; range.len() * vectors.len()];
        for (number, vector) in vectors.iter().enumerate() {
            let of_vector = number * range.len();
            for piece in pieces(layout, range.clone()) {
                let start = of_vector + piece.inside.start - range.start;
                let end = of_vector + piece.inside.end - range.start;
                self.read(&piece.name(vector), &piece.shape(), &mut values[start..end])?;
            }
        }
        Ok(values)
    }

    fn malformed(&self, reason: String) -> CheckpointError {
        CheckpointError::Malformed {
            file: self.file.to_string(),
            reason,
        }
    }

    fn expect(&self, what: &str, expected: &str, found: &str) -> Result<(), CheckpointError> {
        if expected == found {
            return Ok(());
        }
        let [what, expected, found] = [what, expected, found].map(str::to_owned);
        Err(CheckpointError::Mismatch {
            file: self.file.to_string(),
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
