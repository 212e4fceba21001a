//! What a rank computes, and nothing else: no socket, no clock, no job control.
//!
//! 1. [`learner`]: the trait that a model implements.
//! 2. [`arena`]: all parameters of a model as one flat vector, and the layout that names its parts.
//! 3. [`trainer`]: the state of a job, and the step that moves it.
//! 4. [`optimizer`] and [`clip`]: how the parameters follow a gradient.
//! 5. [`notes`]: what travels beside a contribution.
//! 6. [`checkpoint`]: the state as files.

pub mod arena;
pub mod checkpoint;
pub mod clip;
pub mod learner;
pub mod notes;
pub mod optimizer;
pub mod trainer;

pub use arena::{Arena, Entry, Group, Layout};
pub use learner::{Batch, Learner, Metrics};
pub use notes::{NoteError, ShardNote};
pub use optimizer::Optimizer;
pub use trainer::{Error, Snapshot, StepReport, Trainer};
