//! CPUID: what KVM supports on this host, with the topology of our own machine.
//!
//! Leaves of topology are made, not adapted: since Linux 6.3 KVM lists of 0xB and 0x1F only index 0,
//! with nothing in it, and leaves the rest to the VMM (arch/x86/kvm/cpuid.c, cases 0xb and 0x1f).
//!
//! Sources: Intel SDM volume 2, CPUID; AMD64 APM volume 3, appendix E.

use casemate_config::Topology;
use casemate_kvm::{KernelError, cpuid};
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

const HIGHEST: u32 = 0;
const BASIC: u32 = 1;
const INTEL_CACHES: u32 = 4;
const X2APIC: u32 = 0xb;
/// Intel's successor of 0xB, with more kinds of levels.
const X2APIC_V2: u32 = 0x1f;
const HIGHEST_EXTENDED: u32 = 0x8000_0000;
const AMD_CACHES: u32 = 0x8000_001d;
const AMD_IDS: u32 = 0x8000_001e;
const FEATURES: u32 = 7;
const STATE: u32 = 0xd;
/// What AMX's tiles and multiplications are like.
const AMX: [u32; 2] = [0x1d, 0x1e];
/// AMD's successor of 0xB. Left out: Linux takes 0xB then.
const AMD_X2APIC_V2: u32 = 0x8000_0026;

/// Types of levels in [`X2APIC`].
const THREADS: u32 = 1;
const CORES: u32 = 2;

/// Tiles and their configuration, in XCR0 (leaf 0xD, index 0, EAX).
const AMX_STATE: u32 = 0b11 << 17;

/// CPUID of a machine; each vCPU gets its own edition.
pub(crate) struct Cpuid {
    /// Sorted by leaf and index; without leaves that are made for each vCPU.
    supported: Vec<kvm_cpuid_entry2>,
    topology: Topology,
    /// Whether topology is also told in AMD's leaves.
    amd: bool,
    /// Leaves in which the levels are told.
    level_leaves: Vec<u32>,
    /// Whether [`AMD_IDS`] is there.
    amd_ids: bool,
}

impl Cpuid {
    /// What `kvm` supports, for a machine with this arrangement of vCPUs.
    ///
    /// # Errors
    /// KVM does not list its leaves.
    pub(crate) fn new(kvm: &Kvm, topology: Topology) -> Result<Self, KernelError> {
        Ok(Self::with_supported(&cpuid::supported(kvm)?, topology))
    }

    fn with_supported(supported: &CpuId, topology: Topology) -> Self {
        let entries = supported.as_slice();
        let leaf = |function| entries.iter().find(|entry| entry.function == function);
        let highest = |function| leaf(function).map_or(0, |entry| entry.eax);
        // The first word of AuthenticAMD and HygonGenuine.
        let amd =
            leaf(HIGHEST).is_some_and(|leaf| matches!(&leaf.ebx.to_le_bytes(), b"Auth" | b"Hygo"));
        let level_leaves = [X2APIC, X2APIC_V2]
            .into_iter()
            // Of 0x1F a processor has no use that does not list it: AMD's do not.
            .filter(|&function| highest(HIGHEST) >= function && !(amd && function == X2APIC_V2))
            .collect();
        let made = [X2APIC, X2APIC_V2, AMD_IDS, AMD_X2APIC_V2];
        let supported = entries.iter().filter(|entry| !made.contains(&entry.function));
        let mut supported: Vec<_> = supported.copied().collect();
        if leaf(STATE).is_none_or(|state| state.eax & AMX_STATE != AMX_STATE) {
            supported.iter_mut().for_each(without_amx);
        }
        Self {
            supported,
            topology,
            amd,
            level_leaves,
            amd_ids: amd && highest(HIGHEST_EXTENDED) >= AMD_IDS,
        }
    }

    /// For the vCPU with this APIC id.
    ///
    /// # Errors
    /// There are more leaves than KVM takes.
    pub(crate) fn of(&self, apic_id: u32) -> Result<CpuId, KernelError> {
        let mut entries = self.supported.clone();
        entries.iter_mut().for_each(|entry| self.adapt(entry, apic_id));
        entries.extend(self.level_leaves.iter().flat_map(|&leaf| self.levels(leaf, apic_id)));
        if self.amd_ids {
            entries.push(self.amd_ids(apic_id));
        }
        entries.sort_by_key(|entry| (entry.function, entry.index));
        cpuid::table(&entries)
    }

    fn adapt(&self, entry: &mut kvm_cpuid_entry2, apic_id: u32) {
        const HYPERVISOR: u32 = 1 << 31;
        const TSC_DEADLINE: u32 = 1 << 24;
        const HTT: u32 = 1 << 28;
        const CMP_LEGACY: u32 = 1 << 1;
        let socket = self.topology.socket_vcpus();
        match entry.function {
            BASIC => {
                // Linux learns that KVM is there, and needs no timer but the local APIC's.
                entry.ecx |= HYPERVISOR | TSC_DEADLINE;
                set(&mut entry.ebx, 31, 24, apic_id & 0xff);
                set(&mut entry.ebx, 23, 16, socket);
                switch(&mut entry.edx, HTT, socket > 1);
            }
            // Caches, with ids that share them as a power of two. Then ids for cores of the socket.
            INTEL_CACHES if entry.eax & 0x1f != 0 => {
                let sharers = id_bits(self.cache_sharers(entry));
                set(&mut entry.eax, 25, 14, low_bits(sharers));
                let cores = id_bits(socket) - id_bits(self.topology.threads);
                set(&mut entry.eax, 31, 26, low_bits(cores));
            }
            // Caches, with the number of threads that share them.
            AMD_CACHES if entry.eax & 0x1f != 0 => {
                let sharers = self.cache_sharers(entry);
                set(&mut entry.eax, 25, 14, sharers - 1);
            }
            0x8000_0001 if self.amd => switch(&mut entry.ecx, CMP_LEGACY, socket > 1),
            // Bits of the APIC id within a socket, number of threads less one.
            0x8000_0008 if self.amd => {
                set(&mut entry.ecx, 15, 12, id_bits(socket));
                set(&mut entry.ecx, 7, 0, socket - 1);
            }
            _ => {}
        }
    }

    /// vCPUs that share a cache: levels 1 and 2 belong to a core, others to the socket.
    const fn cache_sharers(&self, cache: &kvm_cpuid_entry2) -> u32 {
        let level = cache.eax >> 5 & 0x7;
        if level < 3 { self.topology.threads } else { self.topology.socket_vcpus() }
    }

    /// Levels of topology: the threads of a core, and all threads of the socket.
    fn levels(&self, leaf: u32, apic_id: u32) -> [kvm_cpuid_entry2; 2] {
        [(THREADS, self.topology.threads), (CORES, self.topology.socket_vcpus())]
            .map(|(kind, vcpus)| (kind << 8, vcpus))
            .map(|(kind, vcpus)| kvm_cpuid_entry2 {
                function: leaf,
                index: u32::from(kind == CORES << 8),
                flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                eax: id_bits(vcpus),
                ebx: vcpus,
                ecx: kind | u32::from(kind == CORES << 8),
                edx: apic_id,
                ..Default::default()
            })
    }

    /// APIC id; core and threads of a core; node, which is the socket.
    fn amd_ids(&self, apic_id: u32) -> kvm_cpuid_entry2 {
        let Topology { threads, .. } = self.topology;
        let socket = apic_id >> id_bits(self.topology.socket_vcpus());
        let core = (apic_id & low_bits(id_bits(self.topology.socket_vcpus()))) / threads;
        kvm_cpuid_entry2 {
            function: AMD_IDS,
            eax: apic_id,
            ebx: (threads - 1) << 8 | core & 0xff,
            ecx: socket & 0xff,
            ..Default::default()
        }
    }
}

/// KVM lists AMX also where this process has no permission for its state.
fn without_amx(entry: &mut kvm_cpuid_entry2) {
    /// AMX-BF16, AMX-TILE, AMX-INT8.
    const FEATURE_BITS: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    if (entry.function, entry.index) == (FEATURES, 0) {
        entry.edx &= !FEATURE_BITS;
    }
    if AMX.contains(&entry.function) {
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
    }
}

/// Bits that number `count` things.
const fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

const fn low_bits(bits: u32) -> u32 {
    (1 << bits) - 1
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

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn vendor(name: &[u8; 4], highest: u32) -> kvm_cpuid_entry2 {
        leaf(0, 0, [highest, u32::from_le_bytes(*name), 0, 0])
    }

    /// As Linux 6.12 and 7.2 list it on an AMD processor: of 0xB index 0 alone, all zero but EDX, which
    /// is the APIC id of the processor that was asked; of 0x8000001E nothing.
    fn amd() -> Vec<kvm_cpuid_entry2> {
        vec![
            vendor(b"Auth", 0x10),
            leaf(1, 0, [0xa0_0f11, 0x1234_5678, 0, 0]),
            leaf(0xb, 0, [0, 0, 0, 0x2a]),
            leaf(0x8000_0000, 0, [0x8000_0023, 0, 0, 0]),
            leaf(0x8000_0008, 0, [0x3030, 0, 0x7fff, 0]),
            leaf(0x8000_001d, 0, [0x121, 0x1c0_003f, 0x3f, 0]),
            leaf(0x8000_001d, 3, [0x3_c163, 0x3c0_003f, 0x7fff, 1]),
            leaf(0x8000_001e, 0, [0, 0, 0, 0]),
        ]
    }

    /// On an Intel processor 0x1F is listed as well, in the same way.
    fn intel() -> Vec<kvm_cpuid_entry2> {
        vec![
            vendor(b"Genu", 0x1f),
            leaf(1, 0, [0xc_06f2, 0x1234_5678, 0, 0]),
            leaf(4, 0, [0x7c00_4121, 0x2c0_003f, 0x3f, 0]),
            leaf(4, 3, [0x7c0f_c163, 0x3c0_003f, 0xfff, 4]),
            leaf(0xb, 0, [0, 0, 0, 0x2a]),
            leaf(0x1f, 0, [0, 0, 0, 0x2a]),
            leaf(0x8000_0000, 0, [0x8000_0008, 0, 0, 0]),
        ]
    }

    fn made(entries: &[kvm_cpuid_entry2], topology: Topology, apic_id: u32) -> CpuId {
        let supported = CpuId::from_entries(entries).unwrap();
        Cpuid::with_supported(&supported, topology).of(apic_id).unwrap()
    }

    fn registers(cpuid: &CpuId, function: u32, index: u32) -> Option<[u32; 4]> {
        let same = |entry: &&kvm_cpuid_entry2| (entry.function, entry.index) == (function, index);
        let entry = cpuid.as_slice().iter().find(same)?;
        Some([entry.eax, entry.ebx, entry.ecx, entry.edx])
    }

    #[test]
    fn levels_are_made_from_a_list_that_has_none() {
        let six = made(&amd(), Topology::one_socket(6), 5);
        assert_eq!(registers(&six, 0xb, 0), Some([0, 1, 0x100, 5]));
        assert_eq!(registers(&six, 0xb, 1), Some([3, 6, 0x201, 5]));
        assert_eq!(registers(&six, 0x1f, 0), None, "no processor of AMD has it");
        let threads = Topology { sockets: 2, cores: 4, threads: 2 };
        let of = made(&intel(), threads, 13);
        for leaf in [0xb, 0x1f] {
            assert_eq!(registers(&of, leaf, 0), Some([1, 2, 0x100, 13]));
            assert_eq!(registers(&of, leaf, 1), Some([3, 8, 0x201, 13]));
        }
        let flags = of.as_slice().iter().filter(|entry| matches!(entry.function, 0xb | 0x1f));
        assert!(flags.map(|entry| entry.flags).eq([KVM_CPUID_FLAG_SIGNIFCANT_INDEX; 4]));
    }

    /// The rules of TDH.MNG.INIT for leaf 0x1F (Intel's TDX module, check_cpuid_1f_and_compute_cpuid_0b).
    #[test]
    fn a_tdx_module_takes_the_levels_of_every_arrangement() {
        for (sockets, cores, threads) in [(1, 1, 1), (1, 2, 1), (1, 255, 1), (2, 2, 2), (8, 1, 1)] {
            let of = made(&intel(), Topology { sockets, cores, threads }, 0);
            let mut previous = 0;
            let mut core = false;
            for index in 0..6 {
                let Some([.., ecx, _]) = registers(&of, 0x1f, index) else {
                    assert!(index > 0 && core, "the list ends after the level of cores");
                    continue;
                };
                let kind = ecx >> 8;
                assert!(kind > previous && kind < 6 && ecx & 0xff == index);
                assert!(kind != THREADS || index == 0);
                core |= kind == CORES;
                previous = kind;
            }
        }
    }

    #[test]
    fn amx_goes_with_its_state() {
        let with = |state| {
            [
                leaf(7, 0, [2, 0, 0, 0x0340_0010]),
                leaf(0xd, 0, [state, 0, 0, 0]),
                leaf(0x1d, 1, [1; 4]),
            ]
        };
        let of = |state| made(&with(state), Topology::one_socket(1), 0);
        assert_eq!(registers(&of(0x6_0207), 7, 0).unwrap()[3], 0x0340_0010);
        assert_eq!(registers(&of(0x6_0207), 0x1d, 1), Some([1; 4]));
        assert_eq!(registers(&of(0x207), 7, 0).unwrap()[3], 0x10);
        assert_eq!(registers(&of(0x207), 0x1d, 1), Some([0; 4]));
    }

    #[test]
    fn topology_is_ours_whatever_the_host_has() {
        let six = made(&amd(), Topology::one_socket(6), 5);
        assert_eq!(registers(&six, 1, 0).unwrap()[1..], [0x0506_5678, 1 << 31 | 1 << 24, 1 << 28]);
        assert_eq!(registers(&six, 0x8000_0008, 0), Some([0x3030, 0, 0x3f05, 0]));
        let [l1, l3] = [0, 3].map(|index| registers(&six, 0x8000_001d, index).unwrap()[0]);
        assert_eq!((l1 >> 14 & 0xfff, l3 >> 14 & 0xfff), (0, 5));
        assert_eq!((l1 & 0x3fff, l3 & 0x3fff), (0x121, 0x163));
        assert_eq!(registers(&six, 0x8000_001e, 0), Some([5, 5, 0, 0]));
        let two = made(&amd(), Topology { sockets: 2, cores: 2, threads: 2 }, 7);
        assert_eq!(registers(&two, 0x8000_001e, 0), Some([7, 1 << 8 | 1, 1, 0]));
        assert_eq!(registers(&two, 0x8000_0008, 0).unwrap()[2], 0x2f03);
        let intel = made(&intel(), Topology::one_socket(6), 0);
        let [l1, l3] = [0, 3].map(|index| registers(&intel, 4, index).unwrap()[0]);
        assert_eq!((l1 >> 14 & 0xfff, l3 >> 14 & 0xfff), (0, 7), "ids, not threads");
        assert_eq!((l1 >> 26, l3 >> 26), (7, 7));
    }
}
