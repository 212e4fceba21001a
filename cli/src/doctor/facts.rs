//! What is known of a machine: plain values, so that a test can write down any machine.

use std::path::PathBuf;

use muster_cluster::command::NumericsClass;
use muster_worker::devices::{Inventory, Libdevice, Library};

/// One machine.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) system: System,
    pub(super) gpus: Gpus,
    pub(super) disk: Disk,
    pub(super) clock: Clock,
    pub(super) peers: Vec<Peer>,
    pub(super) limits: Limits,
}

#[derive(Clone, Debug)]
pub(super) struct System {
    /// The system's name and version.
    pub(super) name: String,
    pub(super) kernel: String,
    pub(super) architecture: String,
    pub(super) processor: String,
    /// Those that this process may use.
    pub(super) num_processors: usize,
    /// Which of the features are there that decide how fast a processor computes.
    pub(super) features: Vec<&'static str>,
    pub(super) memory_bytes: Option<u64>,
    pub(super) available_bytes: Option<u64>,
    /// What decides the bits of ranks on the processors, or why that cannot be told.
    pub(super) class: Result<NumericsClass, String>,
}

#[derive(Clone, Debug)]
pub(super) struct Gpus {
    /// Whether this build can use any.
    pub(super) has_cuda: bool,
    pub(super) inventory: Inventory,
    pub(super) libraries: Vec<Library>,
    pub(super) libdevice: Libdevice,
}

/// The disk of the state folder.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) folder: PathBuf,
    /// The number by which the kernel knows the kind of file system.
    pub(super) magic: Option<u64>,
    pub(super) free_bytes: Option<u64>,
    /// The median time of a small write that reaches the disk, in microseconds; or why none did.
    pub(super) sync_us: Result<u64, String>,
}

#[derive(Clone, Debug)]
pub(super) struct Clock {
    /// Whether something keeps it right; `None` where nobody says.
    pub(super) is_synchronized: Option<bool>,
    /// What the coordinator's clock says, where one was named.
    pub(super) coordinator: Option<Result<Drift, String>>,
}

/// How far this clock is ahead of a coordinator's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Drift {
    pub(super) ms: i64,
    /// Half of the time that the question took: so much of the difference may be due to that.
    pub(super) uncertain_ms: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) address: String,
    pub(super) link: Result<Link, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// How long a connection takes, the shortest of some.
    pub(super) connect_us: u64,
    /// The largest packet that the way there takes, as far as the kernel knows.
    pub(super) mtu: Option<u32>,
}

/// What the system allows a process.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    /// Files that may be open at once; `None`: any number.
    pub(super) open_files: Option<u64>,
    /// Bytes that may be pinned in memory; `None`: any number.
    pub(super) locked_bytes: Option<u64>,
    /// The size of `/dev/shm`; `None` where there is none.
    pub(super) shm_bytes: Option<u64>,
}
