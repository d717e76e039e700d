//! What an IGVM file measures to.

use std::io::{Read, Seek};

use super::manifest::{Manifest, MeasuredRange, RangeKind};
use super::snp::{self, LaunchDigest, PageType};
use super::tdx::{Mrtd, MrtdError, PageOrder};
use crate::plan::{VMSA_GPA, VmsaPage};
use crate::source::igvm::steps::{Step, ZeroPages, walk};
use crate::source::igvm::{IgvmError, IgvmFile, Kvm, KvmRefusal, Platform, vmsa};
use crate::{Digest384, Gpa, PAGE_SIZE, PlatformKind};

/// The two launch digests of a file on SEV-SNP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnpMeasurement {
    /// What the file says: every page and VMSA in file order.
    pub file: Digest384,
    /// What KVM makes of it, which measures the VMSA last wherever it is in the file; or why it
    /// cannot launch the file as it is written.
    pub kvm: Result<Digest384, KvmRefusal>,
    /// The launch digest that the file's ID block is for. With another one the launch fails.
    pub id_block: Option<Digest384>,
}

impl SnpMeasurement {
    /// MEASUREMENT of the attestation report of a guest that KVM launches from the file; the file's
    /// own digest where KVM cannot launch it.
    #[must_use]
    pub fn launch_digest(&self) -> Digest384 {
        self.kvm.as_ref().map_or(self.file, |kvm| *kvm)
    }
}

/// Why a file has no measurement.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum MeasureFileError {
    #[error(transparent)]
    File(#[from] IgvmError),
    #[error("KVM cannot launch the IGVM file as it is written")]
    Kvm(#[source] KvmRefusal),
    #[error("could not measure the pages")]
    Mrtd(#[from] MrtdError),
}

/// The launch digests of a file on SEV-SNP.
///
/// # Errors
/// If the platform is another, or the file cannot be read as it claims to be.
pub fn measure_snp<R: Read + Seek>(
    file: &mut IgvmFile<R>,
    mask: Option<u32>,
    zero_pages: ZeroPages,
) -> Result<SnpMeasurement, IgvmError> {
    let platform = file.platform(PlatformKind::Snp, mask)?;
    let mut own = LaunchDigest::new();
    let mut kvm = Kvm::default();
    let mut id_block = None;
    // From the first VMSA on, the pages alone are another chain than the file's own.
    let mut pages: Option<LaunchDigest> = None;
    walk(file, platform, zero_pages, &mut |step| {
        kvm.see(&step);
        match step {
            Step::Pages { import, .. } => {
                own.add_import(&import);
                if let Some(pages) = &mut pages {
                    pages.add_import(&import);
                }
            }
            Step::VpContext { gpa, page, .. } => {
                pages.get_or_insert(own);
                own.add_page(PageType::Vmsa, gpa, Digest384::of(&page.0));
            }
            Step::IdBlock(block) => id_block = Some(Digest384(block.ld)),
            _ => {}
        }
        Ok(())
    })?;
    let kvm = kvm.launchable().map(|vmsa| {
        let mut digest = pages.unwrap_or(own);
        digest.add_page(PageType::Vmsa, VMSA_GPA, vmsa);
        digest.value()
    });
    Ok(SnpMeasurement { file: own.value(), kvm, id_block })
}

/// The MRTD of a file. Pages are in the order of the file, each added and then extended.
///
/// # Errors
/// If the platform is another, the file cannot be read as it claims to be, or KVM cannot launch it.
pub fn measure_tdx<R: Read + Seek>(
    file: &mut IgvmFile<R>,
    mask: Option<u32>,
) -> Result<Digest384, MeasureFileError> {
    let platform = file.platform(PlatformKind::Tdx, mask)?;
    Ok(tdx_manifest(file, platform)?.measurement)
}

/// Every range that the measurement of a file consists of: for SEV-SNP those of
/// [`SnpMeasurement::launch_digest`], in KVM's order where KVM can launch the file.
///
/// # Errors
/// As [`measure_snp`] and [`measure_tdx`].
pub fn manifest<R: Read + Seek>(
    file: &mut IgvmFile<R>,
    platform: Platform,
    zero_pages: ZeroPages,
) -> Result<Manifest, MeasureFileError> {
    if platform.kind == Some(PlatformKind::Tdx) {
        return tdx_manifest(file, platform);
    }
    let vmsa_last = measure_snp(file, Some(platform.mask), zero_pages)?.kvm.is_ok();
    let mut ranges = Vec::new();
    let mut digest = LaunchDigest::new();
    let mut last = None;
    walk(file, platform, zero_pages, &mut |step| {
        match step {
            Step::Pages { import, .. } => {
                digest.add_import(&import);
                ranges.extend(MeasuredRange::of_import(&import, digest.value()));
            }
            Step::VpContext { index, page, .. } if vmsa_last => last = Some((index, page)),
            Step::VpContext { gpa, index, page, .. } => {
                ranges.push(vmsa_range(gpa, index, &page, &mut digest));
            }
            _ => {}
        }
        Ok(())
    })?;
    ranges.extend(last.map(|(index, page)| vmsa_range(VMSA_GPA, index, &page, &mut digest)));
    Ok(Manifest::new(PlatformKind::Snp, ranges))
}

fn tdx_manifest<R: Read + Seek>(
    file: &mut IgvmFile<R>,
    platform: Platform,
) -> Result<Manifest, MeasureFileError> {
    let mut ranges = Vec::new();
    let mut kvm = Kvm::default();
    let mut mrtd = Mrtd::new(PageOrder::PerPage);
    let mut measured = Ok(());
    walk(file, platform, ZeroPages::Normal, &mut |step| {
        kvm.see(&step);
        if let (Step::Pages { import, .. }, Ok(())) = (&step, &measured) {
            measured = mrtd.import(import);
            ranges.extend(MeasuredRange::of_import(import, mrtd.value()));
        }
        Ok(())
    })?;
    measured?;
    kvm.refused().map_err(MeasureFileError::Kvm)?;
    Ok(Manifest::new(PlatformKind::Tdx, ranges))
}

fn vmsa_range(
    address: Gpa,
    index: u16,
    page: &VmsaPage,
    digest: &mut LaunchDigest,
) -> MeasuredRange {
    let contents = Digest384::of(&page.0);
    digest.add_page(PageType::Vmsa, address, contents);
    let registers = vmsa::registers(page).map(|(vcpu, features)| snp::registers(&vcpu, features));
    MeasuredRange {
        order: 0,
        address,
        length: PAGE_SIZE,
        kind: RangeKind::Vmsa,
        sha384: Some(contents),
        running_digest: digest.value(),
        tag: format!("VMSA of vCPU {index}"),
        registers: registers.unwrap_or_default(),
        config_page: None,
    }
}
