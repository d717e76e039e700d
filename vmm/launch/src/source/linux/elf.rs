//! ELF kernels: an unpacked vmlinux, or anything with a PVH entry.
//!
//! Sources: System V ABI, "ELF-64 Object File Format"; Xen's include/public/elfnote.h for
//! XEN_ELFNOTE_PHYS32_ENTRY.

use crate::{Bytes, Gpa, PAGE_SIZE};

const MAGIC: &[u8] = b"\x7fELF";
const ELFCLASS64: u8 = 2;
const ELFDATA2LSB: u8 = 1;
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PROGRAM_HEADER: usize = 56;
const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;

/// Why a file is not an ELF kernel that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// The magic number is missing.
    #[error("no ELF magic number at the start of the file")]
    Magic,
    /// Not a little-endian 64-bit executable for x86-64.
    #[error("an ELF file, but not an executable for x86-64 (class, data, type or machine differ)")]
    NotAnExecutable,
    /// A table or a segment reaches past the end of the file.
    #[error("{what} at offset {offset:#x} reaches past the end of the file ({found} bytes)")]
    Truncated {
        /// Name of the part.
        what: &'static str,
        /// Offset in the file.
        offset: u64,
        /// The length of the file.
        found: u64,
    },
    /// A segment's place in memory cannot be.
    #[error(
        "program header {index}: {bytes:#x} bytes at {start} cannot be, with {file:#x} in the file"
    )]
    Segment {
        /// Which one.
        index: usize,
        /// Its physical address.
        start: Gpa,
        /// Its length in memory.
        bytes: u64,
        /// Its length in the file.
        file: u64,
    },
    /// Nothing to load.
    #[error("no loadable segment")]
    NothingToLoad,
    /// A note is broken.
    #[error("the note segment at offset {0:#x} is malformed")]
    Note(u64),
}

/// How an ELF kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfEntry {
    /// In 32-bit protected mode without paging, by the PVH boot protocol.
    Pvh(Gpa),
    /// In long mode, by the Linux 64-bit boot protocol; the ELF header's entry.
    Linux64(Gpa),
}

/// A loadable segment.
#[derive(Clone, Debug)]
pub struct ElfSegment {
    /// Its physical address, not always page aligned.
    pub start: Gpa,
    /// Its bytes from the file.
    pub contents: Bytes,
    /// Its length in memory; what the file does not have is zeroes.
    pub bytes: u64,
}

/// An ELF kernel whose headers have been checked.
#[derive(Clone, Debug)]
pub struct ElfKernel {
    /// PVH where the file has the note.
    pub entry: ElfEntry,
    /// By address, without overlaps.
    pub segments: Vec<ElfSegment>,
}

impl ElfKernel {
    /// Whether `file` claims to be ELF.
    #[must_use]
    pub fn is_magic(file: &[u8]) -> bool {
        file.starts_with(MAGIC)
    }

    /// Reads and checks the headers.
    ///
    /// # Errors
    /// If the file is no x86-64 executable, or if its headers contradict themselves or the length
    /// of the file.
    pub fn parse(file: &Bytes) -> Result<Self, ElfError> {
        if !Self::is_magic(file) {
            return Err(ElfError::Magic);
        }
        let header = file.get(..64).ok_or(truncated("the ELF header", 0, file))?;
        let kind = (u16_at(header, 16), u16_at(header, 18));
        if header[4] != ELFCLASS64
            || header[5] != ELFDATA2LSB
            || kind != (ET_EXEC, EM_X86_64)
            || usize::from(u16_at(header, 54)) != PROGRAM_HEADER
        {
            return Err(ElfError::NotAnExecutable);
        }
        let (offset, count) = (u64_at(header, 32), usize::from(u16_at(header, 56)));
        let table = part(file, offset, (count * PROGRAM_HEADER) as u64).ok_or(truncated(
            "the program header table",
            offset,
            file,
        ))?;

        let mut entry = None;
        let mut segments = Vec::new();
        for (index, header) in table.chunks_exact(PROGRAM_HEADER).enumerate() {
            match u32_at(header, 0) {
                PT_LOAD => segments.extend(segment(file, index, header)?),
                PT_NOTE => {
                    let (offset, bytes) = (u64_at(header, 8), u64_at(header, 32));
                    let notes = part(file, offset, bytes).ok_or(truncated(
                        "a note segment",
                        offset,
                        file,
                    ))?;
                    entry = entry.or(pvh_entry(&notes).ok_or(ElfError::Note(offset))?);
                }
                _ => {}
            }
        }
        let entry = entry.map_or(ElfEntry::Linux64(Gpa(u64_at(header, 24))), ElfEntry::Pvh);
        Ok(Self { entry, segments: in_order(segments)? })
    }

    /// The first address behind the kernel.
    #[must_use]
    pub fn end(&self) -> Gpa {
        // Ends were checked when the segments were read.
        self.segments.last().map_or(Gpa(0), |last| Gpa(last.start.0 + last.bytes))
    }

    /// The first address of the kernel.
    #[must_use]
    pub fn start(&self) -> Gpa {
        self.segments.first().map_or(Gpa(0), |first| first.start)
    }
}

/// The segment of a program header; `None` if it takes no memory.
fn segment(file: &Bytes, index: usize, header: &[u8]) -> Result<Option<ElfSegment>, ElfError> {
    let (offset, in_file) = (u64_at(header, 8), u64_at(header, 32));
    let (start, bytes) = (Gpa(u64_at(header, 24)), u64_at(header, 40));
    if bytes == 0 && in_file == 0 {
        return Ok(None);
    }
    // The last page of the address space stays out, so that rounding up cannot overflow.
    let fits = start.0.checked_add(bytes).is_some_and(|end| end <= u64::MAX - PAGE_SIZE);
    if in_file > bytes || !fits {
        return Err(ElfError::Segment { index, start, bytes, file: in_file });
    }
    let contents = part(file, offset, in_file).ok_or(truncated("a segment", offset, file))?;
    Ok(Some(ElfSegment { start, contents, bytes }))
}

fn in_order(mut segments: Vec<ElfSegment>) -> Result<Vec<ElfSegment>, ElfError> {
    segments.sort_by_key(|segment| segment.start);
    for (index, pair) in segments.windows(2).enumerate() {
        if pair[0].start.0 + pair[0].bytes > pair[1].start.0 {
            let ElfSegment { start, contents, bytes } = &pair[1];
            let (start, bytes, file) = (*start, *bytes, contents.len() as u64);
            return Err(ElfError::Segment { index: index + 1, start, bytes, file });
        }
    }
    if segments.is_empty() { Err(ElfError::NothingToLoad) } else { Ok(segments) }
}

/// The PVH entry among notes; the outer `None` stands for malformed ones.
#[allow(clippy::option_option, reason = "the outer one is the error, for `?`")]
fn pvh_entry(mut notes: &[u8]) -> Option<Option<Gpa>> {
    while !notes.is_empty() {
        let header = notes.first_chunk::<12>()?;
        let padded = |at| usize::try_from(u32_at(header, at)).ok()?.checked_next_multiple_of(4);
        let (name_len, desc_len) = (padded(0)?, padded(4)?);
        let name = notes.get(12..)?.get(..name_len)?;
        let rest = notes.get(12 + name_len..)?;
        // The padding behind the last note may be missing.
        let desc = rest.get(..desc_len.min(rest.len()))?;
        if u32_at(header, 8) == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
            // Linux has 8 bytes there, others 4; the entry is below 4 GiB.
            return desc.first_chunk().map(|entry| Some(Gpa(u32::from_le_bytes(*entry).into())));
        }
        notes = rest.get(desc_len..).unwrap_or_default();
    }
    Some(None)
}

fn truncated(what: &'static str, offset: u64, file: &[u8]) -> ElfError {
    ElfError::Truncated { what, offset, found: file.len() as u64 }
}

fn part(file: &Bytes, offset: u64, bytes: u64) -> Option<Bytes> {
    let start = usize::try_from(offset).ok()?;
    file.slice(start..start.checked_add(usize::try_from(bytes).ok()?)?)
}

// The callers' headers are long enough for the offsets they ask for.
fn u16_at(header: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([header[at], header[at + 1]])
}

fn u32_at(header: &[u8], at: usize) -> u32 {
    u32::from(u16_at(header, at)) | u32::from(u16_at(header, at + 2)) << 16
}

fn u64_at(header: &[u8], at: usize) -> u64 {
    u64::from(u32_at(header, at)) | u64::from(u32_at(header, at + 4)) << 32
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A kernel of two segments: text in the file, and memory behind it; a PVH note if asked for.
    pub(crate) fn kernel(pvh: bool) -> Vec<u8> {
        let mut file = vec![0; 0x1000];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        put(&mut file, 16, &[2, 0, 62, 0]);
        put(&mut file, 24, &0x10_0040_u64.to_le_bytes());
        put(&mut file, 32, &64_u64.to_le_bytes());
        put(&mut file, 54, &[56, 0, 3, 0]);
        program_header(&mut file, 0, PT_LOAD, [0x800, 0x10_0000, 0x80, 0x80]);
        program_header(&mut file, 1, PT_LOAD, [0x880, 0x10_0180, 0x10, 0x4000]);
        program_header(&mut file, 2, PT_NOTE, [0x900, 0, 20, 20]);
        let note = if pvh { XEN_ELFNOTE_PHYS32_ENTRY } else { 3 };
        let words = [4, 4, note, u32::from_le_bytes(*b"Xen\0"), 0x10_0020];
        for (at, word) in words.into_iter().enumerate() {
            put(&mut file, 0x900 + 4 * at, &word.to_le_bytes());
        }
        file[0x800..0x890].fill(0x90);
        file
    }

    fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
        file[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn program_header(file: &mut [u8], index: usize, kind: u32, fields: [u64; 4]) {
        let [offset, start, in_file, bytes] = fields;
        let at = 64 + index * PROGRAM_HEADER;
        put(file, at, &kind.to_le_bytes());
        for (field, value) in [(8, offset), (24, start), (32, in_file), (40, bytes)] {
            put(file, at + field, &value.to_le_bytes());
        }
    }

    #[test]
    fn a_pvh_note_beats_the_entry_of_the_header() {
        let kernel_of = |pvh| ElfKernel::parse(&kernel(pvh).into()).unwrap();
        assert_eq!(kernel_of(true).entry, ElfEntry::Pvh(Gpa(0x10_0020)));
        assert_eq!(kernel_of(false).entry, ElfEntry::Linux64(Gpa(0x10_0040)));
        assert_eq!(kernel_of(false).end(), Gpa(0x10_4180));
    }

    #[test]
    fn broken_files_are_refused() {
        let broken = |at: usize, bytes: &[u8]| {
            let mut file = kernel(true);
            put(&mut file, at, bytes);
            ElfKernel::parse(&file.into()).unwrap_err()
        };
        assert_eq!(broken(0, b"?"), ElfError::Magic);
        assert_eq!(broken(18, &[3, 0]), ElfError::NotAnExecutable);
        assert!(matches!(broken(56, &[0xff]), ElfError::Truncated { .. }));
        assert_eq!(broken(56, &[0]), ElfError::NothingToLoad);
        // A segment larger in the file than in memory; one that overlaps; one that wraps.
        assert!(matches!(broken(64 + 32, &[0x81]), ElfError::Segment { index: 0, .. }));
        assert!(matches!(broken(64 + 41, &[2]), ElfError::Segment { index: 1, .. }));
        assert!(matches!(broken(64 + 24, &[0xff; 8]), ElfError::Segment { index: 0, .. }));
        assert_eq!(broken(0x900, &[0xff; 4]), ElfError::Note(0x900));
    }

    proptest! {
        #[test]
        fn any_change_is_refused_or_stays_inside_the_file(
            at in 0_usize..0xa00, value: u8, cut in 0_usize..0x1000,
        ) {
            let mut file = kernel(true);
            file[at] = value;
            file.truncate(cut);
            if let Ok(kernel) = ElfKernel::parse(&file.into()) {
                prop_assert!(kernel.start() < kernel.end());
                for segment in kernel.segments {
                    prop_assert!(segment.contents.len() as u64 <= segment.bytes);
                }
            }
        }
    }
}
