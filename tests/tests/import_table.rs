//! Who may import whom: the tables of `ARCHITECTURE.md` against what the manifests say.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot go on fails, and says where"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use cargo_metadata::{Dependency, DependencyKind, MetadataCommand, Package};

/// These decide and do not act; their tests keep away from quarantined dependencies as well.
const PURE: [&str; 4] = ["cluster", "consensus", "coordinator-core", "worker-core"];

/// The rows of the table under `heading`'s section whose first column is named `first`.
fn table(text: &str, first: &str) -> BTreeMap<String, BTreeSet<String>> {
    let (_, section) = text
        .split_once("\n## Who may import whom\n")
        .expect("ARCHITECTURE.md has the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let head = format!("| {first} |");
    let lines = section
        .lines()
        .skip_while(|line| !line.starts_with(&head))
        .skip(2);
    let rows = lines.take_while(|line| line.starts_with('|'));
    let cells = |row: &str| -> (String, BTreeSet<String>) {
        let mut cells = row.trim_matches('|').split('|').map(str::trim);
        let (name, list) = (cells.next().unwrap(), cells.next().unwrap());
        let list = list
            .split(", ")
            .filter(|one| !["nothing of ours", "nobody yet"].contains(one));
        (name.to_owned(), list.map(str::to_owned).collect())
    };
    rows.map(cells).collect()
}

fn architecture() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    std::fs::read_to_string(path).expect("read ARCHITECTURE.md")
}

fn packages() -> Vec<Package> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut command = MetadataCommand::new();
    command
        .manifest_path(manifest)
        .no_deps()
        .other_options(["--offline".to_owned()]);
    command.exec().expect("run `cargo metadata`").packages
}

/// The name of one of our crates in the table; `None` for others' crates.
fn short(package: &str) -> Option<&str> {
    if package == "muster" {
        Some("cli")
    } else {
        package.strip_prefix("muster-")
    }
}

fn is_linked(dependency: &Dependency) -> bool {
    dependency.kind != DependencyKind::Development
}

#[test]
fn our_crates_import_each_other_as_the_table_says() {
    let allowed = table(&architecture(), "crate");
    let packages = packages();
    let ours: BTreeMap<String, BTreeSet<String>> = packages
        .iter()
        .map(|package| {
            let dependencies = package.dependencies.iter().filter(|one| is_linked(one));
            let ours = dependencies
                .filter_map(|one| short(&one.name))
                .map(str::to_owned);
            (
                short(&package.name)
                    .expect("our packages are named muster-*")
                    .to_owned(),
                ours.collect(),
            )
        })
        .collect();
    let (rows, crates): (Vec<_>, Vec<_>) = (allowed.keys().collect(), ours.keys().collect());
    assert_eq!(rows, crates, "the table has a row for each crate");
    for (name, imports) in &ours {
        let beyond: Vec<_> = imports.difference(&allowed[name]).collect();
        assert!(
            beyond.is_empty(),
            "{name} imports {beyond:?}; the table of ARCHITECTURE.md allows {:?}",
            allowed[name]
        );
    }
}

#[test]
fn awkward_dependencies_stay_in_their_quarantine() {
    let quarantines = table(&architecture(), "dependency");
    let known: Vec<_> = quarantines.keys().map(String::as_str).collect();
    assert_eq!(known, ["burn", "cudarc", "raft", "raft-engine"]);
    let mut importers: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let name = short(&package.name)
            .expect("our packages are named muster-*")
            .to_owned();
        for dependency in &package.dependencies {
            let Some((guarded, _)) = quarantines.get_key_value(&dependency.name) else {
                continue;
            };
            if is_linked(dependency) || PURE.contains(&name.as_str()) {
                importers.entry(guarded).or_default().insert(name.clone());
            }
        }
    }
    for (dependency, allowed) in &quarantines {
        let found = importers
            .get(dependency.as_str())
            .cloned()
            .unwrap_or_default();
        assert_eq!(&found, allowed, "who imports {dependency}");
    }
}
