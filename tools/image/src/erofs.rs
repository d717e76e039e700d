//! The file system: erofs without compression.
//!
//! Linux fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst. Blocks are 4 KiB; all numbers are
//! little-endian. The writer uses extended inodes only, extended attributes beside their inode, and the tail
//! of a file behind it where it fits ("flat inline").

mod layout;
mod ondisk;
mod read;
mod write;
pub(crate) mod xattr;

pub use layout::{Layout, LayoutError};
pub use read::{DirectoryEntry, FileKind, Image, ImageInode, ReadError};
pub(crate) use write::{Piece, write_metadata};

/// Bytes of a block, as the length of a slice.
pub(crate) const BLOCK_LEN: usize = 4096;
/// Bytes of a block.
pub const BLOCK: u64 = BLOCK_LEN as u64;
