//! Ten thousand workers: what their heartbeats cost the leader, and how long a job of one rank on each
//! takes to be planned and told. The workers are streams of this process; no rank is started.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use muster_proto::leader::{Next, Route};
use muster_proto::v1::workers_client::WorkersClient;
use muster_proto::{address, v1};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;
use v1::from_worker::Message as From;
use v1::to_worker::Message as To;

use super::group::Group;
use super::load;
use super::system::{System, random_id, submission_of_ranks};

/// Fewer than the 200 streams that a server grants to a connection.
const STREAMS_A_CONNECTION: usize = 160;

const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long the leader is watched while nothing else happens.
const WATCHED: Duration = Duration::from_secs(20);

/// Streams that begin at once.
const BEGIN_AT_ONCE: usize = 500;

/// How long anything may take.
const TIMEOUT: Duration = Duration::from_secs(120);

const LOOK_WAIT: Duration = Duration::from_millis(500);

/// The first wait of a worker before it asks the next coordinator; it doubles up to the second, as a
/// worker's daemon has it.
const MIN_WAIT: Duration = Duration::from_millis(100);
const MAX_WAIT: Duration = Duration::from_secs(2);

/// What the workers have seen so far, all together.
#[derive(Debug, Default)]
struct Seen {
    /// That are so now.
    welcomed: AtomicUsize,
    /// Workers that had their assignment, and when the first of them had it.
    assigned: AtomicUsize,
    first_assigned: OnceLock<Instant>,
    assigned_bytes: AtomicUsize,
    ended: AtomicUsize,
}

/// Prints the table, for so many workers.
pub(crate) async fn run(muster: &Path, num_workers: usize) -> Result<String, String> {
    let group = Group::start(System::Muster, muster, 3).await?;
    let seen = Arc::new(Seen::default());
    let (end, ends) = watch::channel(());

    let began = Instant::now();
    connect(&group, num_workers, &seen, &ends).await?;
    let welcomed_s = began.elapsed().as_secs_f64();
    eprintln!("{num_workers} workers were welcomed after {welcomed_s:.1} s");
    let leader = until_registered(&group, num_workers).await?;
    let pid = group.pid(leader).ok_or("there is no leader")?;
    let registered_s = began.elapsed().as_secs_f64();
    eprintln!("all are registered after {registered_s:.1} s");

    let (before, own_before) = (load::cpu(&[pid]), load::cpu(&[std::process::id()]));
    let started = Instant::now();
    tokio::time::sleep(WATCHED).await;
    let lasted_s = started.elapsed().as_secs_f64();
    let cores = load::cpu(&[pid]).saturating_sub(before).as_secs_f64() / lasted_s;
    let own = load::cpu(&[std::process::id()]).saturating_sub(own_before);
    let own_cores = own.as_secs_f64() / lasted_s;
    let megabytes = load::resident_mb(pid)?;
    eprintln!("the leader uses {cores:.2} cores");
    let told = submit(&group, leader, num_workers, &seen).await?;
    let (busy_before, busy_started) = (load::cpu(&[pid]), Instant::now());
    tokio::time::sleep(WATCHED / 4).await;
    let busy = load::cpu(&[pid]).saturating_sub(busy_before).as_secs_f64();
    let busy_cores = busy / busy_started.elapsed().as_secs_f64();
    drop(end);
    let num_lost = seen.ended.load(Ordering::Relaxed);
    let num_assigned = seen.assigned.load(Ordering::Relaxed);
    let megabytes_told = seen.assigned_bytes.load(Ordering::Relaxed) as f64 / 1e6;
    let in_words = |after: Option<f64>| match after {
        Some(seconds) => format!("{seconds:.3} s"),
        None => format!("{num_assigned} within {} s", TIMEOUT.as_secs()),
    };
    let (first, told) = (in_words(told.first_s), in_words(told.all_s));
    let lines = [
        "| workers | welcomed | registered | leader, idle | memory | first told | all told | leader, with the job |"
            .to_owned(),
        "|---|---|---|---|---|---|---|---|".to_owned(),
        format!(
            "| {num_workers} | {welcomed_s:.1} s | {registered_s:.1} s | **{cores:.2} cores** | {megabytes:.0} MB \
             | **{first}** | **{told}** | {busy_cores:.2} cores |"
        ),
        String::new(),
        format!(
            "A control stream a worker over {} connections, a heartbeat a second each, {} s watched; \
             {num_lost} streams ended and began anew, at a change of the leader. The workers themselves used {own_cores:.2} cores of the \
             same machine. A job of {num_workers} ranks: from its submission to the first assignment at a worker, by \
             then it was planned and committed, and to the last ({num_assigned} came, \
             {megabytes_told:.0} MB). {}.",
            num_workers.div_ceil(STREAMS_A_CONNECTION),
            WATCHED.as_secs(),
            load::machine()
        ),
    ];
    Ok(lines.join("\n"))
}

/// Opens all streams, and returns when each was welcomed.
async fn connect(
    group: &Group,
    num_workers: usize,
    seen: &Arc<Seen>,
    ends: &watch::Receiver<()>,
) -> Result<(), String> {
    let mut lines = Vec::new();
    for _ in 0..num_workers.div_ceil(STREAMS_A_CONNECTION) {
        lines.push(Arc::new(lines_to(group)?));
    }
    let start = Instant::now();
    for number in 0..num_workers {
        let worker = Worker {
            name: format!("worker-{number}"),
            lines: Arc::clone(&lines[number / STREAMS_A_CONNECTION]),
            seen: Arc::clone(seen),
            is_assigned: AtomicBool::new(false),
        };
        let route = Route::new(group.addresses())?;
        let mut ends = ends.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = worker.live(route) => {}
                _ = ends.changed() => {}
            }
        });
        let may_go_on = || number < BEGIN_AT_ONCE + seen.welcomed.load(Ordering::Relaxed);
        until(start, "welcomed", may_go_on).await?;
    }
    let are_welcomed = || seen.welcomed.load(Ordering::Relaxed) >= num_workers;
    until(start, "welcomed", are_welcomed).await
}

/// A connection to each member, which opens when it is used.
fn lines_to(group: &Group) -> Result<BTreeMap<String, Channel>, String> {
    let addresses = group.addresses().into_iter();
    let line = |to: String| {
        let channel = address::endpoint_of_several(&to)?.connect_lazy();
        Ok((to, channel))
    };
    addresses.map(line).collect()
}

async fn until(start: Instant, what: &str, is_so: impl Fn() -> bool) -> Result<(), String> {
    while !is_so() {
        if start.elapsed() > TIMEOUT {
            return Err(format!(
                "the workers were not all {what} within {} s",
                TIMEOUT.as_secs()
            ));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// Waits until the log knows all workers, and all are with the leader; says which one that is.
async fn until_registered(group: &Group, num_workers: usize) -> Result<usize, String> {
    let start = Instant::now();
    loop {
        let leader = group.until_whole().await?;
        let nodes = group.client(leader)?.nodes().await.unwrap_or_default();
        let num_connected = nodes.iter().filter(|node| node.connected).count();
        if num_connected >= num_workers {
            return Ok(leader);
        }
        eprintln!("{num_connected} of {num_workers} are registered and connected");
        if start.elapsed() > TIMEOUT {
            let seconds = TIMEOUT.as_secs();
            return Err(format!(
                "{num_connected} of {num_workers} workers were connected after {seconds} s"
            ));
        }
        tokio::time::sleep(LOOK_WAIT).await;
    }
}

/// When workers had their assignments, in seconds behind the submission.
struct Told {
    first_s: Option<f64>,
    all_s: Option<f64>,
}

/// Submits a job of one rank on each worker.
async fn submit(
    group: &Group,
    leader: usize,
    num_workers: usize,
    seen: &Seen,
) -> Result<Told, String> {
    let mut client = group.client(leader)?;
    let start = Instant::now();
    let submission = submission_of_ranks("many", num_workers);
    let submitted = client.submit(random_id(), submission).await;
    submitted.map_err(|status| status.to_string())?;
    let all_are_told = || seen.assigned.load(Ordering::Relaxed) >= num_workers;
    let told = until(start, "told", all_are_told).await;
    let first = seen.first_assigned.get();
    Ok(Told {
        first_s: first.map(|at| at.duration_since(start).as_secs_f64()),
        all_s: told.is_ok().then(|| start.elapsed().as_secs_f64()),
    })
}

/// A worker with one device, as far as the leader can see.
struct Worker {
    name: String,
    lines: Arc<BTreeMap<String, Channel>>,
    seen: Arc<Seen>,
    /// Told again on a new stream, it counts once.
    is_assigned: AtomicBool,
}

impl Worker {
    /// Looks for the leader, and goes on where another one leads.
    async fn live(self, mut route: Route) {
        let mut wait = MIN_WAIT;
        loop {
            let began = Instant::now();
            let mut is_welcome = false;
            let ended = match self.lines.get(route.current()) {
                Some(channel) => self.stay(channel.clone(), &mut is_welcome).await,
                None => Err(Status::unavailable("the leader is no member")),
            };
            if is_welcome {
                self.seen.welcomed.fetch_sub(1, Ordering::Relaxed);
                self.seen.ended.fetch_add(1, Ordering::Relaxed);
                wait = MIN_WAIT;
                if began.elapsed() > MIN_WAIT {
                    route.answered();
                }
            }
            let Err(status) = ended else { return };
            if route.heard(&status) == Next::AfterAWait {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(MAX_WAIT);
            }
        }
    }

    /// What a worker does on one stream, until that ends.
    async fn stay(&self, channel: Channel, is_welcome: &mut bool) -> Result<(), Status> {
        let (sender, receiver) = mpsc::channel(4);
        let hello = From::Hello(v1::WorkerHello {
            worker: Some(v1::RegisterWorker {
                worker: self.name.clone(),
                incarnation: 1,
                num_devices: 1,
                class: Some(v1::NumericsClass {
                    build: "b".repeat(64),
                    canary: "c".repeat(64),
                    libc: "glibc 2.36".to_owned(),
                    cpu: "a processor".to_owned(),
                    gpu: String::new(),
                }),
                host: "127.0.0.1".to_owned(),
                gpus: Vec::new(),
            }),
            ranks: Vec::new(),
        });
        say(&sender, hello).await?;
        let mut client = WorkersClient::new(channel).max_decoding_message_size(64 << 20);
        let mut orders = client
            .control(ReceiverStream::new(receiver))
            .await?
            .into_inner();
        let mut ticks = tokio::time::interval(HEARTBEAT);
        loop {
            let order = tokio::select! {
                _ = ticks.tick() => {
                    say(&sender, From::Heartbeat(v1::Heartbeat {})).await?;
                    continue;
                }
                order = orders.message() => order?,
            };
            let ended = || Status::unavailable("the stream ended");
            match order.ok_or_else(ended)?.message {
                Some(To::Welcome(_)) => {
                    *is_welcome = true;
                    self.seen.welcomed.fetch_add(1, Ordering::Relaxed);
                }
                Some(To::Assignment(assignment)) => {
                    let num_bytes = prost::Message::encoded_len(&assignment);
                    self.seen
                        .assigned_bytes
                        .fetch_add(num_bytes, Ordering::Relaxed);
                    self.seen.first_assigned.get_or_init(Instant::now);
                    if !self.is_assigned.swap(true, Ordering::Relaxed) {
                        self.seen.assigned.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Some(To::Refused(refused)) => return Err(Status::aborted(refused.reason)),
                Some(To::Order(_) | To::End(_)) | None => {}
            }
        }
    }
}

async fn say(to: &mpsc::Sender<v1::FromWorker>, message: From) -> Result<(), Status> {
    let message = v1::FromWorker {
        message: Some(message),
    };
    let ended = |_| Status::unavailable("the stream ended");
    to.send(message).await.map_err(ended)
}
