//! What a file does to a guest on one platform, step by step, in file order.
//!
//! Measuring and importing walk the same steps. Neighbouring pages that are alike come as one
//! import of at most [`LONGEST`] pages, whose bytes are read when it is complete: memory does not
//! grow with the file.

use std::collections::BTreeMap;
use std::io::{Read, Seek};

use igvm_defs::{
    IGVM_VHS_PAGE_DATA, IGVM_VHS_PARAMETER_AREA, IGVM_VHS_PARAMETER_INSERT,
    IGVM_VHS_REQUIRED_MEMORY, IGVM_VHS_SNP_ID_BLOCK, IGVM_VHS_VP_CONTEXT, IgvmPageDataType,
};

use super::file::Found;
use super::header::{Header, ParameterKind};
use super::{IgvmError, IgvmFile, Platform};
use crate::plan::VmsaPage;
use crate::{Contents, Gpa, GpaRange, Import, PAGE_SIZE, PageCount, PageKind, PlatformKind};

/// Pages of one import: what a core can hash without losing it from its second-level cache.
const LONGEST: u64 = 128;
/// Pages of one file: 16 GiB, more than any guest starts with.
const MOST_PAGES: u64 = 4 << 20;
const LARGE_PAGE: u64 = 2 << 20;

/// What a measured page without data in the file is on SEV-SNP. Launchers differ, and so do the
/// digests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroPages {
    /// A NORMAL page of zeroes. QEMU, and the `igvm` crate.
    #[default]
    Normal,
    /// A ZERO page. Cloud Hypervisor since April 2026.
    Native,
}

/// Where the VMM writes what the guest needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// What.
    pub kind: ParameterKind,
    /// Where, in bytes from the start of its area.
    pub offset: u32,
}

/// One step.
pub(crate) enum Step {
    /// Pages enter. Those of a parameter area have parameters.
    Pages { import: Import, parameters: Vec<Parameter> },
    /// The initial state of a vCPU (SEV-SNP: its VMSA).
    VpContext { at: u64, gpa: Gpa, index: u16, page: Box<VmsaPage> },
    /// Private memory that must be there.
    RequiredMemory(GpaRange),
    /// The guest policy.
    Policy(u64),
    /// The ID block and its signatures.
    IdBlock(Box<IGVM_VHS_SNP_ID_BLOCK>),
    /// Memory whose use by the guest must end it.
    ErrorRange { at: u64 },
}

/// Gives `visit` each step of `platform`.
pub(crate) fn walk<R: Read + Seek>(
    file: &mut IgvmFile<R>,
    platform: Platform,
    zero_pages: ZeroPages,
    visit: &mut dyn FnMut(Step) -> Result<(), IgvmError>,
) -> Result<(), IgvmError> {
    let mut walker =
        Walker { file, platform, zero_pages, visit, run: None, areas: BTreeMap::new(), pages: 0 };
    let mut at = walker.file.headers_start();
    let mut section = 0;
    while let Some(found) = walker.file.next(&mut at)? {
        if found.section < section {
            let why = "platform, initialization and directive headers are not in this order";
            return Err(IgvmError::header(found.at, "variable", why));
        }
        section = found.section;
        if found.header.mask().is_none_or(|mask| mask & platform.mask != 0) {
            walker.header(found)?;
        }
    }
    walker.flush()
}

struct Walker<'a, R> {
    file: &'a mut IgvmFile<R>,
    platform: Platform,
    zero_pages: ZeroPages,
    visit: &'a mut dyn FnMut(Step) -> Result<(), IgvmError>,
    run: Option<Run>,
    areas: BTreeMap<u32, Area>,
    pages: u64,
}

/// Pages that will be one import.
struct Run {
    start: Gpa,
    pages: u64,
    kind: PageKind,
    tag: &'static str,
    /// Offsets and lengths of the bytes in the file; none for pages of zeroes.
    pieces: Vec<(u64, u64)>,
}

struct Area {
    bytes: u64,
    /// Where in the file its initial bytes are, 0 for none.
    file_offset: u64,
    parameters: Vec<Parameter>,
    inserted: bool,
}

impl<R: Read + Seek> Walker<'_, R> {
    fn header(&mut self, found: Found) -> Result<(), IgvmError> {
        let at = found.at;
        match found.header {
            Header::PageData(page) => self.page_data(at, page),
            Header::ParameterArea(area) => self.area(at, area),
            Header::Parameter(kind, parameter) => {
                let area = self.area_of(at, parameter.parameter_area_index)?;
                if u64::from(parameter.byte_offset) >= area.bytes {
                    let (offset, bytes) = (parameter.byte_offset, area.bytes);
                    let why = format!("offset {offset:#x} is not in its area of {bytes:#x} bytes");
                    return Err(IgvmError::header(at, "parameter", why));
                }
                area.parameters.push(Parameter { kind, offset: parameter.byte_offset });
                Ok(())
            }
            Header::ParameterInsert(insert) => self.insert(at, insert),
            Header::VpContext(context) => self.vp_context(at, context),
            Header::RequiredMemory(memory) => self.required_memory(at, memory),
            Header::ErrorRange(_) => self.step(Step::ErrorRange { at }),
            Header::SnpIdBlock(block) => self.step(Step::IdBlock(block)),
            Header::GuestPolicy(policy) => self.step(Step::Policy(policy.policy)),
            Header::Platform(_) | Header::Ignored => Ok(()),
        }
    }

    fn step(&mut self, step: Step) -> Result<(), IgvmError> {
        self.flush()?;
        (self.visit)(step)
    }

    fn page_data(&mut self, at: u64, page: IGVM_VHS_PAGE_DATA) -> Result<(), IgvmError> {
        let refused = |why: String| Err(IgvmError::header(at, "PAGE_DATA", why));
        let flags = page.flags;
        if flags.reserved() != 0 || page.reserved != 0 {
            return refused("a reserved field is not zero".to_owned());
        }
        let bytes = if flags.is_2mb_page() { LARGE_PAGE } else { PAGE_SIZE };
        if !page.gpa.is_multiple_of(bytes) {
            return refused(format!("address {:#x} is not a multiple of {bytes:#x}", page.gpa));
        }
        let tdx = self.platform.kind == Some(PlatformKind::Tdx);
        let has_data = page.file_offset != 0;
        let (kind, tag) = match page.data_type {
            _ if flags.shared() => (PageKind::Shared, "IGVM shared page"),
            // TDX has no such pages: there they are as any other.
            IgvmPageDataType::SECRETS if !tdx => (PageKind::Secrets, "IGVM secrets page"),
            IgvmPageDataType::CPUID_DATA | IgvmPageDataType::CPUID_XF if !tdx => {
                (PageKind::Cpuid, "IGVM CPUID page")
            }
            IgvmPageDataType::NORMAL
            | IgvmPageDataType::SECRETS
            | IgvmPageDataType::CPUID_DATA
            | IgvmPageDataType::CPUID_XF => {
                if flags.unmeasured() {
                    (PageKind::Unmeasured, "IGVM unmeasured page")
                } else if !has_data && !tdx && self.zero_pages == ZeroPages::Native {
                    (PageKind::Zero, "IGVM page of zeroes")
                } else {
                    (PageKind::Normal, "IGVM page data")
                }
            }
            other => return refused(format!("page data type {:#x} is not known", other.0)),
        };
        let mut offset = u64::from(page.file_offset);
        for gpa in (0..bytes).step_by(4096).map(|index| Gpa(page.gpa + index)) {
            self.page(at, gpa, kind, tag, has_data.then_some(offset))?;
            offset += PAGE_SIZE;
        }
        Ok(())
    }

    /// One page more, in the current run if it fits there.
    fn page(
        &mut self,
        at: u64,
        gpa: Gpa,
        kind: PageKind,
        tag: &'static str,
        offset: Option<u64>,
    ) -> Result<(), IgvmError> {
        self.count(1)?;
        // The page's own end must be an address as well.
        GpaRange::new(gpa, PageCount(1))
            .map_err(|error| IgvmError::header(at, "PAGE_DATA", error.to_string()))?;
        let fits = self.run.as_ref().is_some_and(|run| {
            run.kind == kind
                && run.pages < LONGEST
                && run.start.checked_add(run.pages * PAGE_SIZE) == Some(gpa)
                && run.pieces.is_empty() == offset.is_none()
        });
        if !fits {
            self.flush()?;
        }
        let run = self.run.get_or_insert(Run { start: gpa, pages: 0, kind, tag, pieces: vec![] });
        run.pages += 1;
        match (offset, run.pieces.last_mut()) {
            (Some(offset), Some((start, length))) if *start + *length == offset => {
                *length += PAGE_SIZE;
            }
            (Some(offset), _) => run.pieces.push((offset, PAGE_SIZE)),
            (None, _) => {}
        }
        Ok(())
    }

    fn count(&mut self, pages: u64) -> Result<(), IgvmError> {
        self.pages = self.pages.saturating_add(pages);
        if self.pages > MOST_PAGES {
            return Err(IgvmError::TooManyPages { limit: MOST_PAGES });
        }
        Ok(())
    }

    /// Ends the current run: reads its bytes and gives it away.
    fn flush(&mut self) -> Result<(), IgvmError> {
        let Some(run) = self.run.take() else { return Ok(()) };
        let range = GpaRange::new(run.start, PageCount(run.pages))
            .map_err(|error| IgvmError::header(0, "PAGE_DATA", error.to_string()))?;
        let contents = self.contents(range.len(), &run.pieces)?;
        let import = Import { range, kind: run.kind, contents, tag: run.tag };
        (self.visit)(Step::Pages { import, parameters: Vec::new() })
    }

    fn contents(&mut self, length: u64, pieces: &[(u64, u64)]) -> Result<Contents, IgvmError> {
        if pieces.is_empty() {
            return Ok(Contents::Zeroes);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        for (offset, length) in pieces {
            self.file.read(*offset, *length, &mut bytes)?;
        }
        Ok(Contents::Bytes(bytes.into()))
    }

    fn area(&mut self, at: u64, area: IGVM_VHS_PARAMETER_AREA) -> Result<(), IgvmError> {
        let refused = |why: String| Err(IgvmError::header(at, "PARAMETER_AREA", why));
        let (index, bytes) = (area.parameter_area_index, area.number_of_bytes);
        if bytes == 0 || !bytes.is_multiple_of(PAGE_SIZE) {
            return refused(format!("{bytes:#x} bytes are not a whole number of pages"));
        }
        if self.areas.contains_key(&index) {
            return refused(format!("area {index} is there already"));
        }
        let file_offset = area.file_offset.into();
        let area = Area { bytes, file_offset, parameters: Vec::new(), inserted: false };
        self.areas.insert(index, area);
        Ok(())
    }

    /// An area that has been declared and not yet been inserted.
    fn area_of(&mut self, at: u64, index: u32) -> Result<&mut Area, IgvmError> {
        let missing =
            || IgvmError::header(at, "parameter", format!("there is no parameter area {index}"));
        let area = self.areas.get_mut(&index).ok_or_else(missing)?;
        if area.inserted {
            let why = format!("parameter area {index} has been inserted already");
            return Err(IgvmError::header(at, "parameter", why));
        }
        Ok(area)
    }

    fn insert(&mut self, at: u64, insert: IGVM_VHS_PARAMETER_INSERT) -> Result<(), IgvmError> {
        let area = self.area_of(at, insert.parameter_area_index)?;
        area.inserted = true;
        let (bytes, offset) = (area.bytes, area.file_offset);
        let parameters = std::mem::take(&mut area.parameters);
        self.count(bytes / PAGE_SIZE)?;
        let range = GpaRange::from_bytes(Gpa(insert.gpa), bytes)
            .map_err(|error| IgvmError::header(at, "PARAMETER_INSERT", error.to_string()))?;
        let pieces: &[_] = if offset == 0 { &[] } else { &[(offset, bytes)] };
        let contents = self.contents(bytes, pieces)?;
        let (kind, tag) = (PageKind::Unmeasured, "IGVM parameter area");
        let import = Import { range, kind, contents, tag };
        self.step(Step::Pages { import, parameters })
    }

    fn vp_context(&mut self, at: u64, context: IGVM_VHS_VP_CONTEXT) -> Result<(), IgvmError> {
        // TDX resets vCPUs itself, and a plain guest's are not a VMSA.
        if self.platform.kind != Some(PlatformKind::Snp) {
            return Ok(());
        }
        let gpa = Gpa(context.gpa.get());
        if !gpa.is_page_aligned() {
            let why = format!("address {gpa} is not a multiple of 4096");
            return Err(IgvmError::header(at, "VP_CONTEXT", why));
        }
        let mut bytes = Vec::with_capacity(4096);
        self.file.read(context.file_offset.into(), PAGE_SIZE, &mut bytes)?;
        let mut page = Box::new(VmsaPage([0; 4096]));
        page.0.copy_from_slice(&bytes);
        self.count(1)?;
        self.step(Step::VpContext { at, gpa, index: context.vp_index, page })
    }

    fn required_memory(
        &mut self,
        at: u64,
        memory: IGVM_VHS_REQUIRED_MEMORY,
    ) -> Result<(), IgvmError> {
        let range = GpaRange::from_bytes(Gpa(memory.gpa), memory.number_of_bytes.into())
            .map_err(|error| IgvmError::header(at, "REQUIRED_MEMORY", error.to_string()))?;
        self.step(Step::RequiredMemory(range))
    }
}
