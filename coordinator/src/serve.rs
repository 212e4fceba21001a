//! The coordinator's process: what it opens, in which order, and how it ends.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use muster_cluster::plan::Patience;
use muster_coordinator_core::Coordinator;
use muster_coordinator_core::consensus::{Recovered, ReplicaId};
use muster_coordinator_core::coordinator::{GENESIS_INDEX, Options as CoreOptions};
use muster_proto::v1::clients_server::ClientsServer;
use muster_proto::v1::coordinators_server::CoordinatorsServer;
use muster_proto::v1::operators_server::OperatorsServer;
use muster_proto::v1::workers_server::WorkersServer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::clients::ClientsService;
use crate::door::{self, Refusals};
use crate::driver::{Driver, DriverError, Note, Parts, lengths_of};
use crate::founding::{self, FoundingError};
use crate::identity::IdentityError;
use crate::logs::Logs;
use crate::operators::{Disk, OperatorsService};
use crate::peers::{CoordinatorsService, Peers};
use crate::records::{Records, RecordsError};
use crate::snapshots::{self, SnapshotError, Snapshotter};
use crate::store::thread::StoreThread;
use crate::store::{Store, StoreError, WAY_OUT};
use crate::workers::WorkersService;

/// The longest message that a service takes, in bytes.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// What a coordinator is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it keeps its log, snapshots, events and the ranks' output.
    pub data: PathBuf,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Its part in a group.
    pub group: Group,
    /// The folder of checkpoints for jobs that name none; `None`: `checkpoints` in `data`.
    pub checkpoints: Option<PathBuf>,
    /// How long it waits for what.
    pub patience: Patience,
}

/// A coordinator's part in a group.
#[derive(Clone, Debug, Default)]
pub struct Group {
    /// Its number; `None`: as its data folder says, or 1.
    pub id: Option<u64>,
    /// All that found a group, with this one, and where each is reached; empty for a group of one.
    pub peers: BTreeMap<u64, String>,
    /// Members of a group that exists and has taken this one in.
    pub join: Vec<String>,
    /// Whether `peers` says where the members are now, whatever was said before.
    pub have_moved: bool,
}

/// Why a coordinator cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}; is another coordinator running there? Choose another with --listen"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The log cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The events cannot be read.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// A snapshot cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// It is not known who it is.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It cannot be a member as it is told.
    #[error(transparent)]
    Founding(#[from] FoundingError),
    /// The log makes no sense.
    #[error("{}: {reason}; {}", .folder.display(), WAY_OUT)]
    Recover {
        /// The store's folder.
        folder: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// It had to stop.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The network failed.
    #[error("the server failed")]
    Server(#[from] tonic::transport::Error),
    /// The system failed.
    #[error("{}: cannot be used", .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// Runs a coordinator until `shutdown`. `ready` is told the address when connections are taken.
///
/// # Errors
/// When it cannot start or go on; nothing that was acknowledged is lost.
pub async fn serve(
    options: Options,
    shutdown: CancellationToken,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    let listen_error = |source| Error::Listen {
        address: options.listen,
        source,
    };
    let listener = TcpListener::bind(options.listen)
        .await
        .map_err(listen_error)?;
    let address = listener.local_addr().map_err(listen_error)?;

    let Opened {
        parts,
        logs,
        disk,
        first,
    } = open(&options, address).await?;
    let records = parts.records.clone();
    let (driver, handle) = Driver::new(parts);
    let refusals = Refusals::default();
    let members = CoordinatorsService::new(
        handle.clone(),
        records.clone(),
        logs.clone(),
        disk.snapshots.clone(),
    );
    let workers = WorkersService::new(handle.clone(), logs.clone(), refusals.clone());
    let clients = ClientsService::new(handle.clone(), records.clone(), logs);
    let operators = OperatorsService::new(handle.clone(), records, disk);
    let server = Server::builder()
        .add_service(CoordinatorsServer::new(members).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(WorkersServer::new(workers).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(ClientsServer::new(clients).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(OperatorsServer::new(operators))
        .serve_with_incoming(door::admit(listener, refusals.clone()));
    tracing::info!(%address, data = %options.data.display(), "coordinator serves");
    ready(address);
    // As a task of its own it is woken where the services' tasks run, mostly on the same thread.
    let mut driver = Ends(tokio::spawn(driver.run(first, handle, shutdown)));
    // Streams last as long as their workers: a server that waited for them would never end.
    tokio::select! {
        ended = &mut driver.0 => match ended {
            Ok(ended) => Ok(ended?),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Ok(()),
            },
        },
        ended = server => Ok(ended?),
    }
}

/// A task that ends with whoever waits for it.
struct Ends<T>(tokio::task::JoinHandle<T>);

impl<T> Drop for Ends<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Opened {
    parts: Parts,
    logs: Logs,
    disk: Disk,
    first: Vec<muster_coordinator_core::Output>,
}

/// Opens what is on disk, and builds the machine from it.
async fn open(options: &Options, address: SocketAddr) -> Result<Opened, Error> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::Io { path, source }
    };
    let data = std::path::absolute(&options.data).map_err(io_error(&options.data))?;
    founding::check_first(options, address, &data).await?;
    std::fs::create_dir_all(&data).map_err(io_error(&data))?;
    let checkpoints = options.checkpoints.clone();
    let checkpoints = checkpoints.unwrap_or_else(|| data.join("checkpoints"));
    let checkpoints = std::path::absolute(&checkpoints).map_err(io_error(&checkpoints))?;

    // The store first: its lock keeps a second coordinator from touching anything else.
    let folder = data.join("log");
    let (mut store, recovered, meta) = Store::open(&folder)?;
    let me = founding::member(options, address, &data, meta.cluster_id, &recovered).await?;
    let folder_of_snapshots = data.join("snapshots");
    std::fs::create_dir_all(&folder_of_snapshots).map_err(io_error(&folder_of_snapshots))?;
    snapshots::remove_unfinished(&folder_of_snapshots).map_err(io_error(&folder_of_snapshots))?;
    let recovered = begin(&mut store, recovered, &me)?;
    let start = recovered.start.index;
    let is_behind_a_snapshot = start > GENESIS_INDEX;
    let snapshot = is_behind_a_snapshot.then(|| snapshots::load(&folder_of_snapshots, start));
    let snapshot = snapshot.transpose()?;
    let lengths = snapshot.as_ref().map(lengths_of).unwrap_or_default();

    let (notes, receiver) = mpsc::unbounded_channel();
    // The driver may have ended when something is noted.
    let failed = notes.clone();
    let records = Records::open(&data.join("events"), start, lengths, move |error| {
        let _ = failed.send(Note::RecordsFailed(error));
    })?;
    let logs = data.join("logs");
    let logs = Logs::open(&logs).map_err(io_error(&logs))?;
    let options_of_core = CoreOptions {
        checkpoints: checkpoints.display().to_string(),
        ..me
    };
    let mut first = Vec::new();
    let coordinator = Coordinator::new(options_of_core, recovered, snapshot, &mut first);
    let coordinator = coordinator
        .map_err(|reason| Error::Recover {
            folder: folder.clone(),
            reason,
        })?
        .with_patience(options.patience);
    let reports = notes.clone();
    let report = move |report| {
        let _ = reports.send(Note::Store(report));
    };
    let store = StoreThread::spawn(store, report).map_err(io_error(&folder))?;
    let written = notes.clone();
    let snapshotter =
        Snapshotter::spawn(folder_of_snapshots.clone(), records.clone(), move |done| {
            let _ = written.send(Note::Snapshot(done));
        });
    let snapshotter = snapshotter.map_err(io_error(&data))?;
    let disk = Disk {
        data,
        snapshots: folder_of_snapshots.clone(),
        syncs: store.syncs(),
    };
    let peers = Peers::new(notes, records.clone(), logs.clone(), folder_of_snapshots);
    let parts = Parts {
        coordinator,
        store,
        records,
        snapshotter,
        peers,
        notes: receiver,
    };
    Ok(Opened {
        parts,
        logs,
        disk,
        first,
    })
}

/// The log of one that founds a group begins behind an entry that is never seen.
fn begin(
    store: &mut Store,
    recovered: Recovered,
    me: &CoreOptions,
) -> Result<Recovered, StoreError> {
    let is_new = recovered == Recovered::default();
    let founders: Vec<ReplicaId> = me.founders.keys().copied().collect();
    if !is_new || founders.is_empty() {
        return Ok(recovered);
    }
    let genesis = Recovered::genesis(founders);
    store.append(&[], Some(genesis.hard_state), Some(&genesis.start))?;
    store.sync()?;
    Ok(genesis)
}
