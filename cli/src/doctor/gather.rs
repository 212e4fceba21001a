//! Collects the facts about this machine. A fact that cannot be had is left out or says why; none of it
//! is judged here.

use std::fs::{self, File};
use std::io::Write as _;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use muster_worker::devices::{self, Inventory};
use rustix::process::{Resource, getrlimit};

use super::facts::{Clock, Disk, Drift, Facts, Gpus, Limits, Link, Peer, System};
use crate::client::Client;
use crate::failure::Failure;

/// How long an answer over the network may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// How many connections are made to a peer, of which the quickest counts: the others had to wait for
/// something that has to do with neither.
const NUM_CONNECTIONS: u32 = 3;

/// How many small writes are timed.
const NUM_SYNCS: usize = 16;

/// What decides how fast processors compute, as the kernel names it.
const FEATURES: [&str; 6] = ["avx2", "fma", "avx512f", "amx_tile", "asimd", "sve"];

pub(super) async fn gather(
    folder: &Path,
    coordinators: &[String],
    peers: &[String],
) -> Result<Facts, Failure> {
    let coordinator = match coordinators {
        [] => None,
        named => Some(drift(named).await),
    };
    let (folder, peers) = (folder.to_owned(), peers.to_vec());
    // Libraries are loaded, disks and connections waited for: nothing for a thread that serves others.
    let gathered = tokio::task::spawn_blocking(move || Facts {
        system: system(),
        gpus: Gpus {
            has_cuda: cfg!(feature = "cuda"),
            inventory: Inventory::of_this_machine(),
            libraries: devices::libraries(),
            libdevice: devices::libdevice(),
        },
        disk: disk(&folder),
        clock: Clock {
            is_synchronized: is_synchronized(),
            coordinator,
        },
        peers: peers.into_iter().map(peer).collect(),
        limits: limits(),
    });
    gathered
        .await
        .map_err(|error| Failure::failed(format!("this machine could not be looked at: {error}")))
}

fn system() -> System {
    let uname = rustix::system::uname();
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |names: &[&str]| {
        let mut lines = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let found = lines.find(|(name, _)| names.contains(&name.trim()));
        found.map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let flags = field(&["flags", "Features"]);
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kilobytes * 1024)
    };
    System {
        name: pretty.map_or_else(
            || uname.sysname().to_string_lossy().into_owned(),
            |name| name.trim_matches('"').to_owned(),
        ),
        kernel: uname.release().to_string_lossy().into_owned(),
        architecture: uname.machine().to_string_lossy().into_owned(),
        processor: field(&["model name", "Model"]),
        num_processors: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        features: FEATURES
            .into_iter()
            .filter(|feature| flags.contains(feature))
            .collect(),
        memory_bytes: memory("MemTotal:"),
        available_bytes: memory("MemAvailable:"),
        class: muster_rank::class(muster_models::canary_hex).map_err(|error| error.to_string()),
    }
}

fn disk(folder: &Path) -> Disk {
    // Nothing is made here: what does not exist yet would be on the disk of what does.
    let there = folder.ancestors().find(|path| path.is_dir());
    let there = there.unwrap_or(Path::new("/"));
    let system = rustix::fs::statfs(there).ok();
    let free = rustix::fs::statvfs(there).ok();
    Disk {
        folder: there.to_owned(),
        #[expect(
            clippy::cast_sign_loss,
            reason = "the kernel's numbers are bit patterns of 32 bits"
        )]
        magic: system.map(|system| (system.f_type as u64) & 0xffff_ffff),
        free_bytes: free.map(|free| free.f_bavail.saturating_mul(free.f_frsize)),
        sync_us: sync_us(there).map_err(|error| error.to_string()),
    }
}

/// The median time of a write of 4 KiB that reaches the disk. Leaves nothing behind.
fn sync_us(folder: &Path) -> std::io::Result<u64> {
    let path = folder.join(format!(".muster-doctor-{}", std::process::id()));
    let file = File::create_new(&path)?;
    let timed = time_syncs(&file);
    fs::remove_file(&path)?;
    timed
}

fn time_syncs(mut file: &File) -> std::io::Result<u64> {
    let mut times = Vec::new();
    for _ in 0..NUM_SYNCS {
        let start = Instant::now();
        file.write_all(&[0x5a; 4096])?;
        file.sync_data()?;
        times.push(micros(start.elapsed()));
    }
    times.sort_unstable();
    Ok(times[times.len() / 2])
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Asks who keeps the clock: systemd's own service leaves a file, and tells of the others.
fn is_synchronized() -> Option<bool> {
    if Path::new("/run/systemd/timesync/synchronized").exists() {
        return Some(true);
    }
    let asked = Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .output();
    match String::from_utf8_lossy(&asked.ok()?.stdout).trim() {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

/// How far this clock is ahead of the leading coordinator's.
async fn drift(coordinators: &[String]) -> Result<Drift, String> {
    let what_to_do = "is that the address of a coordinator?";
    let client = Client::of(coordinators.to_vec(), TIMEOUT, what_to_do);
    let client = client.map_err(|failure| failure.text)?;
    let asked =
        |client: Client| async move { client.nodes().await.map_err(|failure| failure.text) };
    // The first question finds the leader and connects; the second one is timed.
    asked(client.clone()).await?;
    let start = Instant::now();
    let before = SystemTime::now();
    let reply = asked(client).await?;
    let half = start.elapsed() / 2;
    if reply.now_ms == 0 {
        return Err(
            "the coordinator is of an older build, which does not tell its time".to_owned(),
        );
    }
    let middle = before + half;
    let middle = middle.duration_since(SystemTime::UNIX_EPOCH);
    let middle_ms = middle.unwrap_or_default().as_millis();
    let signed = |ms: u128| i64::try_from(ms).unwrap_or(i64::MAX);
    Ok(Drift {
        ms: signed(middle_ms).saturating_sub(signed(u128::from(reply.now_ms))),
        uncertain_ms: u64::try_from(half.as_millis()).unwrap_or(u64::MAX) + 1,
    })
}

fn peer(address: String) -> Peer {
    let link = connect(&address);
    Peer { address, link }
}

fn connect(address: &str) -> Result<Link, String> {
    let mut addresses = address
        .to_socket_addrs()
        .map_err(|error| error.to_string())?;
    let to = addresses.next().ok_or("it names no address")?;
    let mut link: Option<Link> = None;
    for _ in 0..NUM_CONNECTIONS {
        let start = Instant::now();
        let stream = TcpStream::connect_timeout(&to, TIMEOUT).map_err(|error| error.to_string())?;
        let connect_us = micros(start.elapsed());
        let mtu = match to.is_ipv4() {
            true => rustix::net::sockopt::ip_mtu(&stream),
            false => rustix::net::sockopt::ipv6_mtu(&stream),
        };
        let best = link.map_or(u64::MAX, |link| link.connect_us);
        link = Some(Link {
            connect_us: connect_us.min(best),
            mtu: mtu.ok(),
        });
    }
    link.ok_or_else(|| "no connection was tried".to_owned())
}

fn limits() -> Limits {
    let shm = rustix::fs::statvfs("/dev/shm").ok();
    Limits {
        open_files: getrlimit(Resource::Nofile).current,
        locked_bytes: getrlimit(Resource::Memlock).current,
        shm_bytes: shm.map(|shm| shm.f_blocks.saturating_mul(shm.f_frsize)),
    }
}
