//! Structures of the TDX commands (`asm/kvm.h`).

use std::fmt;
use std::mem::offset_of;

use kvm_bindings::kvm_cpuid_entry2;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::boundary::{Argument, argument};

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

/// `struct kvm_cpuid_entry2`
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Entry {
    function: u32,
    index: u32,
    flags: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
    padding: [u32; 3],
}

const _: () = assert!(size_of::<Entry>() == 40 && offset_of!(Entry, eax) == 12);

impl From<&kvm_cpuid_entry2> for Entry {
    fn from(entry: &kvm_cpuid_entry2) -> Self {
        let kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, padding } = *entry;
        Self { function, index, flags, eax, ebx, ecx, edx, padding }
    }
}

impl From<Entry> for kvm_cpuid_entry2 {
    fn from(entry: Entry) -> Self {
        let Entry { function, index, flags, eax, ebx, ecx, edx, padding } = entry;
        Self { function, index, flags, eax, ebx, ecx, edx, padding }
    }
}

/// A structure that ends in a `struct kvm_cpuid2`: head, number of entries, padding, entries.
pub(super) struct WithCpuid<Head> {
    bytes: Vec<u8>,
    shown: String,
    head: std::marker::PhantomData<Head>,
}

impl<Head: FromBytes + IntoBytes + Immutable + fmt::Display> WithCpuid<Head> {
    const HEAD: usize = size_of::<Head>();
    const ENTRIES: usize = Self::HEAD + 8;

    /// With these entries.
    pub(super) fn new(head: &Head, entries: &[kvm_cpuid_entry2]) -> Self {
        let mut bytes = head.as_bytes().to_vec();
        let count = u32::try_from(entries.len()).unwrap_or(u32::MAX);
        bytes.extend(count.to_ne_bytes());
        bytes.extend([0; 4]);
        for entry in entries {
            bytes.extend(Entry::from(entry).as_bytes());
        }
        let shown = format!("{head}, {count} CPUID entries");
        Self { bytes, shown, head: std::marker::PhantomData }
    }

    /// With room for `capacity` entries.
    pub(super) fn with_capacity(head: &Head, capacity: usize) -> Self {
        Self::new(head, &vec![kvm_cpuid_entry2::default(); capacity])
    }

    /// What the kernel made of it.
    pub(super) fn into_parts(self) -> (Head, Vec<kvm_cpuid_entry2>) {
        let head =
            Head::read_from_prefix(&self.bytes).map_or_else(|_| Head::new_zeroed(), |(h, _)| h);
        let count = u32::read_from_prefix(&self.bytes[Self::HEAD..]).map_or(0, |(count, _)| count);
        let entries = self.bytes[Self::ENTRIES..].chunks_exact(size_of::<Entry>());
        // More entries than there is room for cannot be; then all that are there count.
        let entries = entries
            .take(count as usize)
            .filter_map(|bytes| Entry::read_from_bytes(bytes).ok())
            .map(kvm_cpuid_entry2::from);
        (head, entries.collect())
    }
}

impl<Head> fmt::Display for WithCpuid<Head> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl<Head> Argument for WithCpuid<Head> {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes
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
