//! The VMSA page of a vCPU, as KVM makes it of the registers that the VMM has set.

use std::collections::BTreeMap;

use crate::{Gpa, InitialVcpu, Segment};

/// Address of every VMSA in the digest of KVM (Linux, `svm/sev.c`, `INITIAL_VMSA_GPA`).
pub const VMSA_GPA: Gpa = Gpa(0xffff_ffff_f000);

/// EFER.SVME: KVM sets it in every VMSA.
const EFER_SVME: u64 = 1 << 12;
/// CR4.MCE: KVM sets it in every VMSA of a host that has it, which all SNP hosts do.
const CR4_MCE: u64 = 1 << 6;

/// Name, offset in the VMSA (AMD64 APM volume 2, table B-4), and the register.
type SegmentField = (&'static str, usize, fn(&InitialVcpu) -> &Segment);

const SEGMENTS: [SegmentField; 10] = [
    ("ES", 0x00, |vcpu| &vcpu.es),
    ("CS", 0x10, |vcpu| &vcpu.cs),
    ("SS", 0x20, |vcpu| &vcpu.ss),
    ("DS", 0x30, |vcpu| &vcpu.ds),
    ("FS", 0x40, |vcpu| &vcpu.fs),
    ("GS", 0x50, |vcpu| &vcpu.gs),
    ("GDTR", 0x60, |vcpu| &vcpu.gdtr),
    ("LDTR", 0x70, |vcpu| &vcpu.ldtr),
    ("IDTR", 0x80, |vcpu| &vcpu.idtr),
    ("TR", 0x90, |vcpu| &vcpu.tr),
];

/// Name, offset in the VMSA (same table), width in bytes, and the value.
type Field = (&'static str, usize, usize, fn(&InitialVcpu) -> u64);

const FIELDS: [Field; 28] = [
    ("EFER", 0x0d0, 8, |vcpu| vcpu.efer | EFER_SVME),
    ("CR4", 0x148, 8, |vcpu| vcpu.cr4 | CR4_MCE),
    ("CR3", 0x150, 8, |vcpu| vcpu.cr3),
    ("CR0", 0x158, 8, |vcpu| vcpu.cr0),
    ("DR7", 0x160, 8, |vcpu| vcpu.dr7),
    ("DR6", 0x168, 8, |vcpu| vcpu.dr6),
    ("RFLAGS", 0x170, 8, |vcpu| vcpu.rflags),
    ("RIP", 0x178, 8, |vcpu| vcpu.rip),
    ("RSP", 0x1d8, 8, |vcpu| vcpu.rsp),
    ("RAX", 0x1f8, 8, |vcpu| vcpu.rax),
    ("G_PAT", 0x268, 8, |vcpu| vcpu.g_pat),
    ("RCX", 0x308, 8, |vcpu| vcpu.rcx),
    ("RDX", 0x310, 8, |vcpu| vcpu.rdx),
    ("RBX", 0x318, 8, |vcpu| vcpu.rbx),
    ("RBP", 0x328, 8, |vcpu| vcpu.rbp),
    ("RSI", 0x330, 8, |vcpu| vcpu.rsi),
    ("RDI", 0x338, 8, |vcpu| vcpu.rdi),
    ("R8", 0x340, 8, |vcpu| vcpu.r8),
    ("R9", 0x348, 8, |vcpu| vcpu.r9),
    ("R10", 0x350, 8, |vcpu| vcpu.r10),
    ("R11", 0x358, 8, |vcpu| vcpu.r11),
    ("R12", 0x360, 8, |vcpu| vcpu.r12),
    ("R13", 0x368, 8, |vcpu| vcpu.r13),
    ("R14", 0x370, 8, |vcpu| vcpu.r14),
    ("R15", 0x378, 8, |vcpu| vcpu.r15),
    ("XCR0", 0x3e8, 8, |vcpu| vcpu.xcr0),
    ("MXCSR", 0x408, 4, |vcpu| vcpu.mxcsr.into()),
    ("X87_FCW", 0x410, 2, |vcpu| vcpu.x87_fcw.into()),
];

const SEV_FEATURES: (&str, usize) = ("SEV_FEATURES", 0x3b0);

/// A VMSA, zero padded to a page.
#[derive(Clone, PartialEq, Eq)]
pub struct VmsaPage(pub [u8; 4096]);

impl VmsaPage {
    /// The page of a vCPU in a guest with these SEV_FEATURES.
    #[must_use]
    pub fn new(vcpu: &InitialVcpu, features: u64) -> Self {
        let mut page = [0; 4096];
        let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
        for (_, at, segment) in SEGMENTS {
            let segment = segment(vcpu);
            put(at, &segment.selector.to_le_bytes());
            put(at + 2, &segment.attributes.to_le_bytes());
            put(at + 4, &segment.limit.to_le_bytes());
            put(at + 8, &segment.base.to_le_bytes());
        }
        for (_, at, width, value) in FIELDS {
            put(at, &value(vcpu).to_le_bytes()[..width]);
        }
        put(SEV_FEATURES.1, &features.to_le_bytes());
        Self(page)
    }
}

/// The registers of the VMSA that are not zero, by name. Segments give four: `CS.selector`,
/// `CS.attributes`, `CS.limit`, `CS.base`. Values are hexadecimal.
#[must_use]
pub fn registers(vcpu: &InitialVcpu, features: u64) -> BTreeMap<String, String> {
    let segments = SEGMENTS.iter().flat_map(|(name, _, segment)| {
        let segment = segment(vcpu);
        [
            (format!("{name}.selector"), segment.selector.into()),
            (format!("{name}.attributes"), segment.attributes.into()),
            (format!("{name}.limit"), segment.limit.into()),
            (format!("{name}.base"), segment.base),
        ]
    });
    let fields = FIELDS.iter().map(|(name, _, _, value)| ((*name).to_owned(), value(vcpu)));
    let features = [(SEV_FEATURES.0.to_owned(), features)];
    let all = segments.chain(fields).chain(features);
    all.filter(|(_, value)| *value != 0)
        .map(|(name, value)| (name, format!("{value:#x}")))
        .collect()
}
