//! What NVML says of a machine's GPUs. Its library comes with the driver, and is loaded when it is asked
//! for; where it is not there is no driver.

use nvml_wrapper::Device;
use nvml_wrapper::enum_wrappers::device::{P2pCapabilitiesIndex, P2pStatus};
use nvml_wrapper::error::NvmlError;

use super::{Absent, Driver, Gpu, Seen, Source};

/// As the driver installs it; the name without a number comes with packages for developers only.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// The management library of the driver.
pub(super) struct Nvml;

impl Source for Nvml {
    fn look(&self) -> Result<Seen, Absent> {
        let nvml = open()?;
        let fails = |error: NvmlError| Absent::Fails(error.to_string());
        let version = nvml.sys_driver_version().map_err(fails)?;
        let cuda = nvml.sys_cuda_driver_version().map_err(fails)?;
        let number = nvml.device_count().map_err(fails)?;
        // One that does not answer, as one that fell off its bus, must not hide the others.
        let devices = (0..number).filter_map(|index| nvml.device_by_index(index).ok());
        let devices: Vec<Device<'_>> = devices.collect();
        let gpus = devices
            .iter()
            .filter_map(|device| gpu(device, &devices).ok());
        Ok(Seen {
            driver: Driver {
                version,
                cuda: cuda_version(cuda),
            },
            gpus: gpus.collect(),
        })
    }
}

fn open() -> Result<nvml_wrapper::Nvml, Absent> {
    let mut first = None;
    for library in LIBRARIES {
        match nvml_wrapper::Nvml::builder()
            .lib_path(library.as_ref())
            .init()
        {
            Ok(nvml) => return Ok(nvml),
            Err(NvmlError::LibloadingError(error)) => {
                first.get_or_insert_with(|| error.to_string());
            }
            Err(error) => return Err(Absent::Fails(error.to_string())),
        }
    }
    Err(Absent::NoLibrary(first.unwrap_or_default()))
}

/// 13020 is 13.2.
pub(super) fn cuda_version(number: i32) -> (u32, u32) {
    let number = u32::try_from(number).unwrap_or_default();
    (number / 1000, number % 1000 / 10)
}

fn gpu(device: &Device<'_>, all: &[Device<'_>]) -> Result<Gpu, NvmlError> {
    let compute = device.cuda_compute_capability()?;
    let memory = device.memory_info();
    let positive = |number: i32| u32::try_from(number).unwrap_or_default();
    let is_divided = device.mig_mode().is_ok_and(|mode| mode.current != 0);
    let uuid = device.uuid()?;
    let is_linked = |other: &&Device<'_>| {
        let status = device.p2p_status(other, P2pCapabilitiesIndex::NvLink);
        matches!(status, Ok(P2pStatus::Ok))
    };
    let linked = all.iter().filter(is_linked);
    let linked = linked.filter_map(|other| other.uuid().ok());
    Ok(Gpu {
        name: device.name()?,
        memory_bytes: memory.as_ref().map_or(0, |memory| memory.total),
        free_bytes: memory.ok().map(|memory| memory.free),
        pci: device.pci_info().ok().map(|pci| pci.bus_id),
        compute: (positive(compute.major), positive(compute.minor)),
        is_divided,
        parts: if is_divided {
            parts(device)
        } else {
            Vec::new()
        },
        is_persistent: device.is_in_persistent_mode().ok(),
        nvlinks: linked.filter(|other| *other != uuid).collect(),
        uuid,
    })
}

/// The numbers of a divided GPU's instances.
fn parts(device: &Device<'_>) -> Vec<String> {
    let number = device.mig_device_count().unwrap_or_default();
    let parts = (0..number).filter_map(|index| device.mig_device_by_index(index).ok());
    parts.filter_map(|part| part.uuid().ok()).collect()
}
