//! The run-time measurement registers of a guest that OVMF boots a kernel in directly, as QEMU
//! hands it over.
//!
//! RTMR1 and RTMR2 follow from kernel, initrd, command line and memory size. RTMR0 also depends on
//! the boot variables and ACPI tables, RTMR3 is the guest's own: neither can be known here. The
//! order is that of edk2 before edk2-stable202505; later firmware adds and reorders boot variables,
//! which are in RTMR0.

use crate::Digest384;

use super::authenticode::{self, AuthenticodeError};
use crate::source::linux::qemu_kernel::{self, PatchError};

/// What OVMF appends to the command line of a kernel that QEMU gives an initrd.
const INITRD_ARGUMENT: &str = " initrd=initrd";

/// An initrd, by what of it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initrd {
    /// Length in bytes.
    pub length: u64,
    /// SHA-384 of the file.
    pub sha384: Digest384,
}

impl Initrd {
    /// The initrd with these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self { length: bytes.len() as u64, sha384: Digest384::of(bytes) }
    }
}

/// A direct kernel boot.
#[derive(Clone, Copy, Debug)]
pub struct DirectBoot<'a> {
    /// The bzImage, as in its file.
    pub kernel: &'a [u8],
    /// The initrd, if there is one.
    pub initrd: Option<Initrd>,
    /// The command line, as given to QEMU.
    pub command_line: &'a str,
    /// The guest's memory, in bytes.
    pub memory: u64,
}

/// Why a kernel's registers cannot be predicted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RtmrError {
    #[error("could not patch the kernel's setup header as QEMU does")]
    Patch(#[from] PatchError),
    #[error("could not hash the kernel as EDK2 does")]
    Kernel(#[from] AuthenticodeError),
}

impl DirectBoot<'_> {
    /// RTMR1: the kernel as QEMU patches it, and the firmware's milestones.
    ///
    /// # Errors
    /// If the kernel is not a bzImage with an EFI stub, or the initrd does not fit the memory.
    pub fn rtmr1(&self) -> Result<Digest384, RtmrError> {
        let initrd = self.initrd.map(|initrd| initrd.length);
        let patched = qemu_kernel::patch(self.kernel, initrd, self.memory)?;
        Ok(fold(&[
            authenticode::sha384(&patched)?,
            Digest384::of(b"Calling EFI Application from Boot Option"),
            // EV_SEPARATOR
            Digest384::of(&[0; 4]),
            Digest384::of(b"Exit Boot Services Invocation"),
            Digest384::of(b"Exit Boot Services Returned with Success"),
        ]))
    }

    /// RTMR2: command line and initrd, as the kernel's EFI stub measures them.
    #[must_use]
    pub fn rtmr2(&self) -> Digest384 {
        let appended = if self.initrd.is_some() { INITRD_ARGUMENT } else { "" };
        let command_line: Vec<u8> = self
            .command_line
            .encode_utf16()
            .chain(appended.encode_utf16())
            .chain([0])
            .flat_map(u16::to_le_bytes)
            .collect();
        let mut events = vec![Digest384::of(&command_line)];
        events.extend(self.initrd.map(|initrd| initrd.sha384));
        fold(&events)
    }
}

/// A register after these events: RTMR = SHA-384(RTMR || digest), from zero.
#[must_use]
pub fn fold(digests: &[Digest384]) -> Digest384 {
    digests
        .iter()
        .fold(Digest384::ZERO, |register, digest| Digest384::of(&[register.0, digest.0].concat()))
}
