//! Events that a TDVF extends into RTMR0 for parts of its launch plan.

use crate::source::tdvf::SectionKind;
use crate::source::tdvf::hob::END;
use crate::{Bytes, Contents, Digest384, LaunchPlan};

/// The event of the TD HOB, whose end marker is not hashed. `None` if the plan has none.
#[must_use]
pub fn td_hob(plan: &LaunchPlan) -> Option<Digest384> {
    let list = section(plan, SectionKind::TdHob)?;
    Some(Digest384::of(list.get(..list.len().checked_sub(END)?)?))
}

/// The event of the variable store, as it is in the image. `None` if the plan has none.
#[must_use]
pub fn cfv(plan: &LaunchPlan) -> Option<Digest384> {
    section(plan, SectionKind::Cfv).map(|bytes| Digest384::of(bytes))
}

fn section(plan: &LaunchPlan, kind: SectionKind) -> Option<&Bytes> {
    let import = plan.imports.iter().find(|import| import.tag == kind.tag())?;
    match &import.contents {
        Contents::Bytes(bytes) => Some(bytes),
        Contents::Zeroes => None,
    }
}
