//! What a rank computes, and nothing else: no socket, no job control, and no clock but to say how long
//! it read.
//!
//! 1. [`learner`]: the trait that a model implements.
//! 2. [`arena`]: all parameters of a model as one flat [`vector`], and the layout that names its parts.
//! 3. [`trainer`]: the state of a job, and the step that moves it.
//! 4. [`data`]: the samples; [`permutation`]: in which order they are read.
//! 5. [`optimizer`], [`clip`] and [`schedule`]: how the parameters follow a gradient.
//! 6. [`rng`]: random numbers that depend on nothing but their place.
//! 7. [`shares`]: the parts of an optimizer's state that ranks may divide.
//! 8. [`notes`]: what travels beside a contribution; [`trace`]: which samples were read; [`finite`]:
//!    values that are no numbers.
//! 9. `device` (feature `cube`): the same over the memory of a device.
//! 10. [`checkpoint`]: the state as files.
//!
//! What of the vocabulary its functions speak is given on, a job's specification above all, so
//! that an author of models needs this crate alone.

pub mod arena;
pub mod checkpoint;
pub mod clip;
pub mod data;
#[cfg(feature = "cube")]
pub mod device;
pub mod finite;
pub mod learner;
pub mod notes;
pub mod optimizer;
pub mod permutation;
pub mod rng;
pub mod schedule;
pub mod shares;
pub mod trace;
pub mod trainer;
pub mod vector;

pub use muster_cluster::job::{self, spec};
pub use muster_cluster::{Device, History, JobName, ShardId, Step, tree};

pub use arena::{Arena, Entry, Group, Layout};
pub use data::{DataError, Dataset};
pub use finite::{Fault, NoNumber, NotFinite};
pub use learner::{Batch, Inputs, Learner, LearnerError, Metrics};
pub use notes::{NoteError, ShardNote};
pub use optimizer::Optimizer;
pub use trace::{ReadTwice, Replay};
pub use trainer::{Error, Head, Snapshot, StepReport, Trainer};
pub use vector::{DeviceError, Vector, View};
