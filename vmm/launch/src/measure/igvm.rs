//! What a file measures to.

use std::io::{Read, Seek};

use super::manifest::{Manifest, MeasuredRange, RangeKind};
use super::snp::{self, LaunchDigest, PageType, VMSA_GPA, VmsaPage};
use super::tdx::{Mrtd, PageOrder};
use crate::source::igvm::steps::{Step, ZeroPages, walk};
use crate::source::igvm::{IgvmError, IgvmFile, Platform, VmsaError, vmsa};
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

/// Why KVM cannot launch a file as it is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum KvmRefusal {
    #[error("it has no VP context: the registers of its vCPU are the launcher's to choose")]
    NoVpContext,
    #[error("it has more than one VP context, the second at offset {at:#x}")]
    ManyVpContexts { at: u64 },
    #[error("its VP context at offset {at:#x} is for vCPU {index}, and a guest has a vCPU 0")]
    VpIndex { at: u64, index: u16 },
    #[error(
        "its VP context at offset {at:#x} puts the VMSA at {gpa}, and KVM puts it at {VMSA_GPA}"
    )]
    VmsaGpa { at: u64, gpa: Gpa },
    #[error("its VP context at offset {at:#x}: {source}")]
    Vmsa { at: u64, source: VmsaError },
    #[error("it has an error range at offset {at:#x}, which KVM cannot enforce")]
    ErrorRange { at: u64 },
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
/// If the platform is another, or the file cannot be read as it claims to be.
pub fn measure_tdx<R: Read + Seek>(
    file: &mut IgvmFile<R>,
    mask: Option<u32>,
) -> Result<Digest384, IgvmError> {
    let platform = file.platform(PlatformKind::Tdx, mask)?;
    let mut mrtd = Mrtd::new(PageOrder::PerPage);
    walk(file, platform, ZeroPages::Normal, &mut |step| match step {
        Step::Pages { import, .. } => Ok(mrtd.import(&import)?),
        _ => Ok(()),
    })?;
    Ok(mrtd.value())
}

/// Everything that the file's own measurement is made of, in file order.
///
/// # Errors
/// As [`measure_snp`] and [`measure_tdx`].
pub fn manifest<R: Read + Seek>(
    file: &mut IgvmFile<R>,
    platform: Platform,
    zero_pages: ZeroPages,
) -> Result<Manifest, IgvmError> {
    let mut ranges = Vec::new();
    let mut digest = LaunchDigest::new();
    let mut mrtd = Mrtd::new(PageOrder::PerPage);
    let tdx = platform.kind == Some(PlatformKind::Tdx);
    walk(file, platform, zero_pages, &mut |step| {
        match step {
            Step::Pages { import, .. } if tdx => {
                mrtd.import(&import)?;
                ranges.extend(MeasuredRange::of_import(&import, mrtd.value()));
            }
            Step::Pages { import, .. } => {
                digest.add_import(&import);
                ranges.extend(MeasuredRange::of_import(&import, digest.value()));
            }
            Step::VpContext { gpa, index, page, .. } => {
                let contents = Digest384::of(&page.0);
                digest.add_page(PageType::Vmsa, gpa, contents);
                ranges.push(vmsa_range(gpa, index, &page, contents, digest.value()));
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(Manifest::new(platform.kind.unwrap_or(PlatformKind::Plain), ranges))
}

fn vmsa_range(
    address: Gpa,
    index: u16,
    page: &VmsaPage,
    contents: Digest384,
    running_digest: Digest384,
) -> MeasuredRange {
    let registers = vmsa::registers(page).map(|(vcpu, features)| snp::registers(&vcpu, features));
    MeasuredRange {
        order: 0,
        address,
        length: PAGE_SIZE,
        kind: RangeKind::Vmsa,
        sha384: Some(contents),
        running_digest,
        tag: format!("VMSA of vCPU {index}"),
        registers: registers.unwrap_or_default(),
        config_page: None,
    }
}

/// What KVM would do with the steps, other than measuring their pages.
#[derive(Default)]
pub(crate) struct Kvm {
    /// SHA-384 of the one VMSA.
    vmsa: Option<Digest384>,
    refusal: Option<KvmRefusal>,
}

impl Kvm {
    pub(crate) fn see(&mut self, step: &Step) {
        let refusal = match step {
            Step::VpContext { at, .. } if self.vmsa.is_some() => {
                Some(KvmRefusal::ManyVpContexts { at: *at })
            }
            Step::VpContext { at, gpa, index, page } => {
                self.vmsa = Some(Digest384::of(&page.0));
                vp_refusal(*at, *gpa, *index, page)
            }
            Step::ErrorRange { at } => Some(KvmRefusal::ErrorRange { at: *at }),
            _ => None,
        };
        // The first reason is the one to give.
        self.refusal = self.refusal.take().or(refusal);
    }

    /// Whether a step cannot be done.
    pub(crate) fn refused(&self) -> Result<(), KvmRefusal> {
        self.refusal.clone().map_or(Ok(()), Err)
    }

    /// SHA-384 of the VMSA of a file that KVM can launch as it is written.
    pub(crate) fn launchable(&self) -> Result<Digest384, KvmRefusal> {
        self.refused()?;
        self.vmsa.ok_or(KvmRefusal::NoVpContext)
    }
}

fn vp_refusal(at: u64, gpa: Gpa, index: u16, page: &VmsaPage) -> Option<KvmRefusal> {
    if index != 0 {
        return Some(KvmRefusal::VpIndex { at, index });
    }
    if gpa != VMSA_GPA {
        return Some(KvmRefusal::VmsaGpa { at, gpa });
    }
    vmsa::registers(page).err().map(|source| KvmRefusal::Vmsa { at, source })
}
