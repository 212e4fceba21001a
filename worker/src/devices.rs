//! The GPUs of a machine: which there are, which of them this process may use and in which order, and
//! why none is, in one sentence. What a job does with them is not known here.
//!
//! Two sources are asked. NVML, the management library that comes with the driver, knows every GPU of
//! the machine, and is asked by every build. CUDA itself is asked by builds that can use it, and has the
//! last word on what is visible and in which order. Everything between both and the answer is a
//! function of what they said.

mod claim;
#[cfg(feature = "cuda")]
mod cuda;
mod libraries;
mod nvml;
mod offer;
mod visible;

pub use libraries::{Libdevice, Library, libdevice, libraries};
pub use offer::{Choice, offered};
pub use visible::Environment;

pub(crate) use claim::Claims;
pub(crate) use offer::{numbers, registered};

use visible::Pick;

/// One GPU, as its driver tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gpu {
    /// What its maker calls it.
    pub name: String,
    /// Its maker's number; of a part of a GPU, the number of the part.
    pub uuid: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// What nobody uses of it now.
    pub free_bytes: Option<u64>,
    /// Where it is on the PCI bus.
    pub pci: Option<String>,
    /// Which instructions it has: major and minor.
    pub compute: (u32, u32),
    /// Whether it is divided into instances (MIG mode).
    pub is_divided: bool,
    /// The numbers of its instances.
    pub parts: Vec<String>,
    /// Whether the driver keeps it ready while nobody uses it.
    pub is_persistent: Option<bool>,
    /// The numbers of the GPUs that it reaches over NVLink.
    pub nvlinks: Vec<String>,
}

/// The driver of a machine's GPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// Its version; empty where only CUDA was asked, which does not tell it.
    pub version: String,
    /// The newest CUDA that it serves: major and minor.
    pub cuda: (u32, u32),
}

/// What a source says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The driver.
    pub driver: Driver,
    /// The GPUs in the source's order: NVML's is that of the bus, CUDA's what it counts by.
    pub gpus: Vec<Gpu>,
}

/// Why a source says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absent {
    /// This build cannot ask it.
    NotBuilt,
    /// Its library is not on this machine; in the loader's words.
    NoLibrary(String),
    /// It is there, and does not answer; in its words.
    Fails(String),
}

/// Somebody who can be asked for GPUs.
pub trait Source {
    /// Asks.
    ///
    /// # Errors
    /// Where it cannot answer, and why.
    fn look(&self) -> Result<Seen, Absent>;
}

/// What is known of a machine's GPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// The driver, where there is one that answers.
    pub driver: Option<Driver>,
    /// All GPUs of the machine that are known.
    pub all: Vec<Gpu>,
    /// Those that may be used, in the order that they are counted by.
    pub visible: Vec<Gpu>,
    /// Why none may be used; `None` where one may.
    pub why_none: Option<String>,
}

impl Inventory {
    /// Asks this machine.
    #[must_use]
    pub fn of_this_machine() -> Self {
        #[cfg(feature = "cuda")]
        let cuda = cuda::Cuda.look();
        #[cfg(not(feature = "cuda"))]
        let cuda = Err(Absent::NotBuilt);
        Self::of(&nvml::Nvml.look(), &cuda, &Environment::of_this_process())
    }

    /// Concludes from what NVML and CUDA say, and from the environment.
    #[must_use]
    pub fn of(nvml: &Result<Seen, Absent>, cuda: &Result<Seen, Absent>, env: &Environment) -> Self {
        let driver = nvml.as_ref().or(cuda.as_ref()).ok();
        let driver = driver.map(|seen| seen.driver.clone());
        let all = nvml.as_ref().or(cuda.as_ref()).ok();
        let all = all.map(|seen| seen.gpus.clone()).unwrap_or_default();
        let picked = visible::pick(env, &all);
        let seen_through_env: Vec<Gpu> = picked.picks.iter().map(|pick| pick.of(&all)).collect();
        let visible = match cuda {
            // It has read its own variable already; those of a scheduler it does not know.
            Ok(seen) if env.cuda_visible_devices.is_some() || nvml.is_err() => {
                seen.gpus.iter().map(|gpu| completed(gpu, &all)).collect()
            }
            Ok(seen) => {
                let is_seen = |gpu: &Gpu| seen.gpus.iter().any(|one| number(one) == number(gpu));
                let seen = seen_through_env.iter().filter(|gpu| is_seen(gpu));
                seen.cloned().collect()
            }
            Err(_) => seen_through_env,
        };
        let why_none = why_none(nvml, cuda, &visible, all.len(), picked.by.as_deref());
        Self {
            driver,
            all,
            visible,
            why_none,
        }
    }

    /// The GPUs that ranks may use: the visible ones, where this build can.
    #[must_use]
    pub fn usable(&self) -> &[Gpu] {
        match self.why_none {
            Some(_) => &[],
            None => &self.visible,
        }
    }
}

/// What CUDA tells of a GPU, with what NVML knows of it beside.
fn completed(gpu: &Gpu, all: &[Gpu]) -> Gpu {
    let known = all.iter().find(|known| number(known) == number(gpu));
    known.unwrap_or(gpu).clone()
}

/// A GPU's number behind the word for its kind: CUDA writes that of an instance otherwise than NVML.
fn number(gpu: &Gpu) -> &str {
    let parts = gpu.uuid.split_once('-');
    parts.map_or(gpu.uuid.as_str(), |(_, number)| number)
}

impl Pick {
    fn of(self, all: &[Gpu]) -> Gpu {
        let gpu = all[self.gpu].clone();
        match self.part.and_then(|part| gpu.parts.get(part).cloned()) {
            // NVML tells the memory of the whole; what the part has CUDA says when it is asked.
            Some(uuid) => Gpu { uuid, ..gpu },
            None => gpu,
        }
    }
}

/// Why no GPU may be used, in one sentence; the cause that is nearest to the machine comes first.
fn why_none(
    nvml: &Result<Seen, Absent>,
    cuda: &Result<Seen, Absent>,
    visible: &[Gpu],
    num_all: usize,
    hidden_by: Option<&str>,
) -> Option<String> {
    if let (Err(absent), Err(_)) = (nvml, cuda) {
        return Some(match absent {
            Absent::NoLibrary(_) => {
                "this machine has no NVIDIA driver: libnvidia-ml.so.1 is not there".to_owned()
            }
            Absent::Fails(why) => {
                format!("the NVIDIA driver of this machine does not answer: {why}")
            }
            Absent::NotBuilt => "nothing was asked for GPUs".to_owned(),
        });
    }
    if num_all == 0 && visible.is_empty() {
        return Some("the NVIDIA driver of this machine knows no GPU".to_owned());
    }
    if visible.is_empty()
        && let Some(by) = hidden_by
    {
        let all = if num_all == 1 {
            "the only GPU".to_owned()
        } else {
            format!("all {num_all} GPUs")
        };
        return Some(format!("{by} hides {all} of this machine"));
    }
    match cuda {
        Err(Absent::NotBuilt) => {
            let first = visible.first().map_or("a GPU", |gpu| gpu.name.as_str());
            let more = match visible.len() {
                0 | 1 => String::new(),
                number => format!(" and {} more", number - 1),
            };
            Some(format!(
                "this machine has {first}{more}, and this build of muster has no CUDA: build it with \
                 `cargo build --release --features cuda`"
            ))
        }
        Err(Absent::NoLibrary(why)) => Some(format!(
            "the CUDA library of the driver, libcuda.so.1, is not there: {why}"
        )),
        Err(Absent::Fails(why)) => Some(format!("CUDA does not start: {why}")),
        Ok(_) if visible.is_empty() => {
            Some("CUDA sees none of the GPUs that the driver knows".to_owned())
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests;
