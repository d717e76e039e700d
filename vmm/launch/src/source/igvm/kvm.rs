//! Steps of a file that KVM cannot carry out as they are written.

use std::collections::BTreeMap;

use super::steps::Step;
use super::{VmsaError, vmsa};
use crate::plan::{VMSA_GPA, VmsaPage};
use crate::{Digest384, Gpa, GpaRange, Import};

/// Why KVM cannot launch a file as it is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum KvmRefusal {
    #[error(
        "it does not have a VP context, so that the launcher chooses the registers of its vCPU"
    )]
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
    #[error(
        "it adds {first} (\"{first_tag}\") and then {second} (\"{second_tag}\"): KVM refuses a page \
         that the guest owns already"
    )]
    Twice { first: GpaRange, first_tag: &'static str, second: GpaRange, second_tag: &'static str },
    #[error("it has an error range at offset {at:#x}, which KVM cannot enforce")]
    ErrorRange { at: u64 },
}

/// What KVM would do with the steps, other than measuring their pages.
#[derive(Default)]
pub(crate) struct Kvm {
    /// SHA-384 of the one VMSA.
    vmsa: Option<Digest384>,
    /// Every range so far with its tag, by its start.
    ranges: BTreeMap<Gpa, (GpaRange, &'static str)>,
    refusal: Option<KvmRefusal>,
}

impl Kvm {
    /// Takes the next step of the file.
    pub(crate) fn see(&mut self, step: &Step) {
        let refusal = match step {
            Step::VpContext { at, .. } if self.vmsa.is_some() => {
                Some(KvmRefusal::ManyVpContexts { at: *at })
            }
            Step::VpContext { at, gpa, index, page } => {
                self.vmsa = Some(Digest384::of(&page.0));
                vp_refusal(*at, *gpa, *index, page)
            }
            Step::Pages { import, .. } => self.pages_refusal(import),
            Step::ErrorRange { at } => Some(KvmRefusal::ErrorRange { at: *at }),
            _ => None,
        };
        // The first reason is the one to give.
        self.refusal = self.refusal.take().or(refusal);
    }

    /// The refusal of pages that another import has already.
    fn pages_refusal(&mut self, import: &Import) -> Option<KvmRefusal> {
        let (second, second_tag) = (import.range, import.tag);
        // The ranges are disjoint: of those that start before the end, only the last reaches highest.
        let before = self.ranges.range(..second.end()).next_back();
        if let Some((_, (first, first_tag))) = before
            && first.overlaps(second)
        {
            let (first, first_tag) = (*first, *first_tag);
            return Some(KvmRefusal::Twice { first, first_tag, second, second_tag });
        }
        self.ranges.insert(second.start(), (second, second_tag));
        None
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
