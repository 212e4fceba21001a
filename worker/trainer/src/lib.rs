//! What a rank computes, and nothing else: no socket, no clock, no job control.
//!
//! 1. [`learner`]: the trait that a model implements.
//! 2. [`arena`]: all parameters of a model as one flat vector, and the layout that names its parts.

pub mod arena;
pub mod learner;

pub use arena::{Arena, Entry, Group, Layout};
pub use learner::{Batch, Learner, Metrics};
