//! The frame of a file: fixed header, checksum, platforms, and the list of variable headers.

use std::io::{Read, Seek, SeekFrom};

use igvm_defs::{
    IGVM_FIXED_HEADER, IGVM_FIXED_HEADER_V2, IGVM_MAGIC_VALUE, IGVM_VHS_SUPPORTED_PLATFORM,
    IgvmArchitecture, IgvmPlatformType,
};

use super::IgvmError;
use super::header::{self, Header};
use crate::PlatformKind;

/// Headers are read in blocks of this size, so that memory does not grow with their number.
const WINDOW: usize = 64 << 10;
/// No header that is decoded is longer.
const LONGEST_HEADER: usize = 4096;
/// Type and length of a variable header.
const PREFIX: usize = 8;

/// One platform of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Platform {
    /// The bit by which the file's other headers name it.
    pub mask: u32,
    /// Which one; `None` if it is none that KVM has.
    pub kind: Option<PlatformKind>,
}

/// An IGVM file whose frame has been checked.
#[derive(Debug)]
pub struct IgvmFile<R> {
    source: R,
    size: u64,
    headers: Window,
    platforms: Vec<Platform>,
}

/// A block of the variable headers.
#[derive(Debug)]
struct Window {
    start: u64,
    end: u64,
    /// The offset in the file of what is in `bytes`.
    at: u64,
    bytes: Vec<u8>,
}

impl<R: Read + Seek> IgvmFile<R> {
    /// Checks the fixed header, the checksum of all headers, and reads the platforms.
    ///
    /// # Errors
    /// If it is not an IGVM file for x86-64, or not whole.
    pub fn open(mut source: R) -> Result<Self, IgvmError> {
        let read_error = |source| IgvmError::Read { at: 0, length: 24, source };
        let size = source.seek(SeekFrom::End(0)).map_err(read_error)?;
        let headers = Window { start: 0, end: 0, at: 0, bytes: Vec::new() };
        let mut file = Self { source, size, headers, platforms: Vec::new() };
        let fixed = file.read_fixed()?;
        file.check_sum(&fixed)?;
        let mut at = file.headers.start;
        while let Some(found) = file.next(&mut at)? {
            match found.header {
                Header::Platform(platform) => file.add_platform(found.at, &platform)?,
                _ => break,
            }
        }
        Ok(file)
    }

    /// The platforms, in the order of the file.
    #[must_use]
    pub fn platforms(&self) -> &[Platform] {
        &self.platforms
    }

    /// The platform of this kind, or the one with this compatibility mask.
    ///
    /// # Errors
    /// If there is none, or more than one and no mask to choose.
    pub fn platform(&self, kind: PlatformKind, mask: Option<u32>) -> Result<Platform, IgvmError> {
        if let Some(mask) = mask {
            let named = self.platforms.iter().find(|platform| platform.mask == mask);
            let named = named.ok_or_else(|| IgvmError::Mask { mask, found: self.list() })?;
            if named.kind != Some(kind) {
                return Err(IgvmError::MaskPlatform { mask, wanted: kind, found: named.kind });
            }
            return Ok(*named);
        }
        let mut fitting = self.platforms.iter().filter(|platform| platform.kind == Some(kind));
        let first = fitting.next();
        let first =
            first.ok_or_else(|| IgvmError::NoPlatform { wanted: kind, found: self.list() })?;
        match fitting.count() {
            0 => Ok(*first),
            more => {
                let (count, found) = (more + 1, self.list());
                Err(IgvmError::Ambiguous { wanted: kind, count, found })
            }
        }
    }

    fn list(&self) -> String {
        let name = |platform: &Platform| match platform.kind {
            Some(kind) => format!("{kind:?} (mask {:#x})", platform.mask),
            None => format!("a platform that KVM does not have (mask {:#x})", platform.mask),
        };
        let names: Vec<_> = self.platforms.iter().map(name).collect();
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }

    /// Where the headers start.
    pub(super) fn headers_start(&self) -> u64 {
        self.headers.start
    }

    /// The header at `at`, which moves behind it; `None` at the end.
    pub(super) fn next(&mut self, at: &mut u64) -> Result<Option<Found>, IgvmError> {
        let here = *at;
        if here == self.headers.end {
            return Ok(None);
        }
        let prefix = self.header_bytes(here, PREFIX)?;
        let [kind, length] = [0, 4].map(|at| word(prefix, at));
        let padded = u64::from(length).next_multiple_of(8);
        let body_at = here + PREFIX as u64;
        let end = body_at + padded;
        if end > self.headers.end {
            return Err(IgvmError::Truncated { at: here });
        }
        // A longer one is of a type that is ignored or unknown.
        let body = self.header_bytes(body_at, (length as usize).min(LONGEST_HEADER))?;
        let header = header::decode(here, kind, body)?;
        *at = end;
        Ok(Some(Found { at: here, section: header::section(kind), header }))
    }

    /// `length` bytes of file data at `at`, which must be behind the headers.
    pub(super) fn read(
        &mut self,
        at: u64,
        length: u64,
        into: &mut Vec<u8>,
    ) -> Result<(), IgvmError> {
        let read_error = |source| IgvmError::Read { at, length, source };
        if at < self.headers.end || at.checked_add(length).is_none_or(|end| end > self.size) {
            let (start, size) = (self.headers.end, self.size);
            let why = format!("the file has its data at {start:#x}..{size:#x}");
            return Err(read_error(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, why)));
        }
        self.source.seek(SeekFrom::Start(at)).map_err(read_error)?;
        let read = (&mut self.source).take(length).read_to_end(into).map_err(read_error)?;
        if read as u64 != length {
            return Err(read_error(std::io::ErrorKind::UnexpectedEof.into()));
        }
        Ok(())
    }

    fn read_fixed(&mut self) -> Result<Vec<u8>, IgvmError> {
        let mut bytes = Vec::new();
        self.read(0, size_of::<IGVM_FIXED_HEADER>() as u64, &mut bytes)?;
        let magic = word(&bytes, 0);
        if magic != IGVM_MAGIC_VALUE {
            return Err(IgvmError::Magic(magic.to_le_bytes()));
        }
        let [version, start, length, said] = [4, 8, 12, 16].map(|at| word(&bytes, at));
        match version {
            1 => {}
            2 => {
                bytes.clear();
                self.read(0, size_of::<IGVM_FIXED_HEADER_V2>() as u64, &mut bytes)?;
                let [architecture, page_size] = [24, 28].map(|at| word(&bytes, at));
                if architecture != IgvmArchitecture::X64.0 {
                    return Err(IgvmError::Architecture(architecture));
                }
                if page_size != 4096 {
                    return Err(IgvmError::PageSize(page_size));
                }
            }
            other => return Err(IgvmError::Version(other)),
        }
        if u64::from(said) != self.size {
            return Err(IgvmError::Size { said: said.into(), found: self.size });
        }
        let (start, end) = (u64::from(start), u64::from(start) + u64::from(length));
        if start < bytes.len() as u64 || end > self.size {
            return Err(IgvmError::Bounds { start, end, size: self.size });
        }
        self.headers = Window { start, end, at: start, bytes: Vec::new() };
        Ok(bytes)
    }

    /// CRC-32 of fixed header, its checksum field zero, and variable headers.
    fn check_sum(&mut self, fixed: &[u8]) -> Result<(), IgvmError> {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&fixed[..20]);
        crc.update(&[0; 4]);
        crc.update(&fixed[24..]);
        let mut at = self.headers.start;
        while at < self.headers.end {
            let length = (self.headers.end - at).min(WINDOW as u64);
            crc.update(self.header_bytes(at, usize::try_from(length).unwrap_or(WINDOW))?);
            at += length;
        }
        let (found, expected) = (word(fixed, 20), crc.finalize());
        if found != expected {
            return Err(IgvmError::Checksum { found, expected });
        }
        Ok(())
    }

    /// Bytes of the variable headers, through the window.
    fn header_bytes(&mut self, at: u64, length: usize) -> Result<&[u8], IgvmError> {
        let end = at + length as u64;
        if end > self.headers.end {
            return Err(IgvmError::Truncated { at });
        }
        let window = &mut self.headers;
        if at < window.at || end > window.at + window.bytes.len() as u64 {
            let fill = (window.end - at).min(WINDOW as u64);
            let read_error = |source| IgvmError::Read { at, length: fill, source };
            window.bytes.clear();
            window.at = at;
            self.source.seek(SeekFrom::Start(at)).map_err(read_error)?;
            (&mut self.source).take(fill).read_to_end(&mut window.bytes).map_err(read_error)?;
        }
        let start = usize::try_from(at - window.at).unwrap_or(usize::MAX);
        window.bytes.get(start..start.saturating_add(length)).ok_or(IgvmError::Truncated { at })
    }

    fn add_platform(
        &mut self,
        at: u64,
        platform: &IGVM_VHS_SUPPORTED_PLATFORM,
    ) -> Result<(), IgvmError> {
        let mask = platform.compatibility_mask;
        let refused = |why: String| Err(IgvmError::header(at, "SUPPORTED_PLATFORM", why));
        if !mask.is_power_of_two() {
            return refused(format!("compatibility mask {mask:#x} is not one bit"));
        }
        if self.platforms.iter().any(|other| other.mask == mask) {
            return refused(format!("compatibility mask {mask:#x} is another platform's already"));
        }
        let kind = match platform.platform_type {
            IgvmPlatformType::NATIVE => Some(PlatformKind::Plain),
            IgvmPlatformType::SEV_SNP => Some(PlatformKind::Snp),
            IgvmPlatformType::TDX => Some(PlatformKind::Tdx),
            _ => None,
        };
        if kind.is_some() && platform.platform_version != 1 {
            let version = platform.platform_version;
            return refused(format!("platform version {version}; version 1 is known"));
        }
        self.platforms.push(Platform { mask, kind });
        Ok(())
    }
}

/// A header and where it was.
pub(super) struct Found {
    pub(super) at: u64,
    pub(super) section: u32,
    pub(super) header: Header,
}

/// The little-endian word at `at`, which the caller has read.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_le_bytes(*word))
}
