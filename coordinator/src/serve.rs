//! The coordinator's process: what it opens, in which order, and how it ends.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use muster_cluster::plan::Patience;
use muster_coordinator_core::Coordinator;
use muster_proto::v1::clients_server::ClientsServer;
use muster_proto::v1::workers_server::WorkersServer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;

use crate::clients::ClientsService;
use crate::door::{self, Refusals};
use crate::driver::{Driver, DriverError, Note, note_of};
use crate::logs::Logs;
use crate::records::{Records, RecordsError};
use crate::store::thread::StoreThread;
use crate::store::{Store, StoreError};
use crate::workers::WorkersService;

/// The longest message that a service takes, in bytes.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// What a coordinator is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where it keeps its log, events and the ranks' output.
    pub data: PathBuf,
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The folder of checkpoints for jobs that name none; `None`: `checkpoints` in `data`.
    pub checkpoints: Option<PathBuf>,
    /// How long it waits for what.
    pub patience: Patience,
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
    /// The log makes no sense.
    #[error("{}: {reason}; restore the folder from a copy", .folder.display())]
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

    let (notes, receiver) = mpsc::unbounded_channel();
    let (driver, handle, records, logs, first) = open(&options, &notes, receiver)?;
    let refusals = Refusals::default();
    let server = Server::builder()
        .add_service(
            WorkersServer::new(WorkersService::new(
                handle.clone(),
                records.clone(),
                logs.clone(),
                refusals.clone(),
            ))
            .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            ClientsServer::new(ClientsService::new(handle, records, logs))
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
        )
        .serve_with_incoming(door::admit(listener, refusals.clone()));
    tracing::info!(%address, data = %options.data.display(), "coordinator serves");
    ready(address);
    // Streams last as long as their workers: a server that waited for them would never end.
    tokio::select! {
        ended = driver.run(first, shutdown) => Ok(ended?),
        ended = server => Ok(ended?),
    }
}

type Opened = (
    Driver,
    crate::driver::Handle,
    Records,
    Logs,
    Vec<muster_coordinator_core::Output>,
);

/// Opens what is on disk, and builds the machine from it.
fn open(
    options: &Options,
    notes: &mpsc::UnboundedSender<Note>,
    receiver: mpsc::UnboundedReceiver<Note>,
) -> Result<Opened, Error> {
    let io_error = |path: &Path, source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let data =
        std::path::absolute(&options.data).map_err(|source| io_error(&options.data, source))?;
    std::fs::create_dir_all(&data).map_err(|source| io_error(&data, source))?;
    let checkpoints = options
        .checkpoints
        .clone()
        .unwrap_or_else(|| data.join("checkpoints"));
    let checkpoints =
        std::path::absolute(&checkpoints).map_err(|source| io_error(&checkpoints, source))?;

    // The store first: its lock keeps a second coordinator from touching anything else.
    let folder = data.join("log");
    let (store, recovered, meta) = Store::open(&folder)?;
    let failed = notes.clone();
    let (records, past) = Records::open(&data.join("events"), move |error| {
        // The driver may have ended already.
        let _ = failed.send(Note::RecordsFailed(error));
    })?;
    let logs =
        Logs::open(&data.join("logs")).map_err(|source| io_error(&data.join("logs"), source))?;
    let mut first = Vec::new();
    let checkpoints = checkpoints.display().to_string();
    let coordinator = Coordinator::new(recovered, meta.cluster_id, checkpoints, past, &mut first)
        .map_err(|reason| Error::Recover {
            folder: folder.clone(),
            reason,
        })?
        .with_patience(options.patience);
    let reports = notes.clone();
    let report = move |report| {
        let _ = reports.send(note_of(report));
    };
    let store = StoreThread::spawn(store, report).map_err(|source| io_error(&folder, source))?;
    let (driver, handle) = Driver::new(coordinator, records.clone(), receiver, store);
    Ok((driver, handle, records, logs, first))
}
