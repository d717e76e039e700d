//! The CPUID page (SEV-SNP firmware ABI, "CPUID Page"): the guest's only source of CPUID before it
//! has any other; the firmware checks it against the processor.
//!
//! A count, then from byte 16 on entries of 48 bytes: leaf, subleaf, XCR0, XSS, then EAX to EDX.

use casemate_kvm::Page;
use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use crate::launch::StepError;

/// Entries that the page has room for by its definition.
const MOST: usize = 64;
const FIRST: usize = 16;
const ENTRY: usize = 48;

/// Describes memory encryption (AMD64 APM volume 3, E.4.17).
const ENCRYPTION: u32 = 0x8000_001f;

/// Takes from a vCPU's CPUID what no SEV-SNP firmware lets pass, so that KVM and the page agree.
pub(super) fn adapt(entries: &mut [kvm_cpuid_entry2]) {
    for entry in entries {
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
            (0x8000_0021, _) => {
                // NO_SMM_CTL_MSR.
                entry.eax &= !(1 << 9);
                entry.ecx = 0;
            }
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

/// Logs what the firmware replaced, leaf by leaf.
pub(super) fn log_differences(ours: &Page, theirs: &Page) {
    for difference in differences(ours, theirs) {
        tracing::warn!("{difference}");
    }
}

/// In words, each register in which `theirs` is not as `ours`.
fn differences(ours: &Page, theirs: &Page) -> Vec<String> {
    let entries = |page: &Page| -> Vec<[u8; ENTRY]> {
        page.0[FIRST..].as_chunks::<ENTRY>().0.iter().take(MOST).copied().collect()
    };
    let mut found = Vec::new();
    for (ours, theirs) in entries(ours).iter().zip(entries(theirs)) {
        let word = |bytes: &[u8; ENTRY], at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let (leaf, subleaf) = (word(ours, 0), word(ours, 4));
        for (register, at) in [("EAX", 24), ("EBX", 28), ("ECX", 32), ("EDX", 36)] {
            let (wanted, offered) = (word(ours, at), word(&theirs, at));
            if wanted != offered {
                found.push(format!(
                    "CPUID {leaf:#x}.{subleaf} {register}: {wanted:#x} was refused, {offered:#x} \
                     taken"
                ));
            }
        }
    }
    found
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
        adapt(&mut entries);
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

    #[test]
    fn what_the_firmware_replaced_is_said_leaf_by_leaf() {
        let ours = page(&[entry(1, 0, 7), entry(0x8000_001d, 3, 5), entry(0x8000_0021, 0, 1)]);
        let ours = ours.unwrap();
        assert!(differences(&ours, &ours).is_empty());
        let mut theirs = ours.clone();
        theirs.0[FIRST + 32] = 0;
        theirs.0[FIRST + ENTRY + 24] = 4;
        theirs.0[FIRST + ENTRY + 36..][..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(
            differences(&ours, &theirs),
            [
                "CPUID 0x1.0 ECX: 0x7 was refused, 0x0 taken",
                "CPUID 0x8000001d.3 EAX: 0x5 was refused, 0x4 taken",
                "CPUID 0x8000001d.3 EDX: 0x5 was refused, 0xffffffff taken",
            ]
        );
    }
}
