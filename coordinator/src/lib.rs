//! The coordinator's shell: the network, the disk and the clock around the machine of
//! `muster-coordinator-core`, which decides everything.
//!
//! 1. [`serve`]: the process, from its start to its end.
//! 2. [`store`]: the replicated log on disk.
//!
//! Inside: `founding` and `identity` say which member of which group it is; the driver owns the machine
//! and `calls` is the way to it; `door` admits connections; `workers`, `clients` and `peers` are the
//! services, and `operators` another, with its `backup`s; `records` are the events' files, `snapshots` those
//! of the state, `logs` what ranks print; `words` says what a client's command leads to.

mod backup;
mod calls;
mod clients;
mod door;
mod driver;
mod founding;
mod identity;
mod logs;
mod operators;
mod peers;
mod records;
mod serve;
mod snapshots;
pub mod store;
mod words;
mod workers;

pub use backup::{BackupError, receive as receive_backup, restore};
pub use driver::DriverError;
pub use founding::{FoundingError, listens_at};
pub use identity::IdentityError;
pub use records::RecordsError;
pub use serve::{Error, Group, Options, serve};
pub use snapshots::SnapshotError;
