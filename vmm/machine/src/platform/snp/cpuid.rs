//! The CPUID page (SEV-SNP firmware ABI, "CPUID Page"): the guest's only source of CPUID before it
//! has any other; the firmware checks it against the processor.
//!
//! A count, then from byte 16 on entries of 48 bytes: leaf, subleaf, XCR0, XSS, then EAX to EDX.

use std::fmt;

use casemate_kvm::{KernelError, Page};
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::StepError;

/// Entries that the page has room for by its definition.
const MOST: usize = 64;
const FIRST: usize = 16;
const ENTRY: usize = 48;

/// Describes memory encryption (AMD64 APM volume 3, E.4.17).
const ENCRYPTION: u32 = 0x8000_001f;

/// Registers of features, which the firmware compares with the processor's own bit by bit: one that
/// the processor does not report is refused. KVM reports some that it emulates, or that only software
/// knows of, and each kernel more of them. `Some`: bits that are offered even so.
const FEATURES: [(u32, u32, [Option<u32>; 4]); 7] = [
    // HYPERVISOR and X2APIC, which every firmware lets pass; HTT is our topology's.
    (1, 0, [None, None, Some(1 << 31 | 1 << 21), Some(1 << 28)]),
    (7, 0, [None, Some(0), Some(0), Some(0)]),
    (7, 1, [Some(0), Some(0), Some(0), Some(0)]),
    // CMP_LEGACY is our topology's.
    (0x8000_0001, 0, [None, None, Some(1 << 1), Some(0)]),
    (0x8000_0007, 0, [None, None, None, Some(0)]),
    (0x8000_0008, 0, [None, Some(0), None, None]),
    // VERW_CLEAR: the guest loses a mitigation without it, so the firmware may decide.
    (0x8000_0021, 0, [Some(1 << 5), None, Some(0), None]),
];

/// Features of the processor that this runs on.
pub(super) struct Processor([[u32; 4]; FEATURES.len()]);

impl Processor {
    /// Reads them.
    pub(super) fn read() -> Result<Self, KernelError> {
        let mut registers = [[0; 4]; FEATURES.len()];
        for (place, (leaf, subleaf, _)) in registers.iter_mut().zip(FEATURES) {
            *place = casemate_kvm::cpuid::of_processor(leaf, subleaf)?;
        }
        Ok(Self(registers))
    }

    /// Takes from an entry the features that the processor does not have.
    fn restrict(&self, entry: &mut kvm_cpuid_entry2) {
        let known = FEATURES.iter().zip(self.0);
        let of_entry = |(feature, _): &(&(u32, u32, _), _)| {
            (feature.0, feature.1) == (entry.function, entry.index)
        };
        let Some(((.., offered), own)) = known.into_iter().find(of_entry) else { return };
        let registers = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
        for ((register, offered), own) in registers.into_iter().zip(offered).zip(own) {
            if let Some(offered) = offered {
                *register &= own | offered;
            }
        }
    }
}

/// Takes from a vCPU's CPUID what no SEV-SNP firmware lets pass, so that KVM and the page agree.
pub(super) fn adapt(entries: &mut [kvm_cpuid_entry2], processor: &Processor) {
    for entry in entries {
        processor.restrict(entry);
        // Refused although the processor may have it ("BitMask" in AMD's processor references).
        match (entry.function, entry.index) {
            // TSC_DEADLINE.
            (1, _) => entry.ecx &= !(1 << 24),
            // TSC_ADJUST; controls of speculation (bits 26 to 31).
            (7, 0) => {
                entry.ebx &= !(1 << 1);
                entry.edx &= !(0x3f << 26);
            }
            // VIRT_SSBD.
            (0x8000_0008, _) => entry.ebx &= !(1 << 25),
            // SEV, SEV-ES, SEV-SNP; the C-bit, and one bit of addresses less.
            (ENCRYPTION, _) => {
                entry.eax = 0b1_1010;
                entry.ebx = entry.ebx & 0x3f | 1 << 6;
                (entry.ecx, entry.edx) = (0, 0);
            }
            _ => {}
        }
    }
}

/// The page for a vCPU with these entries.
///
/// # Errors
/// There are more of them than the page has room for.
pub(super) fn page(entries: &[kvm_cpuid_entry2]) -> Result<Page, StepError> {
    let mut page = Page::ZERO;
    let needed: Vec<_> = entries.iter().filter(|entry| is_needed(entry)).collect();
    if needed.len() > MOST {
        return Err(StepError::CpuidPage { entries: needed.len() });
    }
    page.0[0] = u8::try_from(needed.len()).unwrap_or(u8::MAX);
    for (place, entry) in page.0[FIRST..].chunks_exact_mut(ENTRY).zip(needed) {
        let significant = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        let subleaf = if significant { entry.index } else { 0 };
        // The sizes of leaf 0xd depend on what is enabled; at the start that is x87 and SSE.
        let is_state = entry.function == 0xd && subleaf <= 1;
        let (xcr0, ebx) = if is_state { (1_u64, 0x240) } else { (0, entry.ebx) };
        place[0..4].copy_from_slice(&entry.function.to_le_bytes());
        place[4..8].copy_from_slice(&subleaf.to_le_bytes());
        place[8..16].copy_from_slice(&xcr0.to_le_bytes());
        let registers = [entry.eax, ebx, entry.ecx, entry.edx];
        for (field, register) in place[24..40].chunks_exact_mut(4).zip(registers) {
            field.copy_from_slice(&register.to_le_bytes());
        }
    }
    Ok(page)
}

/// A leaf that says nothing is as good as none, except that of the highest leaf of a range.
fn is_needed(entry: &kvm_cpuid_entry2) -> bool {
    let says_something = entry.eax | entry.ebx | entry.ecx | entry.edx != 0;
    // Extended topology of AMD; no guest needs it beside leaf 0xb.
    says_something && entry.function != 0x8000_0026
}

/// A register whose value the firmware replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Correction {
    leaf: u32,
    subleaf: u32,
    /// 0 to 3: EAX to EDX.
    register: usize,
    ours: u32,
    theirs: u32,
}

impl fmt::Display for Correction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { leaf, subleaf, register, ours, theirs } = self;
        let name = ["EAX", "EBX", "ECX", "EDX"].get(*register).unwrap_or(&"?");
        write!(f, "{leaf:#x}.{subleaf} {name} {ours:#x} by {theirs:#x}")
    }
}

/// Each register in which `theirs` is not as `ours`.
pub(super) fn corrections(ours: &Page, theirs: &Page) -> Vec<Correction> {
    let entries = |page: &Page| -> Vec<[u8; ENTRY]> {
        page.0[FIRST..].as_chunks::<ENTRY>().0.iter().take(MOST).copied().collect()
    };
    let mut found = Vec::new();
    for (ours, theirs) in entries(ours).iter().zip(entries(theirs)) {
        let word = |bytes: &[u8; ENTRY], at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (leaf, subleaf) = (word(ours, 0), word(ours, 4));
        for register in 0..4 {
            let at = 24 + 4 * register;
            let (ours, theirs) = (word(ours, at), word(&theirs, at));
            if ours != theirs {
                found.push(Correction { leaf, subleaf, register, ours, theirs });
            }
        }
    }
    found
}

/// Makes the same corrections in a vCPU's CPUID. Only bits that were corrected change: the rest may
/// differ from vCPU to vCPU.
pub(super) fn correct(entries: &mut [kvm_cpuid_entry2], corrections: &[Correction]) {
    for Correction { leaf, subleaf, register, ours, theirs } in corrections {
        let same = |entry: &&mut kvm_cpuid_entry2| {
            let significant = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
            entry.function == *leaf && (!significant || entry.index == *subleaf)
        };
        let Some(entry) = entries.iter_mut().find(same) else { continue };
        let registers = [&mut entry.eax, &mut entry.ebx, &mut entry.ecx, &mut entry.edx];
        if let Some(value) = registers.into_iter().nth(*register) {
            *value = *value & !(ours ^ theirs) | theirs & (ours ^ theirs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, index: u32, value: u32) -> kvm_cpuid_entry2 {
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        let (eax, ebx, ecx, edx) = (value, value, value, value);
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }

    #[test]
    fn the_firmware_reads_what_is_written_here() {
        let mut entries = [entry(1, 0, u32::MAX), entry(ENCRYPTION, 0, 51), entry(5, 0, 0)];
        adapt(&mut entries, &processor([[u32::MAX; 4]; FEATURES.len()]));
        let page = page(&entries).unwrap();
        assert_eq!(page.0[0], 2, "what says nothing is left out");
        let found = casemate_firmware_logic::cpuid::Encryption::from_page(&page.0).unwrap();
        assert_eq!((found.c_bit, found.touch), (51, true));
    }

    #[test]
    fn more_than_fits_is_an_error() {
        let entries: Vec<_> = (0..65).map(|leaf| entry(leaf + 1, 0, 1)).collect();
        assert!(page(&entries).is_err());
        assert!(page(&entries[..64]).is_ok());
    }

    fn processor(registers: [[u32; 4]; FEATURES.len()]) -> Processor {
        Processor(registers)
    }

    /// EPYC 7763, with values of InstLatx64's dump (AuthenticAMD0A00F11_K19_Milan_02_CPUID.txt).
    const MILAN: [[u32; 4]; FEATURES.len()] = [
        [0x00a0_0f11, 0x0040_0800, 0x7eda_320b, 0x178b_fbff],
        [0, 0x219c_97a9, 0x0040_068c, 0x10],
        [0; 4],
        [0x00a0_0f11, 0x4000_0000, 0x75c2_37ff, 0x2fd3_fbff],
        [0, 0x3b, 0, 0x6799],
        [0x3030, 0x91be_f75f, 0x603f, 0x1_0007],
        [0x204d, 0, 0, 0],
    ];

    /// Values that the firmware of a Milan refused (QEMU's list, July 2024: 0x80000021 EAX 0x18000245,
    /// of which it took 0x18000045), and more that Linux 7.2 adds.
    #[test]
    fn features_that_the_processor_does_not_report_are_left_out() {
        let adapted = |entry: kvm_cpuid_entry2| {
            let mut entries = [entry];
            adapt(&mut entries, &processor(MILAN));
            let [kvm_cpuid_entry2 { eax, ebx, ecx, edx, .. }] = entries;
            [eax, ebx, ecx, edx]
        };
        let all = |leaf, index| adapted(entry(leaf, index, u32::MAX));
        let verw_clear = 1 << 5;
        assert_eq!(all(0x8000_0021, 0), [0x204d | verw_clear, u32::MAX, 0, u32::MAX]);
        let (hypervisor, x2apic, htt) = (1 << 31, 1 << 21, 1 << 28);
        let [.., ecx, edx] = all(1, 0);
        assert_eq!((ecx, edx), (0x7eda_320b | hypervisor | x2apic, 0x178b_fbff | htt));
        assert_eq!(all(7, 0), [u32::MAX, 0x219c_97a9, 0x0040_068c, 0x10]);
        assert_eq!(all(7, 1), [0; 4]);
        assert_eq!(all(0x8000_0008, 0)[1], 0x91be_f75f & !(1 << 25));
        assert_eq!(all(0x8000_001d, 0), [u32::MAX; 4], "only features are compared");
    }

    #[test]
    fn bits_that_no_firmware_passes_are_left_out_even_if_the_processor_has_them() {
        let mut entries = [entry(1, 0, u32::MAX), entry(7, 0, u32::MAX)];
        adapt(&mut entries, &processor([[u32::MAX; 4]; FEATURES.len()]));
        assert_eq!(entries[0].ecx, !(1 << 24));
        assert_eq!((entries[1].ebx, entries[1].edx), (!(1 << 1), u32::MAX >> 6));
    }

    #[test]
    fn corrections_are_named_and_made_in_kvms_leaves() {
        let mut entries = [entry(1, 0, 7), entry(0x8000_001d, 3, 5), entry(0x8000_0021, 0, 1)];
        let ours = page(&entries).unwrap();
        assert!(corrections(&ours, &ours).is_empty());
        let mut theirs = ours.clone();
        theirs.0[FIRST + 32] = 3;
        theirs.0[FIRST + ENTRY + 36..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        let found = corrections(&ours, &theirs);
        let said: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["0x1.0 ECX 0x7 by 0x3", "0x8000001d.3 EDX 0x5 by 0xffffffff"]);
        // A bit that this vCPU has beyond the first one stays.
        entries[0].ecx = 0x17;
        correct(&mut entries, &found);
        assert_eq!([entries[0].ecx, entries[1].edx, entries[2].eax], [0x13, u32::MAX, 1]);
    }
}
