//! What can be wrong with an IGVM file.

use std::io;

use crate::PlatformKind;

/// Why a file is not an IGVM file that can be used. Offsets are bytes from its start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum IgvmError {
    #[error("could not read {length} bytes at offset {at:#x}")]
    Read {
        at: u64,
        length: u64,
        #[source]
        source: io::Error,
    },
    #[error("not an IGVM file: it begins with {0:02x?} instead of \"IGVM\"")]
    Magic([u8; 4]),
    #[error("IGVM format version {0} at offset 0x4; versions 1 and 2 are known")]
    Version(u32),
    #[error("the IGVM file is for another architecture than x86-64 ({0} at offset 0x18)")]
    Architecture(u32),
    #[error("the IGVM file has pages of {0} bytes (offset 0x1c); 4096 are known")]
    PageSize(u32),
    #[error("the IGVM file has {found} bytes instead of {said} (offset 0x10)")]
    Size { said: u64, found: u64 },
    #[error(
        "the IGVM file's headers should be at {start:#x}..{end:#x}, not within its {size:#x} bytes"
    )]
    Bounds { start: u64, end: u64, size: u64 },
    #[error(
        "the IGVM file's checksum is {found:#010x} (offset 0x14), its headers give {expected:#010x}"
    )]
    Checksum { found: u32, expected: u32 },
    #[error("the header at offset {at:#x} is cut off by the end of the headers")]
    Truncated { at: u64 },
    #[error(
        "the header at offset {at:#x} is of type {kind:#x}, which is unknown or not allowed in its section"
    )]
    Unknown { at: u64, kind: u32 },
    #[error("{name} header at offset {at:#x}: {why}")]
    Header { at: u64, name: &'static str, why: String },
    #[error("the IGVM file does not support {}; it supports {found}", wanted.name())]
    NoPlatform { wanted: PlatformKind, found: String },
    #[error(
        "compatibility mask {mask:#x} is not that of one platform of the file, which has {found}"
    )]
    Mask { mask: u32, found: String },
    #[error(
        "compatibility mask {mask:#x} selects {}, not {}",
        found.map_or("a platform without KVM support", PlatformKind::name), wanted.name()
    )]
    MaskPlatform { mask: u32, wanted: PlatformKind, found: Option<PlatformKind> },
    #[error(
        "the IGVM file supports {} {count} times; select one by its compatibility mask: {found}",
        wanted.name()
    )]
    Ambiguous { wanted: PlatformKind, count: usize, found: String },
    #[error(
        "the IGVM file adds more than {limit} pages; a page may be named often, memory is finite"
    )]
    TooManyPages { limit: u64 },
}

impl IgvmError {
    pub(super) fn header(at: u64, name: &'static str, why: impl Into<String>) -> Self {
        Self::Header { at, name, why: why.into() }
    }
}
