//! An SVSM below OVMF, as two images instead of an IGVM file.
//!
//! The order is that of COCONUT-SVSM's QEMU (`target/i386/sev.c`), and sev-snp-measure assumes it: the
//! pages of OVMF, those of the SVSM below OVMF's variables, the sections of the SVSM's SEV metadata, then
//! the VMSAs. All vCPUs start in the SVSM.

use std::sync::Arc;

use zerocopy::little_endian::U32;

use super::Guid;
use super::guid_table::{GuidTable, GuidTableError};
use super::ovmf::{self, OvmfError, SnpOptions};
use super::sev_metadata::{SevMetadata, SevMetadataError, entry};
use crate::rules::svsm_vcpu;
use crate::{Gpa, LaunchPlan, PAGE_SIZE, Policy};

/// Data: offset of the entry point from the start of the image.
const SVSM_INFO: Guid = Guid::new(0xa789a612_0597_4c4b_a49f_cbb1fe9d1ddd);

/// Reason why two images make no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SvsmError {
    #[error("the firmware above the SVSM: {0}")]
    Firmware(OvmfError),
    #[error(transparent)]
    Image(#[from] OvmfError),
    #[error(transparent)]
    Table(#[from] GuidTableError),
    #[error(transparent)]
    Metadata(#[from] SevMetadataError),
    #[error("the GUID table has no SVSM entry point {SVSM_INFO}: this is not an SVSM image")]
    NotSvsm,
    #[error("the SVSM's entry point at offset {offset:#x} is outside of its {length:#x} bytes")]
    Entry { offset: u32, length: usize },
    #[error(
        "no room for an SVSM of {length:#x} bytes below {variables:#x} bytes of variables and the \
         firmware at {firmware}"
    )]
    Place { length: usize, variables: u64, firmware: Gpa },
    #[error("the firmware's variables have {0:#x} bytes, which is not a number of pages")]
    Variables(u64),
    #[error("a guest has at least one vCPU")]
    NoVcpu,
    #[error(
        "a kernel is given, but no guest of an SVSM has hashes for it: it would not be measured"
    )]
    Kernel,
}

/// Makes the plan of an OVMF guest whose vCPUs start in an SVSM. `variables` is the size in bytes of
/// OVMF's variables, which are between the two images and not measured.
///
/// # Errors
/// An image is of the wrong kind or does not fit, or the options ask for a kernel.
pub fn snp_plan(
    firmware: &Arc<[u8]>,
    svsm: &Arc<[u8]>,
    variables: u64,
    options: &SnpOptions,
) -> Result<LaunchPlan, SvsmError> {
    if options.kernel.is_some() {
        return Err(SvsmError::Kernel);
    }
    if options.vcpus == 0 {
        return Err(SvsmError::NoVcpu);
    }
    if !variables.is_multiple_of(PAGE_SIZE) {
        return Err(SvsmError::Variables(variables));
    }
    let firmware = ovmf::firmware_import(firmware).map_err(SvsmError::Firmware)?;
    let top = firmware.range.start();
    let place = SvsmError::Place { length: svsm.len(), variables, firmware: top };
    let end = top.0.checked_sub(variables).ok_or(place.clone())?;
    let image = ovmf::image_import(svsm, end, "SVSM")?.ok_or(place)?;
    let start = image.range.start();
    let entry = entry_point(svsm)?;
    let metadata = SevMetadata::parse(svsm)?;

    let mut imports = vec![firmware, image];
    imports.extend(ovmf::section_imports(&metadata, options.profile, None)?);
    let vcpu = svsm_vcpu(start.0 + u64::from(entry), options.cpu_signature);
    Ok(LaunchPlan {
        imports,
        vcpus: (0..options.vcpus).map(|_| vcpu.clone()).collect(),
        policy: Policy::Snp(options.policy.clone()),
        identity: options.identity.clone(),
    })
}

/// The offset of the entry point in the image.
fn entry_point(image: &[u8]) -> Result<u32, SvsmError> {
    let table = GuidTable::parse(image)?;
    let offset = entry::<U32>(&table, SVSM_INFO)?.ok_or(SvsmError::NotSvsm)?.get();
    let length = image.len();
    match usize::try_from(offset) {
        Ok(at) if at < length => Ok(offset),
        _ => Err(SvsmError::Entry { offset, length }),
    }
}
