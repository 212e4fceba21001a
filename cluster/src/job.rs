//! A job: as a person wrote it ([`draft`]), as Muster understands it ([`spec`]), and what of it
//! decides its bits ([`identity`]).
//!
//! ```text
//! job.toml + --set  --JobDraft::parse-->  JobDraft  --JobDraft::check-->  JobSpec  -->  Identity
//!                                          |   ^
//!                                  to_toml v   | parse
//!                              the text that is submitted and stored
//! ```
//!
//! No file is opened here: the caller reads the text, and digests the data that
//! [`JobDraft::data_source`] names.

mod check;
pub mod draft;
mod error;
pub mod identity;
mod keys;
mod nearest;
mod size;
pub mod spec;
#[cfg(test)]
mod tests;

pub use draft::{JobDraft, Override};
pub use error::Error;
pub use identity::{Change, Identity};
pub use keys::reference;
pub use spec::JobSpec;
