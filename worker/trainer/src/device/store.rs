//! What is known of a device's kernels, in a file: their compiled code, and of several that compute the
//! same which one was the fastest. Who reads the same file chooses the same kernels, and so gets the same
//! bits; what is not in it is found out, and written there.

use std::path::Path;

use cubecl::bundle::BundleFormat;
use cubecl::config::{CubeClRuntimeConfig, RuntimeConfig as _};
use cubecl::environment;

use crate::vector::DeviceError;

/// Has this process read and write `file`, which need not be there yet, and which no other process has
/// open. To be called before anything is computed on a device.
pub fn open(file: &Path) {
    // Where the configuration is read later, it puts a file of its own in the place of this one.
    let _ = CubeClRuntimeConfig::get();
    environment::load(file);
}

/// Whether nothing is known, or what is cannot be read.
#[must_use]
pub fn is_empty() -> bool {
    environment::namespaces().is_empty()
}

/// Writes all that is known into `file`, wholly or not at all.
///
/// # Errors
/// Where it cannot be written.
pub fn save(file: &Path) -> Result<(), DeviceError> {
    let saved = environment::bundle().save(file, BundleFormat::Sqlite);
    saved.map(drop).map_err(|error| {
        let file = file.display();
        DeviceError(format!(
            "{file}: what is known of kernels cannot be kept: {error}"
        ))
    })
}
