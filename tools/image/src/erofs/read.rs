//! Reader of the images that the writer makes. Other erofs images, as compressed ones, are refused.

use std::collections::BTreeSet;
use std::io::{self, Read, Seek, SeekFrom, Write};

use super::ondisk::{
    self, BLOCK_BITS, COMPAT_CHECKSUM, COMPAT_MTIME, DIRENT_LEN, FORMAT_INLINE, FORMAT_PLAIN,
    INODE_LEN, INODE_SIZE, MAGIC, SLOT, SUPER_LEN, SUPER_OFFSET, Superblock,
};
use super::{BLOCK, BLOCK_LEN, xattr};
use crate::Limits;
use crate::tree::{Device, Xattr};

/// Longest directory that is read, in bytes: 2 million names of average length.
const MAX_DIRECTORY: u64 = 512 << 20;

/// Reason to refuse an image.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The image cannot be read.
    #[error("could not read the image at byte {offset}")]
    Read {
        /// Offset in the image.
        offset: u64,
        /// Cause.
        source: io::Error,
    },
    /// The image is malformed, or has features that the writer does not use.
    #[error("the {what} at byte {offset} is malformed or unsupported: {problem}")]
    Malformed {
        /// Structure.
        what: &'static str,
        /// Offset of the structure in the image.
        offset: u64,
        /// Problem.
        problem: &'static str,
    },
    /// The content cannot be handed on.
    #[error("could not write the content of a file")]
    Write(#[source] io::Error),
}

/// Kind of a file in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of stat")]
pub enum FileKind {
    Directory,
    Regular,
    /// With its target.
    Symlink(Vec<u8>),
    Character(Device),
    Block(Device),
    Fifo,
    Socket,
}

/// Inode of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInode {
    /// Node number.
    pub nid: u64,
    /// Kind of file.
    pub kind: FileKind,
    /// Low 12 bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, in seconds since 1970.
    pub mtime: u64,
    /// Number of names.
    pub links: u32,
    /// Length in bytes.
    pub size: u64,
    /// Extended attributes, as the image orders them.
    pub xattrs: Vec<Xattr>,
    block: u32,
    tail_offset: u64,
    tail: u64,
}

/// Name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Name.
    pub name: Vec<u8>,
    /// Node number of its inode.
    pub nid: u64,
}

/// An image that is read from a file or from memory.
#[derive(Debug)]
pub struct Image<R> {
    input: R,
    superblock: Superblock,
}

impl<R: Read + Seek> Image<R> {
    /// Reads and checks the superblock.
    ///
    /// # Errors
    ///
    /// If it is not that of an image which the writer makes.
    pub fn open(mut input: R) -> Result<Self, ReadError> {
        let mut block = [0; BLOCK_LEN];
        read_at(&mut input, 0, &mut block)?;
        let bytes = &block[SUPER_OFFSET..];
        let refuse = |problem| {
            Err(ReadError::Malformed { what: "superblock", offset: SUPER_OFFSET as u64, problem })
        };
        if u32_at(bytes, 0) != MAGIC {
            return refuse("the magic number is not that of erofs");
        }
        if u32_at(bytes, 4) != ondisk::checksum(bytes) {
            return refuse("the checksum is wrong");
        }
        let superblock = Superblock {
            root: u16_at(bytes, 14),
            inodes: u64_at(bytes, 16),
            blocks: u32_at(bytes, 36),
        };
        let mut canonical = superblock.encode();
        canonical[4..8].copy_from_slice(&bytes[4..8]);
        if u32_at(bytes, 8) != COMPAT_CHECKSUM | COMPAT_MTIME || bytes[12] != BLOCK_BITS {
            return refuse("it uses features or a block size that this reader does not support");
        }
        if bytes[..SUPER_LEN] != canonical {
            return refuse("it has fields that Casemate leaves at zero");
        }
        Ok(Self { input, superblock })
    }

    /// Length of the file system in blocks of 4 KiB.
    pub const fn blocks(&self) -> u32 {
        self.superblock.blocks
    }

    /// Number of inodes.
    pub const fn inodes(&self) -> u64 {
        self.superblock.inodes
    }

    /// Node number of the root directory.
    pub const fn root(&self) -> u64 {
        self.superblock.root as u64
    }

    /// Reads an inode.
    ///
    /// # Errors
    ///
    /// If it is malformed, or its data are not in the image.
    pub fn inode(&mut self, nid: u64) -> Result<ImageInode, ReadError> {
        let end = u64::from(self.superblock.blocks) * BLOCK;
        let offset = nid.checked_mul(SLOT).filter(|&offset| offset < end && offset >= BLOCK);
        let refuse = |problem| ReadError::Malformed {
            what: "inode",
            offset: nid.saturating_mul(SLOT),
            problem,
        };
        let offset = offset.ok_or_else(|| refuse("it is outside the image"))?;
        let mut bytes = [0; INODE_SIZE];
        read_at(&mut self.input, offset, &mut bytes)?;
        let format = u16_at(&bytes, 0);
        if format != FORMAT_PLAIN && format != FORMAT_INLINE {
            return Err(refuse("it is neither flat nor extended"));
        }
        let mut xattrs = vec![0; xattr::len_of_count(u16_at(&bytes, 2))];
        read_at(&mut self.input, offset + INODE_LEN, &mut xattrs)?;
        let size = u64_at(&bytes, 8);
        let tail = if format == FORMAT_INLINE { size % BLOCK } else { 0 };
        let tail_offset = offset + INODE_LEN + xattrs.len() as u64;
        let location = u32_at(&bytes, 16);
        let in_blocks = if size > tail { u64::from(location) * BLOCK } else { 0 };
        let stays = in_blocks.checked_add(size - tail).is_some_and(|last| last <= end);
        if !stays || tail_offset + tail > end || tail > 0 && tail_offset % BLOCK + tail > BLOCK {
            return Err(refuse(
                "its data are not within the image, or its tail not within a block",
            ));
        }
        let mode = u16_at(&bytes, 4);
        let mut inode = ImageInode {
            nid,
            kind: FileKind::Regular,
            mode: mode & 0o7777,
            uid: u32_at(&bytes, 24),
            gid: u32_at(&bytes, 28),
            mtime: u64_at(&bytes, 32),
            links: u32_at(&bytes, 44),
            size,
            xattrs: xattr::decode(&xattrs).ok_or_else(|| refuse("its attributes are malformed"))?,
            block: location,
            tail_offset,
            tail,
        };
        inode.kind = self.kind(mode, location, &inode)?;
        let has_data =
            matches!(inode.kind, FileKind::Directory | FileKind::Regular | FileKind::Symlink(_));
        if size > 0 && !has_data {
            return Err(refuse("it has data, which its kind of file cannot have"));
        }
        Ok(inode)
    }

    /// Kind of file of an `st_mode`; `location` is the device number of a device.
    fn kind(
        &mut self,
        mode: u16,
        location: u32,
        inode: &ImageInode,
    ) -> Result<FileKind, ReadError> {
        Ok(match mode >> 12 {
            0o1 => FileKind::Fifo,
            0o2 => FileKind::Character(ondisk::decode_device(location)),
            0o4 => FileKind::Directory,
            0o6 => FileKind::Block(ondisk::decode_device(location)),
            0o10 => FileKind::Regular,
            0o12 if inode.size <= BLOCK => {
                let mut target = Vec::new();
                self.copy(inode, &mut target)?;
                FileKind::Symlink(target)
            }
            0o14 => FileKind::Socket,
            _ => {
                let (offset, problem) = (inode.nid * SLOT, "its kind of file is unknown");
                return Err(ReadError::Malformed { what: "inode", offset, problem });
            }
        })
    }

    /// Writes the data of an inode to `out`. Returns their length in bytes.
    ///
    /// # Errors
    ///
    /// If they cannot be read or written.
    pub fn copy(&mut self, inode: &ImageInode, out: &mut impl Write) -> Result<u64, ReadError> {
        let body = (u64::from(inode.block) * BLOCK, inode.size - inode.tail);
        let mut buffer = [0; 16 << 10];
        for (mut offset, mut left) in [body, (inode.tail_offset, inode.tail)] {
            while left > 0 {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                read_at(&mut self.input, offset, &mut buffer[..len])?;
                out.write_all(&buffer[..len]).map_err(ReadError::Write)?;
                offset += len as u64;
                left -= len as u64;
            }
        }
        Ok(inode.size)
    }

    /// Lists a directory, without `.` and `..`.
    ///
    /// # Errors
    ///
    /// If the inode is not a directory, or its entries are malformed or not sorted.
    pub fn list(&mut self, inode: &ImageInode) -> Result<Vec<DirectoryEntry>, ReadError> {
        let offset = inode.nid * SLOT;
        let refuse = |problem| ReadError::Malformed { what: "directory", offset, problem };
        if inode.kind != FileKind::Directory {
            return Err(refuse("its inode is not a directory"));
        }
        if inode.size > MAX_DIRECTORY {
            return Err(refuse("it is longer than 512 MiB"));
        }
        let mut bytes = Vec::new();
        self.copy(inode, &mut bytes)?;
        let mut entries: Vec<DirectoryEntry> = Vec::new();
        for block in bytes.chunks(BLOCK_LEN) {
            let found = parse_block(block).ok_or_else(|| refuse("an entry is malformed"))?;
            entries.extend(found);
        }
        if !entries.windows(2).all(|pair| pair[0].name < pair[1].name) {
            return Err(refuse("its names are not sorted, or not unique"));
        }
        let dots = entries.len();
        entries.retain(|entry| !matches!(entry.name.as_slice(), b"." | b".."));
        if dots != entries.len() + 2 {
            return Err(refuse("`.` or `..` is missing"));
        }
        if entries.iter().any(|entry| entry.name.iter().any(|&byte| byte == b'/' || byte == 0)) {
            return Err(refuse("a name contains a slash or a null byte"));
        }
        Ok(entries)
    }

    /// Calls `visit` for the root and each name below it, directories before their content. The root's path
    /// is empty, the others do not start with a slash.
    ///
    /// # Errors
    ///
    /// If the image is malformed: a directory with two names, or too many files or levels.
    pub fn walk(
        &mut self,
        limits: &Limits,
        mut visit: impl FnMut(&mut Self, &[u8], &ImageInode) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let mut seen = BTreeSet::new();
        let mut names = 0_u64;
        let mut path = Vec::new();
        let mut stack = vec![(0, Vec::new(), self.root(), 0)];
        while let Some((parent_len, name, nid, depth)) = stack.pop() {
            path.truncate(parent_len);
            if parent_len > 0 {
                path.push(b'/');
            }
            path.extend(name);
            let inode = self.inode(nid)?;
            visit(self, &path, &inode)?;
            if inode.kind != FileKind::Directory {
                continue;
            }
            let offset = nid.saturating_mul(SLOT);
            let refuse = |problem| ReadError::Malformed { what: "directory", offset, problem };
            if !seen.insert(nid) || depth > limits.depth {
                return Err(refuse("it has two names, or is nested too deeply"));
            }
            let entries = self.list(&inode)?;
            names += entries.len() as u64;
            if names > limits.inodes.into() {
                return Err(refuse("the image contains too many files"));
            }
            for entry in entries.into_iter().rev() {
                stack.push((path.len(), entry.name, entry.nid, depth + 1));
            }
        }
        Ok(())
    }
}

/// Entries of a block of a directory.
fn parse_block(block: &[u8]) -> Option<Vec<DirectoryEntry>> {
    let first = usize::from(block.get(8..10).map(|bytes| u16_at(bytes, 0))?);
    if first == 0 || !first.is_multiple_of(DIRENT_LEN) || first > block.len() {
        return None;
    }
    let heads: Vec<_> = block[..first].chunks(DIRENT_LEN).collect();
    let mut entries = Vec::new();
    for (index, head) in heads.iter().enumerate() {
        let start = usize::from(u16_at(head, 8));
        let end = heads.get(index + 1).map_or(block.len(), |next| usize::from(u16_at(next, 8)));
        let mut name = block.get(start..end).filter(|_| start >= first)?;
        if index + 1 == heads.len() {
            // Zeros follow the last name of a block that is not full.
            name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        }
        if name.is_empty() || name.len() > 255 {
            return None;
        }
        entries.push(DirectoryEntry { name: name.to_vec(), nid: u64_at(head, 0) });
    }
    Some(entries)
}

fn read_at<R: Read + Seek>(input: &mut R, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
    input
        .seek(SeekFrom::Start(offset))
        .and_then(|_| input.read_exact(buffer))
        .map_err(|source| ReadError::Read { offset, source })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
