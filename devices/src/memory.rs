//! Guest memory as devices see it: the pages that the guest shares with the host, no others.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use vm_memory::iommu::{Error, Iommu, IommuMemory, Iotlb, IotlbIterator, IovaRange};
use vm_memory::{
    ByteValued, Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError,
    GuestMemoryMmap, GuestMemoryRegion, Permissions, VolatileMemory, VolatileSlice,
};

/// Guest memory for devices. Every access is checked against [`SharedPages`]; for guests whose
/// whole memory is shared the check is off and costs nothing.
pub type DeviceMemory = IommuMemory<GuestMemoryMmap, SharedPages>;

/// Which guest-physical ranges are shared with the host. Starts with none.
///
/// The one function that converts pages updates it; devices read it through [`DeviceMemory`]: an
/// access that touches a private page fails, instead of reading the zeroes that the host finds in
/// its own half of that page.
#[derive(Debug, Default)]
pub struct SharedPages(RwLock<Iotlb>);

impl SharedPages {
    /// From now on devices may use `length` bytes at `start`.
    ///
    /// # Errors
    /// If the range is empty or wraps around.
    pub fn share(&self, start: GuestAddress, length: usize) -> Result<(), Error> {
        checked(start, length)?;
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.set_mapping(start, start, length, Permissions::ReadWrite)
    }

    /// From now on devices may not.
    ///
    /// # Errors
    /// If the range is empty or wraps around.
    pub fn withdraw(&self, start: GuestAddress, length: usize) -> Result<(), Error> {
        checked(start, length)?;
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.invalidate_mapping(start, length);
        Ok(())
    }
}

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

/// The map underneath panics on ranges that are empty or wrap, and a guest can ask for either.
fn checked(start: GuestAddress, length: usize) -> Result<(), Error> {
    let fits = u64::try_from(length).ok().and_then(|bytes| start.0.checked_add(bytes));
    if length > 0 && fits.is_some() {
        return Ok(());
    }
    Err(refused(start, length, "the range is empty or wraps around"))
}

fn refused(base: GuestAddress, length: usize, reason: &str) -> Error {
    Error::CannotResolve { iova_range: IovaRange { base, length }, reason: reason.to_owned() }
}

impl Iommu for SharedPages {
    type IotlbGuard<'a> = RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Self::IotlbGuard<'_>>, Error> {
        checked(iova, length)?;
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Iotlb::lookup(map, iova, length, access)
            .map_err(|_| refused(iova, length, "the guest keeps some of these pages private"))
    }
}

#[cfg(test)]
mod tests {

    use super::*;

    fn memory() -> DeviceMemory {
        let backend = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        IommuMemory::new(backend, SharedPages::default(), true, ())
    }

    #[test]
    fn only_shared_pages_can_be_touched() {
        let memory = memory();
        assert!(memory.write_slice(b"secret", GuestAddress(0x1000)).is_err());
        memory.iommu().share(GuestAddress(0x1000), 0x1000).unwrap();
        memory.write_slice(b"shared", GuestAddress(0x1000)).unwrap();
        assert!(memory.write_slice(b"astride", GuestAddress(0x1ffc)).is_err());
        memory.iommu().withdraw(GuestAddress(0x1000), 0x1000).unwrap();
        assert!(memory.write_slice(b"gone", GuestAddress(0x1000)).is_err());
    }

    #[test]
    fn ranges_that_wrap_or_are_empty_are_refused() {
        let memory = memory();
        assert!(memory.iommu().share(GuestAddress(u64::MAX), 2).is_err());
        assert!(memory.iommu().withdraw(GuestAddress(0), 0).is_err());
        assert!(memory.write_slice(b"wraps", GuestAddress(u64::MAX - 1)).is_err());
        let mut nothing: [u8; 0] = [];
        // Whatever the answer to an empty access: it is not a panic.
        let _ = memory.read_slice(&mut nothing, GuestAddress(u64::MAX));
        assert!(!memory.check_range(GuestAddress(u64::MAX), 2, Permissions::Read));
    }
}
