//! The registers of a vCPU at launch.

/// A segment or descriptor-table register.
///
/// `attributes` is the packed form of the VMSA (AMD64 APM volume 2, appendix B): bits 0-7 are
/// descriptor bits 40-47, bits 8-11 are descriptor bits 52-55.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Attributes in the VMSA's packed form.
    pub attributes: u16,
    /// Limit in bytes, as loaded (already scaled by granularity).
    pub limit: u32,
    /// Base address.
    pub base: u64,
}

/// The whole register file of a vCPU at launch.
///
/// One value is read by the calculator (which makes a VMSA of it) and by the launcher (which sets
/// it through KVM). The fields are those of the VMSA (AMD64 APM volume 2, table B-4) that a VMM
/// can set, with the values that it sets: what KVM adds for SEV-SNP (EFER.SVME, CR4.MCE) is not
/// here, it is added where the VMSA is made. Every other byte of the VMSA is zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the architecture's")]
pub struct InitialVcpu {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub gdtr: Segment,
    pub ldtr: Segment,
    pub idtr: Segment,
    pub tr: Segment,
    pub efer: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub dr6: u64,
    pub dr7: u64,
    pub rflags: u64,
    pub rip: u64,
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub rsp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub g_pat: u64,
    pub xcr0: u64,
    pub mxcsr: u32,
    pub x87_fcw: u16,
    /// No register and not measured: it does nothing before another vCPU sends it INIT and SIPI, as
    /// OVMF wants it. Otherwise it starts with the boot processor. (A plain guest's vCPUs all wait.)
    pub waits_for_sipi: bool,
}

impl Segment {
    const ZERO: Self = Self { selector: 0, attributes: 0, limit: 0, base: 0 };
}

impl InitialVcpu {
    /// Every register zero: what constant tables start from.
    pub(crate) const ZERO: Self = Self {
        es: Segment::ZERO,
        cs: Segment::ZERO,
        ss: Segment::ZERO,
        ds: Segment::ZERO,
        fs: Segment::ZERO,
        gs: Segment::ZERO,
        gdtr: Segment::ZERO,
        ldtr: Segment::ZERO,
        idtr: Segment::ZERO,
        tr: Segment::ZERO,
        efer: 0,
        cr0: 0,
        cr3: 0,
        cr4: 0,
        dr6: 0,
        dr7: 0,
        rflags: 0,
        rip: 0,
        rax: 0,
        rbx: 0,
        rcx: 0,
        rdx: 0,
        rsi: 0,
        rdi: 0,
        rbp: 0,
        rsp: 0,
        r8: 0,
        r9: 0,
        r10: 0,
        r11: 0,
        r12: 0,
        r13: 0,
        r14: 0,
        r15: 0,
        g_pat: 0,
        xcr0: 0,
        mxcsr: 0,
        x87_fcw: 0,
        waits_for_sipi: false,
    };
}
