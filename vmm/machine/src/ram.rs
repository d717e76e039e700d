//! Guest memory.

#![allow(unsafe_code, reason = "a memory slot is an address of ours that the guest writes to")]

use std::io;
use std::sync::Arc;

use casemate_devices::memory::{DeviceMemory, SharedPages};
use casemate_devices::virtio::balloon::Discard;
use casemate_launch::{Contents, GpaRange, Import, LaunchPlan};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::guest_memory::GuestMemoryBackend as _;
use vm_memory::{
    Bytes as _, GuestAddress, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion as _,
};

use crate::board::Board;

/// Why guest memory could not be made or filled.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host did not give the address space.
    #[error("could not reserve {bytes} bytes of address space for guest memory")]
    Map {
        /// How much was wanted.
        bytes: u64,
        /// Why.
        source: vm_memory::mmap::FromRangesError,
    },
    /// KVM refused a memory slot.
    #[error("KVM_SET_USER_MEMORY_REGION: slot {slot}, {bytes} bytes at {start:#x}")]
    Slot {
        /// Its number.
        slot: u32,
        /// Its guest-physical address.
        start: u64,
        /// Its size.
        bytes: u64,
        /// Why.
        source: io::Error,
    },
    /// An import does not lie in memory.
    #[error("could not write the {tag} to guest memory at {range}")]
    Write {
        /// What it is.
        tag: &'static str,
        /// Where it was to go.
        range: GpaRange,
        /// Why.
        source: GuestMemoryError,
    },
}

/// The memory of a guest, as much of it as the host can see. Nothing is touched before it is
/// needed, so that the host gives pages only then. Clones are handles to the same memory.
#[derive(Clone)]
pub struct GuestRam {
    memory: Arc<DeviceMemory>,
}

impl GuestRam {
    /// Reserves address space for the RAM of `board` and for what `plan` puts elsewhere (firmware,
    /// its loader window), all of it shared with devices.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn shared(board: &Board, plan: &LaunchPlan) -> Result<Self, RamError> {
        let size = |range: GpaRange| usize::try_from(range.len()).unwrap_or(usize::MAX);
        let all = regions(board, plan);
        let ranges: Vec<_> =
            all.iter().map(|range| (GuestAddress(range.start().0), size(*range))).collect();
        let backend = GuestMemoryMmap::from_ranges(&ranges).map_err(|source| RamError::Map {
            bytes: all.iter().map(|range| range.len()).sum(),
            source,
        })?;
        let memory = DeviceMemory::new(backend, SharedPages::default(), false, ());
        Ok(Self { memory: Arc::new(memory) })
    }

    /// Guest memory as devices see it.
    #[must_use]
    pub const fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// Makes this the memory of `vm`, which must not outlive it.
    ///
    /// # Errors
    /// If KVM refuses a slot.
    pub(crate) fn map(&self, vm: &VmFd) -> Result<(), RamError> {
        for (slot, region) in (0..).zip(self.memory.get_backend().iter()) {
            let (start, bytes) = (region.start_addr().0, region.len());
            let memory_region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: start,
                memory_size: bytes,
                userspace_addr: region.as_ptr().expose_provenance() as u64,
            };
            // SAFETY: the region's mapping has that address and size, the guest and vm-memory's
            // volatile accesses are its only users, and `Machine` drops the VM before the mapping.
            unsafe { vm.set_user_memory_region(memory_region) }
                .map_err(|source| RamError::Slot { slot, start, bytes, source: source.into() })?;
        }
        Ok(())
    }

    /// Writes an import. Zeroes are there already: memory starts with nothing else.
    ///
    /// # Errors
    /// If it does not lie in memory.
    pub(crate) fn write(&self, import: &Import) -> Result<(), RamError> {
        let Contents::Bytes(bytes) = &import.contents else { return Ok(()) };
        let start = GuestAddress(import.range.start().0);
        self.memory.get_backend().write_slice(bytes, start).map_err(|source| RamError::Write {
            tag: import.tag,
            range: import.range,
            source,
        })
    }
}

/// RAM, and the ranges that only the plan knows of, ascending.
fn regions(board: &Board, plan: &LaunchPlan) -> Vec<GpaRange> {
    let mut regions: Vec<_> = board.ram().collect();
    let of_plan = plan.imports.iter().map(|import| import.range);
    regions.extend(of_plan.filter(|range| !board.ram().any(|ram| ram.contains(*range))));
    regions.sort_unstable();
    regions
}

impl Discard for GuestRam {
    fn discard(&self, start: GuestAddress, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        for slice in self.memory.get_backend().get_slices(start, len) {
            let slice = slice.map_err(io::Error::other)?;
            let memory = slice.ptr_guard_mut();
            // SAFETY: the slice lies in a mapping of ours that lives as long as `self`. Its pages
            // turn to zeroes, which is as if the guest, who may write them at any time, had.
            let done =
                unsafe { libc::madvise(memory.as_ptr().cast(), slice.len(), libc::MADV_DONTNEED) };
            if done != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use casemate_launch::{Gpa, PageKind, Policy, SnpIdentity};

    use super::*;

    fn plan(imports: Vec<Import>) -> LaunchPlan {
        let (vcpus, identity) = (Vec::new(), SnpIdentity::default());
        LaunchPlan { imports, vcpus, policy: Policy::Plain, identity }
    }

    #[test]
    fn what_a_plan_puts_outside_of_ram_has_memory_of_its_own() {
        let firmware = GpaRange::from_bytes(Gpa(0xffff_0000), 0x1_0000).unwrap();
        let inside = GpaRange::from_bytes(Gpa(0x1000), 0x1000).unwrap();
        let import = |range| Import {
            range,
            kind: PageKind::Shared,
            contents: Contents::Zeroes,
            tag: "test",
        };
        let board = Board::new(1 << 20).unwrap();
        let regions = regions(&board, &plan(vec![import(firmware), import(inside)]));
        assert_eq!(regions, [board.ram().next().unwrap(), firmware]);
    }

    #[test]
    fn discarded_pages_are_zeroes() {
        let ram = GuestRam::shared(&Board::new(1 << 20).unwrap(), &plan(Vec::new())).unwrap();
        let memory = ram.memory().get_backend();
        memory.write_slice(&[7; 0x3000], GuestAddress(0x1000)).unwrap();
        ram.discard(GuestAddress(0x2000), 0x1000).unwrap();
        let mut bytes = [1; 0x3000];
        memory.read_slice(&mut bytes, GuestAddress(0x1000)).unwrap();
        assert!(bytes[..0x1000].iter().chain(&bytes[0x2000..]).all(|byte| *byte == 7));
        assert!(bytes[0x1000..0x2000].iter().all(|byte| *byte == 0));
        assert!(ram.discard(GuestAddress(0xf_f000), 0x2000).is_err());
    }
}
