//! Reasons why a platform cannot take a step of a launch.

use casemate_kvm::KernelError;
use casemate_launch::{PageKind, PlatformKind};

use crate::ram::RamError;

/// Why a step of a launch failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The kernel does not know some MSR.
    #[error("KVM_SET_MSRS set {set} MSRs and refused the next one")]
    Msrs {
        /// How many it took.
        set: usize,
    },
    /// Guest memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The kernel or the platform's firmware refused.
    #[error(transparent)]
    Kernel(Box<KernelError>),
    /// The plan is for another platform.
    #[error("the launch plan is for {platform:?}")]
    Plan {
        /// What it is for.
        platform: PlatformKind,
    },
    /// The plan has fewer vCPUs than the guest.
    #[error("the launch plan has no registers for it")]
    Registers,
    /// The plan asks for what the host does not have.
    #[error("the host does not offer the {what} {bits:#x}")]
    NotOffered {
        /// What they are.
        what: &'static str,
        /// Those that are missing.
        bits: u64,
    },
    /// The kernel has no more vCPUs for such a guest.
    #[error(
        "the host gives such a guest at most {most} vCPUs (a TDX guest as many as the host has \
         processors): let it have fewer, with --vcpus"
    )]
    Vcpus {
        /// KVM_CAP_MAX_VCPUS.
        most: u32,
    },
    /// The kernel cannot ask for certificates.
    #[error(
        "the host's kernel cannot hand certificates to guests, which takes Linux 7.0 or later: leave \
         out snp.certificates, and let the guest's verifier get them elsewhere"
    )]
    Certificates,
    /// The platform has no such pages.
    #[error("the platform has no {kind:?} pages")]
    Page {
        /// What was to be added.
        kind: PageKind,
    },
    /// The host's CPUID is too long.
    #[error("{entries} CPUID entries are too many for the CPUID page, which has room for 64")]
    CpuidPage {
        /// How many there are.
        entries: usize,
    },
}

impl From<KernelError> for StepError {
    fn from(error: KernelError) -> Self {
        Self::Kernel(Box::new(error))
    }
}
