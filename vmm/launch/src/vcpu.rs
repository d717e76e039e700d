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
/// can set; every other byte of the VMSA is zero.
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
}
