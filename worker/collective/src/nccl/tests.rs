//! What can be tested where there is no device: that libraries are found or named, and that
//! everything else is a typed error in bounded time.
//!
//! With `MUSTER_NCCL_LIB` set, or NCCL installed, the tests of the library run; else they say that
//! they were skipped. Those that need a device are the self-check.

use std::ffi::OsString;
use std::path::Path;

use muster_cluster::{Generation, History};

use super::library::Search;
use super::*;
use crate::memory;

const PATIENT: Duration = Duration::from_secs(60);

/// The library of this machine; `None`, and a line on the way, where there is none.
fn installed(test: &str) -> Option<Library> {
    match Library::find(None) {
        Ok(library) => Some(library),
        Err(error) => {
            eprintln!("SKIPPED {test}: {error}");
            None
        }
    }
}

/// Whether this machine has a device, which turns some errors of these tests into successes.
fn has_device() -> bool {
    driver::Context::of(0).is_ok()
}

#[test]
fn a_missing_library_is_an_error_that_names_what_was_searched() {
    let folder = tempfile::tempdir().expect("a folder");
    let error = Search::at(folder.path()).open().expect_err("it is empty");
    for name in ["libnccl.so.2", "libnccl.so"] {
        let place = folder.path().join(name).display().to_string();
        assert!(error.what.contains(&place), "{error}");
    }
    assert!(error.what.contains(LIBRARY_VARIABLE), "{error}");

    let file = folder.path().join("libnccl.so.2");
    std::fs::write(&file, "no library").expect("written");
    let error = Search::at(&file).open().expect_err("it is a text");
    assert!(error.what.contains(&file.display().to_string()), "{error}");
}

#[test]
fn the_packages_of_every_python_are_searched() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut files = Vec::new();
    for python in ["python3.12", "python3.9"] {
        let packages = folder.path().join("lib").join(python).join("site-packages");
        let lib = packages.join("nvidia/nccl/lib");
        std::fs::create_dir_all(&lib).expect("made");
        files.push(lib.join("libnccl.so.2"));
    }
    for file in &files {
        std::fs::write(file, "no library").expect("written");
    }
    let root = folder.path().as_os_str().to_owned();
    let variable = |name: &str| (name == "VIRTUAL_ENV").then(|| root.clone());
    let search = format!("{:?}", Search::everywhere(&variable));
    for file in &files {
        assert!(search.contains(&file.display().to_string()), "{search}");
    }
    let nothing = |_: &str| -> Option<OsString> { None };
    let search = format!("{:?}", Search::everywhere(&nothing));
    assert!(
        search.contains("libnccl.so.2"),
        "the system's loader is asked"
    );
    assert!(!search.contains(&root.display().to_string()), "{search}");
}

#[test]
fn a_library_without_the_functions_is_refused_by_their_name() {
    // The system's own mathematics, which every machine of these tests has.
    let Err(error) = Search::at(Path::new("libm.so.6")).open() else {
        panic!("libm is no NCCL");
    };
    assert!(error.what.contains("no function nccl"), "{error}");
}

#[test]
fn the_library_tells_its_version_and_makes_ids() {
    let Some(library) = installed("the_library_tells_its_version_and_makes_ids") else {
        return;
    };
    assert!(library.version() >= 21800, "{library:?}");
    let (one, other) = (library.unique_id(), library.unique_id());
    let (one, other) = (one.expect("an id"), other.expect("another"));
    assert_ne!(one.0, other.0);
    let again = Library::find(None).expect("it was found before");
    assert_eq!(again.place(), library.place());
}

#[test]
fn a_communicator_without_a_device_is_an_error_in_words() {
    let Some(library) = installed("a_communicator_without_a_device_is_an_error_in_words") else {
        return;
    };
    if has_device() {
        eprintln!("SKIPPED a_communicator_without_a_device_is_an_error_in_words: there is one");
        return;
    }
    // NCCL's own account of it: the call is taken, or refused at once; it never connects.
    let id = library.unique_id().expect("an id");
    let begun = Instant::now();
    let communicator = communicator::Communicator::begin(&library, id, RankId(0), 2);
    let error = match communicator {
        Err(error) => error,
        Ok(communicator) => loop {
            match communicator.is_settled() {
                Ok(false) if begun.elapsed() < PATIENT => std::thread::yield_now(),
                Ok(settled) => panic!("settled: {settled}"),
                Err(error) => break error,
            }
        },
    };
    assert!(begun.elapsed() < PATIENT, "it took {:?}", begun.elapsed());
    assert!(error.what.contains("NCCL_DEBUG=INFO"), "{error}");

    // And ours, before NCCL is asked.
    let owner = Owner::start(move |_| Wire::begin(&library, id, RankId(0), 2, 0));
    let mut owner = owner.expect("a thread");
    let error = owner.wait_ready(PATIENT).expect_err("there is no device");
    assert!(error.what.contains("CUDA"), "{error}");
    assert!(owner.abort(PATIENT));
}

#[test]
fn ranks_that_cannot_connect_are_named_by_all_and_the_group_goes_on() {
    if has_device() {
        eprintln!("SKIPPED ranks_that_cannot_connect_are_named_by_all: there is a device");
        return;
    }
    let groups = memory::groups(History(1), Generation(1), 2);
    let ranks = groups.into_iter().map(|mut group| {
        std::thread::spawn(move || {
            let begun = Instant::now();
            let connected = connect(&mut group, &Options::default(), PATIENT);
            assert!(begun.elapsed() < PATIENT, "it took {:?}", begun.elapsed());
            match connected {
                Err(Error::Device { what }) => {
                    let is_other = what.starts_with("rank 0 cannot use NCCL: ");
                    assert_eq!(is_other, group.world().rank == RankId(1), "{what}");
                }
                other => panic!("{other:?}"),
            }
            let reached = group.barrier(PATIENT);
            reached.expect("the group can still be used");
        })
    });
    for rank in ranks.collect::<Vec<_>>() {
        rank.join().expect("no panic");
    }
    let mut alone = memory::groups(History(1), Generation(1), 1).remove(0);
    let nothing = connect(&mut alone, &Options::default(), PATIENT);
    assert!(
        matches!(nothing, Ok(None)),
        "a world of one needs no library"
    );
}

#[test]
fn what_ranks_say_about_themselves_is_read_whole_or_refused() {
    let world = World {
        history: History(1),
        generation: Generation(1),
        rank: RankId(1),
        size: 2,
    };
    let ready = |version, id| Ready::to_bytes(&Ok(Ready { version, id }));
    let id = UniqueId([7; 128]);
    let agreed = agree(&world, &[ready(22805, Some(id)), ready(22805, None)]);
    assert_eq!(agreed.expect("they agree").0, id.0);
    let missing = Ready::to_bytes(&Err(BulkError::new("no driver")));
    let refusals: [(Vec<u8>, Vec<u8>, &str); 6] = [
        (
            missing.clone(),
            ready(22805, None),
            "rank 0 cannot use NCCL: no driver",
        ),
        (ready(22805, Some(id)), missing, "no driver"),
        (
            ready(22805, Some(id)),
            ready(22900, None),
            "rank 1 has NCCL 22900",
        ),
        (ready(22805, None), ready(22805, None), "did not say how"),
        (Vec::new(), ready(22805, None), "0 bytes that say nothing"),
        (
            ready(22805, Some(id))[..60].to_vec(),
            ready(22805, None),
            "60 bytes that say nothing",
        ),
    ];
    for (first, second, expected) in refusals {
        match agree(&world, &[first, second]) {
            Err(Error::Device { what }) => assert!(what.contains(expected), "{what}"),
            other => panic!("{:?}", other.map(|id| id.0)),
        }
    }
}

#[test]
fn ranks_of_a_check_meet_at_the_address_of_the_first() {
    let local = "127.0.0.1:0".parse().expect("an address");
    let address = std::net::TcpListener::bind::<std::net::SocketAddr>(local)
        .and_then(|door| door.local_addr())
        .expect("a free port");
    let ranks: Vec<_> = (0..3)
        .rev()
        .map(|rank| std::thread::spawn(move || check::meet(RankId(rank), 3, address, PATIENT)))
        .collect();
    let mut met: Vec<_> = ranks
        .into_iter()
        .map(|rank| rank.join().expect("no panic").expect("all come"))
        .collect();
    met.reverse();
    let own: Vec<_> = met.iter().map(|(listener, _)| listener.addr()).collect();
    assert!(met.iter().all(|(_, peers)| *peers == own));
    let nobody = check::meet(RankId(1), 2, address, Duration::from_millis(50));
    assert!(nobody.is_err(), "nobody listens any more");
}

#[test]
fn processes_of_a_check_are_started_and_waited_for() {
    let shell = |rank: RankId, address: std::net::SocketAddr| {
        let mut shell = std::process::Command::new("sh");
        let script = "echo \"$0 $1 $NCCL_HOSTID\"; [ $0 = 0 ] || kill -9 $$";
        shell.args(["-c", script, &rank.to_string(), &address.to_string()]);
        shell
    };
    let ended = check::check(2, true, PATIENT, shell).expect("both end");
    assert!(ended[0].status.success());
    assert!(ended[0].output.ends_with(" muster-check-0\n"), "{ended:?}");
    assert_eq!(ended[1].status.code(), None, "it was killed");
    let hanging = |_: RankId, _: std::net::SocketAddr| {
        let mut sleep = std::process::Command::new("sleep");
        sleep.arg("600");
        sleep
    };
    let begun = Instant::now();
    let error = check::check(1, false, Duration::from_millis(50), hanging);
    let kind = error.map(|_| ()).map_err(|error| error.kind());
    assert_eq!(kind, Err(std::io::ErrorKind::TimedOut));
    assert!(begun.elapsed() < PATIENT);
}
