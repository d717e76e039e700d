//! A published firmware digest: enough of an OVMF image to compute the launch digests of its guests.
//!
//! It is the launch digest after the image's pages, and the part of the image's metadata that names the
//! other pages and the entry point of the vCPUs. `casemate measure snp --format json` prints one. The
//! names of dstack for the same values are read, too.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::LaunchDigest;
use crate::source::kernel_hashes::TABLE_SIZE;
use crate::source::ovmf::{self, OvmfError, SnpOptions};
use crate::source::sev_metadata::{HashTableArea, SevMetadata, SevMetadataError};
use crate::{Digest384, Gpa};

/// A published firmware digest with its metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirmwareDigest {
    /// The launch digest after the firmware's pages.
    #[serde(alias = "ovmf_hash")]
    pub firmware_seed: Digest384,
    /// The sections of the SEV metadata, in its order.
    #[serde(alias = "ovmf_sections")]
    pub firmware_sections: Vec<Section>,
    /// The entry point of all vCPUs but the first.
    #[serde(alias = "sev_es_reset_eip", default, skip_serializing_if = "Option::is_none")]
    pub firmware_ap_reset: Option<Number>,
    /// The address of the table of kernel hashes.
    #[serde(alias = "sev_hashes_table_gpa", default, skip_serializing_if = "Option::is_none")]
    pub firmware_hash_table: Option<Number>,
}

/// A section of the SEV metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// Guest-physical address.
    pub gpa: Number,
    /// Bytes.
    pub size: Number,
    /// Number of the type (edk2, `OvmfSevMetadata.asm`).
    pub section_type: Number,
}

/// A number of 32 bits, written as one, or in hexadecimal: `"0x800000"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(pub u32);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a number of 32 bits, or one like \"0x800000\"")]
        enum Written {
            Number(u32),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Ok(Self(number)),
            Written::Text(text) => {
                let digits = text.strip_prefix("0x").filter(|digits| !digits.starts_with('+'));
                let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
                number.map(Self).ok_or_else(|| {
                    de::Error::custom(format!("{text:?} is not a number like \"0x800000\""))
                })
            }
        }
    }
}

/// Reason why a firmware digest gives no launch digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum FirmwareDigestError {
    #[error("the sections (offsets count them from 0): {0}")]
    Sections(#[from] SevMetadataError),
    #[error("the firmware digest names no sections, and all firmware for SEV-SNP has some")]
    NoSections,
    #[error(transparent)]
    Guest(#[from] OvmfError),
}

impl FirmwareDigest {
    /// Returns the digest `seed` of an image with this metadata.
    #[must_use]
    pub fn new(seed: Digest384, metadata: &SevMetadata) -> Self {
        let address = |gpa: Gpa| u32::try_from(gpa.0).ok().map(Number);
        let sections = metadata.sections.iter().filter_map(|section| {
            Some(Section {
                gpa: address(section.range.start())?,
                size: u32::try_from(section.range.len()).ok().map(Number)?,
                section_type: Number(section.section_type.code()),
            })
        });
        Self {
            firmware_seed: seed,
            firmware_sections: sections.collect(),
            firmware_ap_reset: metadata.ap_reset.map(Number),
            firmware_hash_table: metadata.hash_table.and_then(|table| address(table.gpa)),
        }
    }

    /// Computes the launch digest of a guest of this firmware.
    ///
    /// # Errors
    /// The sections cannot be those of a firmware, or do not fit the options.
    pub fn launch_digest(&self, options: &SnpOptions) -> Result<Digest384, FirmwareDigestError> {
        if self.firmware_sections.is_empty() {
            return Err(FirmwareDigestError::NoSections);
        }
        let (sections, vcpus) = ovmf::after_firmware(&self.metadata()?, options)?;
        let mut digest = LaunchDigest::resume(self.firmware_seed);
        sections.iter().for_each(|import| digest.add_import(import));
        digest.add_vcpus(&vcpus, options.policy.vmsa_features);
        Ok(digest.value())
    }

    fn metadata(&self) -> Result<SevMetadata, SevMetadataError> {
        let sections = self.firmware_sections.iter();
        let values = sections.map(|section| {
            let Section { gpa, size, section_type } = *section;
            [gpa.0, size.0, section_type.0]
        });
        let size = u32::try_from(TABLE_SIZE).unwrap_or(u32::MAX);
        let area = |gpa: Number| HashTableArea { gpa: Gpa(gpa.0.into()), size };
        Ok(SevMetadata {
            ap_reset: self.firmware_ap_reset.map(|entry| entry.0),
            hash_table: self.firmware_hash_table.filter(|gpa| gpa.0 != 0).map(area),
            ..SevMetadata::of_sections(values)?
        })
    }
}
