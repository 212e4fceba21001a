//! What connects the ranks of a world: a group for notes and messages, and where vectors stay on devices,
//! what moves them there.

#[cfg(feature = "devices")]
use std::net::IpAddr;
use std::time::Duration;

#[cfg(feature = "devices")]
use muster_collective::Error;
use muster_collective::Group;
#[cfg(feature = "devices")]
use muster_collective::device::{Bulk, DeviceGroup};
#[cfg(feature = "devices")]
use muster_collective::tcp::Token;

use crate::shared::Shared;

/// How long devices may take to connect, whatever an operation may take: a network that swallows what they
/// send holds them up for as long.
#[cfg(feature = "devices")]
const CONNECT_PATIENCE: Duration = Duration::from_mins(1);

/// The connections of one world.
#[derive(Debug)]
pub(crate) enum Links {
    /// Vectors go over the host.
    Host(Group),
    /// Vectors go from device to device.
    #[cfg(feature = "devices")]
    Devices(Box<DeviceGroup>),
}

/// How the device of a rank reaches those of the others.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    /// Not at all: over the host.
    Host,
    /// A GPU, by NCCL.
    #[cfg(feature = "cuda")]
    Nccl(muster_collective::nccl::Options),
    /// A processor that a test build has made a device, by sockets.
    #[cfg(feature = "cube-cpu")]
    Sockets(muster_collective::device::host::Options),
}

impl Way {
    /// The way of a rank that was given the GPU of this index, if any; its vectors are on a device.
    #[cfg(feature = "devices")]
    #[allow(
        unused_variables,
        reason = "each of the two features needs some of them"
    )]
    pub(crate) fn of_device(
        gpu: Option<u32>,
        host: IpAddr,
        token: Token,
        detect: Duration,
        refusal: Option<&str>,
    ) -> Self {
        match gpu {
            #[cfg(feature = "cuda")]
            Some(ordinal) => Way::Nccl(muster_collective::nccl::Options {
                ordinal,
                library: None,
                refusal: refusal.map(|why| format!("it failed here before: {why}")),
            }),
            #[cfg(feature = "cube-cpu")]
            None => Way::Sockets(muster_collective::device::host::Options {
                host,
                token,
                detect,
                refuses: refusal.is_some(),
            }),
            #[allow(unreachable_patterns, reason = "a build with both features")]
            _ => Way::Host,
        }
    }
}

impl Links {
    /// Connects the devices of a group's ranks, beside it. Where that cannot be, vectors go over the host,
    /// which is said once.
    pub(crate) fn connect(group: Group, way: &Way, shared: &Shared, deadline: Duration) -> Self {
        #[cfg(feature = "devices")]
        {
            let mut group = group;
            return match bulk(&mut group, way, deadline.min(CONNECT_PATIENCE)) {
                Ok(Some(bulk)) => {
                    tracing::info!(
                        generation = group.world().generation.0,
                        "vectors go from device to device"
                    );
                    Links::Devices(Box::new(DeviceGroup::with(group, bulk)))
                }
                Ok(None) => Links::Host(group),
                Err(error) => {
                    if let Error::Device { what } = &error {
                        tracing::warn!(%error, "vectors go over the host");
                        // It would fail again, and take as long.
                        shared.refuse_devices(what);
                    }
                    // A group that has failed says so when it is next used.
                    Links::Host(group)
                }
            };
        }
        #[cfg(not(feature = "devices"))]
        {
            let (Way::Host, _, _) = (way, shared, deadline);
            Links::Host(group)
        }
    }

    /// For everything but vectors on devices.
    pub(crate) fn group(&mut self) -> &mut Group {
        match self {
            Links::Host(group) => group,
            #[cfg(feature = "devices")]
            Links::Devices(devices) => devices.group(),
        }
    }

    /// Says goodbye and returns at once.
    pub(crate) fn retire(self) {
        match self {
            Links::Host(group) => group.retire(),
            #[cfg(feature = "devices")]
            Links::Devices(devices) => devices.retire(),
        }
    }
}

#[cfg(feature = "devices")]
fn bulk(group: &mut Group, way: &Way, deadline: Duration) -> Result<Option<Box<dyn Bulk>>, Error> {
    let _ = (&group, deadline);
    match way {
        Way::Host => Ok(None),
        #[cfg(feature = "cuda")]
        Way::Nccl(options) => {
            let nccl = muster_collective::nccl::connect(group, options, deadline)?;
            Ok(nccl.map(|nccl| Box::new(nccl) as Box<dyn Bulk>))
        }
        #[cfg(feature = "cube-cpu")]
        Way::Sockets(options) => {
            #[allow(unsafe_code, reason = "regions are of vectors that a reduction holds")]
            // SAFETY: the regions of an operation are of tensors in this process's memory, which
            // `work::reduce` keeps and leaves alone until the operation is over.
            let sockets =
                unsafe { muster_collective::device::host::connect(group, options, deadline) }?;
            Ok(sockets.map(|sockets| Box::new(sockets) as Box<dyn Bulk>))
        }
    }
}
