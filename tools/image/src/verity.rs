//! dm-verity hash trees: SHA-256, blocks of 4 KiB, format 1, no salt.
//!
//! Linux Documentation/admin-guide/device-mapper/verity.rst; the superblock is that of cryptsetup
//! (lib/verity/verity.c, `struct verity_sb`), so that `veritysetup verify` accepts the result. An unsalted
//! tree lets everybody recompute the root hash from the file system alone.

use std::fmt::Write as _;
use std::io::{self, Read, Seek, SeekFrom, Write};

use sha2::{Digest as _, Sha256};

use crate::erofs::{BLOCK, BLOCK_LEN};

/// Bytes of a hash.
const HASH: usize = 32;
/// Hashes in a block of the tree.
const PER_BLOCK: u64 = BLOCK / HASH as u64;
/// Bytes that are read and written at once.
const CHUNK: usize = 1 << 20;
/// Bytes of the superblock, which has a block of its own.
const SUPER_LEN: usize = 512;
/// Name of the hash in the superblock.
const ALGORITHM: &[u8] = b"sha256";

/// Root of a hash tree, and the data under it: all that a guest needs to check a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verity {
    /// SHA-256 of the topmost block of the tree.
    pub root_hash: [u8; HASH],
    /// Blocks of 4 KiB that the tree covers.
    pub data_blocks: u64,
}

impl Verity {
    /// Offset of the superblock of the tree in the image, in bytes: the end of the data.
    pub const fn hash_offset(&self) -> u64 {
        self.data_blocks * BLOCK
    }

    /// Length of the image, data and tree, in bytes.
    pub fn image_bytes(&self) -> u64 {
        let levels = levels(self.data_blocks);
        (self.data_blocks + 1 + levels.iter().map(|level| level.blocks).sum::<u64>()) * BLOCK
    }

    /// The root hash in hexadecimal digits.
    pub fn root_hash_hex(&self) -> String {
        hex(&self.root_hash)
    }
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes all that is written.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reason to refuse an image and its tree.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the message of a variant documents it")]
pub enum VerityError {
    #[error("could not read or write the image at byte {offset}")]
    Io { offset: u64, source: io::Error },
    #[error("the verity superblock at byte {offset} is malformed or unsupported: {problem}")]
    Superblock { offset: u64, problem: &'static str },
    #[error("the image has {actual} bytes, but file system and hash tree have {expected}")]
    Length { actual: u64, expected: u64 },
    #[error("{kind} block {block} (byte {offset}) does not match the hash tree")]
    Mismatch { kind: &'static str, block: u64, offset: u64 },
    #[error("the root hash is {actual}, not the expected {expected}")]
    Root { actual: String, expected: String },
}

/// One level of a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    /// First block of the level, counted from the block after the superblock.
    start: u64,
    /// Number of blocks.
    blocks: u64,
}

/// Levels from the one that hashes the data up to the topmost; the latter comes first in the image.
fn levels(data_blocks: u64) -> Vec<Level> {
    let mut levels = Vec::new();
    let mut below = data_blocks;
    while below > 1 {
        below = below.div_ceil(PER_BLOCK);
        levels.push(Level { start: 0, blocks: below });
    }
    let mut start = 0;
    for level in levels.iter_mut().rev() {
        level.start = start;
        start += level.blocks;
    }
    levels
}

/// A file in which one position serves all, moved only where needed.
struct At<'a, F> {
    file: &'a mut F,
    position: Option<u64>,
}

impl<F: Seek> At<'_, F> {
    fn seek(&mut self, offset: u64) -> io::Result<()> {
        if self.position != Some(offset) {
            self.position = None;
            self.file.seek(SeekFrom::Start(offset))?;
        }
        Ok(())
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), VerityError>
    where
        F: Read,
    {
        let read = self.seek(offset).and_then(|()| self.file.read_exact(buffer));
        read.map_err(|source| VerityError::Io { offset, source })?;
        self.position = Some(offset + buffer.len() as u64);
        Ok(())
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), VerityError>
    where
        F: Write,
    {
        let written = self.seek(offset).and_then(|()| self.file.write_all(bytes));
        written.map_err(|source| VerityError::Io { offset, source })?;
        self.position = Some(offset + bytes.len() as u64);
        Ok(())
    }
}

/// Appends superblock and hash tree to `data_blocks` blocks of data. `progress` gets the number of bytes that
/// were hashed since its last call.
///
/// # Errors
///
/// If the image cannot be read or written.
pub fn append<F: Read + Write + Seek>(
    file: &mut F,
    data_blocks: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<Verity, VerityError> {
    let mut file = At { file, position: None };
    let tree = (data_blocks + 1) * BLOCK;
    let mut below = (0, data_blocks);
    for level in levels(data_blocks) {
        let start = tree + level.start * BLOCK;
        hash_level(&mut file, below, start, progress)?;
        below = (start, level.blocks);
    }
    let mut top = [0; BLOCK_LEN];
    file.read(below.0, &mut top)?;
    let verity = Verity { root_hash: Sha256::digest(top).into(), data_blocks };
    let mut block = [0; BLOCK_LEN];
    block[..SUPER_LEN].copy_from_slice(&superblock(&verity));
    file.write(verity.hash_offset(), &block)?;
    Ok(verity)
}

/// Hashes the blocks from the byte `below.0` on, `below.1` of them, into blocks from the byte `start` on.
fn hash_level<F: Read + Write + Seek>(
    file: &mut At<'_, F>,
    below: (u64, u64),
    start: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), VerityError> {
    let (mut from, blocks) = below;
    let end = from + blocks * BLOCK;
    let mut to = start;
    let mut hashes = Vec::with_capacity(CHUNK);
    let mut buffer = vec![0; CHUNK];
    while from < end {
        let len = usize::try_from(end - from).unwrap_or(usize::MAX).min(CHUNK);
        file.read(from, &mut buffer[..len])?;
        for block in buffer[..len].chunks_exact(BLOCK_LEN) {
            hashes.extend_from_slice(&Sha256::digest(block));
        }
        from += len as u64;
        if hashes.len() == CHUNK || from == end {
            hashes.resize(hashes.len().next_multiple_of(BLOCK_LEN), 0);
            file.write(to, &hashes)?;
            to += hashes.len() as u64;
            hashes.clear();
        }
        progress(len as u64);
    }
    Ok(())
}

/// Reads the superblock at the byte `offset`, and the root hash that the tree behind it has.
///
/// # Errors
///
/// If the superblock is not one that [`append`] writes for the data before it.
pub fn read<F: Read + Seek>(file: &mut F, offset: u64) -> Result<Verity, VerityError> {
    let mut file = At { file, position: None };
    let mut bytes = [0; BLOCK_LEN];
    file.read(offset, &mut bytes)?;
    let refuse = |problem| Err(VerityError::Superblock { offset, problem });
    if !bytes.starts_with(b"verity\0\0") {
        return refuse("the signature is wrong");
    }
    if offset == 0 || !offset.is_multiple_of(BLOCK) {
        return refuse("it is not at a block after the data");
    }
    let mut verity = Verity { root_hash: [0; HASH], data_blocks: offset / BLOCK };
    let levels = levels(verity.data_blocks);
    // One block of data is its own root.
    let top = levels.last().map_or(0, |top| offset + (1 + top.start) * BLOCK);
    let mut block = [0; BLOCK_LEN];
    file.read(top, &mut block)?;
    verity.root_hash = Sha256::digest(block).into();
    if bytes[..SUPER_LEN] != superblock(&verity) || bytes[SUPER_LEN..].iter().any(|&byte| byte != 0)
    {
        return refuse("it differs from what data and tree imply");
    }
    Ok(verity)
}

/// Checks an image of which `verity` is known: every block of the data and of the tree, the superblock, the
/// length, and what fills the tree's last blocks.
///
/// # Errors
///
/// The first difference.
pub fn verify<F: Read + Seek>(
    file: &mut F,
    verity: &Verity,
    progress: &mut dyn FnMut(u64),
) -> Result<(), VerityError> {
    let offset = verity.hash_offset();
    let actual =
        file.seek(SeekFrom::End(0)).map_err(|source| VerityError::Io { offset, source })?;
    let expected = verity.image_bytes();
    if actual != expected {
        return Err(VerityError::Length { actual, expected });
    }
    let found = read(file, offset)?;
    if found.root_hash != verity.root_hash {
        let (actual, expected) = (found.root_hash_hex(), verity.root_hash_hex());
        return Err(VerityError::Root { actual, expected });
    }
    let mut file = At { file, position: None };
    let tree = offset + BLOCK;
    let levels = levels(verity.data_blocks);
    // From the top, so that each level is compared with hashes that are known to be right.
    for index in (0..levels.len()).rev() {
        let hashes = tree + levels[index].start * BLOCK;
        let (kind, below) = match index.checked_sub(1).map(|below| levels[below]) {
            Some(below) => ("hash", (tree + below.start * BLOCK, below.blocks)),
            None => ("data", (0, verity.data_blocks)),
        };
        verify_level(&mut file, kind, below, hashes, progress)?;
    }
    Ok(())
}

fn verify_level<F: Read + Seek>(
    file: &mut At<'_, F>,
    kind: &'static str,
    below: (u64, u64),
    hashes: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<(), VerityError> {
    let (start, blocks) = below;
    let per_chunk = CHUNK as u64 / BLOCK;
    let mut buffer = vec![0; CHUNK];
    let mut expected = vec![0; CHUNK / BLOCK_LEN * HASH];
    let mut first = 0;
    while first < blocks {
        let count = per_chunk.min(blocks - first);
        let data = &mut buffer[..usize::try_from(count * BLOCK).unwrap_or(CHUNK)];
        // Whole blocks of hashes, of which a chunk of data has two.
        let last = first + count == blocks;
        let hash_len = if last { count.next_multiple_of(PER_BLOCK) } else { count } * HASH as u64;
        let expected = &mut expected[..usize::try_from(hash_len).unwrap_or(0)];
        file.read(hashes + first * HASH as u64, expected)?;
        file.read(start + first * BLOCK, data)?;
        let mut wanted = expected.chunks_exact(HASH);
        for (index, block) in (first..).zip(data.chunks_exact(BLOCK_LEN)) {
            if wanted.next() != Some(Sha256::digest(block).as_slice()) {
                let offset = start + index * BLOCK;
                return Err(VerityError::Mismatch { kind, block: index, offset });
            }
        }
        if wanted.flatten().any(|&byte| byte != 0) {
            let block = (first + count) / PER_BLOCK;
            let offset = hashes + block * BLOCK;
            return Err(VerityError::Mismatch { kind: "hash", block, offset });
        }
        first += count;
        progress(count * BLOCK);
    }
    Ok(())
}

/// `struct verity_sb` of cryptsetup. Its UUID, which is not hashed, is made of the root hash.
fn superblock(verity: &Verity) -> [u8; SUPER_LEN] {
    let mut bytes = [0; SUPER_LEN];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    let block = u32::try_from(BLOCK).unwrap_or(u32::MAX).to_le_bytes();
    put(0, b"verity\0\0");
    // Version of the superblock, and of the hash format.
    put(8, &1_u32.to_le_bytes());
    put(12, &1_u32.to_le_bytes());
    put(16, &uuid(&verity.root_hash));
    put(32, ALGORITHM);
    put(64, &block);
    put(68, &block);
    put(72, &verity.data_blocks.to_le_bytes());
    bytes
}

/// A UUID of version 8 (RFC 9562, section 5.8) of the first bits of a hash.
fn uuid(hash: &[u8; HASH]) -> [u8; 16] {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&hash[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
