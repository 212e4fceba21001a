//! Devices that are host buffers of this process, for tests of whatever runs over device memory:
//! ranks are threads, and their [`Bulk`]s copy between the buffers.
//!
//! A [`Device`] hands out addresses as a driver would, and refuses those that it did not. The
//! [`Fabric`] among the devices is where tests strike: a rank that is dead or slow keeps the others
//! waiting for ever, as a real one does, until they abort.

mod fabric;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use muster_cluster::RankId;

use super::Region;
use super::bulk::{Bulk, BulkError, Kernels, Ticket, Transfer};
use super::schedule::Add;

pub use fabric::Fabric;

/// The memory of one device. Clones are the same device.
#[derive(Clone, Default)]
pub struct Device {
    memory: Arc<Mutex<Memory>>,
}

#[derive(Default)]
struct Memory {
    /// By address. They never touch, so that no region reaches from one into the next.
    buffers: BTreeMap<u64, Vec<f32>>,
    end: u64,
}

/// Addresses begin here, so that one of zero, or an index taken for one, is refused.
const FIRST_ADDRESS: u64 = 1 << 32;
const PAGE_BYTES: u64 = 4096;

impl Device {
    /// A device whose memory is empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates memory that holds NaNs, so that nothing adds up which was never written.
    #[must_use]
    pub fn alloc(&self, num_elements: usize) -> Region {
        let mut memory = self.lock();
        let address = memory.end.max(FIRST_ADDRESS);
        let num_bytes = (num_elements * size_of::<f32>()) as u64;
        memory.end = (address + num_bytes).next_multiple_of(PAGE_BYTES) + PAGE_BYTES;
        memory.buffers.insert(address, vec![f32::NAN; num_elements]);
        Region {
            address,
            num_elements,
        }
    }

    /// Frees what was allocated at the region's address; whether there was something.
    pub fn free(&self, region: Region) -> bool {
        self.lock().buffers.remove(&region.address).is_some()
    }

    /// Copies values into a region of their length.
    ///
    /// # Errors
    /// [`BulkError`] where the region is no memory of this device, or of another length.
    pub fn write(&self, region: Region, values: &[f32]) -> Result<(), BulkError> {
        if region.num_elements != values.len() {
            let (len, room) = (values.len(), region.num_elements);
            return Err(BulkError::new(format!("{len} values for {room} elements")));
        }
        let mut memory = self.lock();
        memory.slice(region)?.copy_from_slice(values);
        Ok(())
    }

    /// The values of a region.
    ///
    /// # Errors
    /// [`BulkError`] where the region is no memory of this device.
    pub fn read(&self, region: Region) -> Result<Vec<f32>, BulkError> {
        Ok(self.lock().slice(region)?.to_vec())
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory {
    fn slice(&mut self, region: Region) -> Result<&mut [f32], BulkError> {
        let before = self.buffers.range_mut(..=region.address).next_back();
        let found = before.and_then(|(address, buffer)| {
            let start = usize::try_from(region.address - address).ok()? / size_of::<f32>();
            buffer.get_mut(start..start.checked_add(region.num_elements)?)
        });
        found.ok_or_else(|| BulkError::new(format!("{region:?} is no memory of this device")))
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = self.lock();
        write!(f, "Device({} buffers)", memory.buffers.len())
    }
}

impl Kernels for Device {
    fn sum(&mut self, parts: &[Region], adds: &[Add], output: Region) -> Result<(), String> {
        let mut memory = self.lock();
        let mut values = Vec::new();
        for part in parts {
            let part = memory.slice(*part).map_err(|error| error.to_string())?;
            values.push(part.to_vec());
        }
        for Add { into, from } in adds {
            let right = std::mem::take(&mut values[*from]);
            let left = &mut values[*into];
            if left.len() != right.len() {
                return Err("parts of different lengths, or one that is used up".to_owned());
            }
            for (left, right) in left.iter_mut().zip(&right) {
                *left += *right;
            }
        }
        let output = memory.slice(output).map_err(|error| error.to_string())?;
        match values.first() {
            Some(sum) if sum.len() == output.len() => output.copy_from_slice(sum),
            Some(_) => return Err("a sum of another length than its output".to_owned()),
            None => output.fill(0.0),
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// One rank's [`Bulk`] over a [`Fabric`].
#[derive(Debug)]
pub struct MemoryBulk {
    fabric: Fabric,
    rank: RankId,
    num_begun: u64,
}

/// A fabric among these devices, by rank, and each rank's part in it.
#[must_use]
pub fn bulks(devices: &[Device]) -> (Fabric, Vec<MemoryBulk>) {
    let fabric = Fabric::new(devices);
    let bulk = |(rank, _): (u32, &Device)| MemoryBulk {
        fabric: fabric.clone(),
        rank: RankId(rank),
        num_begun: 0,
    };
    let bulks = (0..).zip(devices).map(bulk).collect();
    (fabric, bulks)
}

impl Bulk for MemoryBulk {
    fn begin(&mut self, transfer: Transfer) -> Result<Ticket, BulkError> {
        self.fabric.begin(self.rank, transfer)?;
        self.num_begun += 1;
        Ok(Ticket(self.num_begun))
    }

    fn wait(&mut self, ticket: Ticket, at_most: Duration) -> Result<bool, BulkError> {
        self.fabric.wait(self.rank, ticket.0, at_most)
    }

    fn abort(&mut self, at_most: Duration) -> bool {
        self.fabric.abort(self.rank, at_most)
    }

    fn close(&mut self, _: Duration) {
        self.fabric.close(self.rank);
    }
}
