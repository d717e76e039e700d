//! From a TDVF image to a plan.

pub mod hob;
mod metadata;

pub use metadata::{Section, SectionKind, Tdvf, TdvfError};

use self::hob::TdHob;
use crate::{
    Contents, GpaError, GpaRange, Import, InitialVcpu, LaunchPlan, PageKind, Policy, SnpIdentity,
    TdxPolicy,
};

/// TD attribute: the host may read and change everything (Intel TDX module ABI, "ATTRIBUTES").
pub const ATTRIBUTE_DEBUG: u64 = 1;
/// TD attribute: a missing page does not become an exception in the guest. Linux insists on it.
pub const ATTRIBUTE_SEPT_VE_DISABLE: u64 = 1 << 28;
/// TD attribute: a migration TD may move the guest.
pub const ATTRIBUTE_MIGRATABLE: u64 = 1 << 29;

/// Why a firmware image makes no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SourceError {
    #[error("could not read the TDVF metadata")]
    Tdvf(#[from] TdvfError),
    #[error("a guest's memory range")]
    Memory(#[from] GpaError),
    #[error("could not make the TD HOB")]
    Hob(#[from] hob::BuildError),
}

/// The plan of a guest that boots a TDVF image.
///
/// `memory` is the guest's RAM, ascending, without the firmware itself. `vcpus` vCPUs start at the
/// reset vector; the address of the TD HOB is the only register that the host chooses (RCX, see
/// KVM_TDX_INIT_VCPU).
///
/// # Errors
/// If the image is not one that can be measured truthfully, or its sections are not in the memory.
pub fn plan(
    image: &[u8],
    memory: &[GpaRange],
    vcpus: u32,
    policy: TdxPolicy,
) -> Result<LaunchPlan, SourceError> {
    let tdvf = Tdvf::parse(image)?;
    let hob = tdvf.hob().ok_or(TdvfError::HobCount(0))?;
    let list = td_hob(&tdvf, memory)?;
    let imports = tdvf.sections.iter().filter(|section| !section.augmented).map(|section| Import {
        range: section.range,
        kind: match section.kind {
            _ if section.measured => PageKind::Normal,
            SectionKind::TempMem => PageKind::Zero,
            _ => PageKind::Unmeasured,
        },
        contents: match section.kind {
            SectionKind::Bfv | SectionKind::Cfv => Contents::Bytes(section.data.into()),
            SectionKind::TdHob => Contents::Bytes(list.bytes().into()),
            SectionKind::TempMem => Contents::Zeroes,
        },
        tag: section.kind.tag(),
    });
    let vcpu = InitialVcpu { rcx: hob.range.start().0, ..InitialVcpu::default() };
    Ok(LaunchPlan {
        imports: imports.collect(),
        vcpus: (0..vcpus).map(|_| vcpu.clone()).collect(),
        policy: Policy::Tdx(policy),
        identity: SnpIdentity::default(),
    })
}

/// The TD HOB of a guest with this memory.
///
/// # Errors
/// If the firmware's sections are not in the memory, or the list does not fit its section.
pub fn td_hob(tdvf: &Tdvf<'_>, memory: &[GpaRange]) -> Result<TdHob, SourceError> {
    let section = tdvf.hob().ok_or(TdvfError::HobCount(0))?.range;
    let mut added: Vec<_> = tdvf
        .sections
        .iter()
        .filter(|section| !section.kind.has_data() && !section.augmented)
        .map(|section| section.range)
        .collect();
    added.sort_unstable();
    Ok(TdHob::build(section, &hob::resources(memory, &added)?)?)
}
