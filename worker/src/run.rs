//! The worker's process: what it is told, what it opens, and how it ends.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;

use muster_proto::v1;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::hub::{Hub, Start};
use crate::{door, link, probe};

/// What a worker is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where coordinators are, tried in this order; each `host:port`.
    pub join: Vec<String>,
    /// Its name, one of its own in the cluster.
    pub name: String,
    /// How many ranks it holds at once.
    pub devices: u32,
    /// The address under which other machines reach its ranks.
    pub host: IpAddr,
    /// Where it keeps the ranks' logs.
    pub state: PathBuf,
    /// How many threads a rank computes with; `None`: its share of the processors.
    pub threads: Option<usize>,
    /// The program that ranks run.
    pub program: PathBuf,
    /// Whether standard input is a pipe whose end is the end of the whole process tree; the ranks
    /// inherit it.
    pub tree: bool,
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
    /// An address makes no sense.
    #[error("--join {0}")]
    BadAddress(String),
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
/// when this returns.
///
/// # Errors
/// When it cannot start, or is refused.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let endpoints = link::endpoints(&options.join)?;
    let class = probe::probe(&options.program).await?;
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
    let logs = options.state.join("logs");
    std::fs::create_dir_all(&logs)
        .map_err(io_error(&format!("cannot create {}", logs.display())))?;

    let since_epoch = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let worker = v1::RegisterWorker {
        worker: options.name.clone(),
        // A later process of the same name outranks this one.
        incarnation: u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX),
        num_devices: options.devices,
        class: Some(class),
        host: options.host.to_string(),
    };
    let start = Start {
        program: options.program.clone(),
        address,
        host: options.host,
        threads: options
            .threads
            .unwrap_or_else(|| share_of_processors(options.devices)),
        tree: options.tree,
        logs,
    };
    tracing::info!(
        worker = options.name,
        devices = options.devices,
        "worker runs"
    );
    let (notes, receiver) = mpsc::unbounded_channel();
    let ended = CancellationToken::new();
    let _ends_with_us = ended.clone().drop_guard();
    tokio::spawn(door::admit(listener, notes.clone(), ended.clone()));
    tokio::spawn(link::keep(endpoints, notes.clone(), ended.clone()));
    Hub::new(worker, start, notes).run(receiver, shutdown).await
}

/// The processors that one of `devices` ranks may use.
fn share_of_processors(devices: u32) -> usize {
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (all / devices.max(1) as usize).max(1)
}
