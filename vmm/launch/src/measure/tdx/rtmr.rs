//! The run-time measurement registers of a guest that OVMF boots a kernel in directly, as QEMU
//! hands it over.
//!
//! RTMR1 and RTMR2 follow from kernel, initrd and command line. RTMR0 also depends on the boot
//! variables and ACPI tables, RTMR3 is the guest's own: neither can be known here. The order is that
//! of edk2 before edk2-stable202505; later firmware adds and reorders boot variables, which are in
//! RTMR0.

use super::authenticode::{self, AuthenticodeError};
use crate::Digest384;
use crate::source::kernel_hashes::KernelHashes;
use crate::source::loader_window::{self, LoaderWindowError, Payloads};

/// Text that OVMF appends to the command line if QEMU passes an initrd.
const INITRD_ARGUMENT: &str = " initrd=initrd";

/// A direct kernel boot.
#[derive(Clone, Copy, Debug)]
pub struct DirectBoot<'a> {
    /// The bzImage as the firmware gets it: see [`qemu_kernel`](crate::linux::qemu_kernel).
    pub kernel: &'a [u8],
    /// SHA-384 of the initrd, if there is one.
    pub initrd: Option<Digest384>,
    /// The command line, as given to QEMU.
    pub command_line: &'a str,
}

impl DirectBoot<'_> {
    /// RTMR1: the kernel, and the firmware's milestones.
    ///
    /// # Errors
    /// If the kernel does not have an EFI stub.
    pub fn rtmr1(&self) -> Result<Digest384, AuthenticodeError> {
        Ok(fold(&[
            authenticode::sha384(self.kernel)?,
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
        events.extend(self.initrd);
        fold(&events)
    }
}

/// RTMR0 to RTMR2 of a guest whose kernel Casemate's firmware starts. Events are SHA-384 digests of
/// SHA-256 digests: of the loader window's header in RTMR0, of the kernel in RTMR1, of the initial RAM
/// disk and then of the command line in RTMR2.
///
/// # Errors
/// The payloads do not fit the loader window.
pub fn own_firmware(payloads: &Payloads) -> Result<[Digest384; 3], LoaderWindowError> {
    let event = |digest: &[u8; 32]| Digest384::of(digest);
    let hashes = KernelHashes::new(&payloads.kernel, &payloads.initrd, &payloads.cmdline);
    let imports = loader_window::imports(payloads)?;
    Ok([
        fold(&[event(&loader_window::header_digest(&imports))]),
        fold(&[event(&hashes.kernel)]),
        fold(&[event(&hashes.initrd), event(&hashes.cmdline)]),
    ])
}

/// A register after these events: RTMR = SHA-384(RTMR || digest), from zero.
#[must_use]
pub fn fold(digests: &[Digest384]) -> Digest384 {
    digests
        .iter()
        .fold(Digest384::ZERO, |register, digest| Digest384::of(&[register.0, digest.0].concat()))
}
