//! Clients that submit, cancel, scale and look at jobs while coordinators are killed, stopped and cut
//! off: what they see is what one coordinator that never fails could have told them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "linearizable/model.rs"]
mod model;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use model::{Answer, Ask, Job, OneJob};
use muster_proto::v1::clients_client::ClientsClient;
use muster_proto::{leader, v1};
use muster_tests::{Group, Machine, Network, Operation, Signal, eventually, linearizable};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

const NUM_CLIENTS: u64 = 5;
const NUM_JOBS: u64 = 4;
const MAX_WORKERS: u32 = 64;
const DEADLINE: Duration = Duration::from_secs(60);

/// How long one coordinator may take, and how long an operation is tried until it counts as one
/// without an answer.
const PATIENCE: Duration = Duration::from_millis(400);
const GIVES_UP: Duration = Duration::from_millis(2500);
const RETRY_WAIT: Duration = Duration::from_millis(20);

/// A generator that a seed begins (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (bits ^ (bits >> 31)) % limit
    }

    fn ask(&mut self) -> Ask {
        let max = 1 + u32::try_from(self.below(u64::from(MAX_WORKERS))).unwrap();
        match self.below(10) {
            0..3 => Ask::Submit { max },
            3 => Ask::Cancel,
            4..6 => Ask::Scale { max },
            _ => Ask::Show,
        }
    }
}

/// The smallest job that may have so many workers.
fn submission(job: &str, max: u32) -> v1::Submit {
    let draft = format!(
        r#"
        name = "{job}"
        [workers]
        min = 1
        max = {max}
        [model]
        family = "mlp"
        hidden = [8]
        [data]
        source = "digits.csv.gz"
        shape = [64]
        num_classes = 10
        [train]
        global_batch_size = 64
        logical_shards = {MAX_WORKERS}
        steps = 10
        [optimizer]
        kind = "sgd"
        learning_rate = 0.1
        "#
    );
    v1::Submit {
        draft,
        base_dir: "/jobs".to_owned(),
        data_digest: "d1be57".to_owned(),
        fresh: false,
    }
}

/// What clients did with each job.
type History = BTreeMap<String, Vec<Operation<Ask, Answer>>>;

/// What the clients of a run share.
struct Seen {
    start: Instant,
    history: Mutex<History>,
    num_answered: AtomicU64,
    ended: CancellationToken,
}

impl Seen {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            history: Mutex::default(),
            num_answered: AtomicU64::new(0),
            ended: CancellationToken::new(),
        })
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap()
    }

    /// Does an operation, and notes what came of it.
    async fn operate(&self, client: &mut Client, job: &str, ask: Ask) {
        let called = self.now();
        let answer = client.ask(job, ask).await;
        let answer = answer.map(|answer| (self.now(), answer));
        self.num_answered
            .fetch_add(u64::from(answer.is_some()), Ordering::Relaxed);
        let operation = Operation {
            ask,
            called,
            answer,
        };
        let mut history = self.history.lock().unwrap();
        history.entry(job.to_owned()).or_default().push(operation);
    }

    /// Waits until so many more operations were answered.
    fn wait_for(&self, num: u64) {
        let answered = || self.num_answered.load(Ordering::Relaxed);
        let until = answered() + num;
        eventually(DEADLINE, "answers", || (answered() >= until).then_some(()));
    }

    /// The first job of which what was seen cannot be true.
    fn judge(&self) -> Result<(usize, usize), String> {
        let history = self.history.lock().unwrap();
        for (job, operations) in &*history {
            linearizable::<OneJob>(operations).map_err(|told| format!("job {job}: {told}"))?;
        }
        let all = history.values().flatten();
        let (answered, lost): (Vec<_>, Vec<_>) = all.partition(|one| one.answer.is_some());
        Ok((answered.len(), lost.len()))
    }
}

struct Client {
    /// Connections to all members; which one is asked next.
    members: Vec<ClientsClient<Channel>>,
    at: usize,
    dice: Dice,
    /// Whether it is content with what any member has applied.
    is_stale: bool,
    /// Whether it gives some operations up at once.
    is_fickle: bool,
}

impl Client {
    fn new(addresses: &[&str], seed: u64) -> Self {
        let connect = |address: &&str| {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
            let endpoint = endpoint.connect_timeout(PATIENCE);
            ClientsClient::new(endpoint.connect_lazy())
        };
        Self {
            members: addresses.iter().map(connect).collect(),
            at: 0,
            dice: Dice(seed),
            is_stale: false,
            is_fickle: false,
        }
    }

    /// Asks until somebody answers, under one request id; `None` where it gives up.
    async fn ask(&mut self, job: &str, ask: Ask) -> Option<Answer> {
        let start = Instant::now();
        let [high, low] = [0; 2].map(|_: u64| self.dice.below(u64::MAX));
        let request_id = [high.to_be_bytes(), low.to_be_bytes()].concat();
        // Some ask once: when it is not answered, nobody knows whether it happened.
        let tries_once = self.is_fickle && self.dice.below(4) == 0;
        loop {
            let tried = self.try_once(job, ask, request_id.clone());
            match tokio::time::timeout(PATIENCE, tried).await {
                Ok(Ok(answer)) => return Some(answer),
                Ok(Err(status)) => match refusal(&status) {
                    Some(answer) => return Some(answer),
                    None => tokio::time::sleep(RETRY_WAIT).await,
                },
                Err(_) => {}
            }
            let num = self.members.len() as u64;
            self.at = usize::try_from(self.dice.below(num)).unwrap();
            if tries_once || start.elapsed() > GIVES_UP {
                return None;
            }
        }
    }

    async fn try_once(
        &mut self,
        job: &str,
        ask: Ask,
        request_id: Vec<u8>,
    ) -> Result<Answer, Status> {
        let member = &mut self.members[self.at];
        let job = job.to_owned();
        match ask {
            Ask::Submit { max } => {
                let request = v1::SubmitRequest {
                    request_id,
                    submit: Some(submission(&job, max)),
                };
                let reply = member.submit_job(request).await?.into_inner();
                Ok(match reply.status() {
                    v1::SubmitStatus::Queued => Answer::Queued,
                    v1::SubmitStatus::AlreadyRunning => Answer::AlreadyRunning,
                    other => panic!("{job}: {other:?}"),
                })
            }
            Ask::Cancel => {
                let stop = v1::Stop {
                    job,
                    why: v1::StopWhy::Cancelled.into(),
                };
                let request = v1::StopRequest {
                    request_id,
                    stop: Some(stop),
                };
                member.stop_job(request).await?;
                Ok(Answer::Rests)
            }
            Ask::Scale { max } => {
                let request = v1::ScaleRequest {
                    request_id,
                    scale: Some(v1::Scale { job, max }),
                };
                member.scale_job(request).await?;
                Ok(Answer::Scaled)
            }
            Ask::Show => {
                let mut request = Request::new(v1::ShowJobRequest { job });
                if self.is_stale {
                    let yes = "1".parse().unwrap();
                    request.metadata_mut().insert(leader::STALE, yes);
                }
                let view = member.show_job(request).await?.into_inner();
                Ok(Answer::Is(Job {
                    history: view.history,
                    is_queued: view.state == "queued",
                    max: view.workers_max,
                }))
            }
        }
    }
}

/// The answer that a refusal is; `None` where it only says that nothing is known.
fn refusal(status: &Status) -> Option<Answer> {
    match status.code() {
        Code::NotFound => Some(Answer::Unknown),
        Code::FailedPrecondition if status.message().contains("no job is named") => {
            Some(Answer::Unknown)
        }
        Code::FailedPrecondition if status.message().contains("has ended") => {
            Some(Answer::HasEnded)
        }
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal => None,
        _ => panic!("{status:?}"),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().unwrap()
}

/// Clients at work while `disturb` does what it does.
fn observed(seed: u64, group: &mut Group, disturb: impl FnOnce(&mut Group, &Seen)) -> Arc<Seen> {
    let runtime = runtime();
    let seen = Seen::new();
    let _ = group.leader();
    let clients = (0..NUM_CLIENTS).map(|number| {
        let _context = runtime.enter();
        let ids = group.ids();
        let addresses: Vec<&str> = ids.iter().map(|id| group.address(*id)).collect();
        let mut client = Client::new(&addresses, seed * 1000 + number);
        client.is_fickle = true;
        let seen = Arc::clone(&seen);
        runtime.spawn(async move {
            while !seen.ended.is_cancelled() {
                let job = format!("job-{}", client.dice.below(NUM_JOBS));
                let ask = client.dice.ask();
                seen.operate(&mut client, &job, ask).await;
            }
        })
    });
    let clients: Vec<_> = clients.collect();
    seen.wait_for(50);
    disturb(group, &seen);
    seen.wait_for(50);
    seen.ended.cancel();
    for client in clients {
        runtime.block_on(client).unwrap();
    }
    seen
}

/// What is done to the group: so many blows, drawn by a seed. Between them operations are answered.
fn disturb(seed: u64, num_blows: u64, may_cut: bool) -> impl FnOnce(&mut Group, &Seen) {
    move |group, seen| {
        let mut dice = Dice(seed);
        for _ in 0..num_blows {
            let kind = dice.below(if may_cut { 8 } else { 5 });
            // The leader more often than not.
            let id = match dice.below(3) {
                0 => 1 + dice.below(3),
                _ => group.leader(),
            };
            match kind {
                0 | 1 => {
                    group.kill(id);
                    seen.wait_for(30);
                    group.start(id);
                }
                2 | 3 => {
                    group.signal(id, Signal::STOP);
                    seen.wait_for(30);
                    group.signal(id, Signal::CONT);
                }
                4 => {
                    for id in group.ids() {
                        group.kill(id);
                    }
                    group.start_all();
                }
                5 | 6 => {
                    let machine = group.machine(id);
                    group.cluster.network().cut(machine);
                    seen.wait_for(30);
                    group.cluster.network().mend(machine);
                }
                _ => {
                    // Clients reach it still.
                    cut_from_the_others(group, id, Network::cut_between);
                    seen.wait_for(30);
                    cut_from_the_others(group, id, Network::mend_between);
                }
            }
            seen.wait_for(20);
        }
    }
}

fn cut_from_the_others(group: &Group, id: u64, cut: impl Fn(&Network, Machine, Machine)) {
    let others = group.ids().into_iter().filter(|other| *other != id);
    for other in others {
        let network = group.cluster.network();
        cut(network, group.machine(id), group.machine(other));
    }
}

/// One run; how many operations were answered and not.
fn run(seed: u64, num_blows: u64) -> (usize, usize) {
    let mut group = Group::new(env!("CARGO_BIN_EXE_muster"), 3);
    let seen = observed(seed, &mut group, disturb(seed, num_blows, false));
    let judged = seen.judge();
    let (answered, lost) = judged.unwrap_or_else(|told| panic!("seed {seed}: {told}"));
    println!("seed {seed}: {answered} operations answered, {lost} not");
    group.agree(&[1, 2, 3]);
    (answered, lost)
}

#[test]
fn what_is_seen_of_a_group_whose_members_die_and_stop_is_linearizable() {
    for seed in [1, 2] {
        let (answered, _) = run(seed, 5);
        assert!(answered > 200, "{answered} is next to nothing");
    }
}

#[test]
fn what_is_seen_of_a_group_that_is_cut_is_linearizable() {
    let name = "what_is_seen_of_a_group_that_is_cut_is_linearizable";
    let Some(network) = Network::enter(name) else {
        return;
    };
    let seeds = std::env::var("LINEARIZABLE_CUT_SEED");
    let seed = seeds.map_or(3, |seed| seed.parse().unwrap());
    let mut group = Group::on_machines(env!("CARGO_BIN_EXE_muster"), network, 3, &[]);
    group.start_all();
    let seen = observed(seed, &mut group, disturb(seed, 6, true));
    let judged = seen.judge();
    let (answered, lost) = judged.unwrap_or_else(|told| panic!("seed {seed}: {told}"));
    println!("seed {seed}: {answered} operations answered, {lost} not");
    group.agree(&[1, 2, 3]);
}

/// The judgement is not empty: a leader that is cut off from the others answers stale reads, and they
/// are found; reads that must be true it does not answer.
#[test]
fn stale_reads_at_a_leader_that_is_cut_off_are_found_not_to_be_linearizable() {
    let name = "stale_reads_at_a_leader_that_is_cut_off_are_found_not_to_be_linearizable";
    let Some(network) = Network::enter(name) else {
        return;
    };
    let mut group = Group::on_machines(env!("CARGO_BIN_EXE_muster"), network, 3, &[]);
    group.start_all();
    let old = group.leader();
    let runtime = runtime();
    let _context = runtime.enter();
    let others: Vec<u64> = group.ids().into_iter().filter(|id| *id != old).collect();
    let others = others.iter().map(|id| group.address(*id));
    let mut at_others = Client::new(&others.collect::<Vec<_>>(), 1);
    let mut at_old = Client::new(&[group.address(old)], 2);
    for is_stale in [false, true] {
        let seen = Seen::new();
        at_old.is_stale = is_stale;
        let job = format!("stale-{is_stale}");
        let operations = async {
            seen.operate(&mut at_old, &job, Ask::Show).await;
            seen.operate(&mut at_others, &job, Ask::Submit { max: 3 })
                .await;
            seen.operate(&mut at_old, &job, Ask::Show).await;
            seen.operate(&mut at_others, &job, Ask::Show).await;
        };
        if !is_stale {
            cut_from_the_others(&group, old, Network::cut_between);
            let _ = group.leader_but(old);
        }
        runtime.block_on(operations);
        let operations = seen.history.lock().unwrap()[&job].clone();
        let answered = operations.iter().map(|one| one.answer.is_some());
        assert_eq!(
            answered.collect::<Vec<_>>(),
            [is_stale, true, is_stale, true],
            "{operations:#?}"
        );
        let judged = seen.judge();
        assert_eq!(judged.is_err(), is_stale, "{judged:?}");
        if let Err(told) = judged {
            println!("{told}");
        }
    }
}

/// Runs the seeds of `LINEARIZABLE_SEEDS=from..to`, with `LINEARIZABLE_BLOWS` each.
#[test]
#[ignore = "for minutes, not for seconds"]
fn many_seeds() {
    let range = std::env::var("LINEARIZABLE_SEEDS").unwrap_or_else(|_| "10..40".to_owned());
    let blows = std::env::var("LINEARIZABLE_BLOWS").unwrap_or_else(|_| "20".to_owned());
    let (from, to) = range.split_once("..").unwrap();
    let mut all = (0, 0);
    for seed in from.parse().unwrap()..to.parse::<u64>().unwrap() {
        let (answered, lost) = run(seed, blows.parse().unwrap());
        all = (all.0 + answered, all.1 + lost);
    }
    println!("{} operations answered, {} not", all.0, all.1);
}
