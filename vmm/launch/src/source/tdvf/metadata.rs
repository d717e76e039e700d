//! TDVF metadata: where a firmware image wants its parts (Intel TDX Virtual Firmware Design
//! Guide, "TDVF Metadata").

use crate::source::guid_table::{GuidTable, GuidTableError};
use crate::{Digest384, Gpa, GpaError, GpaRange, Guid};

/// The entry of the image's GUID table that holds the descriptor's distance from the end.
const TDX_METADATA: Guid = Guid::new(0xe47a6535_984a_4798_865e_4685a7bf8ec2);

const DESCRIPTOR: usize = 16;
const SECTION: usize = 32;

const MR_EXTEND: u32 = 1;
const PAGE_AUG: u32 = 2;

/// A trust domain starts in 32-bit mode: nothing that it starts with can be above.
const LIMIT: Gpa = Gpa(1 << 32);

/// Purpose of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionKind {
    /// Boot firmware volume: the code.
    Bfv,
    /// Configuration firmware volume: the variable store.
    Cfv,
    /// The TD hand-off block, which the VMM writes.
    TdHob,
    /// Zeroes: heap, stack, mailbox, page tables.
    TempMem,
}

impl SectionKind {
    const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            0 => Some(Self::Bfv),
            1 => Some(Self::Cfv),
            2 => Some(Self::TdHob),
            3 => Some(Self::TempMem),
            _ => None,
        }
    }

    /// Whether the section's bytes come from the image.
    #[must_use]
    pub const fn has_data(self) -> bool {
        matches!(self, Self::Bfv | Self::Cfv)
    }

    /// The section in words, as it appears in plans.
    #[must_use]
    pub const fn tag(self) -> &'static str {
        match self {
            Self::Bfv => "TDVF BFV section",
            Self::Cfv => "TDVF CFV section",
            Self::TdHob => "TDVF TD_HOB section",
            Self::TempMem => "TDVF TEMP_MEM section",
        }
    }
}

/// One section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section<'a> {
    /// Purpose.
    pub kind: SectionKind,
    /// Range in guest memory.
    pub range: GpaRange,
    /// Its bytes in the image: as many as the range has for BFV and CFV, else none.
    pub data: &'a [u8],
    /// Whether MRTD covers the contents (attribute MR.EXTEND).
    pub measured: bool,
    /// Whether the pages are left for the guest to accept, and not added (attribute PAGE.AUG).
    pub augmented: bool,
}

/// The metadata of a TDVF image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tdvf<'a> {
    /// The sections, in the order of the table, which is the order in which their pages are added.
    pub sections: Vec<Section<'a>>,
}

/// Why an image is not a TDVF that can be measured. Offsets are bytes from the start of the image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TdvfError {
    #[error("could not read the firmware's GUID table")]
    Table(#[from] GuidTableError),
    #[error(
        "not a TDVF: the firmware's GUID table does not have a TDX metadata entry ({TDX_METADATA})"
    )]
    NoMetadata,
    #[error("the TDX metadata entry has {0} bytes instead of 4")]
    EntryLength(usize),
    #[error("the TDX metadata should begin {back:#x} bytes before the end of {size:#x} bytes")]
    OutOfImage { back: u32, size: usize },
    #[error("the TDX metadata at offset {at:#x} begins with {found:02x?} instead of \"TDVF\"")]
    Signature { at: usize, found: [u8; 4] },
    #[error("the TDX metadata at offset {at:#x} is of version {version}; version 1 is known")]
    Version { at: usize, version: u32 },
    #[error(
        "the TDX metadata at offset {at:#x} is {length} bytes long, but {count} sections need {}",
        DESCRIPTOR as u64 + SECTION as u64 * u64::from(*count)
    )]
    Length { at: usize, length: u32, count: u32 },
    #[error("the TDX metadata at offset {at:#x} ends behind the image: {count} sections")]
    Truncated { at: usize, count: u32 },
    #[error("section {index} at offset {at:#x} is of type {kind}; types 0 to 3 are known")]
    Kind { index: usize, at: usize, kind: u32 },
    #[error("section {index} at offset {at:#x} has attributes {bits:#x}; bits 0 and 1 are known")]
    Attributes { index: usize, at: usize, bits: u32 },
    #[error("section {index} ({tag}) at offset {at:#x}: could not be placed")]
    Range {
        index: usize,
        at: usize,
        tag: &'static str,
        #[source]
        source: GpaError,
    },
    #[error("section {index} ({tag}) at offset {at:#x} is at {range}, which is not below 4 GiB")]
    Above4Gib { index: usize, at: usize, tag: &'static str, range: GpaRange },
    #[error("section {index} ({tag}) at offset {at:#x} has no memory")]
    Empty { index: usize, at: usize, tag: &'static str },
    #[error(
        "section {index} ({tag}) at offset {at:#x} has {raw:#x} bytes for {memory:#x} bytes of \
         memory; calculators and launchers disagree about the rest, so that there is no one MRTD"
    )]
    RawSize { index: usize, at: usize, tag: &'static str, raw: u32, memory: u64 },
    #[error(
        "section {index} ({tag}) at offset {at:#x} has its bytes at {offset:#x}..{:#x} of an image \
         of {size:#x}: this may be the code half of a firmware whose variable store is a second file",
        u64::from(*offset) + u64::from(*raw)
    )]
    DataOutOfImage {
        index: usize,
        at: usize,
        tag: &'static str,
        offset: u32,
        raw: u32,
        size: usize,
    },
    #[error(
        "section {index} ({tag}) at offset {at:#x} is measured but not added; only added pages can be"
    )]
    MeasuredNotAdded { index: usize, at: usize, tag: &'static str },
    #[error("section {index} ({tag}) at offset {at:#x} has contents, but its pages are not added")]
    ContentsNotAdded { index: usize, at: usize, tag: &'static str },
    #[error("section {index} ({tag}) at offset {at:#x} shares pages with section {other}")]
    Overlap { index: usize, at: usize, tag: &'static str, other: usize },
    #[error("the TDX metadata has {0} TD_HOB sections; exactly one is needed")]
    HobCount(usize),
    #[error("the TDX metadata does not have a BFV section, which has the code")]
    NoBfv,
}

impl<'a> Tdvf<'a> {
    /// Reads the metadata of a firmware image.
    ///
    /// # Errors
    /// If there is none, or if it says anything that a launcher would have to guess at.
    pub fn parse(image: &'a [u8]) -> Result<Self, TdvfError> {
        let at = find(image)?;
        let truncated = |count| TdvfError::Truncated { at, count };
        let descriptor =
            image.get(at..).and_then(<[u8]>::first_chunk::<DESCRIPTOR>).ok_or(truncated(0))?;
        let [signature, length, version, count] = words(descriptor);
        if signature.to_le_bytes() != *b"TDVF" {
            return Err(TdvfError::Signature { at, found: signature.to_le_bytes() });
        }
        if version != 1 {
            return Err(TdvfError::Version { at, version });
        }
        if u64::from(length) != DESCRIPTOR as u64 + SECTION as u64 * u64::from(count) {
            return Err(TdvfError::Length { at, length, count });
        }
        let table = usize::try_from(length)
            .ok()
            .and_then(|length| at.checked_add(length))
            .and_then(|end| image.get(at + DESCRIPTOR..end))
            .ok_or(truncated(count))?;
        let (entries, _) = table.as_chunks::<SECTION>();
        let mut sections = Vec::with_capacity(entries.len());
        for (index, entry) in entries.iter().enumerate() {
            let section = section(image, index, at + DESCRIPTOR + SECTION * index, entry)?;
            sections.push(section);
        }
        check_whole(&sections, at)?;
        Ok(Self { sections })
    }

    /// The TD_HOB section.
    #[must_use]
    pub fn hob(&self) -> Option<&Section<'a>> {
        self.sections.iter().find(|section| section.kind == SectionKind::TdHob)
    }

    /// Digest that the firmware extends into RTMR0 for its variable store, if there is one: SHA-384 of the
    /// CFV section as it is in the image.
    #[must_use]
    pub fn cfv_event_digest(&self) -> Option<Digest384> {
        let cfv = self.sections.iter().find(|section| section.kind == SectionKind::Cfv)?;
        Some(Digest384::of(cfv.data))
    }
}

/// The offset of the descriptor.
fn find(image: &[u8]) -> Result<usize, TdvfError> {
    let table = GuidTable::parse(image)?;
    let entry = table.find(TDX_METADATA).ok_or(TdvfError::NoMetadata)?;
    let back = entry.try_into().map_err(|_| TdvfError::EntryLength(entry.len()))?;
    let back = u32::from_le_bytes(back);
    usize::try_from(back)
        .ok()
        .and_then(|back| image.len().checked_sub(back))
        .ok_or(TdvfError::OutOfImage { back, size: image.len() })
}

fn words<const N: usize, const W: usize>(bytes: &[u8; N]) -> [u32; W] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|index| words.get(index).map_or(0, |word| u32::from_le_bytes(*word)))
}

fn section<'a>(
    image: &'a [u8],
    index: usize,
    at: usize,
    entry: &[u8; SECTION],
) -> Result<Section<'a>, TdvfError> {
    let [offset, raw, gpa_low, gpa_high, memory_low, memory_high, kind, bits] = words(entry);
    let wide = |low, high| u64::from(low) | u64::from(high) << 32;
    let memory = wide(memory_low, memory_high);
    let kind = SectionKind::from_raw(kind).ok_or(TdvfError::Kind { index, at, kind })?;
    let tag = kind.tag();
    if bits & !(MR_EXTEND | PAGE_AUG) != 0 {
        return Err(TdvfError::Attributes { index, at, bits });
    }
    let measured = bits & MR_EXTEND != 0;
    let augmented = bits & PAGE_AUG != 0;
    if measured && augmented {
        return Err(TdvfError::MeasuredNotAdded { index, at, tag });
    }
    if augmented && kind != SectionKind::TempMem {
        return Err(TdvfError::ContentsNotAdded { index, at, tag });
    }
    let range = GpaRange::from_bytes(Gpa(wide(gpa_low, gpa_high)), memory)
        .map_err(|source| TdvfError::Range { index, at, tag, source })?;
    if range.is_empty() {
        return Err(TdvfError::Empty { index, at, tag });
    }
    if range.end() > LIMIT {
        return Err(TdvfError::Above4Gib { index, at, tag, range });
    }
    if u64::from(raw) != if kind.has_data() { memory } else { 0 } {
        return Err(TdvfError::RawSize { index, at, tag, raw, memory });
    }
    let data = if kind.has_data() { slice(image, offset, raw) } else { Some(&[][..]) }
        .ok_or(TdvfError::DataOutOfImage { index, at, tag, offset, raw, size: image.len() })?;
    Ok(Section { kind, range, data, measured, augmented })
}

fn slice(image: &[u8], offset: u32, length: u32) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    image.get(start..start.checked_add(usize::try_from(length).ok()?)?)
}

/// Checks of all sections together.
fn check_whole(sections: &[Section<'_>], at: usize) -> Result<(), TdvfError> {
    let mut placed: Vec<(GpaRange, usize)> =
        sections.iter().enumerate().map(|(index, section)| (section.range, index)).collect();
    placed.sort_unstable();
    for pair in placed.windows(2) {
        if let [(low, first), (high, second)] = *pair
            && low.overlaps(high)
        {
            let (other, index) = (first.min(second), first.max(second));
            let tag = sections[index].kind.tag();
            let at = at + DESCRIPTOR + SECTION * index;
            return Err(TdvfError::Overlap { index, at, tag, other });
        }
    }
    let count = |kind| sections.iter().filter(|section| section.kind == kind).count();
    match count(SectionKind::TdHob) {
        1 => {}
        other => return Err(TdvfError::HobCount(other)),
    }
    if count(SectionKind::Bfv) == 0 {
        return Err(TdvfError::NoBfv);
    }
    Ok(())
}
