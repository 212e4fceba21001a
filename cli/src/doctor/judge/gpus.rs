//! What to think of a machine's GPUs, their driver, and the libraries that they need.

use muster_worker::devices::{Gpu, Inventory, Libdevice, Library};

use super::super::facts::Gpus;
use super::{Finding, fail, ok, size, warn};

/// The oldest CUDA that a driver must serve for a build of ours: the bindings are made for it.
const OLDEST_CUDA: (u32, u32) = (13, 0);

pub(super) fn gpus(gpus: &Gpus) -> Vec<Finding> {
    let Gpus {
        has_cuda,
        inventory,
        libraries,
        libdevice: device_code,
    } = gpus;
    let mut findings = Vec::new();
    if let Some(why) = &inventory.why_none {
        findings.push(none(why, *has_cuda, inventory));
    }
    if let Some(driver) = driver(inventory, *has_cuda) {
        findings.push(driver);
    }
    for (index, gpu) in inventory.visible.iter().enumerate() {
        findings.extend(one(index, gpu, inventory));
    }
    if *has_cuda {
        findings.extend(libraries.iter().map(library));
        findings.push(libdevice(device_code));
    } else {
        findings.push(unneeded(libraries));
    }
    findings
}

/// No GPU may be used. That is a fault only where there is one, or where the build is for some.
fn none(why: &str, has_cuda: bool, inventory: &Inventory) -> Finding {
    let there_are_some = !inventory.all.is_empty();
    if there_are_some && inventory.visible.is_empty() {
        let advice = "unset or correct the variable, where this machine's GPUs are to be used";
        return warn("GPUs", why, advice);
    }
    if there_are_some {
        let advice = if has_cuda {
            "see that the driver and its libraries are of one version; a reboot settles most of it"
        } else {
            "use a build with CUDA where jobs are to run on it"
        };
        return warn("GPUs", why, advice);
    }
    if has_cuda {
        let advice = "install NVIDIA's driver, or give the container its devices (--gpus all); jobs for \
                      processors run without";
        return warn("GPUs", why, advice);
    }
    ok("GPUs", format!("none: {why}"))
}

fn driver(inventory: &Inventory, has_cuda: bool) -> Option<Finding> {
    let driver = inventory.driver.as_ref()?;
    let (major, minor) = driver.cuda;
    let version = match driver.version.as_str() {
        "" => "of unknown version",
        version => version,
    };
    let found = format!("{version}, for CUDA up to {major}.{minor}");
    Some(if has_cuda && driver.cuda < OLDEST_CUDA {
        let (major, minor) = OLDEST_CUDA;
        fail(
            "driver",
            found,
            format!("this build needs CUDA {major}.{minor}: install driver 580 or a newer one"),
        )
    } else {
        ok("driver", found)
    })
}

fn one(index: usize, gpu: &Gpu, inventory: &Inventory) -> Vec<Finding> {
    let (major, minor) = gpu.compute;
    let free = gpu.free_bytes.map(|free| format!(", {} free", size(free)));
    let pci = gpu.pci.as_ref().map(|pci| format!(", PCI {pci}"));
    let peers: Vec<String> = inventory
        .visible
        .iter()
        .enumerate()
        .filter(|(_, other)| gpu.nvlinks.contains(&other.uuid))
        .map(|(other, _)| other.to_string())
        .collect();
    let links = match peers.as_slice() {
        [] => String::new(),
        peers => format!(", NVLink to {}", peers.join(", ")),
    };
    let found = format!(
        "cuda:{index} {}, {}{}, compute capability {major}.{minor}{}{links}",
        gpu.name,
        size(gpu.memory_bytes),
        free.unwrap_or_default(),
        pci.unwrap_or_default(),
    );
    let mut findings = vec![ok("GPU", found)];
    if gpu.is_divided {
        findings.push(warn(
            "MIG",
            format!("cuda:{index} is divided into {} instances", gpu.parts.len()),
            "a process sees one instance: run a worker for each, with CUDA_VISIBLE_DEVICES=MIG-..., or \
             undivide it with nvidia-smi -mig 0",
        ));
    }
    if gpu.is_persistent == Some(false) {
        findings.push(warn(
            "persistence",
            format!("the driver forgets cuda:{index} while nobody uses it"),
            "ranks start seconds faster with nvidia-persistenced, or nvidia-smi -pm 1",
        ));
    }
    findings
}

/// What a build with CUDA needs of a library.
fn library(library: &Library) -> Finding {
    let name = library.name;
    if let Some(file) = &library.loaded {
        let version = library.version.as_ref();
        let version = version.map_or_else(String::new, |version| format!("{version}, "));
        return ok(name, format!("{version}{}", file.display()));
    }
    let package = match name {
        "libcuda" | "libnvidia-ml" => {
            "it comes with NVIDIA's driver; containers get it with --gpus all"
        }
        "libnvrtc" => {
            "it comes with the CUDA toolkit, and with the Python package nvidia-cuda-nvrtc"
        }
        _ => "it comes with NCCL's packages, and with the Python package nvidia-nccl-cu13",
    };
    let advice = match &library.elsewhere {
        Some(file) => {
            let folder = file.parent().unwrap_or(file).display();
            let called = file.file_name().unwrap_or_default().to_string_lossy();
            let link = if called == format!("{name}.so") {
                String::new()
            } else {
                format!(", and make a link {name}.so to {called} there")
            };
            format!("add its folder to LD_LIBRARY_PATH: {folder}{link}")
        }
        None => format!("install it: {package}"),
    };
    let found = match &library.elsewhere {
        Some(file) => format!("not found by the loader; {} is there", file.display()),
        None => "not found".to_owned(),
    };
    match name {
        "libcuda" => fail(name, found, advice),
        "libnccl" => warn(
            name,
            found,
            format!("several GPUs reduce through the host without it: {advice}"),
        ),
        _ => warn(name, found, advice),
    }
}

fn libdevice(device_code: &Libdevice) -> Finding {
    const CHECK: &str = "libdevice";
    if let Some(file) = &device_code.found {
        return ok(CHECK, file.display().to_string());
    }
    let found = match &device_code.cuda_path {
        Some(path) => format!("not in CUDA_PATH={}", path.display()),
        None => "no CUDA toolkit is found".to_owned(),
    };
    let advice = match &device_code.elsewhere {
        // .../nvvm/libdevice/libdevice.10.bc
        Some(file) => {
            let root = file.ancestors().nth(3).unwrap_or(file);
            format!(
                "kernels with maths functions need it: export CUDA_PATH={}",
                root.display()
            )
        }
        None => {
            "kernels with maths functions need it: install the CUDA toolkit or the Python package \
                 nvidia-nvvm, and set CUDA_PATH to the folder that holds nvvm"
                .to_owned()
        }
    };
    warn(CHECK, found, advice)
}

/// What a build without CUDA finds of the libraries that it does not need.
fn unneeded(libraries: &[Library]) -> Finding {
    let there: Vec<&str> = libraries
        .iter()
        .filter(|library| library.loaded.is_some())
        .map(|library| library.name)
        .collect();
    let there = match there.as_slice() {
        [] => String::new(),
        names => format!("; found: {}", names.join(", ")),
    };
    ok(
        "CUDA",
        format!("this build is without it, and needs none of its libraries{there}"),
    )
}
