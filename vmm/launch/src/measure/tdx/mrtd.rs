//! MRTD, the measurement of the pages that a trust domain starts with.
//!
//! Intel TDX module ABI, TDH.MEM.PAGE.ADD and TDH.MR.EXTEND: one running SHA-384 over 128-byte
//! records that name the operation and the address; an extension is followed by the 256 bytes.

use ring::digest::{Context, SHA384};

use crate::measure::manifest::{Manifest, MeasuredRange};
use crate::{Contents, Digest384, Gpa, Import, LaunchPlan, PAGE_SIZE, PageKind, PlatformKind};

/// The bytes that one TDH.MR.EXTEND measures.
const CHUNK: usize = 256;
const RECORD: usize = 128;
const PAGE: usize = 4096;
const ZEROES: [u8; CHUNK] = [0; CHUNK];

/// In which order the pages of one import are added and extended. The same firmware has another
/// MRTD in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageOrder {
    /// Each page is added, then extended. KVM since Linux 6.16.
    #[default]
    PerPage,
    /// All pages are added, then all are extended. Canonical's QEMU 8.2.2 and its kernel.
    TwoPass,
}

impl PageOrder {
    /// The name that commands and reports use.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PerPage => "per-page",
            Self::TwoPass => "two-pass",
        }
    }
}

/// Why a plan has no MRTD.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MrtdError {
    /// a plan for something else
    #[error("MRTD is a measurement of TDX guests; this plan is for {}", .0.name())]
    Platform(PlatformKind),
    /// a page that only SEV-SNP has
    #[error("\"{tag}\" at {at} is a {kind:?} page, which TDX does not have")]
    Kind {
        /// Where.
        at: Gpa,
        /// Which kind.
        kind: PageKind,
        /// The import's own words.
        tag: &'static str,
    },
    /// more bytes than pages
    #[error("\"{tag}\" at {at} has {given} bytes for {room} bytes of memory")]
    TooLong {
        /// Where.
        at: Gpa,
        /// How many bytes it has.
        given: usize,
        /// How many bytes its pages have.
        room: u64,
        /// The import's own words.
        tag: &'static str,
    },
}

/// A running MRTD.
#[derive(Clone)]
pub struct Mrtd {
    sha: Context,
    order: PageOrder,
}

impl Mrtd {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(order: PageOrder) -> Self {
        Self { sha: Context::new(&SHA384), order }
    }

    /// One page added, its contents not measured.
    pub fn add(&mut self, page: Gpa) {
        self.sha.update(&record(b"MEM.PAGE.ADD", page.0));
    }

    /// One added page measured: its first bytes, as many as there are, and zeroes.
    ///
    /// Bytes behind the first 4096 are not looked at.
    pub fn extend(&mut self, page: Gpa, bytes: &[u8]) {
        let mut chunks = bytes.chunks(CHUNK);
        // A page's address has twelve bits of zero, so that adding an offset cannot overflow.
        for offset in (0..PAGE_SIZE).step_by(CHUNK) {
            self.sha.update(&record(b"MR.EXTEND", page.0 + offset));
            let chunk = chunks.next().unwrap_or_default();
            self.sha.update(chunk);
            self.sha.update(&ZEROES[chunk.len()..]);
        }
    }

    /// All pages of an import, in this measurement's page order.
    ///
    /// # Errors
    /// If the import is not one that TDX has, or has more bytes than its range.
    pub fn import(&mut self, import: &Import) -> Result<(), MrtdError> {
        let measured = match import.kind {
            PageKind::Normal => true,
            PageKind::Unmeasured | PageKind::Zero => false,
            PageKind::Shared => return Ok(()),
            kind @ (PageKind::Secrets | PageKind::Cpuid) => {
                return Err(MrtdError::Kind { at: import.range.start(), kind, tag: import.tag });
            }
        };
        let bytes: &[u8] = match &import.contents {
            Contents::Zeroes => &[],
            Contents::Bytes(bytes) => bytes,
        };
        if bytes.len() as u64 > import.range.len() {
            return Err(MrtdError::TooLong {
                at: import.range.start(),
                given: bytes.len(),
                room: import.range.len(),
                tag: import.tag,
            });
        }
        let pages = import.range.page_addresses();
        let mut contents = bytes.chunks(PAGE).chain(std::iter::repeat(&[][..]));
        let with_bytes = pages.clone().zip(&mut contents);
        match (measured, self.order) {
            (false, _) => pages.for_each(|page| self.add(page)),
            (true, PageOrder::PerPage) => with_bytes.for_each(|(page, bytes)| {
                self.add(page);
                self.extend(page, bytes);
            }),
            (true, PageOrder::TwoPass) => {
                pages.for_each(|page| self.add(page));
                with_bytes.for_each(|(page, bytes)| self.extend(page, bytes));
            }
        }
        Ok(())
    }

    /// The measurement if no more pages follow (TDH.MR.FINALIZE).
    #[must_use]
    pub fn value(&self) -> Digest384 {
        Digest384::from_ring(&self.sha.clone().finish())
    }
}

/// The MRTD of a plan.
///
/// # Errors
/// If the plan is not one for TDX, or has pages that TDX does not have.
pub fn mrtd(plan: &LaunchPlan, order: PageOrder) -> Result<Digest384, MrtdError> {
    require_tdx(plan)?;
    let mut mrtd = Mrtd::new(order);
    plan.imports.iter().try_for_each(|import| mrtd.import(import))?;
    Ok(mrtd.value())
}

/// Every measured range of a plan, with the MRTD if the measurement ended after it.
///
/// # Errors
/// Those of [`mrtd`].
pub fn manifest(plan: &LaunchPlan, order: PageOrder) -> Result<Manifest, MrtdError> {
    require_tdx(plan)?;
    let mut running = Mrtd::new(order);
    let mut ranges = Vec::with_capacity(plan.imports.len());
    for import in &plan.imports {
        running.import(import)?;
        ranges.extend(MeasuredRange::of_import(import, running.value()));
    }
    Ok(Manifest::new(PlatformKind::Tdx, ranges))
}

fn require_tdx(plan: &LaunchPlan) -> Result<(), MrtdError> {
    match plan.platform() {
        PlatformKind::Tdx => Ok(()),
        other => Err(MrtdError::Platform(other)),
    }
}

fn record(operation: &[u8], address: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..operation.len()].copy_from_slice(operation);
    record[16..24].copy_from_slice(&address.to_le_bytes());
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GpaRange, PageCount};

    fn import(kind: PageKind, pages: u64, bytes: &[u8]) -> Import {
        Import {
            range: GpaRange::new(Gpa(0x1000), PageCount(pages)).unwrap(),
            kind,
            contents: Contents::Bytes(bytes.into()),
            tag: "test",
        }
    }

    fn value_of(order: PageOrder, imports: &[Import]) -> Digest384 {
        let mut mrtd = Mrtd::new(order);
        imports.iter().try_for_each(|import| mrtd.import(import)).unwrap();
        mrtd.value()
    }

    #[test]
    fn short_contents_are_padded_with_zeroes() {
        let short = value_of(PageOrder::PerPage, &[import(PageKind::Normal, 2, b"abc")]);
        let mut padded = vec![0; 2 * PAGE];
        padded[..3].copy_from_slice(b"abc");
        assert_eq!(short, value_of(PageOrder::PerPage, &[import(PageKind::Normal, 2, &padded)]));
    }

    #[test]
    fn the_page_order_counts_from_the_second_page_on() {
        let one = [import(PageKind::Normal, 1, b"abc")];
        let two = [import(PageKind::Normal, 2, b"abc")];
        assert_eq!(value_of(PageOrder::PerPage, &one), value_of(PageOrder::TwoPass, &one));
        assert_ne!(value_of(PageOrder::PerPage, &two), value_of(PageOrder::TwoPass, &two));
    }

    #[test]
    fn shared_pages_are_not_measured() {
        let nothing = value_of(PageOrder::PerPage, &[]);
        assert_eq!(value_of(PageOrder::PerPage, &[import(PageKind::Shared, 1, b"x")]), nothing);
        assert_ne!(value_of(PageOrder::PerPage, &[import(PageKind::Zero, 1, b"")]), nothing);
    }

    #[test]
    fn page_kinds_without_tdx_support_are_rejected() {
        let mut mrtd = Mrtd::new(PageOrder::PerPage);
        let error = mrtd.import(&import(PageKind::Cpuid, 1, b"")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "\"test\" at 0x1000 is a Cpuid page, which TDX does not have"
        );
        assert!(mrtd.import(&import(PageKind::Normal, 1, &[0; PAGE + 1])).is_err());
    }
}
