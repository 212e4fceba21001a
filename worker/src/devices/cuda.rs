//! What CUDA itself says of the GPUs that this process sees. cudarc panics where a library is missing,
//! so it is looked for before the first call.

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::nvml::cuda_version;
use super::{Absent, Driver, Gpu, Seen, Source, libraries};

/// The driver's own library.
pub(super) struct Cuda;

impl Source for Cuda {
    fn look(&self) -> Result<Seen, Absent> {
        libraries::find_driver().map_err(Absent::NoLibrary)?;
        let fails = |error: DriverError| Absent::Fails(error.to_string());
        match result::init() {
            Ok(()) => {}
            // It is how CUDA says that there is none, or that its variable hides all.
            Err(DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(Seen::default()),
            Err(error) => return Err(fails(error)),
        }
        let number = result::device::get_count().map_err(fails)?;
        let gpus = (0..number).map(gpu).collect::<Result<_, _>>();
        Ok(Seen {
            driver: Driver {
                version: String::new(),
                cuda: driver_version(),
            },
            gpus: gpus.map_err(fails)?,
        })
    }
}

#[expect(unsafe_code, reason = "CUDA is a library of C")]
fn driver_version() -> (u32, u32) {
    let mut version = 0;
    // SAFETY: the library is there, since CUDA was initialized, and it writes one number to the place
    // that it is given.
    let done = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    match done.result() {
        Ok(()) => cuda_version(version),
        Err(_) => (0, 0),
    }
}

fn gpu(index: i32) -> Result<Gpu, DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(index)?;
    let number = |attribute| attribute_of(device, attribute);
    Ok(Gpu {
        name: result::device::get_name(device)?,
        uuid: uuid(&result::device::get_uuid(device)?),
        memory_bytes: memory_of(device)?,
        compute: (
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            number(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        ..Gpu::default()
    })
}

#[expect(unsafe_code, reason = "CUDA is a library of C")]
fn memory_of(device: sys::CUdevice) -> Result<u64, DriverError> {
    // SAFETY: the device was returned by CUDA in this process, which has been initialized.
    let bytes = unsafe { result::device::total_mem(device) }?;
    Ok(bytes as u64)
}

#[expect(unsafe_code, reason = "CUDA is a library of C")]
fn attribute_of(
    device: sys::CUdevice,
    attribute: sys::CUdevice_attribute,
) -> Result<u32, DriverError> {
    // SAFETY: as in `memory_of`.
    let number = unsafe { result::device::get_attribute(device, attribute) }?;
    Ok(u32::try_from(number).unwrap_or_default())
}

/// As NVML and CUDA's variable write it.
fn uuid(uuid: &sys::CUuuid) -> String {
    let bytes = uuid.bytes.iter().map(|byte| byte.to_ne_bytes()[0]);
    let hex: String = bytes.map(|byte| format!("{byte:02x}")).collect();
    let cut = [0..8, 8..12, 12..16, 16..20, 20..32];
    let parts: Vec<&str> = cut.into_iter().filter_map(|at| hex.get(at)).collect();
    format!("GPU-{}", parts.join("-"))
}
