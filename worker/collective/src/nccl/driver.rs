//! What is used of CUDA's driver: a device's primary context, streams and events.
//!
//! The primary context is the one that every library of a process shares, tensor libraries too.

#![allow(unsafe_code, reason = "the driver's functions are called")]

use std::ffi::c_int;

use cudarc::driver::result::stream::StreamKind;
use cudarc::driver::result::{DriverError, ctx, device, event, primary_ctx, stream};
use cudarc::driver::sys;

use super::library::RawStream;
use crate::device::BulkError;

/// Makes the driver's functions usable.
///
/// # Errors
/// Where there is no driver, or it finds no device.
pub(super) fn init() -> Result<(), BulkError> {
    // SAFETY: the function only tries to open the library by its names.
    if !unsafe { sys::is_culib_present() } {
        return Err(BulkError::new(
            "CUDA's driver was not found: searched for libcuda.so and libcuda.so.1 where the \
             system's loader looks; install the driver of the device, or, in a container, have it \
             passed in",
        ));
    }
    let result = cudarc::driver::result::init();
    result.map_err(failed(
        "initialise CUDA's driver (is there a device? see nvidia-smi)",
    ))
}

/// An error of the driver's in words.
pub(super) fn failed(doing: &str) -> impl Fn(DriverError) -> BulkError {
    move |error| BulkError::new(format!("could not {doing}: {error}"))
}

/// A share in the primary context of a device, which is made current on this thread.
#[derive(Debug)]
pub(super) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
}

impl Context {
    pub(super) fn of(ordinal: u32) -> Result<Self, BulkError> {
        init()?;
        let count = device::get_count().map_err(failed("count the devices"))?;
        let found = c_int::try_from(ordinal).ok().filter(|own| *own < count);
        let found = found.ok_or_else(|| {
            BulkError::new(format!("there is no device {ordinal}: CUDA sees {count}"))
        })?;
        let device = device::get(found).map_err(failed("find the device"))?;
        // SAFETY: the device comes from the driver.
        let raw = unsafe { primary_ctx::retain(device) };
        let raw = raw.map_err(failed("use the device's primary context"))?;
        let this = Self { device, raw };
        this.make_current()?;
        Ok(this)
    }

    /// Makes it the context of whatever this thread does next.
    pub(super) fn make_current(&self) -> Result<(), BulkError> {
        // SAFETY: the context is retained.
        let result = unsafe { ctx::set_current(self.raw) };
        result.map_err(failed("make the device's context current"))
    }

    pub(super) fn raw(&self) -> sys::CUcontext {
        self.raw
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once, and what was made in it is gone.
        let _ = unsafe { primary_ctx::release(self.device) };
    }
}

/// A stream that waits for no other one by itself. It belongs to a thread whose context is current.
#[derive(Debug)]
pub(super) struct Stream {
    raw: sys::CUstream,
}

impl Stream {
    /// A stream whose kernels go before those of common ones: what waits for a transfer are all
    /// ranks, and a transfer needs few of a device's processors.
    pub(super) fn new() -> Result<Self, BulkError> {
        let (_, greatest) = stream::get_priority_range().map_err(failed("ask for priorities"))?;
        let raw = stream::create_with_priority(StreamKind::NonBlocking, greatest);
        let raw = raw.map_err(failed("make a stream"))?;
        Ok(Self { raw })
    }

    pub(super) fn raw(&self) -> RawStream {
        self.raw.cast()
    }

    pub(super) fn raw_stream(&self) -> sys::CUstream {
        self.raw
    }

    /// Has what is queued next wait for what an event stands for.
    pub(super) fn wait_for(&self, event: &Event) -> Result<(), BulkError> {
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live, in one context.
        let result = unsafe { stream::wait_event(self.raw, event.raw, flags) };
        result.map_err(failed("have a stream wait"))
    }

    /// Whether everything that was queued is done, or has ended in an error.
    pub(super) fn is_idle(&self) -> bool {
        // SAFETY: the stream lives.
        let result = unsafe { sys::cuStreamQuery(self.raw) };
        result != sys::CUresult::CUDA_ERROR_NOT_READY
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // The driver frees it when its work is done.
        // SAFETY: the stream lives, and is forgotten with this call.
        let _ = unsafe { stream::destroy(self.raw) };
    }
}

/// A mark in the work of a device.
#[derive(Debug)]
pub(super) struct Event {
    raw: sys::CUevent,
}

impl Event {
    pub(super) fn new() -> Result<Self, BulkError> {
        let raw = event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let raw = raw.map_err(failed("make an event"))?;
        Ok(Self { raw })
    }

    pub(super) fn raw(&self) -> sys::CUevent {
        self.raw
    }

    /// Has it stand for everything that is queued on a stream.
    pub(super) fn record(&self, stream: &Stream) -> Result<(), BulkError> {
        // SAFETY: both live, in one context.
        let result = unsafe { event::record(self.raw, stream.raw) };
        result.map_err(failed("record an event"))
    }

    /// Whether that is done.
    pub(super) fn is_reached(&self) -> Result<bool, BulkError> {
        // SAFETY: the event lives.
        match unsafe { event::query(self.raw) } {
            Ok(()) => Ok(true),
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => Ok(false),
            Err(error) => Err(failed("complete the work of a device")(error)),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event lives, and is forgotten with this call.
        let _ = unsafe { event::destroy(self.raw) };
    }
}
