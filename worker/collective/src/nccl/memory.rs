//! Device memory and sums on a device, for whoever has no tensor library at hand: the self-check
//! and tests. Training brings its own.

#![allow(unsafe_code, reason = "the driver's functions are called")]

use std::ffi::{CString, c_uint, c_void};
use std::fmt;

use cudarc::driver::result;
use cudarc::driver::sys;

use super::driver::{Context, Stream, failed};
use crate::device::{Add, BulkError, Kernels, Region};

/// The kernel, as the driver compiles it.
const PTX: &str = include_str!("add.ptx");
const KERNEL: &[u8] = b"muster_add\0";
const THREADS_OF_A_BLOCK: u32 = 256;

/// Memory of one device. What it allocated is freed when it is dropped.
pub struct Memory {
    allocated: Vec<sys::CUdeviceptr>,
    context: Context,
}

impl Memory {
    /// Of a device, by its number among those that CUDA sees.
    ///
    /// # Errors
    /// [`BulkError`] where there is no driver or no such device.
    pub fn of(ordinal: u32) -> Result<Self, BulkError> {
        Ok(Self {
            allocated: Vec::new(),
            context: Context::of(ordinal)?,
        })
    }

    /// Allocates memory of which nothing is known.
    ///
    /// # Errors
    /// [`BulkError`] where the device has not as much.
    pub fn alloc(&mut self, num_elements: usize) -> Result<Region, BulkError> {
        if num_elements == 0 {
            return Ok(Region::default());
        }
        self.context.make_current()?;
        let num_bytes = num_elements.checked_mul(size_of::<f32>());
        let num_bytes = num_bytes.ok_or_else(|| BulkError::new("more memory than there can be"))?;
        // SAFETY: the context is current, and the memory is freed once, by the drop.
        let address = unsafe { result::malloc_sync(num_bytes) };
        let address =
            address.map_err(failed(&format!("allocate {num_bytes} bytes of a device")))?;
        self.allocated.push(address);
        Ok(Region {
            address,
            num_elements,
        })
    }

    /// Copies values into a region of their length, which this memory allocated.
    ///
    /// # Errors
    /// [`BulkError`] where the lengths differ, or the driver refuses.
    pub fn write(&self, region: Region, values: &[f32]) -> Result<(), BulkError> {
        if values.len() != region.num_elements {
            let (len, room) = (values.len(), region.num_elements);
            return Err(BulkError::new(format!("{len} values for {room} elements")));
        }
        if values.is_empty() {
            return Ok(());
        }
        self.context.make_current()?;
        // SAFETY: the region is as long as the values, and the driver checks that it is a
        // device's.
        let result = unsafe { result::memcpy_htod_sync(region.address, values) };
        result.map_err(failed("copy to the device"))
    }

    /// The values of a region, when all work of the device is done.
    ///
    /// # Errors
    /// [`BulkError`] where the driver refuses.
    pub fn read(&self, region: Region) -> Result<Vec<f32>, BulkError> {
        let mut values = vec![0.0; region.num_elements];
        if values.is_empty() {
            return Ok(values);
        }
        self.context.make_current()?;
        result::ctx::synchronize().map_err(failed("wait for the work of a device"))?;
        // SAFETY: the region is as long as the values, and the driver checks that it is a
        // device's.
        let result = unsafe { result::memcpy_dtoh_sync(&mut values, region.address) };
        result.map_err(failed("copy from the device"))?;
        Ok(values)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = self.context.make_current();
        for address in self.allocated.drain(..) {
            // SAFETY: it was allocated once; who held a region of it is told to let go first.
            let _ = unsafe { result::free_sync(address) };
        }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({} regions)", self.allocated.len())
    }
}

/// Sums along a tree, two vectors at a time, on a stream of its own.
pub struct Adder {
    kernel: sys::CUfunction,
    module: sys::CUmodule,
    stream: Stream,
    /// Intermediate sums, used again.
    spare: Vec<Region>,
    memory: Memory,
}

impl Adder {
    /// On a device, by its number among those that CUDA sees.
    ///
    /// # Errors
    /// [`BulkError`] where there is no such device, or it cannot run the kernel.
    pub fn of(ordinal: u32) -> Result<Self, BulkError> {
        let memory = Memory::of(ordinal)?;
        let text = CString::new(PTX).map_err(|_| BulkError::new("a kernel's text with a zero"))?;
        // SAFETY: the text ends with a zero, and the context is current.
        let module = unsafe { result::module::load_data(text.as_ptr().cast()) };
        let module = module.map_err(failed("compile a kernel for the device"))?;
        let name = CString::from_vec_with_nul(KERNEL.to_vec());
        let name = name.map_err(|_| BulkError::new("a kernel's name without an end"))?;
        // SAFETY: the module is loaded.
        let kernel = unsafe { result::module::get_function(module, name) };
        let kernel = kernel.map_err(failed("find a kernel"))?;
        Ok(Self {
            kernel,
            module,
            stream: Stream::new()?,
            spare: Vec::new(),
            memory,
        })
    }

    /// The memory of the same device.
    pub fn memory(&mut self) -> &mut Memory {
        &mut self.memory
    }

    fn add(&self, left: Region, right: Region, sum: Region) -> Result<(), BulkError> {
        if left.num_elements != sum.num_elements || right.num_elements != sum.num_elements {
            return Err(BulkError::new("vectors of different lengths are added"));
        }
        if sum.num_elements == 0 {
            return Ok(());
        }
        let num_blocks = sum.num_elements.div_ceil(THREADS_OF_A_BLOCK as usize);
        let num_blocks = c_uint::try_from(num_blocks);
        let num_blocks =
            num_blocks.map_err(|_| BulkError::new("a vector too long for a kernel"))?;
        let mut arguments = [
            left.address,
            right.address,
            sum.address,
            sum.num_elements as u64,
        ];
        let mut places = arguments
            .each_mut()
            .map(|argument| std::ptr::from_mut(argument).cast::<c_void>());
        // SAFETY: the kernel takes four numbers of 64 bits, which the driver copies in this call;
        // it reads and writes these elements of regions that the caller keeps.
        let launched = unsafe {
            result::launch_kernel(
                self.kernel,
                (num_blocks, 1, 1),
                (THREADS_OF_A_BLOCK, 1, 1),
                0,
                self.stream.raw_stream(),
                &mut places,
            )
        };
        launched.map_err(failed("launch a kernel"))
    }

    /// A vector for an intermediate sum, of which nothing is known.
    fn room(&mut self, num_elements: usize) -> Result<Region, BulkError> {
        let fits = |room: &Region| room.num_elements >= num_elements;
        match self.spare.iter().position(fits) {
            Some(at) => Ok(self.spare.swap_remove(at)),
            None => self.memory.alloc(num_elements),
        }
    }

    fn sum_up(&mut self, parts: &[Region], adds: &[Add], output: Region) -> Result<(), BulkError> {
        self.memory.context.make_current()?;
        // A part, or the room of an intermediate sum.
        let mut values: Vec<(Region, Option<Region>)> =
            parts.iter().map(|part| (*part, None)).collect();
        for (number, Add { into, from }) in (1..).zip(adds) {
            let ((left, left_room), (right, right_room)) = (values[*into], values[*from]);
            let (sum, room) = match left_room {
                // The last sum has its place.
                _ if number == adds.len() => (output, None),
                Some(room) => (left, Some(room)),
                None => {
                    let room = self.room(output.num_elements)?;
                    (room.slice(0..output.num_elements), Some(room))
                }
            };
            self.add(left, right, sum)?;
            values[*into] = (sum, room);
            // Whoever takes a room next is queued behind this sum.
            let unused = left_room.filter(|_| room.is_none());
            self.spare.extend(unused.into_iter().chain(right_room));
        }
        let (stream, num_bytes) = (
            self.stream.raw_stream(),
            output.num_elements * size_of::<f32>(),
        );
        match values.first() {
            _ if num_bytes == 0 => Ok(()),
            Some((sum, _)) if *sum == output => Ok(()),
            Some((only, _)) => {
                // SAFETY: both regions have as many elements, and the caller keeps them.
                let copied = unsafe {
                    result::memcpy_dtod_async(output.address, only.address, num_bytes, stream)
                };
                copied.map_err(failed("copy on the device"))
            }
            None => {
                // SAFETY: the region has as many elements, and the caller keeps it.
                let filled =
                    unsafe { result::memset_d8_async(output.address, 0, num_bytes, stream) };
                filled.map_err(failed("fill memory of the device"))
            }
        }
    }
}

impl Kernels for Adder {
    fn sum(&mut self, parts: &[Region], adds: &[Add], output: Region) -> Result<(), String> {
        self.sum_up(parts, adds, output).map_err(|error| error.what)
    }

    fn flush(&mut self) -> Result<(), String> {
        // The driver has every kernel as soon as it is launched.
        Ok(())
    }
}

impl Drop for Adder {
    fn drop(&mut self) {
        let _ = self.memory.context.make_current();
        // The kernel may still be running.
        let _ = result::ctx::synchronize();
        // SAFETY: the module is loaded, and its kernel is not launched any more.
        let _ = unsafe { result::module::unload(self.module) };
    }
}

impl fmt::Debug for Adder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Adder({} spare vectors)", self.spare.len())
    }
}
