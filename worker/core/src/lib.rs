//! What a worker and its ranks do, without IO.

pub mod agent;
pub mod audit;
pub mod rank;
