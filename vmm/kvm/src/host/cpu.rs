//! What the processor says of itself (CPUID).

use std::arch::x86_64::{__cpuid, __cpuid_count, CpuidResult};

use serde::{Deserialize, Serialize};

/// The processor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cpu {
    /// `AuthenticAMD`, `GenuineIntel`, ...
    pub vendor: String,
    /// The name it is sold under.
    pub model: String,
    /// Family, model, stepping.
    pub signature: (u32, u32, u32),
    /// This machine is itself a guest.
    pub is_virtual: bool,
    /// MOVDIR64B, which KVM needs for TDX.
    pub movdir64b: bool,
    /// Leaf 0x8000001F, where there is one.
    pub sev: Option<SevLeaf>,
}

/// Leaf 0x8000001F: encrypted memory (AMD64 Architecture Programmer's Manual, volume 3, appendix E).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SevLeaf {
    /// Secure Memory Encryption.
    pub sme: bool,
    /// SEV.
    pub sev: bool,
    /// SEV-ES.
    pub es: bool,
    /// SEV-SNP.
    pub snp: bool,
    /// The bit of a page table entry that marks encrypted memory.
    pub c_bit: u32,
    /// By how many bits physical addresses become narrower.
    pub address_reduction: u32,
    /// ASIDs of encrypted guests in all: 1 to this.
    pub asids: u32,
    /// The first ASID of SEV guests; SEV-ES and SEV-SNP have those below it.
    pub min_sev_asid: u32,
}

impl SevLeaf {
    pub(super) fn decode(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Self {
        let bit = |bit: u32| eax & (1 << bit) != 0;
        Self {
            sme: bit(0),
            sev: bit(1),
            es: bit(3),
            snp: bit(4),
            c_bit: ebx & 0x3f,
            address_reduction: (ebx >> 6) & 0x3f,
            asids: ecx,
            min_sev_asid: edx,
        }
    }

    /// ASIDs that SEV-ES and SEV-SNP guests can have.
    #[must_use]
    pub fn snp_asids(&self) -> u32 {
        self.min_sev_asid.saturating_sub(1)
    }
}

impl Cpu {
    /// Asks the processor this runs on.
    #[must_use]
    pub fn read() -> Self {
        let basic = __cpuid(0);
        let vendor = text([basic.ebx, basic.edx, basic.ecx]);
        let features = __cpuid(1);
        let last_extended = __cpuid(0x8000_0000).eax;
        let extended = |leaf: u32| (leaf <= last_extended).then(|| __cpuid(leaf));
        let brand = (0x8000_0002..=0x8000_0004).filter_map(extended);
        let model = text(brand.flat_map(|CpuidResult { eax, ebx, ecx, edx }| [eax, ebx, ecx, edx]));
        Self {
            vendor,
            model,
            signature: signature(features.eax),
            is_virtual: features.ecx & 1 << 31 != 0,
            movdir64b: basic.eax >= 7 && __cpuid_count(7, 0).ecx & 1 << 28 != 0,
            sev: extended(0x8000_001f)
                .map(|leaf| SevLeaf::decode(leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)),
        }
    }
}

/// Family, model and stepping from EAX of leaf 1.
fn signature(eax: u32) -> (u32, u32, u32) {
    let family = (eax >> 8) & 0xf;
    let model = (eax >> 4) & 0xf;
    let extended = |is_extended: bool, bits: u32| if is_extended { bits } else { 0 };
    (
        family + extended(family == 15, (eax >> 20) & 0xff),
        model + extended(family == 6 || family == 15, (eax >> 12) & 0xf0),
        eax & 0xf,
    )
}

fn text(registers: impl IntoIterator<Item = u32>) -> String {
    let bytes: Vec<u8> = registers.into_iter().flat_map(u32::to_le_bytes).collect();
    String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ']).to_owned()
}
