//! Whether a job can be trained at all: asked by the command line before anything is started.

use std::path::Path;

use muster_cluster::job::JobSpec;
use muster_cluster::{Device, error_chain};
use muster_trainer::checkpoint;
use muster_trainer::{Dataset, Trainer};

use crate::prepare::Build;

/// What a job's data amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataSummary {
    /// Samples to train on.
    pub train: u64,
    /// Samples that are held out.
    pub heldout: u64,
    /// How many steps the job has.
    pub total_steps: u64,
    /// How many parameters and buffers the model has.
    pub num_elements: usize,
}

/// BLAKE3 of a file, in hex.
///
/// # Errors
/// When it cannot be read; the text names it.
pub fn digest_file(path: &Path) -> Result<String, String> {
    Dataset::digest_file(path).map_err(|error| error_chain(&error))
}

/// Reads the data of a job and builds its model.
///
/// # Errors
/// When a row is wrong, the data is not the job's, or model and data do not fit; the text says
/// where.
pub fn validate(spec: &JobSpec, build: Build) -> Result<DataSummary, String> {
    let dataset = Dataset::load(&spec.data).map_err(|error| error_chain(&error))?;
    let (train, heldout) = (dataset.train_len(), dataset.heldout_len());
    // Whether the model fits the data is the same on every device, and this machine may have no other.
    let learner = build(spec, Device::Cpu).map_err(|error| error.to_string())?;
    let trainer = Trainer::new(spec, learner, dataset).map_err(|error| error_chain(&error))?;
    Ok(DataSummary {
        train,
        heldout,
        total_steps: trainer.total_steps(),
        num_elements: trainer.num_elements(),
    })
}

/// Whether checkpoints can be written to a folder. Leaves nothing behind that was not there.
///
/// # Errors
/// When not; the text says why.
pub fn check_checkpoint_folder(folder: &Path) -> Result<(), String> {
    checkpoint::check_writable(folder).map_err(|error| error_chain(&error))
}
