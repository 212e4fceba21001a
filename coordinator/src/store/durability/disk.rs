//! A disk that is full, and one that cannot be written.
//!
//! The disk is a small one in memory, mounted in a namespace that ends with the test.

use std::process::Command;
use std::sync::mpsc::channel;

use super::*;

const DISK: &str = "MUSTER_TEST_STORE_DISK";

/// Runs an ignored test of this file on a disk of its own; false where that is not permitted.
fn on_small_disk(test: &str) -> bool {
    let place = tempfile::tempdir().unwrap();
    let namespace = ["--user", "--map-root-user", "--mount"];
    let mount = "mount -t tmpfs -o size=24m none \"$0\" || exit 77; exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(namespace)
        .args(["sh", "-c", mount])
        .arg(place.path());
    command.arg(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        &format!("store::durability::disk::{test}"),
        "--ignored",
        "--nocapture",
    ]);
    let output = command.env(DISK, place.path()).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            println!("SKIPPED: unshare: {error}");
            return false;
        }
    };
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let text = text.concat();
    if !output.status.success() && !text.contains("running 1 test") {
        println!("SKIPPED: a disk in memory is not permitted here: {text}");
        return false;
    }
    assert!(output.status.success(), "{text}");
    println!("{text}");
    true
}

fn remount(options: &str, disk: &Path) {
    let mut mount = Command::new("mount");
    assert!(
        mount
            .args(["-o", options])
            .arg(disk)
            .status()
            .unwrap()
            .success()
    );
}

/// An error and what is behind it.
fn text_of(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

#[test]
#[ignore = "the half of `a_full_disk_stops_the_replica_and_loses_nothing` that has a disk"]
fn full() {
    let Some(disk) = std::env::var_os(DISK) else {
        return;
    };
    let folder = Path::new(&disk).join("store");
    let seed = 11;
    let mut content = Recovered::default();
    for round in 0..10 {
        let (store, found, _) = Store::open(&folder).unwrap();
        assert_eq!(found, content, "round {round}");
        // Room for a little more.
        let filler = Path::new(&disk).join("filler");
        let mut file = std::fs::File::create(&filler).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        file.set_len(file.metadata().unwrap().len() - (round << 16))
            .unwrap();
        drop(file);
        let (sender, reports) = channel();
        let thread = StoreThread::spawn(store, move |report| sender.send(report).unwrap()).unwrap();
        let mut workload = workload_of(seed + round, content.clone()).only_batches();
        loop {
            if let Op::Append {
                entries,
                hard_state,
                restore,
            } = workload.step()
            {
                let batch = workload.num_ops();
                if thread
                    .write(Batch {
                        batch,
                        entries,
                        hard_state,
                        restore,
                    })
                    .is_err()
                {
                    break;
                }
            }
        }
        thread.shutdown();
        let mut acknowledged = 0;
        let mut failure = None;
        for report in reports {
            match report {
                Report::Durable { batch } => acknowledged = batch,
                Report::Rests { mark } => panic!("{mark:?}"),
                Report::Failed(error) => failure = Some(error),
            }
        }
        let text = text_of(&failure.expect("a report of the failure"));
        println!("round {round}, {acknowledged} acknowledged: {text}");
        assert!(
            text.contains(folder.to_str().unwrap()) && text.contains("room"),
            "{text}"
        );
        // While it is full it is refused, or nothing is lost.
        match Store::open(&folder) {
            Ok(_) => println!("opened while full"),
            Err(error) => println!("refused while full: {}", text_of(&error)),
        }
        std::fs::remove_file(filler).unwrap();
        let (_, found, _) = Store::open(&folder).unwrap();
        let mut checked = workload_of(seed + round, content.clone()).only_batches();
        while checked.num_ops() < acknowledged || !is_same(checked.content(), &found) {
            assert!(
                checked.num_ops() <= workload.num_ops(),
                "{}",
                difference(checked.content(), &found)
            );
            checked.step();
        }
        content = found;
    }
}

#[test]
#[ignore = "the half of `a_disk_that_cannot_be_written_is_reported` that has a disk"]
fn read_only() {
    let Some(disk) = std::env::var_os(DISK) else {
        return;
    };
    let folder = Path::new(&disk).join("store");
    let (mut store, ..) = Store::open(&folder).unwrap();
    let mut workload = workload_of(8, Recovered::default());
    for _ in 0..50 {
        workload.step().apply(&mut store).unwrap();
    }
    store.sync().unwrap();
    drop(store);
    remount("remount,ro", Path::new(&disk));
    let text = text_of(&Store::open(&folder).unwrap_err());
    println!("{text}");
    assert!(
        text.contains(folder.to_str().unwrap()) && text.contains("can be written"),
        "{text}"
    );
    remount("remount,rw", Path::new(&disk));
    assert_eq!(Store::open(&folder).unwrap().1, *workload.content());
}

#[test]
fn a_full_disk_stops_the_replica_and_loses_nothing() {
    on_small_disk("full");
}

#[test]
fn a_disk_that_cannot_be_written_is_reported() {
    on_small_disk("read_only");
}
