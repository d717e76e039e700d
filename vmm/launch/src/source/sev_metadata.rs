//! The SEV metadata of an OVMF image: what has to be in guest memory besides the image.
//!
//! Source: edk2, `OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm`.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::Guid;
use super::guid_table::{GuidTable, GuidTableError};
use crate::{Gpa, GpaError, GpaRange};

/// Data: offset of the SEV metadata, counted back from the end of the image.
const SEV_METADATA: Guid = Guid::new(0xdc886566_984a_4798_a75e_5585a7bf67cc);
/// Data: where all processors but the first start.
const SEV_ES_RESET_BLOCK: Guid = Guid::new(0x00f771de_1a7e_4fcb_890e_68c77e2fb44e);
/// Data: address and size of the area for kernel hashes; both zero where there is none.
const SEV_HASH_TABLE: Guid = Guid::new(0x7255371f_3a3b_4b04_927b_1da6efa8d454);

/// More memory than any firmware asks for: 256 MiB. Sizes that underflowed have been published.
const MAX_PAGES: u64 = 1 << 16;

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    /// Of header and sections, in bytes.
    length: U32,
    version: U32,
    sections: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Section {
    gpa: U32,
    size: U32,
    section_type: U32,
}

#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Area {
    gpa: U32,
    size: U32,
}

/// Purpose of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionType {
    /// Memory that the firmware uses before it can accept any.
    SecMem,
    /// The secrets page.
    Secrets,
    /// The CPUID page.
    Cpuid,
    /// The calling area of an SVSM.
    SvsmCallingArea,
    /// The page of kernel hashes.
    KernelHashes,
}

impl SectionType {
    /// The type that an entry names, if it is known.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::SecMem),
            2 => Some(Self::Secrets),
            3 => Some(Self::Cpuid),
            4 => Some(Self::SvsmCallingArea),
            0x10 => Some(Self::KernelHashes),
            _ => None,
        }
    }

    /// The number of the type in an entry.
    #[must_use]
    pub const fn code(self) -> u32 {
        match self {
            Self::SecMem => 1,
            Self::Secrets => 2,
            Self::Cpuid => 3,
            Self::SvsmCallingArea => 4,
            Self::KernelHashes => 0x10,
        }
    }
}

/// One section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SevSection {
    /// Range in guest memory. May be empty.
    pub range: GpaRange,
    /// Purpose.
    pub section_type: SectionType,
    /// Offset of its entry in the image, for errors.
    pub offset: usize,
}

/// Place where the firmware looks for kernel hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashTableArea {
    /// The first byte.
    pub gpa: Gpa,
    /// Bytes.
    pub size: u32,
}

/// SEV metadata of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SevMetadata {
    /// In the order of the table, which is the order in which they are measured.
    pub sections: Vec<SevSection>,
    /// Start address of all processors but the first.
    pub ap_reset: Option<u32>,
    /// Place of kernel hashes, if the firmware checks them.
    pub hash_table: Option<HashTableArea>,
}

/// Why an image has no SEV metadata that can be used. Offsets count from the start of the image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SevMetadataError {
    #[error(transparent)]
    Table(#[from] GuidTableError),
    #[error("the GUID table has no SEV metadata: this firmware was built without SEV-SNP support")]
    None,
    #[error("entry {guid} of the GUID table has {found} bytes of data instead of {expected}")]
    EntrySize { guid: Guid, found: usize, expected: usize },
    #[error(
        "the SEV metadata is said to start {0:#x} bytes before the end of the image, which {1}"
    )]
    Place(u32, &'static str),
    #[error(
        "the SEV metadata at offset {offset:#x} begins with \"{}\" instead of the signature \"ASEV\"",
        found.escape_ascii()
    )]
    Signature { offset: usize, found: [u8; 4] },
    #[error("the SEV metadata at offset {offset:#x} has version {found}, only version 1 is known")]
    Version { offset: usize, found: u32 },
    #[error(
        "the SEV metadata at offset {offset:#x} says that it has {length} bytes and {sections} \
         sections, which does not fit the {available} bytes up to the end of the image"
    )]
    Length { offset: usize, length: u32, sections: u32, available: usize },
    #[error(
        "unknown section type {section_type:#x} at offset {offset:#x}: what is not known cannot be \
         measured"
    )]
    SectionType { offset: usize, section_type: u32 },
    #[error("the section at offset {offset:#x} is not page aligned: {source}")]
    Unaligned { offset: usize, source: GpaError },
    #[error(
        "the section at offset {offset:#x} has {pages} pages, a {section_type:?} section has one"
    )]
    NotOnePage { offset: usize, pages: u64, section_type: SectionType },
    #[error("with the section at offset {offset:#x} the sections have more than {MAX_PAGES} pages")]
    TooLarge { offset: usize },
    #[error(
        "overlapping sections: {first} of the entry at offset {first_offset:#x}, and {second} of the \
         entry at offset {second_offset:#x}; no launcher can add a page that the guest owns already"
    )]
    Overlap { first: GpaRange, first_offset: usize, second: GpaRange, second_offset: usize },
}

impl SevMetadata {
    /// Reads what the GUID table of `image` leads to.
    ///
    /// # Errors
    /// There is no metadata, or it does not fit the image, or has something that is not known.
    pub fn parse(image: &[u8]) -> Result<Self, SevMetadataError> {
        let table = GuidTable::parse(image)?;
        let from_end = entry::<U32>(&table, SEV_METADATA)?.ok_or(SevMetadataError::None)?.get();
        let hash_table = entry::<Area>(&table, SEV_HASH_TABLE)?
            .map(|area| HashTableArea { gpa: Gpa(area.gpa.get().into()), size: area.size.get() })
            .filter(|area| area.gpa != Gpa(0) || area.size != 0);
        Ok(Self {
            sections: sections(image, from_end)?,
            ap_reset: entry::<U32>(&table, SEV_ES_RESET_BLOCK)?.map(|reset| reset.get()),
            hash_table,
        })
    }
}

impl SevMetadata {
    /// Makes the metadata of sections, each as address, size and type, in the order of the table.
    /// The offsets of errors count these sections from 0.
    ///
    /// # Errors
    /// As for [`Self::parse`].
    pub fn of_sections(sections: impl Iterator<Item = [u32; 3]>) -> Result<Self, SevMetadataError> {
        Ok(Self { sections: checked(sections.zip(0..))?, ap_reset: None, hash_table: None })
    }
}

/// The data of an entry, which has exactly this type's size.
pub(super) fn entry<'a, T: FromBytes + KnownLayout + Immutable + Unaligned>(
    table: &GuidTable<'a>,
    guid: Guid,
) -> Result<Option<&'a T>, SevMetadataError> {
    let read = |data: &'a [u8]| {
        T::ref_from_bytes(data).map_err(|_| SevMetadataError::EntrySize {
            guid,
            found: data.len(),
            expected: size_of::<T>(),
        })
    };
    table.find(guid).map(read).transpose()
}

fn sections(image: &[u8], from_end: u32) -> Result<Vec<SevSection>, SevMetadataError> {
    let offset = usize::try_from(from_end).ok().and_then(|back| image.len().checked_sub(back));
    let offset = offset.ok_or(SevMetadataError::Place(from_end, "is before its start"))?;
    let available = &image[offset..];
    let (header, rest) = Header::ref_from_prefix(available)
        .map_err(|_| SevMetadataError::Place(from_end, "leaves no room for its header"))?;
    if header.signature != *b"ASEV" {
        return Err(SevMetadataError::Signature { offset, found: header.signature });
    }
    if header.version.get() != 1 {
        return Err(SevMetadataError::Version { offset, found: header.version.get() });
    }
    let (length, count) = (header.length.get(), header.sections.get());
    let body = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_sub(size_of::<Header>()))
        .and_then(|length| rest.get(..length));
    let entries = usize::try_from(count)
        .ok()
        .and_then(|count| <[Section]>::ref_from_prefix_with_elems(body?, count).ok());
    let Some((entries, _)) = entries else {
        let available = available.len();
        return Err(SevMetadataError::Length { offset, length, sections: count, available });
    };
    let first = offset + size_of::<Header>();
    let offsets = (first..).step_by(size_of::<Section>());
    let values =
        entries.iter().map(|entry| [entry.gpa.get(), entry.size.get(), entry.section_type.get()]);
    checked(values.zip(offsets))
}

/// Checks sections, each as address, size and type with the place of its entry.
fn checked(
    entries: impl Iterator<Item = ([u32; 3], usize)>,
) -> Result<Vec<SevSection>, SevMetadataError> {
    let mut pages = 0;
    let sections: Vec<_> = entries
        .map(|(values, offset)| section(values, offset, &mut pages))
        .collect::<Result<_, _>>()?;
    disjoint(&sections).map(|()| sections)
}

/// Refuses sections that share a page. Calculators give them a digest, which no guest can have.
fn disjoint(sections: &[SevSection]) -> Result<(), SevMetadataError> {
    let mut ascending: Vec<_> =
        sections.iter().filter(|section| !section.range.is_empty()).collect();
    ascending.sort_by_key(|section| section.range.start());
    let mut neighbours = ascending.windows(2).map(|pair| (pair[0], pair[1]));
    match neighbours.find(|(low, high)| low.range.overlaps(high.range)) {
        None => Ok(()),
        Some((low, high)) => Err(SevMetadataError::Overlap {
            first: low.range,
            first_offset: low.offset,
            second: high.range,
            second_offset: high.offset,
        }),
    }
}

/// Checks one section; `pages` counts those of all sections so far.
fn section(
    [gpa, size, section_type]: [u32; 3],
    offset: usize,
    pages: &mut u64,
) -> Result<SevSection, SevMetadataError> {
    let section_type = SectionType::new(section_type)
        .ok_or(SevMetadataError::SectionType { offset, section_type })?;
    let range = GpaRange::from_bytes(Gpa(gpa.into()), size.into())
        .map_err(|source| SevMetadataError::Unaligned { offset, source })?;
    // QEMU and calculators treat several of them differently.
    let single = matches!(section_type, SectionType::Secrets | SectionType::Cpuid);
    if single && range.pages().0 != 1 {
        return Err(SevMetadataError::NotOnePage { offset, pages: range.pages().0, section_type });
    }
    *pages += range.pages().0;
    if *pages > MAX_PAGES {
        return Err(SevMetadataError::TooLarge { offset });
    }
    Ok(SevSection { range, section_type, offset })
}
