//! What is in the files: what is written is read back, and what was altered is named.

mod folder;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use muster_cluster::Step;
use muster_cluster::ids::{History, JobName};

use super::*;
use crate::arena::{Group, Layout};
use crate::optimizer::State;
use crate::shares::{self, Cut};
use crate::trainer::Snapshot;

const IDENTITY: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const VECTORS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

fn layout() -> Layout {
    let mut layout = Layout::default();
    layout.push("fc1.weight", [2, 3], Group::Weight);
    layout.push("fc1.bias", [3], Group::Bias);
    layout.push("norm.mean", [2], Group::Buffer);
    layout
}

fn snapshot() -> Snapshot {
    let layout = layout();
    let numbers = |scale: f32| {
        (0..layout.len())
            .map(|i| i as f32 * scale - 0.5)
            .collect::<Vec<_>>()
    };
    Snapshot {
        step: Step(7),
        trace: *blake3::hash(b"a trace").as_bytes(),
        arena: Some(numbers(0.25)),
        optimizer: state_of(&layout, numbers),
        layout,
    }
}

/// A state whose vectors are these numbers, and zero over buffers.
fn state_of(layout: &Layout, numbers: impl Fn(f32) -> Vec<f32>) -> State {
    let vectors = [0.125, 0.5].map(|scale| {
        let mut values = numbers(scale);
        for entry in layout
            .entries()
            .iter()
            .filter(|entry| entry.group == Group::Buffer)
        {
            values[entry.range()].fill(0.0);
        }
        values
    });
    let cut = Cut::new(layout.len());
    let share = |share| {
        let parts = vectors.iter().flat_map(|vector| &vector[cut.range(share)]);
        (share, parts.copied().collect())
    };
    State {
        vectors: &VECTORS,
        shares: shares::all().map(share).collect(),
    }
}

fn meta() -> Meta {
    Meta {
        job: JobName::new("digits").expect("a name"),
        identity: IDENTITY.to_owned(),
        history: History(2),
    }
}

const FILES: [Content; 2] = [Content::Params, Content::Optimizer];

fn files() -> [Vec<u8>; 2] {
    FILES.map(|file| encode(&snapshot(), file, &meta()))
}

fn decoded(params: &[u8], optimizer: &[u8]) -> Result<format::Restored, CheckpointError> {
    decode_for(&layout(), params, optimizer)
}

fn decode_for(
    layout: &Layout,
    params: &[u8],
    optimizer: &[u8],
) -> Result<format::Restored, CheckpointError> {
    let files = BTreeMap::from([
        ("params".to_owned(), params.to_vec()),
        ("optimizer".to_owned(), optimizer.to_vec()),
    ]);
    decode_kept(&files, layout, &snapshot().optimizer)
}

fn assert_is_the_snapshot(restored: &format::Restored) {
    let expected = snapshot();
    assert_eq!(
        (restored.step, restored.trace),
        (expected.step, expected.trace)
    );
    assert_eq!(Some(&restored.arena), expected.arena.as_ref());
    assert_eq!(restored.shares, expected.optimizer.shares);
}

/// The files as a trainer reads them that keeps what `state` has.
fn decode_kept(
    files: &BTreeMap<String, Vec<u8>>,
    layout: &Layout,
    state: &State,
) -> Result<super::format::Restored, CheckpointError> {
    let kept: Vec<u32> = state.shares.keys().copied().collect();
    decode(files, layout, state.vectors, &kept, IDENTITY)
}

#[test]
fn equal_states_give_equal_bytes_which_read_back() {
    let [params, optimizer] = files();
    assert_eq!([params.clone(), optimizer.clone()], files());
    assert_is_the_snapshot(&decoded(&params, &optimizer).expect("a whole checkpoint"));
}

/// The recorded files hold the format: `UPDATE_EXPECT=1` writes them, with a new version only.
#[test]
fn recorded_files_of_version_1_are_read_and_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/checkpoint-v1");
    let paths = FILES.map(|file| folder.join(format!("{file}.safetensors")));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::create_dir_all(&folder).expect("a writable checkout");
        for (path, bytes) in paths.iter().zip(files()) {
            fs::write(path, bytes).expect("a writable checkout");
        }
    }
    let recorded = paths.map(|path| fs::read(path).expect("a recorded file"));
    assert_is_the_snapshot(&decoded(&recorded[0], &recorded[1]).expect("a recorded checkpoint"));
    assert_eq!(
        recorded,
        files(),
        "equal states give equal bytes, also with yesterday's program"
    );
}

/// Entries larger than shares, so that some end in the middle of one.
fn large() -> Snapshot {
    let mut layout = Layout::default();
    layout.push("fc1.weight", [50, 1000], Group::Weight);
    layout.push("norm.mean", [1500], Group::Buffer);
    layout.push("fc1.bias", [9], Group::Bias);
    let numbers = |scale: f32| {
        (0..layout.len())
            .map(|i| (i % 977) as f32 * scale)
            .collect()
    };
    Snapshot {
        arena: Some(numbers(0.25)),
        optimizer: state_of(&layout, numbers),
        layout,
        ..snapshot()
    }
}

fn files_of(snapshot: &Snapshot, is_shared: bool) -> BTreeMap<String, Vec<u8>> {
    let files = Content::all(is_shared).into_iter();
    files
        .map(|content| (content.to_string(), encode(snapshot, content, &meta())))
        .collect()
}

#[test]
fn a_file_for_each_share_holds_what_one_file_of_all_holds() {
    let snapshot = large();
    let (apart, together) = (files_of(&snapshot, true), files_of(&snapshot, false));
    for wanted in [shares::all().collect(), vec![3, 17, 31]] {
        let mut state = snapshot.optimizer.clone();
        state.shares.retain(|share, _| wanted.contains(share));
        for files in [&apart, &together] {
            let read = decode_kept(files, &snapshot.layout, &state).expect("whole files");
            assert_eq!(read.shares, state.shares);
            assert_eq!(Some(&read.arena), snapshot.arena.as_ref());
        }
    }
}

#[test]
fn files_of_shares_that_are_missing_or_swapped_are_named() {
    let snapshot = large();
    let mut files = files_of(&snapshot, true);
    let read = |files: &_| {
        let read = decode_kept(files, &snapshot.layout, &snapshot.optimizer);
        read.expect_err("not whole").to_string()
    };
    let third = files.remove("optimizer.03").expect("it is there");
    assert_eq!(read(&files), "the checkpoint has no optimizer.03 file");
    files.insert("optimizer.03".to_owned(), files["optimizer.04"].clone());
    let text = read(&files);
    assert!(text.starts_with("the optimizer.03 file"), "{text}");
    files.insert("optimizer.03".to_owned(), third);
    let other = Meta {
        history: History(9),
        ..meta()
    };
    let foreign = encode(&snapshot, Content::Share(30), &other);
    files.insert("optimizer.30".to_owned(), foreign);
    let text = read(&files);
    assert!(
        text.contains("optimizer.30 file") && text.contains("history is 9"),
        "{text}"
    );
}

#[test]
fn logical_names_are_read_as_they_are_written() {
    for content in Content::all(true).into_iter().chain(Content::all(false)) {
        assert_eq!(Content::of_logical(&content.to_string()), Some(content));
    }
    for name in [
        "optimizer.",
        "optimizer.3",
        "optimizer.003",
        "optimizer.32",
        "optimizer.+1",
        "",
    ] {
        assert_eq!(Content::of_logical(name), None, "{name}");
    }
}

#[test]
fn hostile_files_are_refused_and_never_panic() {
    let [params, optimizer] = files();
    for length in 0..params.len() {
        assert!(
            decoded(&params[..length], &optimizer).is_err(),
            "{length} bytes"
        );
    }
    // Whatever single byte of the header is altered: an error, or the same shapes and names.
    for at in 0..params.len().min(700) {
        for mask in [0x01, 0x20, 0x80] {
            let mut altered = params.clone();
            altered[at] ^= mask;
            let _ = decoded(&altered, &optimizer);
        }
    }
    let mut absurd = params.clone();
    absurd[..8].fill(0xff);
    assert!(matches!(
        decoded(&absurd, &optimizer),
        Err(CheckpointError::Malformed { file, .. }) if file == "params"
    ));
}

fn refusal(params: &[u8], optimizer: &[u8]) -> String {
    decoded(params, optimizer)
        .expect_err("files that do not belong here")
        .to_string()
}

#[test]
fn files_of_other_states_are_refused_by_name() {
    let [params, optimizer] = files();
    let other_identity = Meta {
        identity: "other".to_owned(),
        ..meta()
    };
    let mut other_step = snapshot();
    other_step.step = Step(8);
    let mut other_trace = snapshot();
    other_trace.trace[0] ^= 1;

    let text = refusal(
        &encode(&snapshot(), Content::Params, &other_identity),
        &optimizer,
    );
    assert!(
        text.contains("params file") && text.contains("the identity is other"),
        "{text}"
    );
    let text = refusal(&params, &encode(&other_step, Content::Optimizer, &meta()));
    assert!(
        text.contains("optimizer file") && text.contains("the step is 8, expected 7"),
        "{text}"
    );
    let text = refusal(&params, &encode(&other_trace, Content::Optimizer, &meta()));
    assert!(text.contains("the trace is"), "{text}");
    // The two files, swapped.
    let text = refusal(&optimizer, &params);
    assert!(
        text.contains("params file") && text.contains("the number of tensors is 4"),
        "{text}"
    );
}

#[test]
fn other_names_and_shapes_are_refused() {
    let [params, optimizer] = files();
    let read = |layout: &Layout| decode_for(layout, &params, &optimizer);
    let mut transposed = Layout::default();
    transposed.push("fc1.weight", [3, 2], Group::Weight);
    transposed.push("fc1.bias", [3], Group::Bias);
    transposed.push("norm.mean", [2], Group::Buffer);
    let text = read(&transposed).expect_err("another shape").to_string();
    assert!(
        text.contains("the shape of fc1.weight is [2, 3], expected [3, 2]"),
        "{text}"
    );
    let mut renamed = Layout::default();
    renamed.push("fc2.weight", [2, 3], Group::Weight);
    renamed.push("fc1.bias", [3], Group::Bias);
    renamed.push("norm.mean", [2], Group::Buffer);
    let text = read(&renamed).expect_err("another name").to_string();
    assert!(text.contains("no tensor \"fc2.weight\""), "{text}");
}
