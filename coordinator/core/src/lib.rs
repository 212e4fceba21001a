//! The control plane without IO: consensus, state and the leader's duties.

pub use muster_consensus as consensus;
