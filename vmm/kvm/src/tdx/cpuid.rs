//! From the CPUID that a guest should have to what KVM_TDX_INIT_VM takes.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::Capabilities;

/// Leaf of address widths. KVM takes EAX[23:16], "guest physical address size", as the TD's GPAW.
const ADDRESS_WIDTHS: u32 = 0x8000_0008;
const GPAW_SHIFT: u32 = 16;
const GPAW_MASK: u32 = 0xff << GPAW_SHIFT;

/// The width of a TD's guest-physical addresses. The highest of these bits marks shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Gpaw {
    /// 48 bits, four levels of Secure EPT: every host has them.
    Bits48 = 48,
    /// 52 bits, five levels.
    Bits52 = 52,
}

impl Gpaw {
    /// The bit of a guest-physical address that marks shared memory.
    #[must_use]
    pub const fn shared_bit(self) -> u64 {
        1 << (self as u8 - 1)
    }
}

impl Capabilities {
    /// The part of `wanted` that is the host's to choose: leaves that are configurable, and of them
    /// the bits that are. The kernel refuses any leaf beyond. Configurable leaves that are not
    /// wanted are left out, which makes them 0.
    ///
    /// All entries say that their index counts. Without that the kernel takes an entry for every
    /// index of its function, and refuses the table because there are more uses than entries.
    #[must_use]
    pub fn configure(&self, wanted: &[kvm_cpuid_entry2], gpaw: Gpaw) -> Vec<kvm_cpuid_entry2> {
        let mut chosen: Vec<kvm_cpuid_entry2> = self
            .cpuid
            .iter()
            .filter_map(|mask| {
                let same = |entry: &&kvm_cpuid_entry2| {
                    entry.function == mask.function && entry.index == mask.index
                };
                let entry = wanted.iter().find(same)?;
                Some(kvm_cpuid_entry2 {
                    flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                    eax: entry.eax & mask.eax,
                    ebx: entry.ebx & mask.ebx,
                    ecx: entry.ecx & mask.ecx,
                    edx: entry.edx & mask.edx,
                    ..*mask
                })
            })
            .collect();
        let widths = chosen.iter().position(|entry| entry.function == ADDRESS_WIDTHS);
        let widths = widths.unwrap_or_else(|| {
            let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
            chosen.push(kvm_cpuid_entry2 { function: ADDRESS_WIDTHS, flags, ..Default::default() });
            chosen.len() - 1
        });
        let eax = &mut chosen[widths].eax;
        *eax = (*eax & !GPAW_MASK) | (u32::from(gpaw as u8) << GPAW_SHIFT);
        chosen
    }
}
