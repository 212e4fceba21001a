//! A vector's memory, as others see it who move it: an address, and sums of parts of such memory.
//!
//! What is handed out is what the tensor library would use next: whatever it had queued for the vector is
//! queued on the device before an address is given. Who writes there has [`flush`](Memory::flush)ed before,
//! and is done before the vector is used again.
#![allow(
    unsafe_code,
    reason = "a kernel is told which part of an argument's memory is meant"
)]

use std::any::Any;
use std::fmt;
use std::ops::Range;

use burn::backend::{BackendTensor, DispatchTensorKind};
use burn::tensor::{DType, Device, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::prelude::*;
use cubecl::server::{Handle, ServerError};
use cubecl_runtime::runtime::Runtime;

use super::kernels;
use super::ops::units;
use crate::vector::DeviceError;

/// More parts than a kernel takes as arguments are added two at a time.
const MOST_PARTS: usize = 16;

/// The memory of a flat tensor, which keeps its place as long as this lives.
pub struct Memory {
    tensor: CubeTensor,
    address: u64,
    /// What holds it in its place.
    _hold: Box<dyn Any + Send>,
}

/// A part of a vector's memory.
#[derive(Clone, Debug)]
pub struct Part<'a> {
    /// Of which vector.
    pub memory: &'a Memory,
    /// Which elements.
    pub range: Range<usize>,
}

impl Memory {
    /// The memory of a tensor on a device of CubeCL's, a plain one.
    ///
    /// # Errors
    /// Where what was to be computed there has failed, or the tensor is on no such device.
    pub fn of(tensor: &Tensor<1>) -> Result<Self, DeviceError> {
        let DispatchTensorKind::Cube(BackendTensor::Float(lazy)) =
            tensor.clone().into_dispatch().kind
        else {
            return Err(DeviceError("a vector that is on no device".to_owned()));
        };
        let client = lazy.client.clone();
        let tensor = into_contiguous(client.resolve_tensor_float::<CubeBackend>(lazy));
        let (address, hold) = locate(&tensor.client, &tensor.handle)
            .map_err(|error| DeviceError(format!("a vector's memory cannot be found: {error}")))?;
        Ok(Self {
            tensor,
            address,
            _hold: hold,
        })
    }

    /// A vector of which nothing is known, and its memory.
    ///
    /// # Errors
    /// As [`Self::of`], and where there is not as much memory.
    pub fn empty(num_elements: usize, device: &Device) -> Result<(Tensor<1>, Self), DeviceError> {
        let tensor = Tensor::empty([num_elements], device);
        let memory = Self::of(&tensor)?;
        Ok((tensor, memory))
    }

    /// Where it begins: in the memory of a GPU a `CUdeviceptr`.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// How many `f32` it has.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.tensor.meta.num_elements()
    }

    /// Has all that was queued for it and for its neighbours given to the device's driver; a device that
    /// is a processor has then done it.
    ///
    /// # Errors
    /// Where the device takes nothing. What a kernel could not do is no error here.
    pub fn flush(&self) -> Result<(), DeviceError> {
        let flushed = self.client().flush();
        flushed.map_err(|error| DeviceError(format!("a device does not take its work: {error}")))
    }

    /// The client, in the order of the tensor library's own work on this vector.
    fn client(&self) -> Client {
        let mut client = self.tensor.client.clone();
        // SAFETY: the stream is one of this client's device, in which the vector was made.
        unsafe { client.set_stream(self.tensor.handle.stream) };
        client
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (len, address) = (self.num_elements(), self.address);
        write!(f, "Memory({len} elements at {address:#x})")
    }
}

/// The address of a buffer, and what keeps it there.
fn locate(client: &Client, handle: &Handle) -> Result<(u64, Box<dyn Any + Send>), ServerError> {
    #[cfg(feature = "cube-cpu")]
    {
        type Server = <cubecl::cpu::CpuRuntime as Runtime>::Server;
        match client.get_resource::<Server>(handle.clone()) {
            Err(ServerError::ServiceMismatch { .. }) => {}
            found => {
                let found = found?;
                let (start, _) = found.resource().get_write_ptr_and_length();
                return Ok((start as u64, Box::new(found)));
            }
        }
    }
    #[cfg(feature = "cuda")]
    {
        type Server = <cubecl::cuda::CudaRuntime as Runtime>::Server;
        let found = client.get_resource::<Server>(handle.clone())?;
        Ok((found.resource().ptr, Box::new(found)))
    }
    #[cfg(not(feature = "cuda"))]
    {
        type Server = <cubecl::cpu::CpuRuntime as Runtime>::Server;
        let found = client.get_resource::<Server>(handle.clone())?;
        let (start, _) = found.resource().get_write_ptr_and_length();
        Ok((start as u64, Box::new(found)))
    }
}

/// A part of a contiguous tensor.
#[derive(Clone)]
struct Place<'a> {
    tensor: &'a CubeTensor,
    range: Range<usize>,
}

impl Place<'_> {
    fn argument(&self) -> BufferArg {
        let Range { start, end } = self.range;
        let bytes = |elements: usize| (elements * size_of::<f32>()) as u64;
        let behind = self.tensor.meta.num_elements() - end;
        let handle = self.tensor.handle.clone();
        let handle = handle.offset_start(bytes(start)).offset_end(bytes(behind));
        // SAFETY: the handle is of a contiguous vector, cut to these elements of it.
        unsafe { BufferArg::from_raw_parts(handle, end - start) }
    }
}

impl<'a> Part<'a> {
    fn place(&self) -> Place<'a> {
        Place {
            tensor: &self.memory.tensor,
            range: self.range.clone(),
        }
    }
}

/// `output` = the sum of `parts`, which are as long and none of which overlaps it, by these additions,
/// `(into, from)` each, as [`sum_on_host`] makes it; of one part a copy, of none zeros. Queued, not waited
/// for.
///
/// # Errors
/// Where the parts are not as long, the additions do not lead to one sum, or a kernel could not be
/// launched: what was to be written is then no sum.
pub fn sum(
    parts: &[Part<'_>],
    adds: &[(usize, usize)],
    output: &Part<'_>,
) -> Result<(), DeviceError> {
    let len = output.range.len();
    if parts.iter().any(|part| part.range.len() != len) {
        return Err(DeviceError("parts of different lengths".to_owned()));
    }
    let is_used_once = adds.len() + 1 == parts.len().max(1);
    let are_known = adds
        .iter()
        .all(|(into, from)| into < from && *from < parts.len());
    if !is_used_once || !are_known {
        let (adds, parts) = (adds.len(), parts.len());
        let what = format!("{adds} additions that make no sum of {parts} parts");
        return Err(DeviceError(what));
    }
    if len == 0 {
        return Ok(());
    }
    let client = output.memory.client();
    let parts: Vec<Place<'_>> = parts.iter().map(Part::place).collect();
    if parts.len() <= MOST_PARTS {
        return launch(&client, &parts, adds, &output.place());
    }
    // Two at a time; each intermediate sum has room of its own.
    let mut rooms: Vec<Option<CubeTensor>> = parts.iter().map(|_| None).collect();
    for (number, &(into, from)) in (1..).zip(adds) {
        let room = (number < adds.len()).then(|| {
            let device = output.memory.tensor.device.clone();
            empty_device_contiguous_dtype(client.clone(), device, [len].into(), DType::F32)
        });
        let of_room = |tensor| Place {
            tensor,
            range: 0..len,
        };
        let place = |at: usize| {
            rooms[at]
                .as_ref()
                .map_or_else(|| parts[at].clone(), of_room)
        };
        let target = room.as_ref().map_or_else(|| output.place(), of_room);
        launch(&client, &[place(into), place(from)], &[(0, 1)], &target)?;
        rooms[from] = None;
        rooms[into] = room;
    }
    Ok(())
}

fn launch(
    client: &Client,
    parts: &[Place<'_>],
    adds: &[(usize, usize)],
    output: &Place<'_>,
) -> Result<(), DeviceError> {
    let (count, dim) = units(client, output.range.len());
    let arguments: SequenceArg<Box<[f32]>> = parts.iter().map(Place::argument).collect();
    kernels::sum::launch(
        client,
        count,
        dim,
        arguments,
        output.argument(),
        adds.to_vec(),
    );
    // A launch tells nothing: what it could not do is known of the memory that it was to write.
    let checked = client.check([&output.tensor.handle]);
    checked.map_err(|error| DeviceError(format!("a sum could not be computed: {error}")))
}

/// The twin of [`sum`]: each addition adds `values[from]` to `values[into]`, and the sum is `values[0]`.
#[must_use]
pub fn sum_on_host(parts: &[&[f32]], adds: &[(usize, usize)]) -> Vec<f32> {
    let mut values: Vec<Vec<f32>> = parts.iter().map(|part| part.to_vec()).collect();
    for (into, from) in adds {
        let right = std::mem::take(&mut values[*from]);
        let left = values[*into].iter_mut();
        left.zip(right).for_each(|(left, right)| *left += right);
    }
    values.into_iter().next().unwrap_or_default()
}
