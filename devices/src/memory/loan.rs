//! Accesses to guest memory that last: those of the kernel on behalf of a device.

#![allow(unsafe_code, reason = "discarding pages is a system call on an address")]

use std::io;
use std::ops::Deref;

use vm_memory::{GuestAddress, GuestMemoryBackend as _};

use super::DeviceMemory;
use super::shared::{PAGE, checked, touched};

/// Pages that the kernel may touch for a device until this is dropped, whatever the guest does with
/// them. Where the guest takes them back meanwhile, memory that the kernel makes the host give for
/// their shared half counts as shared until then, and is given back.
#[derive(Debug)]
pub struct Loan<M: Deref<Target = DeviceMemory>> {
    memory: M,
    /// `None` for a guest whose whole memory is shared.
    number: Option<u64>,
}

impl<M: Deref<Target = DeviceMemory>> Loan<M> {
    /// A loan of these buffers. `None` if the guest keeps some of their pages private.
    pub fn of(memory: M, buffers: impl Iterator<Item = (GuestAddress, usize)>) -> Option<Self> {
        if !memory.get_iommu_enabled() {
            return Some(Self { memory, number: None });
        }
        let mut pages: Vec<std::ops::Range<u64>> = Vec::new();
        for (start, length) in buffers {
            let next = touched(&checked(start, length).ok()?);
            match pages.last_mut() {
                // Buffers of a request often lie in one piece.
                Some(last) if last.start <= next.start && next.start <= last.end => {
                    last.end = last.end.max(next.end);
                }
                _ => pages.push(next),
            }
        }
        let number = memory.iommu().ledger.lend(pages)?;
        Some(Self { memory, number: Some(number) })
    }
}

impl<M: Deref<Target = DeviceMemory>> Drop for Loan<M> {
    fn drop(&mut self) {
        let Some(number) = self.number else { return };
        let memory = &*self.memory;
        memory.iommu().ledger.repay(number, |pages| {
            let (start, count) = (pages.start * PAGE, (pages.end - pages.start) * PAGE);
            if let Err(error) = discard(memory, GuestAddress(start), count) {
                tracing::warn!(%error, "could not discard pages that a device touched late");
            }
        });
    }
}

/// Gives the host's pages of `length` bytes at `start` back to its kernel. They read as zeroes then.
///
/// # Errors
/// If the range does not lie in guest memory, or the kernel refuses.
pub fn discard(memory: &DeviceMemory, start: GuestAddress, length: u64) -> io::Result<()> {
    let length = usize::try_from(length).map_err(io::Error::other)?;
    for slice in memory.get_backend().get_slices(start, length) {
        let slice = slice.map_err(io::Error::other)?;
        let bytes = slice.ptr_guard_mut();
        // SAFETY: the slice lies in a mapping that lives as long as `memory`. Its pages turn to zeroes,
        // which is as if the guest, who may write them at any time, had.
        let done =
            unsafe { libc::madvise(bytes.as_ptr().cast(), slice.len(), libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
