//! The processes of a group of either system, on loopback, with their data in one folder that goes
//! with them. They end when this is dropped.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use muster_proto::address;

use super::system::{Client, Standing, System};

/// How long a group may take to have a leader whom all follow.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Between two looks at a group that is to change.
const LOOK_WAIT: Duration = Duration::from_millis(20);

/// How long one member may take to say how it is.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// A group.
pub(crate) struct Group {
    pub(crate) system: System,
    folder: PathBuf,
    members: Vec<Member>,
}

/// A member, and how it is started.
struct Member {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    address: String,
    process: Option<Process>,
}

/// A process that ends when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Group {
    /// Starts a group of this many members, and returns when all follow one leader.
    pub(crate) async fn start(system: System, program: &Path, size: usize) -> Result<Self, String> {
        static GROUP: AtomicU32 = AtomicU32::new(0);
        let number = GROUP.fetch_add(1, Ordering::Relaxed);
        let name = format!("muster-bench-{}-group-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder)
            .map_err(|error| format!("{}: {error}", folder.display()))?;
        let addresses = free_addresses(2 * size).map_err(|error| error.to_string())?;
        let (clients, peers) = addresses.split_at(size);
        let members = (0..size).map(|at| {
            let data = folder.join(at.to_string());
            Member {
                program: program.to_owned(),
                arguments: match system {
                    System::Muster => muster_arguments(at, &data, clients),
                    System::Etcd => etcd_arguments(at, &data, clients, peers),
                },
                log: folder.join(format!("{at}.log")),
                address: clients[at].clone(),
                process: None,
            }
        });
        let members = members.collect();
        let mut group = Self {
            system,
            folder,
            members,
        };
        for at in 0..size {
            group.revive(at)?;
        }
        group.until_whole().await?;
        Ok(group)
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        let addresses = self.members.iter().map(|member| member.address.clone());
        addresses.collect()
    }

    pub(crate) fn address(&self, at: usize) -> &str {
        &self.members[at].address
    }

    /// The processes that run.
    pub(crate) fn pids(&self) -> Vec<u32> {
        (0..self.members.len())
            .filter_map(|at| self.pid(at))
            .collect()
    }

    pub(crate) fn pid(&self, at: usize) -> Option<u32> {
        let process = self.members[at].process.as_ref();
        process.map(|process| process.0.id())
    }

    /// Kills a member with SIGKILL, and returns when it is gone.
    pub(crate) fn kill(&mut self, at: usize) {
        self.members[at].process = None;
    }

    /// Starts a member, with the data that it has.
    pub(crate) fn revive(&mut self, at: usize) -> Result<(), String> {
        let member = &mut self.members[at];
        let failed = |error: std::io::Error| format!("{}: {error}", member.program.display());
        let log = File::options().create(true).append(true).open(&member.log);
        let log = log.map_err(failed)?;
        let child = Command::new(&member.program)
            .args(&member.arguments)
            // A coordinator ends with its standard input, should this process be killed.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        member.process = Some(Process(child));
        Ok(())
    }

    /// A connection to a member; it opens when it is used.
    pub(crate) fn client(&self, at: usize) -> Result<Client, String> {
        let endpoint = address::endpoint_of_several(self.address(at))?;
        Ok(Client::new(self.system, endpoint.connect_lazy()))
    }

    /// What each member says of itself; `None` of those that do not answer.
    async fn standings(&self) -> Vec<Option<Standing>> {
        let mut said = Vec::new();
        for at in 0..self.members.len() {
            said.push(self.standing(at).await);
        }
        said
    }

    pub(crate) async fn standing(&self, at: usize) -> Option<Standing> {
        let mut client = self.client(at).ok()?;
        let said = tokio::time::timeout(LOOK_TIMEOUT, client.standing()).await;
        said.ok()?.ok()
    }

    /// Waits until all members follow one leader and have applied what one had at first; returns
    /// which one leads.
    pub(crate) async fn until_whole(&self) -> Result<usize, String> {
        let start = Instant::now();
        let mut wanted = None;
        while start.elapsed() < START_TIMEOUT {
            let said: Vec<Standing> = self.standings().await.into_iter().flatten().collect();
            let leader = said.first().map_or(0, |said| said.leader);
            let applied = said.iter().map(|said| said.applied);
            let wanted = *wanted.get_or_insert(applied.max().unwrap_or_default());
            let are_one = said
                .iter()
                .all(|one| one.leader == leader && one.applied >= wanted);
            if leader != 0 && said.len() == self.members.len() && are_one {
                let at = said.iter().position(|one| one.id == leader);
                return at.ok_or_else(|| "the leader is no member".to_owned());
            }
            tokio::time::sleep(LOOK_WAIT).await;
        }
        let (name, folder) = (self.system.name(), self.folder.display());
        let seconds = START_TIMEOUT.as_secs();
        Err(format!(
            "the members of {name} in {folder} were not one group within {seconds} s"
        ))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.members.clear();
        if std::env::var_os("MUSTER_BENCH_KEEP").is_none() {
            // What cannot be removed is in the folder for such things.
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

fn muster_arguments(at: usize, data: &Path, clients: &[String]) -> Vec<String> {
    let data = data.display().to_string();
    let mut arguments = vec![
        "coordinator",
        "--tree",
        "--data",
        &data,
        "--listen",
        &clients[at],
    ];
    let peers = clients.iter().enumerate();
    let peers: Vec<String> = peers
        .map(|(at, address)| format!("{}={address}", at + 1))
        .collect();
    let (id, peers) = ((at + 1).to_string(), peers.join(","));
    if clients.len() > 1 {
        arguments.extend(["--id", &id, "--peers", &peers]);
    }
    arguments.into_iter().map(str::to_owned).collect()
}

fn etcd_arguments(at: usize, data: &Path, clients: &[String], peers: &[String]) -> Vec<String> {
    let url = |address: &String| format!("http://{address}");
    let all = peers.iter().enumerate();
    let all: Vec<String> = all
        .map(|(at, peer)| format!("m{at}={}", url(peer)))
        .collect();
    let pairs = [
        ("--name", format!("m{at}")),
        ("--data-dir", data.display().to_string()),
        ("--listen-client-urls", url(&clients[at])),
        ("--advertise-client-urls", url(&clients[at])),
        ("--listen-peer-urls", url(&peers[at])),
        ("--initial-advertise-peer-urls", url(&peers[at])),
        ("--initial-cluster", all.join(",")),
        ("--log-level", "error".to_owned()),
    ];
    let pairs = pairs.into_iter();
    pairs
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect()
}

/// Addresses whose ports are free now.
fn free_addresses(number: usize) -> std::io::Result<Vec<String>> {
    // Held together, so that no port is found twice.
    let listeners = (0..number).map(|_| TcpListener::bind(("127.0.0.1", 0)));
    let listeners = listeners.collect::<std::io::Result<Vec<_>>>()?;
    let addresses = listeners
        .iter()
        .map(|one| Ok(one.local_addr()?.to_string()));
    addresses.collect()
}
