//! The worker's process: what it is told, what it opens, and how it ends.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use muster_proto::leader::Route;
use muster_proto::v1;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::alive::Handle;
use crate::devices::{self, Claims, Driver, Gpu, Inventory};
use crate::home::{Home, Life};
use crate::hub::{Hub, Start};
use crate::roster::{Entry, Roster};
use crate::succession::{Found, Succession};
use crate::{door, link, probe};

/// What a worker is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where coordinators are, each `host:port`: the one that leads is found from any of them.
    pub join: Vec<String>,
    /// Its name, one of its own in the cluster.
    pub name: String,
    /// How many ranks it holds at once on its processors.
    pub devices: u32,
    /// Which GPUs it lends beside them.
    pub gpus: devices::Choice,
    /// Whether other workers of this machine lend the same GPUs.
    pub shares_gpus: bool,
    /// The address under which other machines reach its ranks.
    pub host: IpAddr,
    /// Where it keeps the ranks' logs, and what the next daemon must know; one daemon uses it at a
    /// time.
    pub state: PathBuf,
    /// How many threads a rank computes with; `None`: its share of the processors.
    pub threads: Option<usize>,
    /// The program that ranks run.
    pub program: PathBuf,
    /// Whether standard input is a pipe whose end is the end of the whole process tree; the ranks
    /// inherit it.
    pub tree: bool,
    /// How long its ranks go on without a daemon before they end.
    pub orphan: Duration,
}

/// Why a worker cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program for ranks does not say what it is.
    #[error("{} rank --probe: {reason}", .program.display())]
    Probe {
        /// The program.
        program: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The coordinator wants none of this worker.
    #[error("the coordinator refuses this worker: {0}")]
    Refused(String),
    /// A GPU is to be lent that cannot be.
    #[error("--gpus: {0}")]
    Gpus(String),
    /// An address makes no sense.
    #[error("--join {0}")]
    BadAddress(String),
    /// Another daemon keeps the state folder.
    #[error("{}: {reason}; say with --state where to keep state", .folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// By whom.
        reason: String,
    },
    /// The system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Runs a worker until `shutdown`, or until the coordinator refuses it. All of its ranks have ended
/// when this returns. Where the process ends otherwise its ranks go on, and the next daemon with
/// the same state folder takes them back.
///
/// # Errors
/// When it cannot start, or is refused.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let route = Route::new(options.join.clone()).map_err(Error::BadAddress)?;
    let state = options.state.display();
    let home = Home::open(&options.state)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Error::InUse {
                folder: options.state.clone(),
                reason: error.to_string(),
            },
            _ => Error::Io {
                what: format!("cannot use {state}"),
                source: error,
            },
        })?;
    let class = probe::probe(&options.program).await?;
    let lent = lend(&options)?;
    let io_error = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Io { what, source }
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .map_err(io_error("cannot listen for ranks"))?;
    let address: SocketAddr = listener
        .local_addr()
        .map_err(io_error("cannot listen for ranks"))?;
    let unusable = io_error(&format!("cannot use {state}"));
    let (roster, incarnation, adopted) = succeed(&home, &class).await.map_err(unusable)?;

    let worker = v1::RegisterWorker {
        worker: options.name.clone(),
        incarnation,
        num_devices: options.devices,
        gpus: devices::registered(&lent.gpus, lent.driver.as_ref(), &class.build),
        class: Some(class),
        host: options.host.to_string(),
    };
    let start = Start {
        program: options.program.clone(),
        door: home.door(),
        host: options.host,
        threads: options
            .threads
            .unwrap_or_else(|| share_of_processors(options.devices)),
        tree: options.tree,
        orphan: options.orphan,
        gpus: lent.numbers,
        shares_gpus: options.shares_gpus,
        logs: home.logs(),
        roster,
    };
    tracing::info!(
        worker = options.name,
        devices = options.devices,
        gpus = lent.gpus.len(),
        incarnation,
        "worker runs"
    );
    let (notes, receiver) = mpsc::unbounded_channel();
    let ended = CancellationToken::new();
    let _ends_with_us = ended.clone().drop_guard();
    let mut hub = Hub::new(worker, start, notes.clone());
    for (entry, handle) in adopted {
        hub.adopt(entry, handle);
    }
    let is_complete = hub.is_complete();
    tokio::spawn(door::admit(listener, notes.clone(), ended.clone()));
    home.publish_door(address)
        .map_err(io_error(&format!("cannot use {state}")))?;
    tokio::spawn(async move {
        tokio::select! {
            () = ended.cancelled() => {}
            () = is_complete.cancelled() => link::keep(route, notes, ended.clone()).await,
        }
    });
    hub.run(receiver, shutdown).await
}

/// The GPUs that a worker lends.
#[derive(Default)]
struct Lent {
    /// By index.
    gpus: Vec<(u32, Gpu)>,
    driver: Option<Driver>,
    /// The numbers of all that this worker sees, by index.
    numbers: Vec<String>,
    /// As long as the worker lends them, no other one of this machine does.
    claims: Claims,
}

/// Looks for GPUs, and says once why there are none to lend.
fn lend(options: &Options) -> Result<Lent, Error> {
    let mut lent = Lent::default();
    if options.gpus == devices::Choice::None {
        return Ok(lent);
    }
    let inventory = Inventory::of_this_machine();
    let offered = devices::offered(&inventory, &options.gpus).map_err(Error::Gpus)?;
    if let Some(reason) = &inventory.why_none {
        tracing::info!(reason, "lends processors alone");
    }
    for (index, gpu) in offered {
        // All workers of the machine are told to share, or none.
        let claimed = match options.shares_gpus {
            true => Ok(()),
            false => lent.claims.add(index, &gpu),
        };
        match claimed {
            Ok(()) => {
                let Gpu { name, uuid, .. } = &gpu;
                tracing::info!(index, name, uuid, "lends a GPU");
                lent.gpus.push((index, gpu));
            }
            // Who asks for all gets those that are left.
            Err(reason) if options.gpus == devices::Choice::All => {
                tracing::warn!(reason, "does not lend a GPU");
            }
            Err(reason) => return Err(Error::Gpus(reason)),
        }
    }
    lent.numbers = devices::numbers(&inventory);
    lent.driver = inventory.driver;
    Ok(lent)
}

/// The processes of the daemon before this one, if the life that they are from goes on; those
/// without a handle have ended.
type Adopted = Vec<(Entry, Option<Handle>)>;

/// Takes the place of the daemon before this one: in which life of the worker, and with which of
/// its processes.
async fn succeed(
    home: &Home,
    class: &v1::NumericsClass,
) -> io::Result<(Arc<Roster>, u64, Adopted)> {
    let roster = Arc::new(Roster::load(&home.ranks())?);
    let entries = roster.entries().into_iter().map(|entry| {
        let handle = entry.take()?;
        Ok((entry, handle))
    });
    let adopted: Adopted = entries.collect::<io::Result<_>>()?;
    let running = || adopted.iter().filter_map(|(_, handle)| handle.as_ref());
    let life = home.life();
    let found = Found {
        life: life.as_ref(),
        num_running: running().count(),
        class: &class.clone().into(),
    };
    let (num_running, succession) = (found.num_running, Succession::decide(found));
    match (succession, life) {
        (Succession::GoesOn, Some(life)) => {
            let incarnation = life.incarnation;
            tracing::info!(num_running, incarnation, "takes ranks back");
            Ok((roster, incarnation, adopted))
        }
        (succession, life) => {
            if let Succession::Begins {
                gives_up: Some(reason),
            } = succession
            {
                tracing::warn!(
                    num_running,
                    reason,
                    "ends ranks of the daemon before this one"
                );
            }
            for handle in running() {
                if !handle.end().await {
                    let text = format!("process {} does not end", handle.pid());
                    return Err(io::Error::other(text));
                }
            }
            roster.keep(|_| false);
            let since_epoch = SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            let now_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
            // A later life of the same name outranks this one.
            let last = life.map_or(0, |life| life.incarnation);
            let life = Life {
                incarnation: now_ms.max(last.saturating_add(1)),
                class: class.clone(),
            };
            home.begin(&life)?;
            Ok((roster, life.incarnation, Vec::new()))
        }
    }
}

/// The processors that one of `devices` ranks may use.
fn share_of_processors(devices: u32) -> usize {
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (all / devices.max(1) as usize).max(1)
}
