//! The load generator: so many requests in flight, each caller with the next one as soon as the last
//! one is acknowledged. And what processes use of this machine meanwhile.

use std::time::{Duration, Instant};

use muster_proto::address;
use tokio::task::JoinSet;
use tonic::Status;

use super::group::Group;
use super::system::{Client, System};

/// Callers share this many connections at most.
const MAX_CONNECTIONS: usize = 8;

/// A round that fails more often than this is no accident.
const MAX_FAILED: usize = 5;

/// What a round came to.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) per_s: f64,
    /// How long each request took, in milliseconds, shortest first.
    pub(crate) latencies_ms: Vec<f64>,
    /// What all members computed for one request, in microseconds.
    pub(crate) cpu_us: f64,
    /// How often it was begun again, since the leader was another one.
    pub(crate) num_failed: usize,
}

impl Round {
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let at = self.latencies_ms.len() * percent / 100;
        let at = at.min(self.latencies_ms.len().saturating_sub(1));
        self.latencies_ms.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// Calls the leader; a round in which a request fails does not count, and is done again.
pub(crate) async fn through_leader<Called: Future<Output = Result<(), Status>> + Send>(
    group: &Group,
    in_flight: usize,
    lasts: Duration,
    call: impl Fn(Client) -> Called + Copy + Send + 'static,
) -> Result<Round, String> {
    let mut num_failed = 0;
    loop {
        let leader = group.until_whole().await?;
        let clients = connect(group.system, group.address(leader), in_flight).await?;
        let pids = group.pids();
        let before = cpu(&pids);
        let round = run(&clients, in_flight, lasts, call).await;
        let computed = cpu(&pids).saturating_sub(before);
        match round {
            Ok(round) => {
                let num_requests = round.latencies_ms.len() as f64;
                return Ok(Round {
                    cpu_us: 1e6 * computed.as_secs_f64() / num_requests,
                    num_failed,
                    ..round
                });
            }
            Err(reason) if num_failed < MAX_FAILED => {
                eprintln!("once more: {}: {reason}", group.system.name());
                num_failed += 1;
            }
            Err(reason) => return Err(reason),
        }
    }
}

/// Connections to one member, opened.
pub(crate) async fn connect(
    system: System,
    to: &str,
    in_flight: usize,
) -> Result<Vec<Client>, String> {
    let mut clients = Vec::new();
    for _ in 0..in_flight.clamp(1, MAX_CONNECTIONS) {
        let channel = address::endpoint(to)?.connect().await;
        let channel = channel.map_err(|error| format!("{to}: {error}"))?;
        clients.push(Client::new(system, channel));
    }
    Ok(clients)
}

/// Calls with `in_flight` requests at once for so long; a request that fails ends it.
async fn run<Called: Future<Output = Result<(), Status>> + Send>(
    clients: &[Client],
    in_flight: usize,
    lasts: Duration,
    call: impl Fn(Client) -> Called + Copy + Send + 'static,
) -> Result<Round, String> {
    let start = Instant::now();
    // Where one fails, the others end with it.
    let mut callers = JoinSet::new();
    for client in clients.iter().cycle().take(in_flight) {
        let client = client.clone();
        callers.spawn(async move {
            let mut latencies = Vec::new();
            while start.elapsed() < lasts {
                let began = Instant::now();
                call(client.clone()).await?;
                latencies.push(1000.0 * began.elapsed().as_secs_f64());
            }
            Ok::<_, Status>(latencies)
        });
    }
    let mut round = Round::default();
    while let Some(called) = callers.join_next().await {
        let called = called.map_err(|error| error.to_string())?;
        let latencies = called.map_err(|status| format!("a request failed: {status}"))?;
        round.latencies_ms.extend(latencies);
    }
    round.per_s = round.latencies_ms.len() as f64 / start.elapsed().as_secs_f64();
    round.latencies_ms.sort_by(f64::total_cmp);
    Ok(round)
}

/// How long these processes have computed since their start, all together.
pub(crate) fn cpu(pids: &[u32]) -> Duration {
    let ticks: u64 = pids.iter().filter_map(|pid| ticks_of(*pid)).sum();
    // A tick is 10 ms wherever Linux tells programs of ticks.
    Duration::from_millis(10 * ticks)
}

/// Of `/proc/PID/stat`, what was spent in the program and in the kernel for it.
fn ticks_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may have spaces.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut numbers = rest.split(' ').skip(11);
    let mut next = || numbers.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// How much memory a process has, in megabytes.
pub(crate) fn resident_mb(pid: u32) -> Result<f64, String> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kilobytes = kilobytes.and_then(|number| number.trim().parse::<f64>().ok());
    let kilobytes = kilobytes.ok_or_else(|| format!("{path}: there is no VmRSS"))?;
    Ok(kilobytes * 1024.0 / 1e6)
}

/// A machine's load, for people who read a table later.
pub(crate) fn machine() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let minute = load.split(' ').next().unwrap_or("?").to_owned();
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("{processors} processors, load average {minute} at the end")
}
