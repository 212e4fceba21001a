//! The model families, on Burn. A job's [`spec`](muster_trainer::spec) goes in, a
//! [`Learner`](muster_trainer::Learner) comes out; ranks, steps and optimizers are not known here.
//!
//! 1. [`build()`]: the one place that knows which families there are.
//! 2. `mlp`, `cnn`, `resnet`: a family each: its modules and its forward pass, nothing else. `gpt`: a
//!    family that is its own learner, as it writes out its gradients.
//! 3. `glue`: makes a learner of a family: checks samples, runs forward and backward, counts.
//! 4. `views`: parameters as slices of the arena, and the gradients back.
//! 5. `init`: first values. `dropout`: masks. Both from Muster's own generator.
//! 6. [`canary()`]: what this machine's arithmetic looks like, as a hash.
//! 7. [`smoke()`]: whether a device computes as the host does.
//!
//! To add a family of classifiers: a file with a `derive(Module)` struct and its `Classifier`, and an arm in
//! [`build_model`]. Layout, names, initial values and gradients follow from the struct.

mod build;
mod canary;
mod cnn;
mod dropout;
mod glue;
mod gpt;
mod init;
mod mlp;
mod resnet;
mod smoke;
mod views;

pub use build::{build, build_model, build_on, build_with, tensors};
pub use canary::{canary, canary_hex};
pub use smoke::{Checked, Twin, smoke, twins};
