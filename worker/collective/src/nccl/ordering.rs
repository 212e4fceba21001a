//! How transfers come behind the work of whoever produced what they send.
//!
//! The producer is a tensor library, which keeps its streams to itself; what we share with it is
//! the device's primary context. So an event is recorded of all that the context has been given so
//! far, and the transfers' stream waits for it, on the device ([`ContextEvents`], CUDA 12.5). An
//! older driver cannot do that, and the host waits instead ([`HostWait`]).
//!
//! The other direction needs nothing: a transfer counts as complete when the host has seen it, and
//! what is given to the device afterwards comes behind it. A context that waited for a transfer
//! would stand still for as long as a peer does.

#![allow(
    unsafe_code,
    reason = "the driver's functions are looked up and called"
)]

use std::ffi::c_int;

use cudarc::driver::result::ctx;
use cudarc::driver::sys;

use super::driver::{Context, Event, Stream, failed};
use crate::device::BulkError;

/// Brings a stream behind the work of a context.
pub(super) trait Ordering {
    /// Whether the stream must have nothing under way when it is ordered, because the host waits
    /// for all of the context, the stream's work too, which a peer may hold up.
    fn needs_idle(&self) -> bool;

    /// Has what is queued on `stream` next wait for all work that the context was given before.
    fn order(&self, stream: &Stream) -> Result<(), BulkError>;
}

/// What this driver can do; the thread has `context` as its current one.
pub(super) fn of(context: &Context) -> Result<Box<dyn Ordering>, BulkError> {
    match ContextEvents::find(context)? {
        Some(events) => Ok(Box::new(events)),
        None => Ok(Box::new(HostWait)),
    }
}

type RecordOfContext = unsafe extern "C" fn(sys::CUcontext, sys::CUevent) -> c_int;

/// An event of the whole context.
struct ContextEvents {
    record: RecordOfContext,
    context: sys::CUcontext,
    /// Used again and again: a stream that waits for it waits for what it stood for at that time.
    event: Event,
}

impl ContextEvents {
    /// `None` where the driver has no such events, or they do not work here.
    fn find(context: &Context) -> Result<Option<Self>, BulkError> {
        // SAFETY: the driver was initialised, so that its library is open; it stays so.
        let driver = unsafe { sys::culib() };
        // SAFETY: the type is the function's in the driver's header.
        let record = unsafe { driver.get::<RecordOfContext>(b"cuCtxRecordEvent\0") };
        let Ok(record) = record else {
            return Ok(None);
        };
        let events = Self {
            record: *record,
            context: context.raw(),
            event: Event::new()?,
        };
        // Tried once, so that a driver that has the name only is found out here.
        Ok(events.record().is_ok().then_some(events))
    }

    fn record(&self) -> Result<(), BulkError> {
        // SAFETY: the context is retained, and the event was made in it.
        match unsafe { (self.record)(self.context, self.event.raw()) } {
            0 => Ok(()),
            code => Err(BulkError::new(format!(
                "cuCtxRecordEvent of CUDA's driver failed with code {code}; is a graph being \
                 captured on this device?"
            ))),
        }
    }
}

impl Ordering for ContextEvents {
    fn needs_idle(&self) -> bool {
        false
    }

    fn order(&self, stream: &Stream) -> Result<(), BulkError> {
        self.record()?;
        stream.wait_for(&self.event)
    }
}

/// The host waits until the context has done everything.
struct HostWait;

impl Ordering for HostWait {
    fn needs_idle(&self) -> bool {
        true
    }

    fn order(&self, _: &Stream) -> Result<(), BulkError> {
        ctx::synchronize().map_err(failed("wait for the work of a device"))
    }
}
