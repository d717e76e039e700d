//! OVMF as the source of an SNP plan.
//!
//! The order is that of QEMU, and every calculator assumes it: the firmware's pages, then the
//! sections in the order of its SEV metadata, then the VMSAs.

use std::sync::Arc;

use super::guid_table::GuidTableError;
use super::kernel_hashes::{KernelHashes, TABLE_SIZE};
use super::sev_metadata::{SectionType, SevMetadata, SevMetadataError, SevSection};
use crate::rules::{CpuSignature, Profile, RESET_VECTOR};
use crate::{
    Contents, FIRMWARE_TAG, Gpa, GpaError, GpaRange, Import, InitialVcpu, LaunchPlan, PAGE_SIZE,
    PageKind, Policy, SnpIdentity, SnpPolicy,
};

/// Firmware ends where 32-bit addresses do.
const FIRMWARE_END: u64 = 1 << 32;

/// Inputs of a guest besides the firmware.
#[derive(Clone, Debug)]
pub struct SnpOptions {
    /// Whose registers and section rules.
    pub profile: Profile,
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
    /// Of the CPU model that the guest is shown.
    pub cpu_signature: CpuSignature,
    /// Guest policy and SEV_FEATURES.
    pub policy: SnpPolicy,
    /// Hashes with which the firmware compares the kernel, if there is one.
    pub kernel: Option<KernelHashes>,
    /// Reported beside the measurement.
    pub identity: SnpIdentity,
}

/// Why an image makes no SNP plan. Offsets count from the start of the image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum OvmfError {
    #[error("the firmware image is an empty file")]
    Empty,
    #[error(
        "the firmware image has {0:#x} bytes, and its size must be a multiple of 4 KiB below 4 GiB"
    )]
    Size(usize),
    #[error(transparent)]
    Table(#[from] GuidTableError),
    #[error(transparent)]
    Metadata(#[from] SevMetadataError),
    #[error("a guest has at least one vCPU")]
    NoVcpu,
    #[error(
        "{vcpus} vCPUs, but the firmware's GUID table has no SEV-ES reset block, which says where \
         all but the first start"
    )]
    NoReset { vcpus: u32 },
    #[error(
        "a kernel is given, but the firmware's SEV metadata has no kernel hashes section: the \
         kernel would not be measured"
    )]
    NoKernelHashes,
    #[error(
        "a kernel is given, but the firmware's GUID table has no address for the table of hashes: \
         the kernel would not be measured"
    )]
    NoHashTable,
    #[error(
        "the GUID table puts {size:#x} bytes of kernel hashes at {gpa}, which has to be \
         {TABLE_SIZE} bytes or more inside the one page of the kernel hashes section, {section}"
    )]
    HashTablePlace { gpa: Gpa, size: u32, section: GpaRange },
    #[error("the firmware's place below 4 GiB: {0}")]
    Place(#[from] GpaError),
    #[error(
        "the section {section} at offset {offset:#x} of the image lies where the firmware itself \
         is, at {firmware}"
    )]
    OverFirmware { section: GpaRange, offset: usize, firmware: GpaRange },
}

/// The plan of an OVMF image.
///
/// # Errors
/// Says what about the image, or what about it together with the options, cannot be measured
/// truthfully.
pub fn snp_plan(image: &Arc<[u8]>, options: &SnpOptions) -> Result<LaunchPlan, OvmfError> {
    let firmware = firmware_import(image)?;
    let metadata = SevMetadata::parse(image)?;
    for section in &metadata.sections {
        if section.range.overlaps(firmware.range) {
            let (section, offset) = (section.range, section.offset);
            return Err(OvmfError::OverFirmware { section, offset, firmware: firmware.range });
        }
    }
    let (sections, vcpus) = after_firmware(&metadata, options)?;
    Ok(LaunchPlan {
        imports: [vec![firmware], sections].concat(),
        vcpus,
        policy: Policy::Snp(options.policy.clone()),
        identity: options.identity.clone(),
    })
}

/// Everything that follows the firmware's own pages: the pages of its sections, and the vCPUs. With the
/// digest after the firmware's pages it is all that the launch digest depends on.
///
/// # Errors
/// The metadata does not fit the options.
pub fn after_firmware(
    metadata: &SevMetadata,
    options: &SnpOptions,
) -> Result<(Vec<Import>, Vec<InitialVcpu>), OvmfError> {
    let sections = section_imports(metadata, options.profile, options.kernel.as_ref())?;
    Ok((sections, vcpus(metadata.ap_reset, options)?))
}

/// The plan of a firmware image for a guest whose memory is not encrypted: the image, and a vCPU at
/// its reset vector. Nothing is measured.
///
/// # Errors
/// The image is empty or not a number of pages below 4 GiB.
pub fn plain_plan(image: &Arc<[u8]>) -> Result<LaunchPlan, OvmfError> {
    Ok(LaunchPlan {
        imports: vec![firmware_import(image)?],
        vcpus: vec![Profile::Qemu.vcpu(RESET_VECTOR, CpuSignature(0))],
        policy: Policy::Plain,
        identity: SnpIdentity::default(),
    })
}

/// The image, so that it ends at 4 GiB.
pub(crate) fn firmware_import(image: &Arc<[u8]>) -> Result<Import, OvmfError> {
    image_import(image, FIRMWARE_END, FIRMWARE_TAG)?.ok_or(OvmfError::Size(image.len()))
}

/// The image, so that it ends at `end`; `None` if it does not fit below.
pub(crate) fn image_import(
    image: &Arc<[u8]>,
    end: u64,
    tag: &'static str,
) -> Result<Option<Import>, OvmfError> {
    let size = image.len() as u64;
    if size == 0 {
        return Err(OvmfError::Empty);
    }
    if !size.is_multiple_of(PAGE_SIZE) {
        return Err(OvmfError::Size(image.len()));
    }
    let Some(start) = end.checked_sub(size).filter(|start| *start > 0) else { return Ok(None) };
    Ok(Some(Import {
        range: GpaRange::from_bytes(Gpa(start), size)?,
        kind: PageKind::Normal,
        contents: Contents::Bytes(Arc::clone(image).into()),
        tag,
    }))
}

/// Imports of the sections, in the order of this VMM.
///
/// Together with a firmware seed this is all that is needed of an image to compute digests.
///
/// # Errors
/// There is a kernel, and the firmware has no place for its hashes.
pub fn section_imports(
    metadata: &SevMetadata,
    profile: Profile,
    kernel: Option<&KernelHashes>,
) -> Result<Vec<Import>, OvmfError> {
    let hashes_section = |section: &&SevSection| section.section_type == SectionType::KernelHashes;
    if kernel.is_some() && !metadata.sections.iter().any(|section| hashes_section(&section)) {
        return Err(OvmfError::NoKernelHashes);
    }
    // EC2 gives the CPUID page last.
    let late = |section: &&SevSection| {
        profile == Profile::Ec2 && section.section_type == SectionType::Cpuid
    };
    let sections = &metadata.sections;
    let ordered =
        sections.iter().filter(|section| !late(section)).chain(sections.iter().filter(late));
    ordered
        .filter(|section| !section.range.is_empty())
        .map(|section| section_import(section, metadata, profile, kernel))
        .collect()
}

fn section_import(
    section: &SevSection,
    metadata: &SevMetadata,
    profile: Profile,
    kernel: Option<&KernelHashes>,
) -> Result<Import, OvmfError> {
    let (kind, tag) = match (section.section_type, kernel) {
        (SectionType::SecMem, _) if profile == Profile::Gce => {
            (PageKind::Unmeasured, "OVMF SEC_MEM section")
        }
        (SectionType::SecMem, _) => (PageKind::Zero, "OVMF SEC_MEM section"),
        (SectionType::Secrets, _) => (PageKind::Secrets, "SNP secrets page"),
        (SectionType::Cpuid, _) => (PageKind::Cpuid, "SNP CPUID page"),
        (SectionType::SvsmCallingArea, _) => (PageKind::Zero, "SVSM calling area"),
        (SectionType::KernelHashes, None) => (PageKind::Zero, "kernel hashes, none given"),
        (SectionType::KernelHashes, Some(hashes)) => {
            let page = hash_page(section.range, metadata, hashes)?;
            return Ok(Import {
                range: section.range,
                kind: PageKind::Normal,
                contents: Contents::Bytes(page.into()),
                tag: "kernel hashes",
            });
        }
    };
    Ok(Import { range: section.range, kind, contents: Contents::Zeroes, tag })
}

/// A page of zeroes with the table of hashes where the firmware looks for it.
fn hash_page(
    section: GpaRange,
    metadata: &SevMetadata,
    hashes: &KernelHashes,
) -> Result<Arc<[u8]>, OvmfError> {
    let place = metadata.hash_table.ok_or(OvmfError::NoHashTable)?;
    let (gpa, size) = (place.gpa, place.size);
    let wrong = OvmfError::HashTablePlace { gpa, size, section };
    let fits =
        section.len() == PAGE_SIZE && usize::try_from(size).is_ok_and(|size| size >= TABLE_SIZE);
    let offset =
        gpa.0.checked_sub(section.start().0).and_then(|offset| usize::try_from(offset).ok());
    let (true, Some(offset)) = (fits, offset) else { return Err(wrong) };
    let mut page = [0; 4096];
    let end = offset.saturating_add(TABLE_SIZE);
    page.get_mut(offset..end).ok_or(wrong)?.copy_from_slice(&hashes.table());
    Ok(Arc::from(page))
}

fn vcpus(ap_reset: Option<u32>, options: &SnpOptions) -> Result<Vec<InitialVcpu>, OvmfError> {
    let SnpOptions { profile, vcpus, cpu_signature, .. } = *options;
    let others = vcpus.checked_sub(1).ok_or(OvmfError::NoVcpu)?;
    let mut list = vec![profile.vcpu(RESET_VECTOR, cpu_signature)];
    if others > 0 {
        let entry = profile.ap_entry(ap_reset).ok_or(OvmfError::NoReset { vcpus })?;
        list.extend((0..others).map(|_| profile.vcpu(entry, cpu_signature)));
    }
    Ok(list)
}
