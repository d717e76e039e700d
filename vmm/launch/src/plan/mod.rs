//! The plan itself.

mod bytes;
mod digest;
mod gpa;
mod memory_map;
mod vcpu;
mod vmsa;

pub use bytes::Bytes;
pub use digest::{Digest384, DigestError};
pub use gpa::{Gpa, GpaError, GpaRange, PAGE_SIZE, PageCount};
pub use memory_map::{MemoryKind, MemoryRange};
pub use vcpu::{InitialVcpu, Segment};
pub use vmsa::{VMSA_GPA, VmsaPage, registers};

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Platform of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlatformKind {
    /// KVM without memory encryption. Nothing is measured.
    Plain,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
}

impl PlatformKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Snp, Self::Tdx];

    /// The words of [`Display`](fmt::Display) and [`FromStr`], in the order of [`Self::ALL`].
    pub const WORDS: &[&str] = &["plain", "snp", "tdx"];

    /// The platform's name in text for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain KVM",
            Self::Snp => "SEV-SNP",
            Self::Tdx => "TDX",
        }
    }

    /// The platform's word in files, on the command line and in output for programs.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
        }
    }
}

impl fmt::Display for PlatformKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A word that is not a platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a platform: expected plain, snp or tdx")]
pub struct PlatformError(String);

impl FromStr for PlatformKind {
    type Err = PlatformError;

    fn from_str(word: &str) -> Result<Self, PlatformError> {
        let found = Self::ALL.into_iter().find(|platform| platform.word() == word);
        found.ok_or_else(|| PlatformError(word.to_owned()))
    }
}

/// How a page enters guest memory, and what of it is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// Contents and address are measured. SNP: NORMAL; TDX: PAGE.ADD and 16 MR.EXTEND.
    Normal,
    /// Only the address is measured. SNP: UNMEASURED; TDX: PAGE.ADD alone.
    Unmeasured,
    /// A page of zeroes, known to be so. SNP: ZERO; TDX: PAGE.ADD alone.
    Zero,
    /// The platform writes its secrets here (SNP only).
    Secrets,
    /// The CPUID table, checked by the platform rather than measured (SNP only).
    Cpuid,
    /// Not encrypted and not measured: the host's to write, at any time.
    Shared,
}

/// The bytes of an import.
#[derive(Clone)]
pub enum Contents {
    /// Zeroes, as many as the range has bytes.
    Zeroes,
    /// These bytes; zeroes follow up to the end of the range.
    Bytes(Bytes),
}

/// The tag of a firmware image's own pages; they are the first import of a plan that has them.
pub const FIRMWARE_TAG: &str = "firmware";

/// Pages that enter guest memory in one piece.
#[derive(Clone)]
pub struct Import {
    /// Where.
    pub range: GpaRange,
    /// How, and what of it is measured.
    pub kind: PageKind,
    /// Which bytes. At most as many as the range has.
    pub contents: Contents,
    /// Why, in words: "firmware", "OVMF SEC_MEM section", "kernel hashes". Appears in manifests,
    /// logs and errors.
    pub tag: &'static str,
}

/// The policy of a launch: what the platform enforces and, where it does, reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// None to enforce.
    Plain,
    /// SEV-SNP.
    Snp(SnpPolicy),
    /// TDX.
    Tdx(TdxPolicy),
}

/// Arguments of KVM_SEV_INIT2 and SNP_LAUNCH_START.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnpPolicy {
    /// Guest policy (SEV-SNP firmware ABI, table "Guest Policy Structure").
    pub guest_policy: u64,
    /// SEV_FEATURES of every VMSA; bit 0 (SNP active) is always set.
    pub vmsa_features: u64,
}

/// Arguments of KVM_TDX_INIT_VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TdxPolicy {
    /// TD attributes (Intel TDX module ABI, "ATTRIBUTES").
    pub attributes: u64,
    /// Extended features available mask.
    pub xfam: u64,
    /// MRCONFIGID: identity of the configuration, chosen by the host.
    pub mrconfigid: [u8; 48],
    /// MROWNER.
    pub mrowner: [u8; 48],
    /// MROWNERCONFIG.
    pub mrownerconfig: [u8; 48],
}

impl TdxPolicy {
    /// These attributes, the XFAM bits that every guest has (x87 and SSE), and no identities.
    #[must_use]
    pub const fn new(attributes: u64) -> Self {
        let none = [0; 48];
        Self { attributes, xfam: 3, mrconfigid: none, mrowner: none, mrownerconfig: none }
    }
}

/// The ID block and its signatures (SEV-SNP firmware ABI, sections "ID Block" and "ID
/// Authentication Information").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdBlock {
    /// The ID block as the firmware reads it.
    pub block: Box<[u8; 96]>,
    /// The ID authentication page.
    pub authentication: Box<[u8; 4096]>,
    /// Whether the page names an author key.
    pub author_key: bool,
}

/// Arguments of SNP_LAUNCH_FINISH. Reports have them beside the measurement, which does not include them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnpIdentity {
    /// HOST_DATA of the attestation report.
    pub host_data: [u8; 32],
    /// Signed measurement, if there is one.
    pub id_block: Option<IdBlock>,
    /// Whether the guest may not have reports signed by the VCEK.
    pub vcek_disabled: bool,
}

/// A guest, before it runs.
///
/// The order of `imports` is the order in which pages enter memory, and so part of the
/// measurement.
#[derive(Clone)]
pub struct LaunchPlan {
    /// The pages, in order.
    pub imports: Vec<Import>,
    /// The vCPUs, in the order of their creation; index 0 is the boot processor. A plain plan has
    /// the boot processor alone: all others wait for INIT and SIPI.
    pub vcpus: Vec<InitialVcpu>,
    /// The policy; it also says which platform the plan is for.
    pub policy: Policy,
    /// ID block, HOST_DATA and their like (SNP; default elsewhere).
    pub identity: SnpIdentity,
}

impl LaunchPlan {
    /// The platform that the plan is for.
    #[must_use]
    pub const fn platform(&self) -> PlatformKind {
        match self.policy {
            Policy::Plain => PlatformKind::Plain,
            Policy::Snp(_) => PlatformKind::Snp,
            Policy::Tdx(_) => PlatformKind::Tdx,
        }
    }

    /// Two imports that share a page, if there are any. They can be measured, but no platform
    /// launches them.
    #[must_use]
    pub fn overlap(&self) -> Option<(&Import, &Import)> {
        let mut ascending: Vec<_> =
            self.imports.iter().filter(|import| !import.range.is_empty()).collect();
        ascending.sort_by_key(|import| import.range.start());
        let mut neighbours = ascending.windows(2).map(|pair| (pair[0], pair[1]));
        neighbours.find(|(low, high)| low.range.overlaps(high.range))
    }
}
