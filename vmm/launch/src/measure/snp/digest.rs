//! The chain of digests that the SNP firmware computes.

use zerocopy::{Immutable, IntoBytes, little_endian::U16, little_endian::U64};

use super::pages::page_digests;
use crate::plan::{VMSA_GPA, VmsaPage};
use crate::{Digest384, Gpa, Import, InitialVcpu, PageKind};

/// PAGE_TYPE of SNP_LAUNCH_UPDATE (SEV-SNP firmware ABI, table "Encodings for the PAGE_TYPE
/// Field").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum PageType {
    Normal = 1,
    Vmsa = 2,
    Zero = 3,
    Unmeasured = 4,
    Secrets = 5,
    Cpuid = 6,
}

impl PageType {
    /// The type with which pages of this kind enter; shared pages do not enter at all.
    const fn of(kind: PageKind) -> Option<Self> {
        match kind {
            PageKind::Normal => Some(Self::Normal),
            PageKind::Unmeasured => Some(Self::Unmeasured),
            PageKind::Zero => Some(Self::Zero),
            PageKind::Secrets => Some(Self::Secrets),
            PageKind::Cpuid => Some(Self::Cpuid),
            PageKind::Shared => None,
        }
    }
}

/// PAGE_INFO (SEV-SNP firmware ABI, section "SNP_LAUNCH_UPDATE", table "PAGE_INFO").
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct PageInfo {
    digest_cur: [u8; 48],
    contents: [u8; 48],
    length: U16,
    page_type: u8,
    /// Bit 0: the page belongs to an initial migration image, which KVM has none of.
    imi_page: u8,
    /// Permissions of VMPL 3, 2 and 1; KVM gives none.
    vmpl_permissions: [u8; 3],
    reserved: u8,
    gpa: U64,
}

const _: () = assert!(size_of::<PageInfo>() == 0x70);

/// The digest of everything that entered the guest so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaunchDigest(Digest384);

impl Default for LaunchDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl LaunchDigest {
    /// The digest of a guest that has no page yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(Digest384::ZERO)
    }

    /// Goes on from a known digest, such as a firmware seed.
    #[must_use]
    pub const fn resume(seed: Digest384) -> Self {
        Self(seed)
    }

    /// The digest so far.
    #[must_use]
    pub const fn value(&self) -> Digest384 {
        self.0
    }

    /// Folds in one page. `contents` is its SHA-384 for [`PageType::Normal`] and
    /// [`PageType::Vmsa`], and [`Digest384::ZERO`] for every other type.
    pub fn add_page(&mut self, page_type: PageType, gpa: Gpa, contents: Digest384) {
        let info = PageInfo {
            digest_cur: self.0.0,
            contents: contents.0,
            length: U16::new(0x70),
            page_type: page_type as u8,
            imi_page: 0,
            vmpl_permissions: [0; 3],
            reserved: 0,
            gpa: U64::new(gpa.0),
        };
        self.0 = Digest384::of(info.as_bytes());
    }

    /// Folds in the pages of an import, in ascending order.
    pub fn add_import(&mut self, import: &Import) {
        let Some(page_type) = PageType::of(import.kind) else { return };
        let addresses = import.range.page_addresses();
        if page_type == PageType::Normal {
            for (gpa, contents) in addresses.zip(page_digests(import)) {
                self.add_page(page_type, gpa, contents);
            }
        } else {
            addresses.for_each(|gpa| self.add_page(page_type, gpa, Digest384::ZERO));
        }
    }

    /// Folds in the VMSAs, in the order of the vCPUs' creation, with these SEV_FEATURES. Returns
    /// the digest after each.
    pub fn add_vcpus(&mut self, vcpus: &[InitialVcpu], features: u64) -> Vec<Digest384> {
        let mut previous = None;
        let add = |vcpu| {
            // All application processors are alike.
            let contents = match previous {
                Some((same, contents)) if same == vcpu => contents,
                _ => Digest384::of(&VmsaPage::new(vcpu, features).0),
            };
            previous = Some((vcpu, contents));
            self.add_page(PageType::Vmsa, VMSA_GPA, contents);
            self.value()
        };
        vcpus.iter().map(add).collect()
    }
}
