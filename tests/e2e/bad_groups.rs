//! What a person gets wrong about a group of coordinators: one message that says what to do, and nothing
//! changed on any disk.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use muster_tests::{Group, Sandbox, eventually};

fn group() -> Group {
    Group::new(env!("CARGO_BIN_EXE_muster"), 3)
}

/// Every file below a folder, with what is in it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.display().to_string(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Checks that a command was refused with all of `words`.
#[track_caller]
fn check(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{words:?}\n{stderr}");
    assert!(output.stdout.is_empty(), "{words:?}: it serves");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is missing:\n{stderr}");
    }
    let errors = stderr.lines().filter(|line| line.starts_with("error:"));
    assert_eq!(errors.count(), 1, "one message:\n{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// A coordinator with these arguments, in a folder that is not there yet.
fn coordinator(sandbox: &Sandbox, arguments: &[&str]) -> Command {
    let mut command = sandbox.muster();
    command
        .args(["coordinator", "--listen", "127.0.0.1:0", "--data"])
        .arg(sandbox.path().join("data"))
        .args(arguments);
    command
}

#[test]
fn members_that_make_no_group_are_refused_before_anything_is_written() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let three = "1=a:1,2=b:1,3=c:1";
    let cases: [(&[&str], &[&str]); 9] = [
        (
            &["--id", "1", "--peers", "1=a:1,1=b:1,2=c:1"],
            &["a:1 and b:1 are both member 1", "a number of its own"],
        ),
        (&["--peers", three], &["--peers needs --id"]),
        (
            &["--id", "4", "--peers", three],
            &["does not have member 4", "this one included"],
        ),
        (
            &["--id", "1", "--peers", "1=a:1,2=b:1"],
            &["--peers has 2 members", "1, 3 or 5"],
        ),
        (
            &["--id", "1", "--peers", "1=a:1,2=b:1,3=c:1,4=d:1"],
            &["--peers has 4 members"],
        ),
        (
            &["--id", "1", "--peers", "1=a:1,2=b:1,3=c"],
            &["--peers", "there is no port"],
        ),
        (
            &["--id", "1", "--peers", "a:1,b:1,c:1"],
            &["expected NUMBER=HOST:PORT"],
        ),
        (&["--id", "0"], &["--id", "1.."]),
        (
            &["--join", "127.0.0.1:1"],
            &["--id is missing", "muster coordinator add"],
        ),
    ];
    for (arguments, words) in cases {
        let output = coordinator(&sandbox, arguments).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        for word in words {
            assert!(stderr.contains(word), "{word:?} is missing:\n{stderr}");
        }
        assert!(!sandbox.path().join("data").exists(), "{arguments:?}");
    }
}

#[test]
fn a_member_that_is_told_that_it_is_another_one_is_refused() {
    let mut group = group();
    let _ = group.leader();
    group.kill(1);
    let data = group.data(1);
    let before = files(&data);
    let identity = |id: &str, peers: &str| {
        let mut command = group.cluster.sandbox.muster();
        command.args(["coordinator", "--listen", group.address(1), "--data"]);
        command.arg(&data).args(["--id", id, "--peers", peers]);
        command.output().unwrap()
    };
    let peers = [1, 2, 3].map(|id| format!("{id}={}", group.address(id)));
    let told = identity("2", &peers.join(","));
    check(&told, 2, &["--id 2", "that of member 1", "leave --id out"]);
    let others = [&peers[0], "2=127.0.0.1:1", &peers[2]].join(",");
    let told = identity("1", &others);
    check(
        &told,
        2,
        &["disagrees with the group", "--moved", "coordinator add"],
    );

    let file = data.join("identity.json");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("\"format\": 1", "\"format\": 2")).unwrap();
    let told = group.command(1).output().unwrap();
    check(
        &told,
        2,
        &["identity.json", "format 2", "use the version that wrote it"],
    );
    fs::write(&file, &text[..text.len() / 2]).unwrap();
    let told = group.command(1).output().unwrap();
    check(&told, 2, &["identity.json", "replace this member"]);
    fs::remove_file(&file).unwrap();
    let told = group.command(1).output().unwrap();
    check(&told, 2, &["identity.json is missing"]);
    fs::write(&file, &text).unwrap();

    let after = files(&data);
    let identity = |files: &BTreeMap<String, Vec<u8>>| {
        let found = files
            .iter()
            .find(|(name, _)| name.ends_with("identity.json"));
        found.map(|(_, bytes)| bytes.clone())
    };
    assert_eq!(identity(&before), identity(&after));
    // All that it promised is still there.
    group.start(1);
    group.agree(&[1, 2, 3]);
}

#[test]
fn one_that_joins_where_nobody_knows_it_is_told_whom_to_ask() {
    let group = group();
    // Nobody listens there.
    let nobody = "127.0.0.1:1";
    let cases: [(&str, &[&str]); 2] = [
        (
            group.address(1),
            &[
                "member 7 does not belong to the group",
                "muster coordinator add 127.0.0.1:0 --id 7",
            ],
        ),
        (nobody, &[nobody, "Connection refused"]),
    ];
    // Each tries for a while.
    let all_join = || {
        std::thread::scope(|scope| {
            for (join, words) in cases {
                scope.spawn(move || {
                    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
                    let mut command = coordinator(&sandbox, &["--id", "7", "--join", join]);
                    check(&command.output().unwrap(), 2, words);
                    assert!(!sandbox.path().join("data").exists());
                });
            }
        });
    };
    let _ = group.under_one_leader(|_| all_join());
    assert_eq!(
        group.status().unwrap()["members"].as_array().unwrap().len(),
        3
    );
}

#[test]
fn one_that_was_given_other_peers_is_of_another_cluster_and_ends() {
    let group = group();
    group.agree(&[1, 2, 3]);
    let begin = || {
        let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
        let own = group.free_address();
        let peers = [
            format!("1={}", group.address(1)),
            format!("2={}", group.address(2)),
            format!("3={own}"),
        ];
        let mut command = sandbox.muster();
        command.args(["coordinator", "--id", "3", "--peers", &peers.join(",")]);
        command.arg("--data").arg(sandbox.path().join("data"));
        let output = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("--peers differ"), "{stderr}");
    };
    let _ = group.under_one_leader(|_| begin());
}

#[test]
fn a_minority_that_is_asked_to_change_the_group_refuses_and_changes_nothing() {
    let mut group = group();
    let leader = group.leader();
    group.agree(&[1, 2, 3]);
    let others: Vec<u64> = group.ids().into_iter().filter(|id| *id != leader).collect();
    for id in &others {
        group.kill(*id);
    }
    // What it is asked while it still takes itself for the leader may happen later.
    eventually(Duration::from_secs(60), "that it leads no more", || {
        let status = group.at_member(leader, &["coordinator", "status"]);
        let status = String::from_utf8(status.stdout).unwrap();
        status.contains("nobody leads").then_some(())
    });
    let gone = others[0].to_string();
    for arguments in [
        &["coordinator", "remove", &gone[..]][..],
        &["coordinator", "add", "127.0.0.1:4699"],
        &["coordinator", "transfer", &gone],
        &["submit", "mlp.toml"],
    ] {
        check(&group.refused_at(leader, 5, arguments), 2, &["majority"]);
    }
    for id in &others {
        group.start(*id);
    }
    group.agree(&[1, 2, 3]);
    let status = group.status().unwrap();
    let members = status["members"].as_array().unwrap().iter();
    let ids: Vec<u64> = members.map(|one| one["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [1, 2, 3], "{status:#}");
}

#[test]
fn a_backup_that_is_none_and_a_folder_that_is_used_are_refused() {
    let group = Group::new(env!("CARGO_BIN_EXE_muster"), 1);
    group.cluster.submit("mlp.toml", &[]);
    let folder = group.cluster.sandbox.path().join("backup");
    let backup = folder.display().to_string();
    let _ = group.cluster.text(&["coordinator", "backup", &backup]);
    let restore = |data: &Path, arguments: &[&str]| {
        let mut command = group.cluster.sandbox.muster();
        command.args(["coordinator", "restore", &backup, "--data"]);
        command.arg(data).args(arguments).output().unwrap()
    };
    let used = group.data(1);
    check(&restore(&used, &[]), 2, &["it is not empty"]);
    let new = group.cluster.sandbox.path().join("new");
    let even = ["--id", "1", "--peers", "1=a:1,2=b:1"];
    check(&restore(&new, &even), 2, &["1, 3 or 5"]);
    assert!(!new.exists(), "nothing is written");
    let about = folder.join("backup.json");
    let text = fs::read_to_string(&about).unwrap();
    fs::write(&about, text.replace("\"format\":1", "\"format\":2")).unwrap();
    check(&restore(&new, &[]), 2, &["backup.json", "format 2"]);
    fs::write(&about, &text).unwrap();
    let snapshot = folder.join("snapshot");
    let bytes = fs::read(&snapshot).unwrap();
    fs::write(&snapshot, &bytes[..bytes.len() / 2]).unwrap();
    check(
        &restore(&new, &[]),
        2,
        &[
            "snapshot",
            "expected what `muster coordinator backup` writes",
        ],
    );
    assert!(!new.exists(), "nothing is written");
}
