//! Which of the libraries that GPUs need can be loaded on this machine, from which file, and of which
//! version; and where the device code of CUDA's maths functions is. It loads libraries to find out, so it
//! is for `muster doctor` and for a look before the first call, not for the middle of training.

use std::env;
use std::ffi::c_int;
use std::fs;
use std::path::{Path, PathBuf};

use libloading::{Library as Loaded, Symbol};

/// The names by which builds with CUDA ask for a library, the best first: a program that was linked
/// against another major version has no use for ours.
const NVRTC: &[&str] = &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"];
const NCCL: &[&str] = &["libnccl.so"];
const DRIVER: &[&str] = &["libcuda.so", "libcuda.so.1"];
const NVML: &[&str] = &["libnvidia-ml.so.1", "libnvidia-ml.so"];

/// A library, as this machine has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Library {
    /// The name that it is known by, such as `libnccl`.
    pub name: &'static str,
    /// The file that the loader takes; `None` where it finds none.
    pub loaded: Option<PathBuf>,
    /// Its version, where it says so.
    pub version: Option<String>,
    /// A file of it that is there, and that the loader does not find.
    pub elsewhere: Option<PathBuf>,
}

/// Where CUDA's maths functions for devices are, as the compiler of kernels looks for them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Libdevice {
    /// `CUDA_PATH`, where it is set: then nothing else is looked at.
    pub cuda_path: Option<PathBuf>,
    /// The file that is found.
    pub found: Option<PathBuf>,
    /// A file that is there, and is not looked for.
    pub elsewhere: Option<PathBuf>,
}

/// Looks for the driver, the compiler of kernels, the collectives and the management library.
#[must_use]
pub fn libraries() -> Vec<Library> {
    let look = |name, names: &[&str], version: fn(&Loaded) -> Option<String>| {
        let loaded = names.iter().find_map(|name| load(name).ok());
        let file = loaded.as_ref().and_then(|_| mapped(name));
        Library {
            name,
            version: loaded.as_ref().and_then(version),
            elsewhere: match &loaded {
                Some(_) => None,
                None => on_disk(name),
            },
            loaded: file.or_else(|| loaded.as_ref().map(|_| PathBuf::from(names[0]))),
        }
    };
    vec![
        look("libcuda", DRIVER, driver_version),
        look("libnvidia-ml", NVML, |_| None),
        look("libnvrtc", NVRTC, nvrtc_version),
        look("libnccl", NCCL, nccl_version),
    ]
}

/// Finds the driver's library, as cudarc will.
///
/// # Errors
/// In the loader's words.
#[cfg(feature = "cuda")]
pub(super) fn find_driver() -> Result<(), String> {
    let mut failure = String::new();
    for name in DRIVER {
        match load(name) {
            Ok(_) => return Ok(()),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

#[expect(
    unsafe_code,
    reason = "loading a library runs what it has to run at first"
)]
fn load(name: &str) -> Result<Loaded, String> {
    // SAFETY: these are NVIDIA's libraries by their own names, found where the system's administrator or
    // this user's LD_LIBRARY_PATH put them; what they run when they are loaded asks nothing of the
    // process. They stay loaded as long as the handle, and no symbol outlives it here.
    unsafe { Loaded::new(name) }.map_err(|error| error.to_string())
}

fn driver_version(library: &Loaded) -> Option<String> {
    type Function = unsafe extern "C" fn(*mut c_int) -> c_int;
    let number = number_from(&symbol::<Function>(library, b"cuDriverGetVersion\0")?)?;
    Some(format!("CUDA {}.{}", number / 1000, number % 1000 / 10))
}

fn nccl_version(library: &Loaded) -> Option<String> {
    type Function = unsafe extern "C" fn(*mut c_int) -> c_int;
    let number = number_from(&symbol::<Function>(library, b"ncclGetVersion\0")?)?;
    // 22809 is 2.28.9.
    Some(format!(
        "{}.{}.{}",
        number / 10_000,
        number / 100 % 100,
        number % 100
    ))
}

#[expect(unsafe_code, reason = "it is a library of C")]
fn nvrtc_version(library: &Loaded) -> Option<String> {
    type Function = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    let function = symbol::<Function>(library, b"nvrtcVersion\0")?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: NVRTC documents this signature; it writes one number to each place and keeps neither.
    let status = unsafe { function(&raw mut major, &raw mut minor) };
    (status == 0).then(|| format!("{major}.{minor}"))
}

#[expect(unsafe_code, reason = "it is a library of C")]
fn number_from(function: &Symbol<'_, unsafe extern "C" fn(*mut c_int) -> c_int>) -> Option<c_int> {
    let mut number = 0;
    // SAFETY: both functions that come here are documented to take a pointer to one number, which they
    // write and do not keep, and to return a status.
    let status = unsafe { function(&raw mut number) };
    (status == 0).then_some(number)
}

#[expect(
    unsafe_code,
    reason = "a symbol has the type that its library documents"
)]
fn symbol<'a, T>(library: &'a Loaded, name: &[u8]) -> Option<Symbol<'a, T>> {
    // SAFETY: each caller names a function of NVIDIA's with the signature of its documentation.
    unsafe { library.get::<T>(name) }.ok()
}

/// The file of a library that this process has mapped.
fn mapped(name: &str) -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let mut paths = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    let found = paths.find(|path| {
        let file = path.rsplit('/').next().unwrap_or_default();
        file.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(".so"))
    });
    found.map(PathBuf::from)
}

/// A file of a library in the folders where toolkits and Python packages put them.
fn on_disk(name: &str) -> Option<PathBuf> {
    let mut folders: Vec<PathBuf> = toolkits().iter().map(|root| root.join("lib64")).collect();
    folders.push("/usr/lib/x86_64-linux-gnu".into());
    folders.push("/usr/lib64".into());
    folders.push("/usr/lib/wsl/lib".into());
    folders.extend(python_packages().iter().map(|package| package.join("lib")));
    let is_it = |path: &PathBuf| {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        file.strip_prefix(name)
            .is_some_and(|rest| rest.starts_with(".so"))
    };
    folders
        .iter()
        .flat_map(|folder| entries(folder))
        .find(is_it)
}

/// Where the compiler of kernels looks for a toolkit if `CUDA_PATH` does not say where it is.
const ROOTS: [&str; 4] = ["/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr"];

const LIBDEVICE: &str = "nvvm/libdevice/libdevice.10.bc";

/// Looks for the device code of CUDA's maths functions: in `CUDA_PATH` alone where that is set, else in
/// the usual folders of toolkits. Python packages have it too, and are only pointed to.
#[must_use]
pub fn libdevice() -> Libdevice {
    let cuda_path = env::var_os("CUDA_PATH").map(PathBuf::from);
    let looked_at = match &cuda_path {
        Some(path) => vec![path.clone()],
        None => ROOTS.map(PathBuf::from).to_vec(),
    };
    let file_in = |root: &PathBuf| Some(root.join(LIBDEVICE)).filter(|file| file.is_file());
    let found = looked_at.iter().find_map(file_in);
    let others = toolkits().into_iter().chain(python_packages());
    let elsewhere = match &found {
        Some(_) => None,
        None => others.collect::<Vec<_>>().iter().find_map(file_in),
    };
    Libdevice {
        cuda_path,
        found,
        elsewhere,
    }
}

/// Folders of toolkits, by the variables and the places where they usually are.
fn toolkits() -> Vec<PathBuf> {
    let variables = ["CUDA_PATH", "CUDA_HOME", "CUDA_ROOT"];
    let said = variables.iter().filter_map(env::var_os).map(PathBuf::from);
    said.chain(ROOTS.map(PathBuf::from)).collect()
}

/// The folders of NVIDIA's Python packages: `site-packages/nvidia/*` of the environment that is active,
/// of this user, and of the system.
fn python_packages() -> Vec<PathBuf> {
    let mut libs: Vec<PathBuf> = Vec::new();
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        libs.extend(env::var_os(variable).map(|root| Path::new(&root).join("lib")));
    }
    libs.extend(env::var_os("HOME").map(|home| Path::new(&home).join(".local/lib")));
    libs.extend(["/usr/local/lib", "/usr/lib"].map(PathBuf::from));
    let pythons = libs.iter().flat_map(|lib| entries(lib)).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("python3")
    });
    let sites = pythons.flat_map(|python| {
        ["site-packages", "dist-packages"].map(|site| python.join(site).join("nvidia"))
    });
    sites.flat_map(|nvidia| entries(&nvidia)).collect()
}

/// What is in a folder, in the order of the names; nothing where it cannot be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}
