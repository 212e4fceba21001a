//! A process keeps its connections and its log through worlds.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use muster_proto::frame;
use tokio::net::TcpListener;
use v1::from_rank::Message as FromRank;
use v1::to_rank::Message as ToRank;

use super::*;

/// For what happens at once, on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(20);

fn key(generation: u64, rank: u32) -> v1::RankKey {
    v1::RankKey {
        job: "job".to_owned(),
        history: 1,
        generation,
        rank,
        process: 7,
    }
}

fn assignment(key: &v1::RankKey) -> v1::Assignment {
    v1::Assignment {
        job: key.job.clone(),
        history: key.history,
        generation: key.generation,
        rank: key.rank,
        process: key.process,
        ..Default::default()
    }
}

fn record(step: u64) -> v1::StepRecord {
    let applied = v1::StepApplied {
        step,
        ..Default::default()
    };
    v1::StepRecord {
        key: Some(key(1, 2)),
        time: 0.0,
        record: Some(v1::step_record::Record::Applied(applied)),
    }
}

fn ack(history: u64) -> v1::RecordAck {
    v1::RecordAck {
        job: "job".to_owned(),
        history,
        step: 4,
        evaluated: false,
    }
}

fn say(stream: &mut TcpStream, message: FromRank) {
    let message = v1::FromRank {
        message: Some(message),
    };
    stream.write_all(&frame::encode(&message)).unwrap();
}

fn hear(stream: &mut TcpStream) -> Option<ToRank> {
    frame::read::<v1::ToRank>(stream)
        .unwrap()
        .and_then(|said| said.message)
}

fn knock(address: SocketAddr, token: &[u8], bulk: bool) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let hello = v1::RankHello {
        token: token.to_vec(),
        key: Some(key(0, 0)),
        bulk,
        is_new: true,
    };
    say(&mut stream, FromRank::Hello(hello));
    stream
}

async fn next<T>(messages: impl Future<Output = Option<T>>) -> T {
    let message = tokio::time::timeout(DEADLINE, messages).await;
    message.expect("something comes").expect("the hub lives")
}

async fn wait_for(path: &Path) -> String {
    next(async {
        loop {
            match std::fs::read_to_string(path) {
                Ok(text) => return Some(text),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
}

/// A rank that shows its environment, and says a line when it is to speak.
fn program(folder: &Path) -> PathBuf {
    let program = folder.join("program");
    let script = format!(
        "#!/bin/sh\ncd {}\necho waits\nenv > new && mv new environment\n\
         while [ ! -e speak ]; do sleep 0.01; done\necho works\nexec sleep 1000\n",
        folder.display()
    );
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    program
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_keeps_its_connections_and_its_log_through_worlds() {
    let folder = std::env::temp_dir().join(format!("muster-hub-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let start = Start {
        program: program(&folder),
        door: folder.join("door"),
        host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        threads: 1,
        tree: false,
        orphan: Duration::from_secs(30),
        gpus: Vec::new(),
        shares_gpus: false,
        logs: folder.join("logs"),
        roster: Arc::new(Roster::load(&folder.join("ranks")).unwrap()),
    };
    let address = listener.local_addr().unwrap();
    let (notes, receiver) = mpsc::unbounded_channel();
    let note = |note| notes.send(note).expect("the hub lives");
    let shutdown = CancellationToken::new();
    tokio::spawn(crate::door::admit(
        listener,
        notes.clone(),
        shutdown.clone(),
    ));
    let hub = Hub::new(v1::RegisterWorker::default(), start, notes.clone());
    let hub = tokio::spawn(hub.run(receiver, shutdown.clone()));
    let (control, mut told) = mpsc::unbounded_channel();
    let (records, mut recorded) = mpsc::unbounded_channel();
    let (lines, mut printed) = mpsc::channel(9);
    note(Note::Connected { control, records });
    note(Note::Listens(Lines(lines)));
    let mut heard = async || {
        loop {
            match next(told.recv()).await {
                ToCoordinator::Hello(_) | ToCoordinator::Heartbeat(_) => {}
                message => return message,
            }
        }
    };

    let standby = assignment(&key(0, 0));
    note(Note::FromCoordinator(FromCoordinator::Assignment(
        standby.clone(),
    )));
    let ToCoordinator::Started(started) = heard().await else {
        panic!("it does not start")
    };
    assert_eq!(started.key, Some(key(0, 0)));
    let environment = wait_for(&folder.join("environment")).await;
    let variable = |name: &str| {
        let mut lines = environment.lines();
        lines.find_map(|line| Some(line.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    };
    assert_eq!(variable("MUSTER_RANK_PROCESS").as_deref(), Some("7"));
    let token = variable("MUSTER_RANK_TOKEN").unwrap();
    assert_eq!(hear(&mut knock(address, b"guess", false)), None);
    let mut control = knock(address, token.as_bytes(), false);
    let mut bulk = knock(address, token.as_bytes(), true);
    assert_eq!(hear(&mut control), Some(ToRank::Assignment(standby)));
    let line = next(printed.recv()).await;
    assert_eq!((line.text.as_str(), line.key), ("waits", Some(key(0, 0))));

    let ranked = assignment(&key(1, 2));
    note(Note::FromCoordinator(FromCoordinator::Assignment(
        ranked.clone(),
    )));
    assert_eq!(hear(&mut control), Some(ToRank::Assignment(ranked)));
    std::fs::write(folder.join("speak"), "").unwrap();
    let line = next(printed.recv()).await;
    assert_eq!((line.text.as_str(), line.key), ("works", Some(key(1, 2))));

    // It may speak of each of its worlds, and for nobody else.
    let report = |key| v1::RankReport {
        key: Some(key),
        report: Some(v1::rank_report::Report::Ready(v1::Ready::default())),
    };
    let other = v1::RankKey {
        process: 8,
        ..key(1, 2)
    };
    for key in [other, key(0, 0), key(1, 2)] {
        say(&mut control, FromRank::Report(report(key)));
    }
    for own in [key(0, 0), key(1, 2)] {
        assert_eq!(heard().await, ToCoordinator::Report(report(own)));
    }

    for step in [4, 4, 5] {
        say(&mut bulk, FromRank::Record(record(step)));
    }
    for step in [4, 5] {
        assert_eq!(next(recorded.recv()).await, record(step));
    }
    note(Note::Ack(ack(2)));
    note(Note::Ack(ack(1)));
    assert_eq!(hear(&mut bulk), Some(ToRank::Ack(ack(1))));

    note(Note::FromCoordinator(FromCoordinator::End(
        v1::EndProcess {
            is_awaited: false,
            job: "job".to_owned(),
            process: 7,
        },
    )));
    assert_eq!(hear(&mut control), None);
    assert_eq!(hear(&mut bulk), None);
    note(Note::Disconnected);
    shutdown.cancel();
    hub.await.unwrap().unwrap();
    let log = std::fs::read_to_string(folder.join("logs/job/p7.log")).unwrap();
    assert_eq!(log, "waits\nworks\n");
    std::fs::remove_dir_all(&folder).unwrap();
}
