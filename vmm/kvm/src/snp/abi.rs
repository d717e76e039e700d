//! Structures of the SEV-SNP commands (`asm/kvm.h`).

use std::fmt;
use std::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::boundary::argument;
use crate::memory::{PAGE_SIZE, Page};

/// `struct kvm_sev_cmd`: the envelope of every command.
#[repr(C)]
pub(super) struct Envelope {
    pub(super) id: u32,
    pub(super) pad0: u32,
    /// Address of the command's structure, or 0.
    pub(super) data: u64,
    /// Written by the kernel: the firmware's status.
    pub(super) error: u32,
    pub(super) sev_fd: u32,
}

const _: () = {
    assert!(size_of::<Envelope>() == 24 && offset_of!(Envelope, id) == 0);
    assert!(offset_of!(Envelope, pad0) == 4 && offset_of!(Envelope, data) == 8);
    assert!(offset_of!(Envelope, error) == 16 && offset_of!(Envelope, sev_fd) == 20);
};

/// `struct kvm_sev_init`
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Init {
    pub(super) vmsa_features: u64,
    pub(super) flags: u32,
    pub(super) ghcb_version: u16,
    pub(super) pad1: u16,
    pub(super) pad2: [u32; 8],
}

const _: () = {
    assert!(size_of::<Init>() == 48);
    assert!(offset_of!(Init, vmsa_features) == 0 && offset_of!(Init, flags) == 8);
    assert!(offset_of!(Init, ghcb_version) == 12 && offset_of!(Init, pad1) == 14);
    assert!(offset_of!(Init, pad2) == 16);
};

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VMSA features {:#x}, GHCB version {}", self.vmsa_features, self.ghcb_version)
    }
}

argument!(Init);

/// `struct kvm_sev_snp_launch_start`
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct LaunchStart {
    pub(super) policy: u64,
    pub(super) gosvw: [u8; 16],
    pub(super) flags: u16,
    pub(super) pad0: [u8; 6],
    pub(super) pad1: [u64; 4],
}

const _: () = {
    assert!(size_of::<LaunchStart>() == 64 && offset_of!(LaunchStart, policy) == 0);
    assert!(offset_of!(LaunchStart, gosvw) == 8 && offset_of!(LaunchStart, flags) == 24);
    assert!(offset_of!(LaunchStart, pad0) == 26 && offset_of!(LaunchStart, pad1) == 32);
};

impl fmt::Display for LaunchStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy {:#x}", self.policy)
    }
}

argument!(LaunchStart);

/// `struct kvm_sev_snp_launch_update`
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct LaunchUpdate {
    pub(super) gfn_start: u64,
    pub(super) uaddr: u64,
    pub(super) len: u64,
    pub(super) kind: u8,
    pub(super) pad0: u8,
    pub(super) flags: u16,
    pub(super) pad1: u32,
    pub(super) pad2: [u64; 4],
}

const _: () = {
    assert!(size_of::<LaunchUpdate>() == 64 && offset_of!(LaunchUpdate, gfn_start) == 0);
    assert!(offset_of!(LaunchUpdate, uaddr) == 8 && offset_of!(LaunchUpdate, len) == 16);
    assert!(offset_of!(LaunchUpdate, kind) == 24 && offset_of!(LaunchUpdate, pad0) == 25);
    assert!(offset_of!(LaunchUpdate, flags) == 26 && offset_of!(LaunchUpdate, pad1) == 28);
    assert!(offset_of!(LaunchUpdate, pad2) == 32);
};

impl fmt::Display for LaunchUpdate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gfn_start, len, .. } = self;
        let kind = match self.kind {
            super::NORMAL => "NORMAL",
            super::ZERO => "ZERO",
            super::UNMEASURED => "UNMEASURED",
            super::SECRETS => "SECRETS",
            _ => "CPUID",
        };
        write!(f, "gpa {:#x}, {len} bytes, {kind}", gfn_start.wrapping_mul(4096))
    }
}

argument!(
    LaunchUpdate,
    HOST_ADDRESSES = &[offset_of!(LaunchUpdate, uaddr)],
    REMAINING = Some(offset_of!(LaunchUpdate, len))
);

impl LaunchUpdate {
    /// Of `len` bytes from `gpa` on, without a source.
    pub(super) fn new(gpa: u64, len: u64, kind: u8) -> Self {
        let gfn_start = gpa / PAGE_SIZE;
        Self { gfn_start, uaddr: 0, len, kind, pad0: 0, flags: 0, pad1: 0, pad2: [0; 4] }
    }
}

/// The update with a CPUID page, and that page: the kernel writes to both.
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
pub(super) struct CpuidUpdate {
    pub(super) page: [u8; 4096],
    pub(super) update: LaunchUpdate,
    rest: [u8; 4096 - size_of::<LaunchUpdate>()],
}

impl CpuidUpdate {
    pub(super) fn new(gpa: u64, page: &Page) -> Self {
        let update = LaunchUpdate::new(gpa, PAGE_SIZE, super::CPUID);
        Self { page: page.0, update, rest: [0; _] }
    }
}

impl fmt::Display for CpuidUpdate {
    /// With the page's entries (SEV-SNP Firmware ABI, "CPUID Page"), hexadecimal: leaf, subleaf, XCR0 if
    /// it is not 0, EAX to EDX.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.update)?;
        let entries = self.page[16..].as_chunks::<48>().0;
        let mut separator = ": ";
        for entry in entries.iter().take(self.page[0].into()) {
            let word = |at: usize| {
                u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]])
            };
            write!(f, "{separator}{:x}.{:x}:", word(0), word(4))?;
            match word(8) {
                0 => {}
                xcr0 => write!(f, " (XCR0 {xcr0:x})")?,
            }
            (24..40).step_by(4).try_for_each(|at| write!(f, " {:x}", word(at)))?;
            separator = ", ";
        }
        Ok(())
    }
}

argument!(
    CpuidUpdate,
    HOST_ADDRESSES = &[offset_of!(CpuidUpdate, update) + offset_of!(LaunchUpdate, uaddr)],
    REMAINING = Some(offset_of!(CpuidUpdate, update) + offset_of!(LaunchUpdate, len))
);

/// `struct kvm_sev_snp_launch_finish`
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct LaunchFinish {
    pub(super) id_block_uaddr: u64,
    pub(super) id_auth_uaddr: u64,
    pub(super) id_block_en: u8,
    pub(super) auth_key_en: u8,
    pub(super) vcek_disabled: u8,
    pub(super) host_data: [u8; 32],
    pub(super) pad0: [u8; 3],
    pub(super) flags: u16,
    pub(super) pad1: [u64; 4],
}

const _: () = {
    assert!(size_of::<LaunchFinish>() == 88 && offset_of!(LaunchFinish, id_block_uaddr) == 0);
    assert!(offset_of!(LaunchFinish, id_auth_uaddr) == 8);
    assert!(offset_of!(LaunchFinish, id_block_en) == 16);
    assert!(offset_of!(LaunchFinish, auth_key_en) == 17);
    assert!(offset_of!(LaunchFinish, vcek_disabled) == 18);
    assert!(offset_of!(LaunchFinish, host_data) == 19 && offset_of!(LaunchFinish, pad0) == 51);
    assert!(offset_of!(LaunchFinish, flags) == 54 && offset_of!(LaunchFinish, pad1) == 56);
};

impl fmt::Display for LaunchFinish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HOST_DATA ")?;
        for byte in self.host_data {
            write!(f, "{byte:02x}")?;
        }
        if self.id_block_en != 0 {
            f.write_str(", with ID block")?;
        }
        if self.auth_key_en != 0 {
            f.write_str(", with author key")?;
        }
        if self.vcek_disabled != 0 {
            f.write_str(", without VCEK")?;
        }
        Ok(())
    }
}

argument!(
    LaunchFinish,
    HOST_ADDRESSES =
        &[offset_of!(LaunchFinish, id_block_uaddr), offset_of!(LaunchFinish, id_auth_uaddr)]
);

#[cfg(test)]
mod tests {
    use super::*;

    /// kvm-bindings has its layouts from the kernel's headers by bindgen.
    #[test]
    fn the_layouts_are_those_of_kvm_bindings() {
        assert_eq!(size_of::<Envelope>(), size_of::<kvm_bindings::kvm_sev_cmd>());
        assert_eq!(size_of::<Init>(), size_of::<kvm_bindings::kvm_sev_init>());
        assert_eq!(size_of::<LaunchStart>(), size_of::<kvm_bindings::kvm_sev_snp_launch_start>());
        assert_eq!(size_of::<LaunchUpdate>(), size_of::<kvm_bindings::kvm_sev_snp_launch_update>());
        assert_eq!(
            offset_of!(LaunchFinish, host_data),
            offset_of!(kvm_bindings::kvm_sev_snp_launch_finish, host_data)
        );
    }
}
