//! Structures of the TDX commands (`asm/kvm.h`).

use std::fmt;
use std::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::boundary::argument;

/// `struct kvm_tdx_cmd`: the envelope of every command.
#[repr(C)]
pub(super) struct Envelope {
    pub(super) id: u32,
    pub(super) flags: u32,
    /// Address of the command's structure, or a value.
    pub(super) data: u64,
    /// 0, then the status of a SEAMCALL.
    pub(super) hw_error: u64,
}

const _: () = {
    assert!(size_of::<Envelope>() == 24);
    assert!(offset_of!(Envelope, data) == 8 && offset_of!(Envelope, hw_error) == 16);
};

/// `struct kvm_tdx_capabilities` up to `cpuid`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct CapabilitiesHead {
    pub(super) supported_attrs: u64,
    pub(super) supported_xfam: u64,
    pub(super) kernel_tdvmcallinfo_1_r11: u64,
    pub(super) user_tdvmcallinfo_1_r11: u64,
    pub(super) kernel_tdvmcallinfo_1_r12: u64,
    pub(super) user_tdvmcallinfo_1_r12: u64,
    pub(super) reserved: [u64; 250],
}

const _: () = {
    assert!(size_of::<CapabilitiesHead>() == 2048, "offset of cpuid");
    assert!(offset_of!(CapabilitiesHead, supported_xfam) == 8);
    assert!(offset_of!(CapabilitiesHead, kernel_tdvmcallinfo_1_r11) == 16);
    assert!(offset_of!(CapabilitiesHead, user_tdvmcallinfo_1_r11) == 24);
    assert!(offset_of!(CapabilitiesHead, kernel_tdvmcallinfo_1_r12) == 32);
    assert!(offset_of!(CapabilitiesHead, user_tdvmcallinfo_1_r12) == 40);
};

impl fmt::Display for CapabilitiesHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the host offers")
    }
}

/// `struct kvm_tdx_init_vm` up to `cpuid`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct InitVmHead {
    pub(super) attributes: u64,
    pub(super) xfam: u64,
    pub(super) mrconfigid: [u8; 48],
    pub(super) mrowner: [u8; 48],
    pub(super) mrownerconfig: [u8; 48],
    pub(super) reserved: [u64; 12],
}

const _: () = {
    assert!(size_of::<InitVmHead>() == 256, "offset of cpuid");
    assert!(offset_of!(InitVmHead, xfam) == 8 && offset_of!(InitVmHead, mrconfigid) == 16);
    assert!(offset_of!(InitVmHead, mrowner) == 64);
    assert!(offset_of!(InitVmHead, mrownerconfig) == 112);
    assert!(offset_of!(InitVmHead, reserved) == 160);
};

impl fmt::Display for InitVmHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attributes, xfam, .. } = self;
        write!(f, "attributes {attributes:#x}, XFAM {xfam:#x}")?;
        let identities = [
            ("MRCONFIGID", &self.mrconfigid),
            ("MROWNER", &self.mrowner),
            ("MROWNERCONFIG", &self.mrownerconfig),
        ];
        for (name, value) in identities.iter().filter(|(_, value)| **value != [0; 48]) {
            write!(f, ", {name} ")?;
            value.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
        Ok(())
    }
}

/// What comes before the table of KVM_TDX_GET_CPUID: nothing.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct NoHead;

impl fmt::Display for NoHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CPUID of the TD")
    }
}

/// `struct kvm_tdx_init_mem_region`
#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct InitMemRegion {
    pub(super) source_addr: u64,
    pub(super) gpa: u64,
    pub(super) nr_pages: u64,
}

const _: () = {
    assert!(size_of::<InitMemRegion>() == 24);
    assert!(offset_of!(InitMemRegion, gpa) == 8 && offset_of!(InitMemRegion, nr_pages) == 16);
};

impl fmt::Display for InitMemRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gpa {:#x}, {} pages", self.gpa, self.nr_pages)
    }
}

argument!(
    InitMemRegion,
    HOST_ADDRESSES = &[offset_of!(InitMemRegion, source_addr)],
    REMAINING = Some(offset_of!(InitMemRegion, nr_pages))
);
