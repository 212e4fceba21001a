//! The contract: everything that crosses a socket between daemons, or reaches Raft's log.
//!
//! The messages are generated from `proto/muster/*.proto`; [`convert`] turns those that Raft
//! replicates into the vocabulary of `muster-cluster` and back. Frames between ranks live in
//! `muster-collective`, checkpoint files in `muster-trainer`.

pub mod address;
pub mod convert;
pub mod event;
pub mod frame;
pub mod leader;

/// The messages and services, generated.
#[allow(
    missing_debug_implementations,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("muster.v1");
}
