//! `muster coordinator`, `muster worker` and `muster rank`: the long-lived processes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use muster_cluster::error_chain;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use muster_cluster::plan::Patience;

use crate::failure::{Failure, Outcome};
use crate::group::GroupCommand;
use crate::jobfile;
use crate::output::print_lines;

/// Where a coordinator listens that is not told where.
pub(crate) const DEFAULT_PORT: u16 = 4600;

/// Run a coordinator, the replicated truth of a cluster; or look after a group of them
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "\
Examples: muster coordinator --data /var/lib/muster --listen 10.0.0.1:4600
          muster coordinator --data /var/lib/muster --id 1 \\
              --peers 1=10.0.0.1:4600,2=10.0.0.2:4600,3=10.0.0.3:4600
          muster coordinator status --coordinator 10.0.0.1:4600,10.0.0.2:4600

A group of 3 goes on without any one of them, a group of 5 without any two. Every member is given the \
same --peers when it is first started; its data folder knows them from then on."
)]
pub(crate) struct CoordinatorCommand {
    #[command(subcommand)]
    group: Option<GroupCommand>,
    #[command(flatten)]
    coordinator: Option<Coordinator>,
}

impl CoordinatorCommand {
    pub(crate) async fn run(self) -> Outcome {
        match (self.group, self.coordinator) {
            (Some(group), _) => group.run().await,
            (None, Some(coordinator)) => coordinator.run().await,
            (None, None) => Err(Failure::bad_input(
                "--data is missing: where does it keep its log?",
            )),
        }
    }
}

#[derive(Debug, Args)]
struct Coordinator {
    /// Where it keeps its log, snapshots and the jobs' events
    #[arg(long, value_name = "FOLDER")]
    data: PathBuf,
    /// Where it listens; port 0 takes a free one [default: its address in --peers, or as
    /// its data folder has it, or 127.0.0.1:4600]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Its number in the group [default: as its data folder says, or 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    id: Option<u64>,
    /// All members that found the group, this one included
    #[arg(long, value_name = "N=HOST:PORT", value_delimiter = ',', value_parser = member)]
    peers: Vec<(u64, String)>,
    /// Members of a group that exists, and that has taken this one in (`muster coordinator add`)
    #[arg(
        long,
        value_name = "HOST:PORT",
        value_delimiter = ',',
        conflicts_with = "peers"
    )]
    join: Vec<String>,
    /// The members are where --peers says now, and not where they were
    #[arg(long, requires = "peers")]
    moved: bool,
    /// The folder of checkpoints of jobs that name none; the same for all members of a group
    /// [default: checkpoints in --data]
    #[arg(long, value_name = "FOLDER")]
    checkpoints: Option<PathBuf>,
    /// A machine from which nothing comes for so long is missed; all other times follow from it
    #[arg(long, value_name = "MS", default_value_t = Patience::default().detect_ms, value_parser = clap::value_parser!(u64).range(200..=60_000))]
    detect_ms: u64,
    /// How long a job that has its fewest workers waits for more before it begins
    #[arg(long, value_name = "MS", default_value_t = Patience::default().gather_ms, value_parser = clap::value_parser!(u64).range(..=600_000))]
    gather_ms: u64,
    /// After how long of nothing but silence a machine counts as dead, so that a job whose state
    /// nobody else holds falls back to its last checkpoint
    #[arg(long, value_name = "MS", default_value_t = Patience::default().fallback_after_ms, value_parser = clap::value_parser!(u64).range(1_000..=86_400_000))]
    fallback_after_ms: u64,
    /// Print one line of JSON with the address and the process id once it serves
    #[arg(long)]
    ready_json: bool,
    /// End when standard input ends
    #[arg(long, hide = true)]
    tree: bool,
}

impl Coordinator {
    pub(crate) async fn run(self) -> Outcome {
        if self.tree {
            muster_rank::end_with_the_tree()?;
        }
        if self.fallback_after_ms < 2 * self.detect_ms {
            let (after, detect) = (self.fallback_after_ms, self.detect_ms);
            return Err(Failure::bad_input(format!(
                "--fallback-after-ms {after}: expected at least twice --detect-ms {detect}, since a \
                 machine is given up only after it was missed"
            )));
        }
        let ready_json = self.ready_json;
        let peers = peers(self.peers)?;
        let own = self.id.and_then(|id| peers.get(&id));
        let own = own.and_then(|address| address.parse().ok());
        let listen = self.listen.or(own);
        let listen = listen.or_else(|| muster_coordinator::listens_at(&self.data));
        let default = SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT));
        let options = muster_coordinator::Options {
            data: self.data,
            listen: listen.unwrap_or(default),
            group: muster_coordinator::Group {
                id: self.id,
                peers,
                join: self.join,
                have_moved: self.moved,
            },
            checkpoints: self.checkpoints,
            patience: Patience {
                detect_ms: self.detect_ms,
                gather_ms: self.gather_ms,
                fallback_after_ms: self.fallback_after_ms,
            },
        };
        let ready = move |address: SocketAddr| {
            let line = if ready_json {
                let pid = std::process::id();
                serde_json::json!({ "event": "ready", "addr": address.to_string(), "pid": pid })
                    .to_string()
            } else {
                format!("coordinator serves on {address}")
            };
            print_lines([line]);
        };
        let served = muster_coordinator::serve(options, shutdown_signal()?, ready).await;
        served
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| match error {
                muster_coordinator::Error::Server(_) | muster_coordinator::Error::Driver(_) => {
                    Failure::failed(error_chain(&error))
                }
                _ => Failure::bad_input(error_chain(&error)),
            })
    }
}

/// All members of --peers.
pub(crate) fn peers(given: Vec<(u64, String)>) -> Result<BTreeMap<u64, String>, Failure> {
    let mut peers = BTreeMap::new();
    for (id, address) in given {
        if let Some(other) = peers.insert(id, address.clone()) {
            return Err(Failure::bad_input(format!(
                "--peers: {other} and {address} are both member {id}; every member has a number of its own"
            )));
        }
    }
    Ok(peers)
}

/// A member of --peers.
pub(crate) fn member(text: &str) -> Result<(u64, String), String> {
    let expected = "expected NUMBER=HOST:PORT, such as 1=10.0.0.1:4600";
    let (id, address) = text.split_once('=').ok_or(expected)?;
    let id = id.parse().ok().filter(|id| *id > 0);
    let id = id.ok_or_else(|| format!("{text}: the number is not one from 1 on; {expected}"))?;
    muster_proto::address::endpoint(address)?;
    Ok((id, address.to_owned()))
}

/// Run a worker: lend this machine's devices to a cluster
#[derive(Debug, Args)]
#[command(after_help = "\
Examples: muster worker --join 10.0.0.1:4600 --host 10.0.0.2
          muster worker --join 10.0.0.1:4600 --host 10.0.0.2 --devices 2 --gpus 0,2

GPUs are counted from 0 in CUDA's order, among those that CUDA_VISIBLE_DEVICES leaves, or else \
GPU_DEVICE_ORDINAL, SLURM_STEP_GPUS or SLURM_JOB_GPUS. Each holds one rank at a time, and is lent by one \
worker of a machine.")]
pub(crate) struct Worker {
    /// Where coordinators are; the one that leads is found from any of them
    #[arg(
        long,
        value_name = "HOST:PORT,...",
        required = true,
        value_delimiter = ','
    )]
    pub(crate) join: Vec<String>,
    /// Its name, one of its own in the cluster [default: this machine's]
    #[arg(long)]
    name: Option<String>,
    /// How many ranks it holds at once on its processors
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    devices: u32,
    /// Which GPUs it lends beside them: none, all, or indices
    #[arg(long, value_name = "none|all|0,2", default_value = "all")]
    gpus: muster_worker::devices::Choice,
    /// Lend GPUs that other workers of this machine lend, too, if all of them say so: for tests on one
    /// machine, since ranks that share a GPU are no faster than one, and talk over its loopback interface
    #[arg(long)]
    share_gpus: bool,
    /// The address under which other machines reach this one
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Where it keeps the ranks' logs, and what a restarted worker needs to take its ranks back
    #[arg(long, value_name = "FOLDER", env = "MUSTER_STATE")]
    state: Option<PathBuf>,
    /// How many threads a rank computes with [default: its share of the processors]
    #[arg(long, value_name = "N", value_parser = crate::train::at_least_one::<std::num::NonZero<usize>>)]
    threads: Option<std::num::NonZero<usize>>,
    /// How long its ranks go on without it
    #[arg(long, value_name = "MS", default_value_t = 30_000, hide = true)]
    orphan_ms: u64,
    /// End when standard input ends
    #[arg(long, hide = true)]
    tree: bool,
}

impl Worker {
    pub(crate) async fn run(self) -> Outcome {
        if self.tree {
            muster_rank::end_with_the_tree()?;
        }
        let machine = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let name = self.name.unwrap_or(machine);
        let state = match self.state {
            Some(state) => state,
            None => jobfile::state_folder(None)?.join("worker").join(&name),
        };
        if let Err(error) = muster_cluster::ids::WorkerName::new(&name) {
            return Err(Failure::bad_input(format!("--name {name}: {error}")));
        }
        let options = muster_worker::Options {
            join: self.join,
            name,
            devices: self.devices,
            gpus: self.gpus,
            shares_gpus: self.share_gpus,
            host: self.host,
            state,
            threads: self.threads.map(std::num::NonZero::get),
            program: std::env::current_exe()?,
            tree: self.tree,
            orphan: Duration::from_millis(self.orphan_ms),
        };
        let ran = muster_worker::run(options, shutdown_signal()?).await;
        ran.map(|()| ExitCode::SUCCESS)
            .map_err(|error| match error {
                muster_worker::Error::BadAddress(_)
                | muster_worker::Error::Gpus(_)
                | muster_worker::Error::InUse { .. } => Failure::bad_input(error_chain(&error)),
                _ => Failure::failed(error_chain(&error)),
            })
    }
}

/// Run one rank of a job; started by workers
#[derive(Debug, Args)]
pub(crate) struct Rank {
    /// Print what decides this program's bits, and end
    #[arg(long)]
    probe: bool,
}

impl Rank {
    pub(crate) fn run(self) -> ExitCode {
        if !self.probe {
            return muster_rank::rank_main(muster_models::build, muster_models::canary_hex);
        }
        match muster_rank::probe(muster_models::canary_hex) {
            Ok(line) => {
                print_lines([line]);
                ExitCode::SUCCESS
            }
            Err(error) => Failure::from(error).exit(),
        }
    }
}

/// Cancelled by the first SIGINT or SIGTERM.
fn shutdown_signal() -> Result<CancellationToken, Failure> {
    let shutdown = CancellationToken::new();
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let on_signal = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        on_signal.cancel();
    });
    Ok(shutdown)
}
