//! Guest memory.

#![allow(unsafe_code, reason = "a memory slot is an address of ours that the guest writes to")]

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use casemate_devices::memory::{self, DeviceMemory, Excess, Halves, SharedPages};
use casemate_devices::virtio::balloon::Discard;
use casemate_kvm::KernelError;
use casemate_kvm::memory::{GuestMemfd, MemorySlot, PAGE_SIZE, set_memory_slot, set_private};
use casemate_launch::{Contents, Gpa, GpaError, GpaRange, Import, LaunchPlan, PageKind};
use kvm_ioctls::VmFd;
use vm_memory::guest_memory::GuestMemoryBackend as _;
use vm_memory::{
    Address as _, Bytes as _, GuestAddress, GuestMemoryError, GuestMemoryMmap, GuestRegionMmap,
};

use crate::turns::Turns;
use casemate_plan::Board;

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
    /// The kernel refused a slot, a private half, or a conversion.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The range is none.
    #[error("the guest's range of memory")]
    Range(#[source] GpaError),
    /// Only memory can be private.
    #[error("{range} cannot be private: there is no memory that could, at least not everywhere")]
    NoPrivateHalf {
        /// What was to be private.
        range: GpaRange,
    },
    /// The guest shares as much as it may.
    #[error(
        "sharing {range} would take the guest {excess} bytes beyond its {limit} bytes of shared \
         memory (shared_memory in its configuration)"
    )]
    Budget {
        /// What was to be shared.
        range: GpaRange,
        /// By how much it is too much.
        excess: u64,
        /// The limit.
        limit: u64,
    },
    /// Accesses change a page for ever.
    #[error(
        "the guest uses the page at {gpa:#x} now as private, now as shared, and gets nowhere with it"
    )]
    PingPong {
        /// Which page.
        gpa: u64,
    },
    /// The shared half stays.
    #[error("could not give the shared pages of {range} back")]
    Discard {
        /// Where.
        range: GpaRange,
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
///
/// A page of a confidential guest has two halves: a private one, which only the guest can use, and a
/// shared one. Exactly one of them is in use; one function, `convert`, changes which. Conversions of
/// different pages run beside each other: see [`casemate_devices::memory`].
#[derive(Clone)]
pub struct GuestRam {
    memory: Arc<DeviceMemory>,
    regions: Arc<[Region]>,
    /// The private halves of the regions that have one, once the VM is there.
    private: Arc<OnceLock<Vec<(GpaRange, GuestMemfd)>>>,
    turns: Arc<Mutex<Turns>>,
}

/// A part of guest memory with a slot of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Region {
    range: GpaRange,
    has_private_half: bool,
}

impl GuestRam {
    /// Reserves address space for the RAM of `board` and for what `plan` puts elsewhere (firmware,
    /// its loader window). Devices may use all of it, or of a confidential guest what the guest
    /// shares.
    ///
    /// # Errors
    /// If the host refuses.
    pub fn new(board: &Board, plan: &LaunchPlan, confidential: bool) -> Result<Self, RamError> {
        let size = |range: GpaRange| usize::try_from(range.len()).unwrap_or(usize::MAX);
        let regions = regions(board, plan, confidential);
        let all = regions.iter().map(|region| region.range);
        let ranges: Vec<_> =
            all.clone().map(|range| (GuestAddress(range.start().0), size(range))).collect();
        let backend = GuestMemoryMmap::from_ranges(&ranges)
            .map_err(|source| RamError::Map { bytes: all.map(GpaRange::len).sum(), source })?;
        backend.iter().for_each(hide);
        if !confidential {
            backend.iter().for_each(want_huge_pages);
        }
        let end = if confidential { backend.last_addr().unchecked_add(1) } else { GuestAddress(0) };
        let memory = DeviceMemory::new(backend, SharedPages::new(end), confidential, ());
        Ok(Self {
            memory: Arc::new(memory),
            regions: regions.into(),
            private: Arc::default(),
            turns: Arc::default(),
        })
    }

    /// Lets the guest share no more than `limit` bytes with the host.
    #[must_use]
    pub(crate) fn sharing_at_most(self, limit: Option<u64>) -> Self {
        self.memory.iommu().set_limit(limit);
        self
    }

    /// The map and the account of what the guest shares with the host; keeps no memory.
    pub(crate) fn shared(&self) -> &Arc<SharedPages> {
        self.memory.iommu()
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
        let mut halves = Vec::new();
        let mapped = self.memory.get_backend().iter().zip(&*self.regions);
        for (slot, (mapping, region)) in (0..).zip(mapped) {
            let (gpa, size) = (region.range.start().0, region.range.len());
            let half = match region.has_private_half {
                true => Some(GuestMemfd::create(vm, size)?),
                false => None,
            };
            let memory_slot = MemorySlot {
                slot,
                gpa,
                size,
                shared: mapping.as_ptr().expose_provenance() as u64,
                private: half.as_ref().map(|half| (half, 0)),
                read_only: false,
            };
            // SAFETY: the mapping has that address and size, the guest and vm-memory's volatile
            // accesses are its only users, and `Machine` drops the VM before the mapping.
            unsafe { set_memory_slot(vm, &memory_slot) }?;
            if let Some(half) = half {
                set_private(vm, gpa, size, true)?;
                halves.push((region.range, half));
            }
        }
        // This is the only place that sets it, once for each VM.
        let _ = self.private.set(halves);
        Ok(())
    }

    /// Makes `size` bytes at `gpa`, both of whole pages, private or shared, and gives the memory of
    /// the other half back to the host. What the guest had there is gone. The one way in which
    /// memory changes hands, whoever asks for it. What is private already stays as it is.
    ///
    /// A range without memory can be shared, which it is anyway, but not made private.
    ///
    /// # Errors
    /// The range is to be private and has no private half, or the kernel refuses.
    pub(crate) fn convert(
        &self,
        vm: &VmFd,
        gpa: u64,
        size: u64,
        private: bool,
    ) -> Result<(), RamError> {
        let range = GpaRange::from_bytes(Gpa(gpa), size).map_err(RamError::Range)?;
        let halves = self.private.get().map(Vec::as_slice).unwrap_or_default();
        let parts: Vec<_> = halves
            .iter()
            .filter_map(|(all, half)| Some((common(*all, range)?, all.start(), half)))
            .collect();
        let covered: u64 = parts.iter().map(|(part, ..)| part.len()).sum();
        if private && covered != range.len() {
            return Err(RamError::NoPrivateHalf { range });
        }
        let mut conversion = self.shared().convert(addresses(range));
        if !private {
            let budget =
                |Excess { bytes: excess, limit }| RamError::Budget { range, excess, limit };
            conversion.reserve(parts.iter().map(|(part, ..)| addresses(*part))).map_err(budget)?;
        }
        for (part, start, half) in parts {
            let halves = PartHalves { vm, ram: self, start, half };
            match private {
                true => conversion.to_private(addresses(part), &halves)?,
                false => conversion.to_shared(addresses(part), &halves)?,
            }
        }
        Ok(())
    }

    /// Makes the page at `gpa` what an access of a vCPU found that it is not, as [`Self::convert`]
    /// does.
    ///
    /// # Errors
    /// As for [`Self::convert`], and if accesses have changed the page too often already.
    pub(crate) fn convert_for_access(
        &self,
        vm: &VmFd,
        gpa: u64,
        size: u64,
        private: bool,
    ) -> Result<(), RamError> {
        if !self.turns.lock().unwrap_or_else(PoisonError::into_inner).may_turn(gpa) {
            return Err(RamError::PingPong { gpa });
        }
        self.convert(vm, gpa, size, private)
    }

    /// Private memory from the lowest address on, `bytes` of it or what there is.
    pub(crate) fn lowest_private(&self, bytes: u64) -> Vec<GpaRange> {
        let mut left = bytes;
        let halves = self.regions.iter().filter(|region| region.has_private_half);
        halves
            .map_while(|Region { range, .. }| {
                let size = range.len().min(left / PAGE_SIZE * PAGE_SIZE);
                left -= size;
                GpaRange::from_bytes(range.start(), size).ok().filter(|range| !range.is_empty())
            })
            .collect()
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
fn regions(board: &Board, plan: &LaunchPlan, confidential: bool) -> Vec<Region> {
    let ram = board.ram().map(|range| (range, confidential));
    let outside =
        plan.imports.iter().filter(|import| !board.ram().any(|ram| ram.contains(import.range)));
    let outside =
        outside.map(|import| (import.range, confidential && import.kind != PageKind::Shared));
    let mut regions: Vec<_> = ram
        .chain(outside)
        .map(|(range, has_private_half)| Region { range, has_private_half })
        .collect();
    regions.sort_unstable();
    regions
}

/// Lets the kernel back a region by huge pages also where it does so only on request, as Debian and
/// Ubuntu have it (/sys/kernel/mm/transparent_hugepage/enabled). The memory of confidential guests
/// is not here, and what they share comes and goes in small pages.
fn want_huge_pages(region: &GuestRegionMmap) {
    // SAFETY: the advice changes how the kernel backs this region, which `region` has mapped, and
    // nothing that is in it.
    let outcome =
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) };
    if outcome != 0 {
        // A kernel without huge pages.
        tracing::debug!(error = %io::Error::last_os_error(), "no huge pages for guest memory");
    }
}

/// The halves of pages that one guest_memfd backs, which begins at `start`.
struct PartHalves<'a> {
    vm: &'a VmFd,
    ram: &'a GuestRam,
    start: Gpa,
    half: &'a GuestMemfd,
}

impl Halves for PartHalves<'_> {
    type Error = RamError;

    fn switch(&self, range: Range<GuestAddress>, private: bool) -> Result<(), RamError> {
        Ok(set_private(self.vm, range.start.0, range.end.0 - range.start.0, private)?)
    }

    fn discard_other(&self, range: Range<GuestAddress>, private: bool) -> Result<(), RamError> {
        let size = range.end.0 - range.start.0;
        if !private {
            return Ok(self.half.discard(range.start.0 - self.start.0, size)?);
        }
        memory::discard(&self.ram.memory, range.start, size).map_err(|source| {
            match GpaRange::from_bytes(Gpa(range.start.0), size) {
                Ok(range) => RamError::Discard { range, source },
                Err(error) => RamError::Range(error),
            }
        })
    }
}

fn addresses(range: GpaRange) -> Range<GuestAddress> {
    GuestAddress(range.start().0)..GuestAddress(range.end().0)
}

/// Keeps a region out of core files.
fn hide(region: &GuestRegionMmap) {
    // SAFETY: the advice concerns core files, and nothing that is in the region, which `region` has mapped.
    let outcome =
        unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_DONTDUMP) };
    if outcome != 0 {
        tracing::warn!(error = %io::Error::last_os_error(), "guest memory would be in core files");
    }
}

/// The pages that are in both.
fn common(a: GpaRange, b: GpaRange) -> Option<GpaRange> {
    let start = a.start().max(b.start());
    let bytes = a.end().min(b.end()).0.checked_sub(start.0).filter(|bytes| *bytes > 0)?;
    GpaRange::from_bytes(start, bytes).ok()
}

impl Discard for GuestRam {
    fn discard(&self, start: GuestAddress, len: u64) -> io::Result<()> {
        memory::discard(&self.memory, start, len)
    }
}

#[cfg(test)]
mod tests {
    use casemate_launch::{Policy, SnpIdentity};

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
        let regions = regions(&board, &plan(vec![import(firmware), import(inside)]), true);
        let ram = board.ram().next().unwrap();
        let halves: Vec<_> =
            regions.iter().map(|region| (region.range, region.has_private_half)).collect();
        assert_eq!(halves, [(ram, true), (firmware, false)]);
    }

    #[test]
    fn the_lowest_private_memory_is_ram_from_the_start() {
        let board = Board::new(4 << 30).unwrap();
        let plan = plan(Vec::new());
        let lowest = |confidential, bytes| -> Vec<u64> {
            let ram = GuestRam::new(&board, &plan, confidential).unwrap();
            ram.lowest_private(bytes).into_iter().map(GpaRange::len).collect()
        };
        assert_eq!(lowest(true, 0x5fff), [0x5000]);
        assert_eq!(lowest(true, (3 << 30) + 0x1000), [3 << 30, 0x1000]);
        assert_eq!(lowest(true, u64::MAX), [3 << 30, 1 << 30]);
        assert!(lowest(true, 0).is_empty() && lowest(false, u64::MAX).is_empty());
    }

    #[test]
    fn discarded_pages_are_zeroes() {
        let ram = GuestRam::new(&Board::new(1 << 20).unwrap(), &plan(Vec::new()), false).unwrap();
        let memory = ram.memory().get_backend();
        memory.write_slice(&[7; 0x3000], GuestAddress(0x1000)).unwrap();
        ram.discard(GuestAddress(0x2000), 0x1000).unwrap();
        let mut bytes = [1; 0x3000];
        memory.read_slice(&mut bytes, GuestAddress(0x1000)).unwrap();
        assert!(bytes[..0x1000].iter().chain(&bytes[0x2000..]).all(|byte| *byte == 7));
        assert!(bytes[0x1000..0x2000].iter().all(|byte| *byte == 0));
        assert!(ram.discard(GuestAddress(0xf_f000), 0x2000).is_err());
    }

    /// The flag of a mapping that was advised so is `hg` (Documentation/filesystems/proc.rst).
    #[test]
    fn memory_of_plain_guests_wants_huge_pages() {
        if !std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            return;
        }
        for (confidential, wanted) in [(false, true), (true, false)] {
            let ram = GuestRam::new(&Board::new(4 << 20).unwrap(), &plan(Vec::new()), confidential);
            let ram = ram.unwrap();
            let region = ram.memory().get_backend().iter().next().unwrap();
            let start = region.as_ptr().addr();
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let (mut inside, mut flags) = (false, None);
            for line in maps.lines() {
                let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
                let range = range.and_then(|(low, high)| {
                    let parse = |text| usize::from_str_radix(text, 16).ok();
                    Some(parse(low)?..parse(high)?)
                });
                inside = range.map_or(inside, |range| range.contains(&start));
                if let Some(found) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                    flags = Some(found.split_whitespace().any(|flag| flag == "hg"));
                }
            }
            assert_eq!(flags, Some(wanted), "confidential: {confidential}");
        }
    }
}
