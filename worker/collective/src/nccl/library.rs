//! Where NCCL is found on this machine, and its functions.
//!
//! The library is opened when it is first asked for. Machines have it under the name of its second
//! ABI alone (`libnccl.so.2`), often inside of a Python package, where no loader looks; cudarc's
//! own table asks for other names, and ends the process where a name or a function is missing.
//! Hence this table: a missing library or function is an error that says what was searched.

#![allow(
    unsafe_code,
    reason = "a shared library is opened, and its functions are called by what its header says"
)]

use std::ffi::{CStr, OsString, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::device::BulkError;

/// Names a file, or a folder that has one, in place of the search.
pub const LIBRARY_VARIABLE: &str = "MUSTER_NCCL_LIB";

/// The names of the library, in the order of the search.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// Where a Python package keeps it, below a folder of packages.
const IN_PACKAGES: &str = "nvidia/nccl/lib";

/// The configuration of communicators that we write is that of this version or newer.
const OLDEST: c_int = 21800;

/// What people can do about any failure of the library.
pub(super) const ADVICE: &str = "set NCCL_DEBUG=INFO and start again to see what it does";

/// A communicator, as the library knows it.
pub(super) type RawCommunicator = *mut c_void;

/// A stream of the driver.
pub(super) type RawStream = *mut c_void;

/// How ranks find each other: made by one, known to all.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct UniqueId(pub(super) [u8; 128]);

/// `ncclConfig_t` as of version 2.18. Later versions have more fields behind these, and know by
/// `size` and `version` which ones are here.
#[repr(C)]
pub(super) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// Everything as the library wants it, but no call waits for a peer.
    pub(super) fn non_blocking() -> Self {
        // `NCCL_CONFIG_UNDEF_INT`: the library decides.
        let undefined = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: 21801,
            blocking: 0,
            cga_cluster_size: undefined,
            min_ctas: undefined,
            max_ctas: undefined,
            net_name: std::ptr::null(),
            split_share: undefined,
        }
    }
}

/// Every function of the library that is used; they return `ncclResult_t`, whose numbers grow with
/// the versions.
#[derive(Clone, Copy)]
pub(super) struct Functions {
    pub(super) get_version: unsafe extern "C" fn(*mut c_int) -> c_int,
    pub(super) get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    pub(super) get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    pub(super) get_last_error: unsafe extern "C" fn(RawCommunicator) -> *const c_char,
    pub(super) init_rank_config:
        unsafe extern "C" fn(*mut RawCommunicator, c_int, UniqueId, c_int, *mut Config) -> c_int,
    pub(super) get_async_error: unsafe extern "C" fn(RawCommunicator, *mut c_int) -> c_int,
    pub(super) finalize: unsafe extern "C" fn(RawCommunicator) -> c_int,
    pub(super) destroy: unsafe extern "C" fn(RawCommunicator) -> c_int,
    pub(super) abort: unsafe extern "C" fn(RawCommunicator) -> c_int,
    pub(super) group_start: unsafe extern "C" fn() -> c_int,
    pub(super) group_end: unsafe extern "C" fn() -> c_int,
    pub(super) send: unsafe extern "C" fn(
        *const c_void,
        usize,
        c_int,
        c_int,
        RawCommunicator,
        RawStream,
    ) -> c_int,
    pub(super) receive:
        unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, RawCommunicator, RawStream) -> c_int,
    pub(super) all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        RawCommunicator,
        RawStream,
    ) -> c_int,
    pub(super) reduce_scatter: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        RawCommunicator,
        RawStream,
    ) -> c_int,
    pub(super) all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        RawCommunicator,
        RawStream,
    ) -> c_int,
}

/// An NCCL that was found. It is never closed: its threads outlive whoever asked for it.
#[derive(Clone)]
pub struct Library {
    pub(super) functions: Functions,
    version: u32,
    place: String,
}

impl Library {
    /// The library that `named`, else the environment, else the search finds. The same one is
    /// opened once.
    ///
    /// # Errors
    /// Where nothing is found, what was searched; where something is that cannot be used, why.
    pub fn find(named: Option<&Path>) -> Result<Self, BulkError> {
        let variable = std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty());
        let named = named.map(Path::to_owned).or(variable.map(PathBuf::from));
        let search = match named {
            Some(named) => Search::at(&named),
            None => Search::everywhere(&|name| std::env::var_os(name)),
        };
        search.open()
    }

    /// As a number: 22805 is 2.28.5.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The file, or the name by which the system's loader found it.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Makes what the ranks of one world find each other by. It listens at an address of this
    /// host, for as long as the process lives or until they have.
    ///
    /// # Errors
    /// What the library says.
    pub(super) fn unique_id(&self) -> Result<UniqueId, BulkError> {
        let mut id = UniqueId([0; 128]);
        // SAFETY: the function writes one id, and there is room for it.
        let code = unsafe { (self.functions.get_unique_id)(&raw mut id) };
        match code {
            0 => Ok(id),
            code => Err(self.failure("ncclGetUniqueId", code, std::ptr::null_mut())),
        }
    }

    /// A failed call in words. `communicator` is one that lives, or null.
    pub(super) fn failure(
        &self,
        call: &str,
        code: c_int,
        communicator: RawCommunicator,
    ) -> BulkError {
        // SAFETY: the function takes any number, and gives a text that is never freed.
        let text = unsafe { (self.functions.get_error_string)(code) };
        // SAFETY: a communicator that lives, or null, which the function allows.
        let last = unsafe { (self.functions.get_last_error)(communicator) };
        let mut what = format!("{call} of NCCL failed: {}", words(text).unwrap_or_default());
        if let Some(last) = words(last).filter(|last| !last.is_empty()) {
            what += &format!(" (last error: {last})");
        }
        BulkError::new(format!("{what}; {ADVICE}"))
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Library({} of {})", self.version, self.place)
    }
}

/// A text of the library's, if there is one.
fn words(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the library's texts end with a zero, and live as long as it does or until its next
    // call on this thread.
    let text = unsafe { CStr::from_ptr(text) };
    Some(text.to_string_lossy().trim().to_owned())
}

/// Where to look, in order.
#[derive(Debug, PartialEq)]
pub(super) struct Search {
    /// Files by their path, and names that the system's loader looks for by its own rules.
    places: Vec<OsString>,
    /// What a person is told besides.
    hint: String,
}

impl Search {
    /// A file, or a folder that has one; nowhere else.
    pub(super) fn at(named: &Path) -> Self {
        let places = if named.is_dir() {
            let files = NAMES.iter().map(|name| named.join(name));
            files.map(PathBuf::into_os_string).collect()
        } else {
            vec![named.as_os_str().to_owned()]
        };
        Self {
            places,
            hint: format!(
                "{LIBRARY_VARIABLE} names a file, or a folder that has {}",
                NAMES[0]
            ),
        }
    }

    /// Where the system's loader looks (`LD_LIBRARY_PATH` among it), then the folders of Python's
    /// packages.
    pub(super) fn everywhere(variable: &dyn Fn(&str) -> Option<OsString>) -> Self {
        let mut places: Vec<OsString> = NAMES.iter().map(OsString::from).collect();
        let below = |variable_name: &str, lib: &str| {
            let root = variable(variable_name).filter(|root| !root.is_empty());
            root.map(|root| PathBuf::from(root).join(lib))
        };
        let roots = [
            below("VIRTUAL_ENV", "lib"),
            below("CONDA_PREFIX", "lib"),
            below("HOME", ".local/lib"),
            Some(PathBuf::from("/usr/local/lib")),
            Some(PathBuf::from("/usr/lib")),
            Some(PathBuf::from("/opt/conda/lib")),
        ];
        for root in roots.into_iter().flatten() {
            for python in pythons(&root) {
                for packages in ["site-packages", "dist-packages"] {
                    let folder = python.join(packages).join(IN_PACKAGES);
                    let file = folder.join(NAMES[0]);
                    if file.is_file() {
                        places.push(file.into_os_string());
                    }
                }
            }
        }
        Self {
            places,
            hint: format!(
                "install NCCL (the package libnccl2, or Python's nvidia-nccl-cu13), or set \
                 {LIBRARY_VARIABLE} to the file or its folder; besides these names, {IN_PACKAGES} was \
                 looked for in the packages of every python3 below VIRTUAL_ENV, CONDA_PREFIX, \
                 ~/.local, /usr/local, /usr and /opt/conda"
            ),
        }
    }

    /// Opens the first of them that is there.
    pub(super) fn open(&self) -> Result<Library, BulkError> {
        static OPENED: Mutex<Vec<(OsString, Library)>> = Mutex::new(Vec::new());
        let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
        let mut searched = Vec::new();
        for place in &self.places {
            if let Some((_, library)) = opened.iter().find(|(known, _)| known == place) {
                return Ok(library.clone());
            }
            // SAFETY: what the library does when it is opened is NCCL's own set-up; it takes no
            // argument of ours.
            match unsafe { libloading::Library::new(place) } {
                Ok(file) => {
                    let library = load(file, &place.to_string_lossy())?;
                    opened.push((place.clone(), library.clone()));
                    return Ok(library);
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    let cause = cause.unwrap_or_else(|| error.to_string());
                    let place = place.to_string_lossy();
                    // The loader's words mostly begin with the place.
                    let cause = cause.strip_prefix(&format!("{place}: ")).unwrap_or(&cause);
                    searched.push(format!("{place} ({cause})"));
                }
            }
        }
        Err(BulkError::new(format!(
            "NCCL was not found; searched: {}; {}",
            searched.join(", "),
            self.hint
        )))
    }
}

/// The folders of Python's versions below `root`, newest first by name.
fn pythons(root: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found.reverse();
    found
}

/// Looks up every function, and asks for the version.
fn load(file: libloading::Library, place: &str) -> Result<Library, BulkError> {
    macro_rules! function {
        ($name:literal) => {{
            // SAFETY: the type of the field is the function's in NCCL's header; it is used while
            // the library is open, which is for ever.
            let symbol = unsafe { file.get(concat!($name, "\0").as_bytes()) };
            let symbol = symbol.map_err(|_| {
                BulkError::new(format!(
                    "{place} has no function {}: expected NCCL 2.18 or newer",
                    $name
                ))
            })?;
            *symbol
        }};
    }
    let functions = Functions {
        get_version: function!("ncclGetVersion"),
        get_unique_id: function!("ncclGetUniqueId"),
        get_error_string: function!("ncclGetErrorString"),
        get_last_error: function!("ncclGetLastError"),
        init_rank_config: function!("ncclCommInitRankConfig"),
        get_async_error: function!("ncclCommGetAsyncError"),
        finalize: function!("ncclCommFinalize"),
        destroy: function!("ncclCommDestroy"),
        abort: function!("ncclCommAbort"),
        group_start: function!("ncclGroupStart"),
        group_end: function!("ncclGroupEnd"),
        send: function!("ncclSend"),
        receive: function!("ncclRecv"),
        all_reduce: function!("ncclAllReduce"),
        reduce_scatter: function!("ncclReduceScatter"),
        all_gather: function!("ncclAllGather"),
    };
    // Never closed: the functions are used from now on.
    std::mem::forget(file);
    let mut version = 0;
    // SAFETY: the function writes one number, and there is room for it.
    let code = unsafe { (functions.get_version)(&raw mut version) };
    if code != 0 || version < OLDEST {
        return Err(BulkError::new(format!(
            "{place} is NCCL {version} (code {code}): expected 2.18 ({OLDEST}) or newer"
        )));
    }
    Ok(Library {
        functions,
        version: u32::try_from(version).unwrap_or_default(),
        place: place.to_owned(),
    })
}
