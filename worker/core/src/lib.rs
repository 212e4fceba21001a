//! What a worker and its ranks do, without IO.

pub mod agent;
pub mod audit;
pub mod feed;
pub mod follower;
pub mod last;
pub mod rank;
pub mod sharing;
