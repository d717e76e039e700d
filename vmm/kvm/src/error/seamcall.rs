//! Completion status of the TDX module.

use std::fmt;

/// What a SEAMCALL returned in RAX: bits 63:32 are the status, 31:0 its detail, which for statuses
/// about an operand names it (Intel TDX Module ABI, "Function Completion Status Codes").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeamcallStatus(pub u64);

impl SeamcallStatus {
    fn class(self) -> u64 {
        self.0 >> 32
    }

    fn detail(self) -> u64 {
        self.0 & 0xffff_ffff
    }

    /// The status's name without its `TDX_`.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        find(STATUSES, self.class())
    }

    /// The operand that the detail names, for statuses about one.
    #[must_use]
    pub fn operand(self) -> Option<&'static str> {
        // Statuses 0x0100 to 0x0300: operand invalid, out of range, busy; page metadata.
        let about_operand = matches!(self.class() & 0xffff, 0x0100..=0x0300);
        about_operand.then(|| find(OPERANDS, self.detail())).flatten()
    }

    /// The module was busy with the operand, or had no entropy: worth another attempt.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self.class(), 0x8000_0200..=0x8000_0203)
    }
}

impl fmt::Display for SeamcallStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SEAMCALL status {:#018x}", self.0)?;
        match self.name() {
            Some(name) => write!(f, " {name}")?,
            None => write!(f, ", not known to this program")?,
        }
        match self.operand() {
            Some(operand) => write!(f, ", operand {operand}"),
            None if self.detail() != 0 => write!(f, ", detail {:#x}", self.detail()),
            None => Ok(()),
        }
    }
}

fn find(table: &[(u64, &'static str)], key: u64) -> Option<&'static str> {
    table.iter().find(|(code, _)| *code == key).map(|&(_, name)| name)
}

/// Statuses that the commands of a launch can meet, and those that the kernel writes only to its log,
/// where users find the number. Source: Intel TDX Module ABI, and the module's source
/// (include/auto_gen, tdx_error_codes_defs.h).
const STATUSES: &[(u64, &str)] = &[
    (0x4000_0001, "NON_RECOVERABLE_VCPU"),
    (0x6000_0002, "NON_RECOVERABLE_TD"),
    (0x8000_0003, "INTERRUPTED_RESUMABLE"),
    (0x8000_0004, "INTERRUPTED_RESTARTABLE"),
    (0xc000_0100, "OPERAND_INVALID"),
    (0xc000_0101, "OPERAND_ADDR_RANGE_ERROR"),
    (0x8000_0200, "OPERAND_BUSY"),
    (0x8000_0201, "PREVIOUS_TLB_EPOCH_BUSY"),
    (0x8000_0202, "SYS_BUSY"),
    (0x8000_0203, "RND_NO_ENTROPY"),
    (0xc000_0300, "PAGE_METADATA_INCORRECT"),
    (0xc000_0500, "SYSINIT_NOT_DONE"),
    (0xc000_0600, "TD_NOT_INITIALIZED"),
    (0xc000_0601, "TD_INITIALIZED"),
    (0xc000_0602, "TD_NOT_FINALIZED"),
    (0xc000_0603, "TD_FINALIZED"),
    (0xe000_0604, "TD_FATAL"),
    (0xc000_0605, "TD_NON_DEBUG"),
    (0xc000_0606, "TDCS_NOT_ALLOCATED"),
    (0xc000_0607, "LIFECYCLE_STATE_INCORRECT"),
    (0xc000_0608, "OP_STATE_INCORRECT"),
    (0xc000_0609, "NO_VCPUS"),
    (0xc000_0610, "TDCX_NUM_INCORRECT"),
    (0xc000_0621, "X2APIC_ID_NOT_UNIQUE"),
    (0xc000_0700, "VCPU_STATE_INCORRECT"),
    (0x8000_0701, "VCPU_ASSOCIATED"),
    (0x8000_0702, "VCPU_NOT_ASSOCIATED"),
    (0xc000_0704, "NO_VALID_VE_INFO"),
    (0xc000_0705, "MAX_VCPUS_EXCEEDED"),
    (0xc000_0706, "TSC_ROLLBACK"),
    (0xc000_0707, "INTERRUPTIBILITY_BLOCKED"),
    (0xc000_0730, "TD_VMCS_FIELD_NOT_INITIALIZED"),
    (0x8000_0800, "KEY_GENERATION_FAILED"),
    (0x8000_0810, "TD_KEYS_NOT_CONFIGURED"),
    (0xc000_0811, "KEY_STATE_INCORRECT"),
    (0x8000_0817, "WBCACHE_NOT_COMPLETE"),
    (0xc000_0820, "HKID_NOT_FREE"),
    (0xc000_0823, "WBCACHE_RESUME_ERROR"),
    (0x8000_0824, "FLUSHVP_NOT_DONE"),
    (0xc000_0825, "NUM_ACTIVATED_HKIDS_NOT_SUPPORTED"),
    (0xc000_0900, "INCORRECT_CPUID_VALUE"),
    (0xc000_0901, "LIMIT_CPUID_MAXVAL_SET"),
    (0xc000_0902, "INCONSISTENT_CPUID_FIELD"),
    (0xc000_0903, "CPUID_MAX_SUBLEAVES_UNRECOGNIZED"),
    (0xc000_0904, "CPUID_LEAF_1F_FORMAT_UNRECOGNIZED"),
    (0xc000_0905, "INVALID_WBINVD_SCOPE"),
    (0xc000_0906, "INVALID_PKG_ID"),
    (0xc000_0908, "CPUID_LEAF_NOT_SUPPORTED"),
    (0xc000_0910, "SMRR_NOT_LOCKED"),
    (0xc000_0911, "INVALID_SMRR_CONFIGURATION"),
    (0xc000_0912, "SMRR_OVERLAPS_CMR"),
    (0xc000_0920, "INCONSISTENT_MSR"),
    (0xc000_0921, "INCORRECT_MSR_VALUE"),
    (0xc000_0930, "SEAMREPORT_NOT_AVAILABLE"),
    (0xc000_0a00, "INVALID_TDMR"),
    (0xc000_0a01, "NON_ORDERED_TDMR"),
    (0xc000_0a02, "TDMR_OUTSIDE_CMRS"),
    (0xc000_0a10, "INVALID_PAMT"),
    (0xc000_0a11, "PAMT_OUTSIDE_CMRS"),
    (0xc000_0a12, "PAMT_OVERLAP"),
    (0xc000_0b00, "EPT_WALK_FAILED"),
    (0xc000_0b01, "EPT_ENTRY_FREE"),
    (0xc000_0b02, "EPT_ENTRY_NOT_FREE"),
    (0xc000_0b03, "EPT_ENTRY_NOT_PRESENT"),
    (0xc000_0b0b, "PAGE_SIZE_MISMATCH"),
    (0xc000_0b0d, "EPT_ENTRY_STATE_INCORRECT"),
];

/// Operand identifiers ("Function Completion Status Operand IDs").
const OPERANDS: &[(u64, &str)] = &[
    (0, "RAX"),
    (1, "RCX"),
    (2, "RDX"),
    (3, "RBX"),
    (6, "RSI"),
    (7, "RDI"),
    (8, "R8"),
    (9, "R9"),
    (10, "R10"),
    (11, "R11"),
    (12, "R12"),
    (13, "R13"),
    (14, "R14"),
    (15, "R15"),
    (0x40, "ATTRIBUTES"),
    (0x41, "XFAM"),
    (0x42, "EXEC_CONTROLS"),
    (0x43, "EPTP_CONTROLS"),
    (0x44, "MAX_VCPUS"),
    (0x45, "CPUID_CONFIG"),
    (0x46, "TSC_FREQUENCY"),
    (0x47, "NUM_L2_VMS"),
    (0x48, "IA32_ARCH_CAPABILITIES_CONFIG"),
    (0x5f, "PAGE"),
    (0x80, "TDR"),
    (0x81, "TDCX"),
    (0x82, "TDVPR"),
    (0x90, "TDCS"),
    (0x91, "TDVPS"),
    (0x92, "SEPT_TREE"),
    (0x93, "SEPT_ENTRY"),
    (0xa8, "RTMR"),
    (0xa9, "TD_EPOCH"),
    (0xac, "OP_STATE"),
    (0xb1, "NUM_VCPUS"),
    (0xb8, "SYS"),
    (0xba, "KOT"),
    (0xbb, "KET"),
];
