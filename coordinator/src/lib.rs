//! The coordinator's shell.

pub mod store;
