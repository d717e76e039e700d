//! The manifest: everything that was measured, in order, with the digest after each step.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest384, Gpa, PageKind, PlatformKind};

/// Every measured range of a guest. As JSON it is what `casemate measure --manifest` writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What the guest is launched on.
    pub platform: PlatformKind,
    /// The SNP launch digest or the MRTD: the running digest after the last range.
    pub measurement: Digest384,
    /// The ranges in the order in which they are measured.
    pub ranges: Vec<MeasuredRange>,
}

/// One measured range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredRange {
    /// Position in the list, from 0.
    pub order: usize,
    /// The first guest-physical address.
    pub address: Gpa,
    /// Length in bytes.
    pub length: u64,
    /// What of the range is measured.
    pub kind: RangeKind,
    /// SHA-384 of the contents, where the contents are measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha384: Option<Digest384>,
    /// SNP: the launch digest after this range. TDX: the MRTD if the measurement ended here.
    pub running_digest: Digest384,
    /// Where the range comes from, in words.
    pub tag: String,
    /// Of a VMSA: its registers that are not zero, by name, in hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub registers: BTreeMap<String, String>,
}

/// What of a range is measured. The words are those of [`PageKind`], and `vmsa`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RangeKind {
    /// Contents and address.
    Normal,
    /// The address.
    Unmeasured,
    /// The address, and on SNP that the range is zero.
    Zero,
    /// The address, and that the secrets are here (SNP).
    Secrets,
    /// The address, and that the CPUID table is here (SNP).
    Cpuid,
    /// The registers of a vCPU (SNP).
    Vmsa,
}

impl RangeKind {
    /// How pages of this kind are listed; shared ones are not measured at all.
    #[must_use]
    pub const fn of(kind: PageKind) -> Option<Self> {
        match kind {
            PageKind::Normal => Some(Self::Normal),
            PageKind::Unmeasured => Some(Self::Unmeasured),
            PageKind::Zero => Some(Self::Zero),
            PageKind::Secrets => Some(Self::Secrets),
            PageKind::Cpuid => Some(Self::Cpuid),
            PageKind::Shared => None,
        }
    }

    /// The word of the manifest.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Unmeasured => "unmeasured",
            Self::Zero => "zero",
            Self::Secrets => "secrets",
            Self::Cpuid => "cpuid",
            Self::Vmsa => "vmsa",
        }
    }
}
