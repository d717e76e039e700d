//! The Authenticode digest of a PE image: what EDK2 extends for an image that it starts.
//!
//! Microsoft, "Windows Authenticode Portable Executable Signature Format", "Calculating the PE
//! Image Hash": everything but the checksum, the certificate table and the entry that points to it,
//! the sections in the order of their place in the file.

use std::ops::Range;

use ring::digest::{Context, SHA384};

use crate::Digest384;

/// Offset of the PE header's address in the DOS header.
const PE_OFFSET: usize = 0x3c;
/// "PE\0\0" and the COFF header.
const COFF: usize = 24;
const CHECKSUM: usize = 64;
const SIZE_OF_HEADERS: usize = 60;
const SECTION_HEADER: usize = 40;
/// The certificate table is data directory 4.
const CERTIFICATE_DIRECTORY: usize = 4;

/// Why an image has no Authenticode digest. Offsets are bytes from the start of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum AuthenticodeError {
    #[error("not a PE image: offset {at:#x} is not the start of a PE header")]
    Signature { at: usize },
    #[error("the PE image ends at {size:#x}, before {what} at offset {at:#x}")]
    Truncated { what: &'static str, at: usize, size: usize },
    #[error("the PE optional header at offset {at:#x} is of type {magic:#x}; PE32+ is 0x20b")]
    Magic { at: usize, magic: u16 },
    #[error("the PE headers take {headers:#x} bytes, less than what is in them")]
    Headers { headers: usize },
    #[error(
        "the certificate table at {start:#x}, {length:#x} bytes, is not at the end of the image of \
         {size:#x} bytes"
    )]
    Certificates { start: usize, length: usize, size: usize },
}

/// SHA-384 over the image as Authenticode counts it.
///
/// # Errors
/// If the bytes are not a PE32+ image that is whole.
pub(super) fn sha384(image: &[u8]) -> Result<Digest384, AuthenticodeError> {
    let layout = Layout::parse(image)?;
    let mut context = Context::new(&SHA384);
    for range in layout.hashed {
        // Layout::parse has checked each range against the image.
        context.update(&image[range]);
    }
    Ok(Digest384::from_ring(&context.finish()))
}

struct Layout {
    hashed: Vec<Range<usize>>,
}

impl Layout {
    fn parse(image: &[u8]) -> Result<Self, AuthenticodeError> {
        let reader = Reader(image);
        let pe = reader.u32(PE_OFFSET, "the PE header's offset")?;
        if reader.bytes(pe, 4, "the PE signature")? != b"PE\0\0" {
            return Err(AuthenticodeError::Signature { at: pe });
        }
        let section_count = usize::from(reader.u16(pe + 6, "the COFF header")?);
        let optional_size = usize::from(reader.u16(pe + 20, "the COFF header")?);
        let optional = pe + COFF;
        let magic = reader.u16(optional, "the optional header")?;
        if magic != 0x20b {
            return Err(AuthenticodeError::Magic { at: optional, magic });
        }
        let headers = reader.u32(optional + SIZE_OF_HEADERS, "the size of headers")?;
        let directories = reader.u32(optional + 108, "the number of data directories")?;
        let table = optional + optional_size;
        let mut hashed = Vec::with_capacity(3);
        hashed.push(0..optional + CHECKSUM);
        let mut from = optional + CHECKSUM + 4;
        let mut certificates = 0;
        if directories > CERTIFICATE_DIRECTORY {
            let entry = optional + 112 + 8 * CERTIFICATE_DIRECTORY;
            let start = reader.u32(entry, "the certificate directory")?;
            certificates = reader.u32(entry + 4, "the certificate directory")?;
            let size = image.len();
            if certificates > 0 && start.checked_add(certificates) != Some(size) {
                return Err(AuthenticodeError::Certificates { start, length: certificates, size });
            }
            hashed.push(from..entry);
            from = entry + 8;
        }
        if headers < from || headers < table {
            return Err(AuthenticodeError::Headers { headers });
        }
        reader.bytes(0, headers, "the end of the headers")?;
        hashed.push(from..headers);
        let sections = sections(&reader, table, section_count)?;
        // As EDK2 counts: what the sections do not account for is at the end of the file.
        let counted: usize = headers + sections.iter().map(ExactSizeIterator::len).sum::<usize>();
        hashed.extend(sections);
        let end = image.len() - certificates;
        if counted < end {
            hashed.push(counted..end);
        }
        Ok(Self { hashed })
    }
}

fn sections(
    reader: &Reader<'_>,
    table: usize,
    count: usize,
) -> Result<Vec<Range<usize>>, AuthenticodeError> {
    let mut sections = Vec::with_capacity(count);
    for index in 0..count {
        let header = table + SECTION_HEADER * index;
        let length = reader.u32(header + 16, "a section header")?;
        let start = reader.u32(header + 20, "a section header")?;
        if length > 0 {
            reader.bytes(start, length, "the end of a section")?;
            sections.push(start..start + length);
        }
    }
    sections.sort_by_key(|range| range.start);
    Ok(sections)
}

/// Reads little-endian fields and says what was missing.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(
        &self,
        at: usize,
        length: usize,
        what: &'static str,
    ) -> Result<&'a [u8], AuthenticodeError> {
        at.checked_add(length)
            .and_then(|end| self.0.get(at..end))
            .ok_or(AuthenticodeError::Truncated { what, at, size: self.0.len() })
    }

    fn u16(&self, at: usize, what: &'static str) -> Result<u16, AuthenticodeError> {
        let bytes = self.bytes(at, 2, what)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    /// A 32-bit field as an offset or a length; usize has at least 32 bits where this builds.
    fn u32(&self, at: usize, what: &'static str) -> Result<usize, AuthenticodeError> {
        let bytes = self.bytes(at, 4, what)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Two sections, the one that comes later in the file listed first, and four bytes behind them.
    fn image() -> Vec<u8> {
        let mut image = vec![0; 0x404];
        for (index, byte) in image.iter_mut().enumerate().skip(0x200) {
            *byte = index.to_le_bytes()[0];
        }
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(PE_OFFSET, &0x40_u32.to_le_bytes());
        put(0x40, b"PE\0\0");
        put(0x46, &2_u16.to_le_bytes());
        put(0x54, &160_u16.to_le_bytes());
        let optional = 0x58;
        put(optional, &0x20b_u16.to_le_bytes());
        put(optional + 60, &0x200_u32.to_le_bytes());
        put(optional + 108, &6_u32.to_le_bytes());
        for (index, start) in [0x300_u32, 0x200].into_iter().enumerate() {
            let header = optional + 160 + 40 * index;
            put(header + 16, &0x100_u32.to_le_bytes());
            put(header + 20, &start.to_le_bytes());
        }
        image
    }

    #[test]
    fn all_but_checksum_and_certificate_entry_is_hashed() {
        let good = sha384(&image()).unwrap();
        for (at, counts) in [
            (0x58 + 63, true),
            (0x58 + 64, false),
            (0x58 + 67, false),
            (0x200, true),
            (0x403, true),
        ] {
            let mut changed = image();
            changed[at] ^= 1;
            // Offset 63 is in the size of headers, whose change is an error.
            let value = sha384(&changed);
            assert_eq!(value != Ok(good), counts, "byte at {at:#x}");
        }
    }

    #[test]
    fn truncated_images_are_rejected() {
        let image = image();
        for length in [0, 0x3e, 0x42, 0x60, 0x1ff, 0x3ff] {
            assert!(sha384(&image[..length]).is_err(), "{length:#x} bytes");
        }
    }

    proptest! {
        #[test]
        fn changed_headers_never_panic(at in 0..0x200_usize, bytes: [u8; 4]) {
            let mut image = image();
            image[at..at + 4].copy_from_slice(&bytes);
            let _ = sha384(&image);
        }
    }
}
