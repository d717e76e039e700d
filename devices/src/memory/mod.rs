//! Guest memory as devices see it: the pages that the guest shares with the host, no others.

mod ledger;
mod loan;
mod shared;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

/// The primitives of `ledger`; its model has those of loom in their place.
mod sync {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
}

use vm_memory::iommu::IommuMemory;
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryMmap, GuestMemoryRegion, Permissions, VolatileMemory, VolatileSlice,
};

pub use loan::{Loan, discard};
pub use shared::{Conversion, Excess, Halves, SharedMemory, SharedPages, Subscriber, Translation};

/// Guest memory for devices. Every access is checked against [`SharedPages`]; for guests whose
/// whole memory is shared the check is off and costs nothing.
pub type DeviceMemory = IommuMemory<GuestMemoryMmap, SharedPages>;

/// The small accesses of queues, many for each request: at a tenth of the usual cost where no page is
/// private and the bytes lie in one piece of memory, which is nearly always.
pub(crate) trait Quick {
    /// `length` bytes in one piece. `None` is no refusal: they may be had in another way.
    fn piece(&self, address: GuestAddress, length: usize) -> Option<VolatileSlice<'_>>;

    /// Fills `data` from `address` on.
    fn read_quick(&self, data: &mut [u8], address: GuestAddress) -> Result<(), GuestMemoryError>;

    /// Puts a value at `address`, as it is to lie there.
    fn put<T: ByteValued>(&self, value: T, address: GuestAddress) -> Result<(), GuestMemoryError>;

    /// Writes `data` to `address`.
    fn write_quick(&self, data: &[u8], address: GuestAddress) -> Result<(), GuestMemoryError>;

    /// Whether the guest's memory has such bytes for `access`.
    fn has(&self, address: GuestAddress, length: usize, access: Permissions) -> bool;
}

impl Quick for DeviceMemory {
    fn piece(&self, address: GuestAddress, length: usize) -> Option<VolatileSlice<'_>> {
        if self.get_iommu_enabled() {
            return None;
        }
        let (region, offset) = self.get_backend().to_region_addr(address)?;
        region.get_slice(offset, length).ok()
    }

    fn read_quick(&self, data: &mut [u8], address: GuestAddress) -> Result<(), GuestMemoryError> {
        match self.piece(address, data.len()) {
            Some(piece) => Ok(piece.read_slice(data, 0)?),
            None => self.read_slice(data, address),
        }
    }

    fn put<T: ByteValued>(&self, value: T, address: GuestAddress) -> Result<(), GuestMemoryError> {
        match self.piece(address, size_of::<T>()) {
            Some(piece) => piece.get_ref(0)?.store(value),
            None => self.write_obj(value, address)?,
        }
        Ok(())
    }

    fn write_quick(&self, data: &[u8], address: GuestAddress) -> Result<(), GuestMemoryError> {
        match self.piece(address, data.len()) {
            Some(piece) => Ok(piece.write_slice(data, 0)?),
            None => self.write_slice(data, address),
        }
    }

    fn has(&self, address: GuestAddress, length: usize, access: Permissions) -> bool {
        self.piece(address, length).is_some() || self.check_range(address, length, access)
    }
}
