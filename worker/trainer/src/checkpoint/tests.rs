//! What is written is read back; what was altered is named.

use std::fs;
use std::path::Path;

use muster_cluster::Step;
use muster_cluster::ids::{History, JobName};

use super::*;
use crate::arena::{Group, Layout};
use crate::optimizer::StateVector;
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
    let vector = |name, scale| {
        let mut values = numbers(scale);
        values[9..].fill(0.0);
        StateVector { name, values }
    };
    Snapshot {
        step: Step(7),
        trace: *blake3::hash(b"a trace").as_bytes(),
        entries: layout.entries().to_vec(),
        arena: numbers(0.25),
        optimizer: vec![vector(VECTORS[0], 0.125), vector(VECTORS[1], 0.5)],
    }
}

fn meta() -> Meta {
    Meta {
        job: JobName::new("digits").expect("a name"),
        identity: IDENTITY.to_owned(),
        history: History(2),
    }
}

fn files() -> [Vec<u8>; 2] {
    FILES.map(|file| encode(&snapshot(), file, &meta()))
}

fn decoded(params: &[u8], optimizer: &[u8]) -> Result<format::Restored, CheckpointError> {
    decode(params, optimizer, &layout(), &VECTORS, IDENTITY)
}

fn assert_is_the_snapshot(restored: &format::Restored) {
    let expected = snapshot();
    assert_eq!(
        (restored.step, restored.trace),
        (expected.step, expected.trace)
    );
    assert_eq!(restored.arena, expected.arena);
    let vectors: Vec<_> = expected
        .optimizer
        .into_iter()
        .map(|vector| vector.values)
        .collect();
    assert_eq!(restored.optimizer, vectors);
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
        Err(CheckpointError::Malformed { file: "params", .. })
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

    let text = refusal(&encode(&snapshot(), "params", &other_identity), &optimizer);
    assert!(
        text.contains("params file") && text.contains("the identity is other"),
        "{text}"
    );
    let text = refusal(&params, &encode(&other_step, "optimizer", &meta()));
    assert!(
        text.contains("optimizer file") && text.contains("the step is 8, expected 7"),
        "{text}"
    );
    let text = refusal(&params, &encode(&other_trace, "optimizer", &meta()));
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
    let read = |layout: &Layout| decode(&params, &optimizer, layout, &VECTORS, IDENTITY);
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

#[test]
fn published_file_is_read_back_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = folder.path().join("job/checkpoints");
    let [params, _] = files();
    let file = publish(&inner, Step(7), "params", &params).expect("published");
    let hash = blake3::hash(&params).to_hex();
    assert_eq!(
        file.name,
        format!("step-00000007-params-{}.safetensors", &hash[..16])
    );
    assert_eq!(
        (file.bytes, file.hash.as_str()),
        (params.len() as u64, hash.as_str())
    );
    assert_eq!(read_verified(&inner, &file).expect("whole"), params);
    assert_eq!(
        publish(&inner, Step(7), "params", &params).expect("the same content"),
        file
    );
    assert_eq!(names(&inner), [file.name]);
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<_> = entries
        .map(|entry| name(entry).into_string().expect("UTF-8"))
        .collect();
    names.sort();
    names
}

#[test]
fn publishing_never_replaces_a_file_of_that_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let [params, _] = files();
    let file = publish(folder.path(), Step(7), "params", &params).expect("published");
    let mut altered = params.clone();
    altered[100] ^= 1;
    fs::write(folder.path().join(&file.name), &altered).expect("writable");
    let refusal =
        publish(folder.path(), Step(7), "params", &params).expect_err("the name is taken");
    assert!(
        matches!(refusal, CheckpointError::WrongHash { .. }),
        "{refusal}"
    );
    assert_eq!(
        fs::read(folder.path().join(&file.name)).expect("readable"),
        altered
    );
    assert_eq!(names(folder.path()), [file.name]);
}

#[test]
fn truncated_and_altered_files_are_named_with_what_was_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    let [params, _] = files();
    let file = publish(folder.path(), Step(7), "params", &params).expect("published");
    let path = folder.path().join(&file.name);
    fs::write(&path, &params[..params.len() - 1]).expect("writable");
    let text = read_verified(folder.path(), &file)
        .expect_err("truncated")
        .to_string();
    let sizes = format!(
        "has {} bytes and was written with {}",
        params.len() - 1,
        params.len()
    );
    assert!(text.contains(&file.name) && text.contains(&sizes), "{text}");
    let mut altered = params.clone();
    *altered.last_mut().expect("not empty") ^= 0x10;
    fs::write(&path, &altered).expect("writable");
    let text = read_verified(folder.path(), &file)
        .expect_err("altered")
        .to_string();
    let found = blake3::hash(&altered).to_hex();
    assert!(
        text.contains(&file.name) && text.contains(&file.hash) && text.contains(found.as_str()),
        "{text}"
    );
    fs::remove_file(&path).expect("removable");
    let text = read_verified(folder.path(), &file)
        .expect_err("missing")
        .to_string();
    assert!(text.contains(&file.name), "{text}");
}

#[test]
fn names_from_elsewhere_are_not_opened() {
    let folder = tempfile::tempdir().expect("a folder");
    let bad = [
        "../secret",
        "/etc/hostname",
        "",
        "step-00000001-params-0123456789abcdef.safetensors/..",
        "step-00000001-../a-0123456789abcdef.safetensors",
        "step-1-params-0123456789abcdef.safetensors",
    ];
    for name in bad {
        let file = FileRef {
            name: name.to_owned(),
            bytes: 0,
            hash: String::new(),
        };
        let refusal = read_verified(folder.path(), &file).expect_err("no name of ours");
        assert!(
            matches!(refusal, CheckpointError::BadName { .. }),
            "{name}: {refusal}"
        );
    }
}

#[test]
fn retired_files_go_and_kept_newer_and_foreign_ones_stay() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str| fs::write(folder.path().join(name), name).expect("writable");
    let name =
        |step: u64, file: &str, hash: u64| format!("step-{step:08}-{file}-{hash:016x}.safetensors");
    let keep = [
        name(20, "params", 1),
        name(20, "optimizer", 2),
        name(30, "params", 3),
    ];
    let retired = [
        name(10, "params", 4),
        name(20, "params", 5),
        name(30, "optimizer", 6),
    ];
    let left_over = format!(".{}.17-0.tmp", name(10, "params", 7));
    let foreign = [
        "notes.txt",
        "step-00000001-weights-0123456789abcdef.safetensors",
        "step-5.safetensors",
    ];
    let newer = [
        name(31, "params", 8),
        format!(".{}.17-0.tmp", name(30, "params", 9)),
    ];
    let all = keep
        .iter()
        .chain(&retired)
        .chain([&left_over])
        .chain(&newer);
    all.for_each(|name| write(name));
    foreign.iter().for_each(|name| write(name));

    assert!(
        remove_retired(folder.path(), &[])
            .expect("nothing is known to be kept")
            .is_empty()
    );
    let mut expected: Vec<_> = retired.iter().cloned().chain([left_over]).collect();
    expected.sort();
    assert_eq!(
        remove_retired(folder.path(), &keep).expect("removed"),
        expected
    );
    let mut stay: Vec<_> = keep
        .iter()
        .chain(&newer)
        .cloned()
        .chain(foreign.map(str::to_owned))
        .collect();
    stay.sort();
    assert_eq!(names(folder.path()), stay);
}

#[test]
fn folder_that_cannot_be_written_is_found_before_anything_is() {
    let folder = tempfile::tempdir().expect("a folder");
    check_writable(folder.path()).expect("writable");
    check_writable(&folder.path().join("not/there/yet")).expect("can be made");
    assert!(names(folder.path()).is_empty(), "nothing was written");
    fs::write(folder.path().join("file"), "").expect("writable");
    let text = check_writable(&folder.path().join("file/inner"))
        .expect_err("below a file")
        .to_string();
    assert!(
        text.contains("write checkpoints into") && text.ends_with("file/inner"),
        "{text}"
    );
}
