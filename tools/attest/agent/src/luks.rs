//! The header of a LUKS2 volume, checked before it is believed (LUKS2 On-Disk Format Specification 1.1).
//!
//! The disk belongs to the host, and a passphrase is only as good as the header that says what it opens.
//! A header whose key slot has the null cipher opens with any passphrase, to a volume key that the host
//! knows (CVE-2025-59054, CVE-2025-58356); a token asks somebody else for the passphrase; and a host
//! exchanges the header between a check and its use. So the agent reads the header once, checks every
//! field, and opens the volume with exactly these bytes as its detached header.

mod metadata;

use std::fs::File;
use std::io::{self, Read, Write as _};

use ring::digest::{SHA256, digest};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

pub use metadata::MetadataError;

/// Bytes of a binary header; JSON follows.
const BINARY: usize = 4096;
/// Fields of a binary header that are looked at, as ranges of bytes.
const MAGIC: std::ops::Range<usize> = 0..6;
const VERSION: std::ops::Range<usize> = 6..8;
const SIZE: std::ops::Range<usize> = 8..16;
const CHECKSUM_ALGORITHM: std::ops::Range<usize> = 72..104;
const OFFSET: std::ops::Range<usize> = 256..264;
const CHECKSUM: std::ops::Range<usize> = 448..512;

const FIRST_MAGIC: &[u8] = b"LUKS\xba\xbe";
const SECOND_MAGIC: &[u8] = b"SKUL\xba\xbe";
/// Sizes that the specification allows, binary header and JSON together.
const SIZES: [usize; 9] =
    [0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000];
/// The most that is kept of a header with its key slots, in bytes: twice what `cryptsetup luksFormat`
/// makes.
pub const MAX_HEADER: usize = 32 << 20;

/// A header that is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum LuksError {
    /// The device cannot be read.
    #[error("could not read the LUKS header")]
    Read(#[from] io::Error),
    /// Another format.
    #[error(
        "the device does not begin with a LUKS2 header; make one with cryptsetup luksFormat --type luks2"
    )]
    Format,
    /// A field of the binary header.
    #[error("the LUKS2 header is malformed: {0}")]
    Binary(&'static str),
    /// It was not written as a whole.
    #[error("the LUKS2 header's checksum is wrong; if the disk is yours, try cryptsetup repair")]
    Checksum,
    /// A field of the JSON.
    #[error("the LUKS2 header is not accepted")]
    Metadata(#[from] MetadataError),
}

/// A checked header with its key slots, as the first bytes of a volume.
#[derive(Debug, PartialEq, Eq)]
pub struct LuksHeader {
    bytes: Vec<u8>,
}

impl LuksHeader {
    /// Reads a header from the start of a volume, each byte once, and checks it. Both copies of the
    /// result are made of the first one, so that there is nothing else to read in it.
    ///
    /// # Errors
    /// See [`LuksError`].
    pub fn read(volume: &mut impl Read) -> Result<Self, LuksError> {
        let mut bytes = vec![0; BINARY];
        volume.read_exact(&mut bytes)?;
        let size = check_binary(&bytes)?;
        bytes.resize(size, 0);
        volume.read_exact(&mut bytes[BINARY..])?;
        if checksum(&bytes).as_ref() != &bytes[CHECKSUM][..32] {
            return Err(LuksError::Checksum);
        }
        let end = metadata::check(&bytes[BINARY..], size)?;
        bytes.extend_from_within(..);
        make_second(&mut bytes[size..], size);
        // What the device has in the place of the second copy is passed over.
        let passed = io::copy(&mut volume.by_ref().take(to_u64(size)), &mut io::sink())?;
        if passed != to_u64(size) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let both = bytes.len();
        bytes.resize(end, 0);
        volume.read_exact(&mut bytes[both..])?;
        Ok(LuksHeader { bytes })
    }

    /// The header's bytes: two copies, and the key slots.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The header in a file without a name, which nobody can change any more, and which programs that
    /// this process starts inherit.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn to_memory_file(&self) -> io::Result<File> {
        let file = memfd_create("luks-header", MemfdFlags::ALLOW_SEALING)?;
        let mut file = File::from(file);
        file.write_all(&self.bytes)?;
        let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        Ok(file)
    }
}

/// Checks the first binary header, and returns the size that it states.
fn check_binary(bytes: &[u8]) -> Result<usize, LuksError> {
    if &bytes[MAGIC] != FIRST_MAGIC || bytes[VERSION] != [0, 2] {
        return Err(LuksError::Format);
    }
    let size = SIZES.into_iter().find(|size| bytes[SIZE] == to_u64(*size).to_be_bytes());
    let size = size.ok_or(LuksError::Binary("its size is not one of the specification's"))?;
    if bytes[OFFSET] != [0; 8] {
        return Err(LuksError::Binary("it is not at the offset that it states"));
    }
    if bytes[CHECKSUM_ALGORITHM] != padded(b"sha256") {
        return Err(LuksError::Binary("its checksum is not SHA-256"));
    }
    if bytes[CHECKSUM][32..] != [0; 32] {
        return Err(LuksError::Binary("its checksum is longer than SHA-256"));
    }
    Ok(size)
}

/// A text in a field of 32 bytes.
fn padded(text: &[u8]) -> [u8; 32] {
    let mut field = [0; 32];
    field[..text.len()].copy_from_slice(text);
    field
}

/// SHA-256 of binary header and JSON, with zeros in the place of the checksum.
fn checksum(copy: &[u8]) -> ring::digest::Digest {
    let mut bytes = copy.to_vec();
    bytes[CHECKSUM].fill(0);
    digest(&SHA256, &bytes)
}

/// Makes the second copy of what is the first one.
fn make_second(copy: &mut [u8], size: usize) {
    copy[MAGIC].copy_from_slice(SECOND_MAGIC);
    copy[OFFSET].copy_from_slice(&to_u64(size).to_be_bytes());
    let sum = checksum(copy);
    copy[CHECKSUM][..32].copy_from_slice(sum.as_ref());
}

/// Sizes here are below 2^32.
fn to_u64(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
