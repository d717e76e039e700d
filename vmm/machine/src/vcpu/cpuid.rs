//! CPUID: what KVM supports on this host, with the topology of our own machine.
//!
//! Sources: Intel SDM volume 2, CPUID; AMD64 APM volume 3, appendix E.

use casemate_kvm::{KernelError, cpuid};
use kvm_bindings::{CpuId, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

/// CPUID of a machine; each vCPU gets its own edition.
pub(crate) struct Cpuid {
    supported: CpuId,
    vcpus: u32,
    /// Whether topology is also told in AMD's leaves.
    amd: bool,
}

impl Cpuid {
    /// What `kvm` supports, for a machine of one socket with `vcpus` cores.
    pub(crate) fn new(kvm: &Kvm, vcpus: u32) -> Result<Self, KernelError> {
        Ok(Self::with_supported(cpuid::supported(kvm)?, vcpus))
    }

    fn with_supported(supported: CpuId, vcpus: u32) -> Self {
        let vendor = supported.as_slice().iter().find(|entry| entry.function == 0);
        // The first word of AuthenticAMD and HygonGenuine.
        let amd = vendor.is_some_and(|leaf| matches!(&leaf.ebx.to_le_bytes(), b"Auth" | b"Hygo"));
        Self { supported, vcpus, amd }
    }

    /// For the vCPU with this APIC id.
    pub(crate) fn of(&self, apic_id: u32) -> CpuId {
        let mut cpuid = self.supported.clone();
        for entry in cpuid.as_mut_slice() {
            self.adapt(entry, apic_id);
        }
        cpuid
    }

    fn adapt(&self, entry: &mut kvm_cpuid_entry2, apic_id: u32) {
        const HYPERVISOR: u32 = 1 << 31;
        const TSC_DEADLINE: u32 = 1 << 24;
        const HTT: u32 = 1 << 28;
        const CMP_LEGACY: u32 = 1 << 1;
        let several = self.vcpus > 1;
        match entry.function {
            0x1 => {
                // Linux learns that KVM is there, and needs no timer but the local APIC's.
                entry.ecx |= HYPERVISOR | TSC_DEADLINE;
                set(&mut entry.ebx, 31, 24, apic_id);
                set(&mut entry.ebx, 23, 16, self.vcpus);
                switch(&mut entry.edx, HTT, several);
            }
            // Caches: levels 1 and 2 belong to a core, others to all of them. Then the cores of the
            // socket (Intel only).
            0x4 if entry.eax & 0x1f != 0 => {
                self.share_cache(entry);
                set(&mut entry.eax, 31, 26, (1 << self.id_bits()) - 1);
            }
            0x8000_001d if entry.eax & 0x1f != 0 => self.share_cache(entry),
            0xb | 0x1f => self.topology(entry, apic_id),
            0x8000_0001 if self.amd => switch(&mut entry.ecx, CMP_LEGACY, several),
            // Size of the APIC id, number of cores less one.
            0x8000_0008 if self.amd => {
                set(&mut entry.ecx, 15, 12, self.id_bits());
                set(&mut entry.ecx, 7, 0, self.vcpus - 1);
            }
            // One thread per core, one node.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id & 0xff, 0),
            _ => {}
        }
    }

    fn share_cache(&self, entry: &mut kvm_cpuid_entry2) {
        let level = entry.eax >> 5 & 0x7;
        let sharing = if level < 3 { 1 } else { self.vcpus };
        set(&mut entry.eax, 25, 14, sharing - 1);
    }

    /// Levels of topology: a core has one thread, the socket has all cores.
    fn topology(&self, entry: &mut kvm_cpuid_entry2, apic_id: u32) {
        const THREAD: u32 = 1;
        const CORE: u32 = 2;
        let level = match entry.index {
            0 => (0, 1, THREAD << 8),
            1 => (self.id_bits(), self.vcpus, CORE << 8 | 1),
            other => (0, 0, other),
        };
        (entry.eax, entry.ebx, entry.ecx) = level;
        entry.edx = apic_id;
    }

    /// The bits that APIC ids of this machine have.
    const fn id_bits(&self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }
}

/// Writes `value` into bits `high` to `low`, as far as it fits.
fn set(register: &mut u32, high: u32, low: u32, value: u32) {
    let mask = (1 << (high - low + 1)) - 1;
    *register = *register & !(mask << low) | value.min(mask) << low;
}

fn switch(register: &mut u32, bit: u32, on: bool) {
    *register = if on { *register | bit } else { *register & !bit };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topology_is_ours_whatever_the_host_has() {
        let leaf = |function, index, eax| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx: 0x1234_5678,
            ..Default::default()
        };
        let entries =
            [leaf(1, 0, 0), leaf(0xb, 0, 7), leaf(0xb, 1, 7), leaf(0x8000_001d, 3, 0x3_c163)];
        let of = Cpuid::with_supported(CpuId::from_entries(&entries).unwrap(), 6).of(5);
        let [basic, threads, cores, cache] = of.as_slice() else { panic!("four entries") };
        assert_eq!(basic.ebx, 0x0506_5678);
        assert_eq!(basic.ecx, 1 << 31 | 1 << 24);
        assert_eq!(basic.edx, 1 << 28);
        assert_eq!((threads.eax, threads.ebx, threads.ecx, threads.edx), (0, 1, 0x100, 5));
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (3, 6, 0x201, 5));
        assert_eq!(cache.eax >> 14 & 0xfff, 5);
        assert_eq!(cache.eax & 0x3fff, 0x163);
    }
}
