//! Structures and constants of fs/erofs/erofs_fs.h.

use crate::tree::{Device, Inode, Node};

/// Offset of the superblock (`EROFS_SUPER_OFFSET`).
pub(super) const SUPER_OFFSET: usize = 1024;
/// Bytes of the superblock.
pub(super) const SUPER_LEN: usize = 128;
/// `EROFS_SUPER_MAGIC_V1`.
pub(super) const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_COMPAT_SB_CHKSUM`: the superblock has a checksum.
pub(super) const COMPAT_CHECKSUM: u32 = 1;
/// `EROFS_FEATURE_COMPAT_MTIME`: times of inodes are times of modification.
pub(super) const COMPAT_MTIME: u32 = 2;
/// log2 of the block size.
pub(super) const BLOCK_BITS: u8 = 12;
/// Bytes of an extended inode.
pub(super) const INODE_LEN: u64 = INODE_SIZE as u64;
/// The same as the length of a slice.
pub(super) const INODE_SIZE: usize = 64;
/// Bytes that node numbers count in (`EROFS_ISLOTBITS`).
pub(super) const SLOT: u64 = 32;
/// Bytes of a directory entry.
pub(super) const DIRENT_LEN: usize = 12;
/// `i_format` of an extended inode, whose data is in whole blocks (`EROFS_INODE_FLAT_PLAIN`).
pub(super) const FORMAT_PLAIN: u16 = 1;
/// `i_format` of an extended inode, whose last part is behind it (`EROFS_INODE_FLAT_INLINE`).
pub(super) const FORMAT_INLINE: u16 = 1 | 2 << 1;

/// The superblock; fields that the writer leaves at zero are not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Superblock {
    /// Node number of the root directory.
    pub(super) root: u16,
    /// Number of inodes.
    pub(super) inodes: u64,
    /// Number of blocks.
    pub(super) blocks: u32,
}

impl Superblock {
    /// The superblock with a checksum of zero.
    pub(super) fn encode(self) -> [u8; SUPER_LEN] {
        let mut bytes = [0; SUPER_LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..12].copy_from_slice(&(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        bytes[12] = BLOCK_BITS;
        bytes[14..16].copy_from_slice(&self.root.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.inodes.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.blocks.to_le_bytes());
        bytes
    }
}

/// Checksum of the first block from the superblock on, whose own field `checksum` counts as zero: CRC-32C
/// without the final complement (`erofs_superblock_csum_verify`).
pub(super) fn checksum(block_from_superblock: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for (at, &byte) in block_from_superblock.iter().enumerate() {
        crc ^= u32::from(if (4..8).contains(&at) { 0 } else { byte });
        for _ in 0..8 {
            // The Castagnoli polynomial, reflected.
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    crc
}

/// `st_mode` of an inode.
pub(super) fn mode(inode: &Inode) -> u16 {
    let kind = match inode.node {
        Node::Fifo => 0o010_000,
        Node::Character(_) => 0o020_000,
        Node::Directory => 0o040_000,
        Node::Block(_) => 0o060_000,
        Node::Regular { .. } => 0o100_000,
        Node::Symlink(_) => 0o120_000,
        Node::Socket => 0o140_000,
    };
    kind | inode.attributes.mode
}

/// `file_type` of a directory entry (`EROFS_FT_*`).
pub(super) fn file_type(node: &Node) -> u8 {
    match node {
        Node::Regular { .. } => 1,
        Node::Directory => 2,
        Node::Character(_) => 3,
        Node::Block(_) => 4,
        Node::Fifo => 5,
        Node::Socket => 6,
        Node::Symlink(_) => 7,
    }
}

/// A device number as `new_encode_dev` of Linux makes it.
pub(super) fn encode_device(device: Device) -> u32 {
    let Device { major, minor } = device;
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

pub(super) fn decode_device(number: u32) -> Device {
    Device { major: number >> 8 & 0xfff, minor: number & 0xff | number >> 12 & 0xf_ff00 }
}
