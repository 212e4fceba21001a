//! What no source or page of the repository holds: notes to oneself, the paths of one machine,
//! files that do not say what they are, and files too long to proofread.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails, and says where"
)]

use std::path::{Path, PathBuf};

/// More lines than these are two files.
const MAX_LINES: usize = 520;

/// Cut in two here, so that this file does not hold them.
const WORDS: [&str; 4] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("unimpl", "emented!"),
    concat!("/tmp/", "brief"),
];

/// Where a path of one machine begins; in the middle of a longer path it is none.
const FOLDERS: [&str; 2] = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];

const ENDINGS: [&str; 14] = [
    "rs", "md", "toml", "proto", "sh", "txt", "html", "css", "js", "py", "yml", "yaml", "json",
    "service",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// Every text of the repository but what `.gitignore` names in the root folder.
fn texts() -> Vec<(PathBuf, String)> {
    let ignored = std::fs::read_to_string(root().join(".gitignore")).unwrap();
    let ignored: Vec<PathBuf> = ignored
        .lines()
        .filter_map(|line| line.strip_prefix('/'))
        .map(|name| root().join(name.trim_end_matches('/')))
        .collect();
    let mut folders = vec![root()];
    let mut texts = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                if entry.file_name() != ".git" && !ignored.contains(&path) {
                    folders.push(path);
                }
                continue;
            }
            let ending = path
                .extension()
                .and_then(|ending| ending.to_str())
                .unwrap_or_default();
            if ENDINGS.contains(&ending) || path.ends_with(".ci/run") {
                let text = std::fs::read_to_string(&path).unwrap();
                texts.push((path.strip_prefix(root()).unwrap().to_owned(), text));
            }
        }
    }
    texts.sort();
    assert!(
        texts
            .iter()
            .any(|(path, _)| path.ends_with("tests/words.rs")),
        "the walk finds this file"
    );
    texts
}

/// Whether the text holds a path that begins with `folder`.
fn names(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|before| before.is_alphanumeric() || "./-_~$}>".contains(before))
    })
}

#[test]
fn no_text_holds_notes_to_oneself_or_the_paths_of_one_machine() {
    let mut found = Vec::new();
    for (path, text) in texts() {
        for (line, number) in text.lines().zip(1..) {
            let words = WORDS.iter().filter(|word| line.contains(**word));
            let folders = FOLDERS.iter().filter(|folder| names(line, folder));
            found.extend(
                words
                    .chain(folders)
                    .map(|word| format!("{}:{number}: {word}", path.display())),
            );
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn every_source_says_what_it_is_and_can_be_read_in_one_go() {
    let mut found = Vec::new();
    for (path, text) in texts() {
        if path.extension().is_none_or(|ending| ending != "rs") {
            continue;
        }
        if !text.starts_with("//!") {
            found.push(format!("{} does not open with `//!`", path.display()));
        }
        let num_lines = text.lines().count();
        if num_lines > MAX_LINES {
            found.push(format!(
                "{} has {num_lines} lines; split it where it has two reasons to be read",
                path.display()
            ));
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn a_path_of_this_machine_is_told_from_the_middle_of_another() {
    let folder = FOLDERS[0];
    for text in [
        format!("{folder}x"),
        format!("in `{folder}`"),
        format!("\"{folder}\""),
    ] {
        assert!(names(&text, folder), "{text}");
    }
    for text in [
        format!("a/net{folder}x"),
        format!("..{folder}x"),
        format!("$HOME{folder}"),
    ] {
        assert!(!names(&text, folder), "{text}");
    }
}
