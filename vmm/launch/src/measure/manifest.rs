//! The manifest: everything that was measured, in order, with the digest after each step.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plan::FIRMWARE_TAG;
use crate::source::firmware::{self, ConfigPage};
use crate::{Contents, Digest384, Gpa, Import, PAGE_SIZE, PageKind, PlatformKind};

/// Every measured range of a guest. As JSON it is what `casemate measure --manifest` writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Platform of the guest.
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
    /// Measured parts of the range.
    pub kind: RangeKind,
    /// SHA-384 of the contents, where the contents are measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha384: Option<Digest384>,
    /// SNP: the launch digest after this range. TDX: the MRTD if the measurement ended here.
    pub running_digest: Digest384,
    /// Origin of the range.
    pub tag: String,
    /// Of a VMSA: its registers that are not zero, by name, in hexadecimal.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub registers: BTreeMap<String, String>,
    /// Of our firmware: what its config page says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_page: Option<ConfigPage>,
}

impl Manifest {
    /// The manifest of these ranges, which get their positions here.
    pub(crate) fn new(
        platform: PlatformKind,
        ranges: impl IntoIterator<Item = MeasuredRange>,
    ) -> Self {
        let ranges: Vec<_> = ranges
            .into_iter()
            .enumerate()
            .map(|(order, range)| MeasuredRange { order, ..range })
            .collect();
        let measurement = ranges.last().map_or(Digest384::ZERO, |range| range.running_digest);
        Self { platform, measurement, ranges }
    }
}

impl MeasuredRange {
    /// The entry of an import, at position 0; `None` if nothing of it is measured.
    pub(crate) fn of_import(import: &Import, running_digest: Digest384) -> Option<Self> {
        let kind = RangeKind::of(import.kind)?;
        Some(Self {
            order: 0,
            address: import.range.start(),
            length: import.range.len(),
            kind,
            sha384: (kind == RangeKind::Normal).then(|| contents_digest(import)),
            running_digest,
            tag: import.tag.to_owned(),
            registers: BTreeMap::new(),
            config_page: config_page(import),
        })
    }
}

/// Config page of Casemate's firmware.
fn config_page(import: &Import) -> Option<ConfigPage> {
    match &import.contents {
        Contents::Bytes(bytes) if import.tag == FIRMWARE_TAG => firmware::config_page_of(bytes),
        _ => None,
    }
}

/// SHA-384 of everything in an import's range.
fn contents_digest(import: &Import) -> Digest384 {
    let mut context = ring::digest::Context::new(&ring::digest::SHA384);
    let mut zeroes = import.range.len();
    if let Contents::Bytes(bytes) = &import.contents {
        context.update(bytes);
        zeroes = zeroes.saturating_sub(bytes.len() as u64);
    }
    let page = [0; 4096];
    while zeroes > 0 {
        let now = zeroes.min(PAGE_SIZE);
        context.update(&page[..usize::try_from(now).unwrap_or(page.len())]);
        zeroes -= now;
    }
    Digest384::from_ring(&context.finish())
}

/// Measured parts of a range. The words are those of [`PageKind`], and `vmsa`.
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
