//! What a person gets wrong: one message with the place, what was expected and what to do, exit
//! code 2, and nothing written.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::net::TcpListener;
use std::process::Output;

use muster_tests::{Cluster, Sandbox, processes_of};

/// Runs `muster train` with arguments, and checks that it was refused with all of `words`.
fn refused(arguments: &[&str], words: &[&str]) {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let output = sandbox
        .muster()
        .args(["train", "job.toml"])
        .args(arguments)
        .output()
        .unwrap();
    check(&sandbox, &output, words);
}

/// Replaces a text in the job file, and checks that `muster train` refuses it with the place of the
/// change and all of `words`.
fn fault(old: &str, new: &str, words: &[&str]) {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let file = sandbox.path().join("job.toml");
    let text = fs::read_to_string(&file).unwrap();
    let at = text
        .find(old)
        .unwrap_or_else(|| panic!("{old:?} is not in the job file"));
    let place = format!(
        "job.toml:{}",
        text[..at].lines().count() + usize::from(text[..at].ends_with('\n'))
    );
    fs::write(&file, text.replacen(old, new, 1)).unwrap();
    let output = sandbox
        .muster()
        .args(["train", "job.toml"])
        .output()
        .unwrap();
    check(&sandbox, &output, &[&[&place[..]], words].concat());
}

fn check(sandbox: &Sandbox, output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{words:?}\n{stderr}");
    assert!(output.stdout.is_empty(), "{words:?}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is missing:\n{stderr}");
    }
    let lines = stderr.lines().filter(|line| !line.is_empty());
    assert!(lines.count() <= 2, "one message, not a flood:\n{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    let written: Vec<_> = fs::read_dir(sandbox.state_dir())
        .map(Iterator::collect)
        .unwrap_or_default();
    assert!(written.is_empty(), "{words:?}: {written:?}");
    assert_eq!(processes_of(sandbox), []);
}

#[test]
fn a_job_for_gpus_is_refused_at_once_where_none_can_be_used() {
    if cfg!(feature = "cuda") {
        eprintln!("skipped: this build has CUDA, and the machine may have a GPU");
        return;
    }
    for device in ["cuda", "cuda:0"] {
        let set = format!("workers.device={device}");
        let says = format!("job.toml: workers.device is \"{device}\", and this machine has");
        let words = [says.as_str(), "write workers.device = \"cpu\""];
        refused(&["--set", &set], &words);
    }
}

#[test]
fn faults_of_the_job_file_are_named_with_their_line() {
    fault("dropout = 0.5", "dropuot = 0.5", &["dropuot", "dropout"]);
    fault("seed = 0", "seed = \"zero\"", &["train.seed", "number"]);
    fault(
        "global_batch_size = 64",
        "global_batch_size = 0",
        &["global_batch_size", "0"],
    );
    fault("epochs = 30", "epochs = -3", &["epochs", "-3"]);
    fault(
        "logical_shards = 8",
        "logical_shards = 7",
        &["logical_shards", "64"],
    );
    fault(
        "family = \"cnn\"",
        "family = \"transformer\"",
        &["transformer", "cnn", "mlp"],
    );
    fault(
        "kind = \"adamw\"",
        "kind = \"adamx\"",
        &["adamx", "adam", "adamw", "sgd"],
    );
    fault("[train]", "[train", &[]);
}

#[test]
fn faults_of_the_command_line_are_named() {
    refused(&["--set", "train.sede=7"], &["train.sede", "seed"]);
    refused(&["--set", "nonsense"], &["nonsense", "="]);
    refused(&["--workers", "9"], &["workers.max", "8"]);
    for option in ["--threads", "--ranks-per-gpu"] {
        refused(&[option, "0"], &[option, "at least 1"]);
    }
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let output = sandbox
        .muster()
        .args(["train", "absent.toml"])
        .output()
        .unwrap();
    check(&sandbox, &output, &["absent.toml", "No such file"]);
}

#[test]
fn faults_of_the_data_are_named_with_their_row() {
    fault(
        "source = \"digits.csv.gz\"",
        "source = \"absent.csv.gz\"",
        &["absent.csv.gz", "No such file"],
    );
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let row = |fields: usize| vec!["1"; fields].join(",");
    fs::write(
        sandbox.path().join("rows.csv"),
        format!("{}\n{}\n{}\n", row(65), row(64), row(65)),
    )
    .unwrap();
    let output = sandbox
        .muster()
        .args(["train", "job.toml", "--set", "data.source=rows.csv"])
        .output()
        .unwrap();
    check(
        &sandbox,
        &output,
        &["rows.csv:2", "64 fields", "64 features and a label"],
    );
}

#[test]
fn a_checkpoint_folder_that_cannot_be_written_is_named() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    fs::write(sandbox.path().join("taken"), "a file, not a folder").unwrap();
    let output = sandbox
        .muster()
        .args(["train", "job.toml", "--set", "checkpoint.folder=taken"])
        .output()
        .unwrap();
    check(&sandbox, &output, &["taken", "checkpoints"]);
}

#[test]
fn a_port_in_use_is_named() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = sandbox.path().join("data");
    let output = sandbox
        .muster()
        .args(["coordinator", "--listen", &address, "--data"])
        .arg(&data)
        .output()
        .unwrap();
    check(&sandbox, &output, &[&address, "--listen"]);
    assert!(!data.exists());
}

/// Runs a coordinator with these settings, and checks that it was refused with all of `words`, and
/// has not made its folder.
fn refused_coordinator(settings: &[&str], words: &[&str]) {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let data = sandbox.path().join("data");
    // One that is not refused would not serve either, and complain of this.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = sandbox.muster();
    command.args(["coordinator", "--listen", &address, "--data"]);
    let output = command.arg(&data).args(settings).output().unwrap();
    check(&sandbox, &output, words);
    assert!(!data.exists(), "{settings:?}");
}

#[test]
fn settings_of_a_coordinator_that_contradict_each_other_are_refused() {
    for (detect, fallback) in [
        ("2000", "1999"),
        ("2000", "2000"),
        ("3000", "5999"),
        ("60000", "1000"),
    ] {
        let settings = ["--detect-ms", detect, "--fallback-after-ms", fallback];
        let named = [
            format!("--fallback-after-ms {fallback}"),
            format!("at least twice --detect-ms {detect}"),
        ];
        refused_coordinator(&settings, &[&named[0], &named[1]]);
    }
    // Against a default, too.
    refused_coordinator(
        &["--fallback-after-ms", "1999"],
        &["--fallback-after-ms 1999", "--detect-ms 1000"],
    );
    let settings = ["--detect-ms", "3000", "--fallback-after-ms", "6000"];
    let served = Cluster::with(env!("CARGO_BIN_EXE_muster"), &settings);
    assert!(served.text(&["ps"]).lines().count() <= 1);
}

#[test]
fn settings_of_a_coordinator_that_are_out_of_their_range_are_refused() {
    for (setting, value, range) in [
        ("--detect-ms", "0", "200..=60000"),
        ("--detect-ms", "199", "200..=60000"),
        ("--detect-ms", "60001", "200..=60000"),
        ("--fallback-after-ms", "0", "1000..=86400000"),
        ("--fallback-after-ms", "999", "1000..=86400000"),
        ("--gather-ms", "600001", "0..=600000"),
    ] {
        let quoted = format!("'{value}'");
        refused_coordinator(&[setting, value], &[setting, &quoted, range]);
    }
}

#[test]
fn a_coordinator_that_does_not_answer_is_named_with_the_time_that_was_tried() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    // Nobody listens there.
    let address = "127.0.0.1:1";
    for command in [
        &["ps"][..],
        &["show", "digits"],
        &["submit", "job.toml"],
        &["nodes"],
        &["cancel", "digits"],
    ] {
        let output = sandbox
            .muster()
            .args(command)
            .args(["--coordinator", address, "--timeout", "1"])
            .output()
            .unwrap();
        check(&sandbox, &output, &[address, "1 s", "--coordinator"]);
    }
    let several = format!("{address},localhost:1");
    // In this time each is asked, on a machine that does other things, too.
    let output = sandbox
        .muster()
        .args(["ps", "--coordinator", &several, "--timeout", "8"])
        .output()
        .unwrap();
    check(
        &sandbox,
        &output,
        &[&format!("{address}: "), "localhost:1: ", "8 s"],
    );
    let output = sandbox
        .muster()
        .args(["ps", "--coordinator", "nowhere"])
        .output()
        .unwrap();
    check(&sandbox, &output, &["nowhere", "host:port"]);
    let output = sandbox
        .muster()
        .args(["worker", "--join", "127.0.0.1:port"])
        .output()
        .unwrap();
    check(&sandbox, &output, &["127.0.0.1:port", "host:port"]);
}

#[test]
fn a_log_filter_that_is_none_is_said_and_nothing_is_done() {
    let sandbox = Sandbox::new(env!("CARGO_BIN_EXE_muster"));
    let mut command = sandbox.muster();
    let output = command
        .args(["train", "job.toml"])
        .env("MUSTER_LOG", "verbose")
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("MUSTER_LOG: \"verbose\" is no level"),
        "{stderr}"
    );
    assert_eq!(std::fs::read_dir(sandbox.state_dir()).unwrap().count(), 0);
}
