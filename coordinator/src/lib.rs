//! The coordinator's shell: the network, the disk and the clock around the machine of
//! `muster-coordinator-core`, which decides everything.
//!
//! 1. [`serve`]: the process, from its start to its end.
//! 2. [`store`]: the replicated log on disk.
//!
//! Inside: `door` admits connections, the driver owns the machine, `records` the events' files, `logs` what ranks print,
//! `workers` and `clients` are the two services, and `words` says what a client's command leads to.

mod clients;
mod door;
mod driver;
mod logs;
mod records;
mod serve;
pub mod store;
mod words;
mod workers;

pub use driver::DriverError;
pub use records::RecordsError;
pub use serve::{Error, Options, serve};
