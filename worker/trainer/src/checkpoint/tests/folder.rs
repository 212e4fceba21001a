//! How files reach a folder, are read back, and leave it.

use super::*;

#[test]
fn published_file_is_read_back_and_leaves_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = folder.path().join("job/checkpoints");
    let [params, _] = files();
    let file = publish(&inner, Step(7), Content::Params, &params).expect("published");
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
        publish(&inner, Step(7), Content::Params, &params).expect("the same content"),
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
    let file = publish(folder.path(), Step(7), Content::Params, &params).expect("published");
    let mut altered = params.clone();
    altered[100] ^= 1;
    fs::write(folder.path().join(&file.name), &altered).expect("writable");
    let refusal =
        publish(folder.path(), Step(7), Content::Params, &params).expect_err("the name is taken");
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
fn only_what_nobody_could_use_is_damage() {
    let folder = tempfile::tempdir().expect("a folder");
    let inner = folder.path().join("checkpoints");
    let all = FILES.map(|content| {
        let bytes = encode(&snapshot(), content, &meta());
        publish(&inner, Step(7), content, &bytes).expect("published")
    });
    let path = inner.join(&all[0].name);
    let is_damage = || {
        let error = read_part(&inner, &all[0], &all).expect_err("not whole");
        let text = muster_cluster::error_chain(&error);
        assert!(text.contains(&all[0].name), "{text}");
        error.is_damage()
    };
    fs::write(&path, "short").expect("writable");
    assert!(is_damage(), "another size");
    fs::write(
        &path,
        vec![7; usize::try_from(all[0].bytes).expect("small")],
    )
    .expect("writable");
    assert!(is_damage(), "another hash");
    fs::remove_file(&path).expect("removable");
    assert!(is_damage(), "gone, and the other file is there");
    std::os::unix::fs::symlink(&path, &path).expect("a link to itself");
    assert!(!is_damage(), "nobody knows what is behind it");
    fs::remove_file(&path).expect("removable");
    fs::remove_file(inner.join(&all[1].name)).expect("removable");
    assert!(
        !is_damage(),
        "an empty folder may be one that is not mounted"
    );
    fs::remove_dir(&inner).expect("removable");
    assert!(!is_damage(), "no folder");
    fs::write(&inner, "").expect("writable");
    assert!(!is_damage(), "a file in place of the folder");
}

#[test]
fn truncated_and_altered_files_are_named_with_what_was_expected() {
    let folder = tempfile::tempdir().expect("a folder");
    let [params, _] = files();
    let file = publish(folder.path(), Step(7), Content::Params, &params).expect("published");
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
