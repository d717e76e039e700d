//! Memory of confidential guests: guest_memfd, slots, attributes, prefault.

#![allow(unsafe_code, reason = "ioctls and fallocate")]

#[cfg(test)]
mod tests;

use std::fmt;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use kvm_ioctls::{VcpuFd, VmFd};
use libc::c_ulong;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::KernelError;
use crate::boundary::{Firmware, Reply, address_of, argument, call, ioctl, until_done};

/// Bytes of a page; memory is private or shared, measured and converted by this unit.
pub const PAGE_SIZE: u64 = 4096;

/// Of VMs, since Linux 6.18: the flags that KVM_CREATE_GUEST_MEMFD takes.
pub(crate) const KVM_CAP_GUEST_MEMFD_FLAGS: u32 = 244;

/// A page, aligned as one. Launch commands take their contents as slices of pages.
#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
pub struct Page(pub [u8; 4096]);

impl fmt::Debug for Page {
    /// Not the contents: they may be secret, and are long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Page")
    }
}

impl Page {
    /// A page of zeroes.
    pub const ZERO: Self = Self([0; 4096]);

    /// A copy of `bytes` in pages; zeroes fill the last one.
    #[must_use]
    pub fn pages_of(bytes: &[u8]) -> Vec<Self> {
        let mut pages = vec![Self::ZERO; bytes.len().div_ceil(4096)];
        for (page, bytes) in pages.iter_mut().zip(bytes.chunks(4096)) {
            page.0[..bytes.len()].copy_from_slice(bytes);
        }
        pages
    }
}

/// `struct kvm_create_guest_memfd`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct CreateGuestMemfd {
    size: u64,
    flags: u64,
    reserved: [u64; 6],
}

const _: () = {
    assert!(size_of::<CreateGuestMemfd>() == 64 && offset_of!(CreateGuestMemfd, size) == 0);
    assert!(offset_of!(CreateGuestMemfd, flags) == 8);
    assert!(offset_of!(CreateGuestMemfd, reserved) == 16);
};

impl fmt::Display for CreateGuestMemfd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.size)
    }
}

argument!(CreateGuestMemfd);

/// Private memory of a guest: a file that neither this process nor anybody else can map, read or
/// write. It keeps the VM alive until it is closed.
///
/// Pages are allocated when the guest or a launch command first touches them, and are charged to
/// the memory cgroup of the thread that does.
#[derive(Debug)]
pub struct GuestMemfd(OwnedFd);

impl GuestMemfd {
    /// Creates private memory of `size` bytes, a multiple of [`PAGE_SIZE`].
    ///
    /// # Errors
    /// The size is 0 or not a multiple of a page, the VM is not of a type with private memory, or
    /// the process has too many open files.
    pub fn create(vm: &VmFd, size: u64) -> Result<Self, KernelError> {
        const KVM_CREATE_GUEST_MEMFD: c_ulong = 0xC040_AED4;
        // No flags: with any of them the pages of a confidential guest would be the process's too.
        let mut create = CreateGuestMemfd { size, flags: 0, reserved: [0; 6] };
        let mut created = None;
        call("KVM_CREATE_GUEST_MEMFD", Firmware::None, &mut create, |create| {
            // SAFETY: a VM takes this structure, which has no addresses.
            let reply = unsafe { ioctl(vm, KVM_CREATE_GUEST_MEMFD, address_of(create)) };
            if reply.errno != 0 {
                return reply;
            }
            // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
            let file = unsafe { OwnedFd::from_raw_fd(reply.value) };
            let reply = close_on_exec(&file);
            created = Some(file);
            reply
        })?;
        match created {
            Some(file) => Ok(Self(file)),
            // An interposer said yes in the kernel's place: any file of that size will do.
            None => stand_in(size).map(Self),
        }
    }

    /// Frees the pages of a range, which the guest finds empty if they are private again. Bytes,
    /// both multiples of [`PAGE_SIZE`]. The range must have been made shared before: what the guest
    /// believes to be private would be lost.
    ///
    /// # Errors
    /// The range is not aligned, or not within the file.
    pub fn discard(&self, offset: u64, size: u64) -> Result<(), KernelError> {
        let mut hole = Hole { offset, size };
        call("fallocate", Firmware::None, &mut hole, |hole| {
            let (Ok(offset), Ok(size)) = (hole.offset.try_into(), hole.size.try_into()) else {
                return Reply::errno(libc::EINVAL);
            };
            let mode = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
            // SAFETY: takes numbers only, and the file cannot be mapped: no reference into its
            // memory exists.
            Reply::of(unsafe { libc::fallocate(self.0.as_raw_fd(), mode, offset, size) })
        })
        .map(drop)
    }
}

impl AsRawFd for GuestMemfd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn close_on_exec(file: &OwnedFd) -> Reply {
    // SAFETY: the descriptor is open for as long as it is borrowed, and F_SETFD takes a number.
    Reply::of(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })
}

fn stand_in(size: u64) -> Result<OwnedFd, KernelError> {
    let failed = |error| KernelError::of_io("memfd_create", "stand-in for guest_memfd", &error);
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(c"guest_memfd stand-in".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(failed(std::io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
    let file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(size).map_err(failed)?;
    Ok(file.into())
}

/// The arguments of fallocate(2).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Hole {
    offset: u64,
    size: u64,
}

impl fmt::Display for Hole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hole at offset {:#x}, {} bytes, of a guest_memfd", self.offset, self.size)
    }
}

argument!(Hole);

/// `struct kvm_userspace_memory_region2`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct MemoryRegion2 {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
    guest_memfd_offset: u64,
    guest_memfd: u32,
    pad1: u32,
    pad2: [u64; 14],
}

const _: () = {
    assert!(size_of::<MemoryRegion2>() == 160);
    assert!(offset_of!(MemoryRegion2, slot) == 0 && offset_of!(MemoryRegion2, flags) == 4);
    assert!(offset_of!(MemoryRegion2, guest_phys_addr) == 8);
    assert!(offset_of!(MemoryRegion2, memory_size) == 16);
    assert!(offset_of!(MemoryRegion2, userspace_addr) == 24);
    assert!(offset_of!(MemoryRegion2, guest_memfd_offset) == 32);
    assert!(offset_of!(MemoryRegion2, guest_memfd) == 40);
    assert!(offset_of!(MemoryRegion2, pad1) == 44 && offset_of!(MemoryRegion2, pad2) == 48);
};

impl fmt::Display for MemoryRegion2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slot, guest_phys_addr, memory_size, flags, .. } = self;
        write!(f, "slot {slot}, gpa {guest_phys_addr:#x}, {memory_size} bytes")?;
        if flags & MemorySlot::GUEST_MEMFD != 0 {
            write!(f, ", private at offset {:#x}", self.guest_memfd_offset)?;
        }
        if flags & MemorySlot::READONLY != 0 {
            f.write_str(", read-only")?;
        }
        Ok(())
    }
}

argument!(MemoryRegion2, HOST_ADDRESSES = &[offset_of!(MemoryRegion2, userspace_addr)]);

/// A range of guest-physical memory and what backs it.
#[derive(Debug)]
pub struct MemorySlot<'a> {
    /// The slot's number.
    pub slot: u32,
    /// Guest-physical address, a multiple of [`PAGE_SIZE`], without the shared bit of TDX.
    pub gpa: u64,
    /// Bytes, a multiple of [`PAGE_SIZE`]; 0 removes the slot.
    pub size: u64,
    /// Address in this process of what backs shared pages, a multiple of [`PAGE_SIZE`].
    pub shared: u64,
    /// What backs private pages: memory, and the offset in it of the slot's first page.
    pub private: Option<(&'a GuestMemfd, u64)>,
    /// The guest cannot write. Not for VMs of protected state, nor with private memory.
    pub read_only: bool,
}

impl MemorySlot<'_> {
    const READONLY: u32 = 2;
    const GUEST_MEMFD: u32 = 4;
}

/// Sets a memory slot of `vm`. A slot with private memory can be removed, but not changed.
///
/// # Errors
/// The slot overlaps another, is not aligned, changes private memory, or asks for what the VM type
/// does not have.
///
/// # Safety
/// The guest may read and write `size` bytes from `shared` until the slot is removed or the VM is
/// gone: they must stay mapped for that long, and be memory that Rust code treats as shared with
/// another writer.
pub unsafe fn set_memory_slot(vm: &VmFd, slot: &MemorySlot<'_>) -> Result<(), KernelError> {
    const KVM_SET_USER_MEMORY_REGION2: c_ulong = 0x40A0_AE49;
    let (guest_memfd, guest_memfd_offset, mut flags) = match slot.private {
        Some((memory, offset)) => {
            (memory.as_raw_fd().cast_unsigned(), offset, MemorySlot::GUEST_MEMFD)
        }
        None => (0, 0, 0),
    };
    if slot.read_only {
        flags |= MemorySlot::READONLY;
    }
    let mut region = MemoryRegion2 {
        slot: slot.slot,
        flags,
        guest_phys_addr: slot.gpa,
        memory_size: slot.size,
        userspace_addr: slot.shared,
        guest_memfd_offset,
        guest_memfd,
        pad1: 0,
        pad2: [0; 14],
    };
    call("KVM_SET_USER_MEMORY_REGION2", Firmware::None, &mut region, |region| {
        // SAFETY: a VM takes this structure; that the guest may use the memory at
        // `userspace_addr` is the caller's contract.
        unsafe { ioctl(vm, KVM_SET_USER_MEMORY_REGION2, address_of(region)) }
    })
    .map(drop)
}

/// Whether pages of `vm` can be private. False for VMs that are neither SEV-SNP nor TDX.
#[must_use]
pub fn has_private_memory(vm: &VmFd) -> bool {
    let mask = vm.check_extension_raw(c_ulong::from(kvm_bindings::KVM_CAP_MEMORY_ATTRIBUTES));
    u64::try_from(mask).unwrap_or(0) & MemoryAttributes::PRIVATE != 0
}

/// `struct kvm_memory_attributes`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct MemoryAttributes {
    address: u64,
    size: u64,
    attributes: u64,
    flags: u64,
}

const _: () = {
    assert!(size_of::<MemoryAttributes>() == 32 && offset_of!(MemoryAttributes, address) == 0);
    assert!(offset_of!(MemoryAttributes, size) == 8);
    assert!(offset_of!(MemoryAttributes, attributes) == 16);
    assert!(offset_of!(MemoryAttributes, flags) == 24);
};

impl MemoryAttributes {
    const PRIVATE: u64 = 8;
}

impl fmt::Display for MemoryAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.attributes & Self::PRIVATE != 0 { "private" } else { "shared" };
        write!(f, "gpa {:#x}, {} bytes, {state}", self.address, self.size)
    }
}

argument!(MemoryAttributes);

/// Makes a range private or shared. Guest-physical address without the shared bit of TDX, and
/// bytes; both multiples of [`PAGE_SIZE`], not 0. All of the range changes, or none of it.
///
/// Frees nothing: discard what backed the range before, after this call. The kernel's work and
/// memory (some 9 bytes a page) grow with the range, so give it whole ranges.
///
/// # Errors
/// The VM has no private memory, the range is not aligned, or the kernel is out of memory.
pub fn set_private(vm: &VmFd, gpa: u64, size: u64, private: bool) -> Result<(), KernelError> {
    const KVM_SET_MEMORY_ATTRIBUTES: c_ulong = 0x4020_AED2;
    let attributes = if private { MemoryAttributes::PRIVATE } else { 0 };
    let mut range = MemoryAttributes { address: gpa, size, attributes, flags: 0 };
    call("KVM_SET_MEMORY_ATTRIBUTES", Firmware::None, &mut range, |range| {
        // SAFETY: a VM takes this structure, which has no addresses of this process.
        unsafe { ioctl(vm, KVM_SET_MEMORY_ATTRIBUTES, address_of(range)) }
    })
    .map(drop)
}

/// `struct kvm_pre_fault_memory`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct PreFaultMemory {
    gpa: u64,
    size: u64,
    flags: u64,
    padding: [u64; 5],
}

const _: () = {
    assert!(size_of::<PreFaultMemory>() == 64);
    assert!(offset_of!(PreFaultMemory, size) == 8 && offset_of!(PreFaultMemory, flags) == 16);
};

impl fmt::Display for PreFaultMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gpa {:#x}, {} bytes", self.gpa, self.size)
    }
}

argument!(PreFaultMemory, REMAINING = Some(offset_of!(PreFaultMemory, size)));

/// Allocates and maps a range before the guest touches it. The vCPU must not be running, and the
/// launch must be finished. Ranges on several vCPUs at once are worth it.
///
/// # Errors
/// The range has no memory slot, the launch is not finished, or the host is out of memory.
pub fn prefault(vcpu: &VcpuFd, gpa: u64, size: u64) -> Result<(), KernelError> {
    const NAME: &str = "KVM_PRE_FAULT_MEMORY";
    const KVM_PRE_FAULT_MEMORY: c_ulong = 0xC040_AED5;
    let mut range = PreFaultMemory { gpa, size, flags: 0, padding: [0; 5] };
    until_done(NAME, size, |_| {
        let outcome = call(NAME, Firmware::None, &mut range, |range| {
            // SAFETY: a vCPU takes this structure, which has no addresses of this process.
            unsafe { ioctl(vcpu, KVM_PRE_FAULT_MEMORY, address_of(range)) }
        });
        (range.size, outcome.map(drop))
    })
}
