//! What a rank computes on: as a job asks for it, as one rank is told it, and as a worker says what it
//! has. How devices are found is the worker's; which one a rank gets is decided by [`crate::plan`].

use std::fmt;
use std::str::FromStr;

use crate::command::NumericsClass;

/// The device of one rank.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// A slot of a worker's processors.
    #[default]
    Cpu,
    /// The GPU of this index, among those that its worker sees.
    Cuda(u32),
}

impl Device {
    /// The index of the GPU; `None` for a slot of the processors.
    #[must_use]
    pub fn cuda(self) -> Option<u32> {
        match self {
            Device::Cpu => None,
            Device::Cuda(index) => Some(index),
        }
    }

    /// The device whose GPU has this index; a slot of the processors for `None`.
    #[must_use]
    pub fn of(cuda: Option<u32>) -> Self {
        cuda.map_or(Device::Cpu, Device::Cuda)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no device; expected {expected}")]
pub struct NoDevice {
    text: String,
    expected: &'static str,
}

impl FromStr for Device {
    type Err = NoDevice;

    fn from_str(text: &str) -> Result<Self, NoDevice> {
        let none = || NoDevice {
            text: text.to_owned(),
            expected: "\"cpu\" or \"cuda:N\"",
        };
        match text {
            "cpu" => Ok(Device::Cpu),
            _ => index(text).map(Device::Cuda).ok_or_else(none),
        }
    }
}

/// What the ranks of a job run on, as its file asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// Processors, through Burn's `flex` backend.
    Cpu,
    /// GPUs: any, or on each worker only the one of this index.
    Cuda(Option<u32>),
    /// GPUs where the cluster has enough of one class, else processors.
    Auto,
}

impl DeviceSpec {
    /// The devices that a job file may write, as its messages list them.
    pub const NAMES: [&'static str; 4] = ["auto", "cpu", "cuda", "cuda:N"];

    /// Whether ranks never run on a GPU.
    #[must_use]
    pub fn is_cpu(self) -> bool {
        self == DeviceSpec::Cpu
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceSpec::Cpu => f.write_str("cpu"),
            DeviceSpec::Cuda(None) => f.write_str("cuda"),
            DeviceSpec::Cuda(Some(index)) => write!(f, "cuda:{index}"),
            DeviceSpec::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for DeviceSpec {
    type Err = NoDevice;

    fn from_str(text: &str) -> Result<Self, NoDevice> {
        let none = || NoDevice {
            text: text.to_owned(),
            expected: "\"cpu\", \"cuda\", \"cuda:N\" or \"auto\"",
        };
        match text {
            "cpu" => Ok(DeviceSpec::Cpu),
            "cuda" => Ok(DeviceSpec::Cuda(None)),
            "auto" => Ok(DeviceSpec::Auto),
            _ => index(text)
                .map(|index| DeviceSpec::Cuda(Some(index)))
                .ok_or_else(none),
        }
    }
}

/// The number in `cuda:N`, written as it would be again.
fn index(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("cuda:")?;
    let index: u32 = digits.parse().ok()?;
    (index.to_string() == digits).then_some(index)
}

/// A GPU that a worker lends, as it registered it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its index among those that the worker sees, in CUDA's order.
    pub index: u32,
    /// What its maker calls it.
    pub name: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Its maker's number, one of its own in the world.
    pub uuid: String,
    /// What decides the bits of what it computes.
    pub class: NumericsClass,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read_as_it_is_written() {
        for device in [Device::Cpu, Device::Cuda(0), Device::Cuda(17)] {
            assert_eq!(device.to_string().parse(), Ok(device));
            assert_eq!(Device::of(device.cuda()), device);
        }
        let all = [
            DeviceSpec::Cpu,
            DeviceSpec::Cuda(None),
            DeviceSpec::Cuda(Some(3)),
            DeviceSpec::Auto,
        ];
        for spec in all {
            assert_eq!(spec.to_string().parse(), Ok(spec));
        }
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for text in [
            "",
            "gpu",
            "CUDA",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:01",
            "cuda: 1",
            "cuda:1,2",
            "cuda:4294967296",
        ] {
            assert!(text.parse::<Device>().is_err(), "{text:?}");
            assert!(text.parse::<DeviceSpec>().is_err(), "{text:?}");
        }
        let error = "auto".parse::<Device>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"auto\" is no device; expected \"cpu\" or \"cuda:N\""
        );
    }
}
