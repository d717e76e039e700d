//! The file or block device behind a disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::lock::{self, Owner};
use crate::virtio::blk::request::SECTOR;

/// Discards a range of a block device (linux/fs.h): `_IO(0x12, 119)`, with two u64: start, length.
const BLKDISCARD: libc::c_ulong = 0x1277;

/// Why a file cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// Metadata, size or flags.
    #[error("cannot inspect the image")]
    Inspect(#[source] io::Error),
    /// Neither of the two kinds.
    #[error("the image is neither a regular file nor a block device")]
    Kind,
    /// Not one sector.
    #[error("the image has {0} bytes; a disk has at least one sector of 512")]
    Small(u64),
    /// The device is not read-only, but the file is.
    #[error("the image was opened for reading only, but the disk is to be written")]
    NotWritable,
    /// Somebody else's, who writes; or ours is to be written.
    #[error(
        "the image is in use by {0}; give each guest an image of its own, or set read_only = true for \
         all of them"
    )]
    InUse(Owner),
    /// Direct I/O needs a second way to the image.
    #[error("cannot open the image a second time, for requests that direct I/O cannot carry")]
    Reopen(#[source] io::Error),
}

/// Physical block of every image that is a file, in bytes. What the file system prefers would change
/// the disk when its file moves.
const FILE_BLOCK: u32 = 4096;

/// A raw image, opened.
#[derive(Debug)]
pub struct Image {
    file: File,
    /// For an image opened with O_DIRECT.
    direct: Option<Direct>,
    block_device: bool,
    in_memory: bool,
    sectors: AtomicU64,
    logical_block: u32,
    physical_block: u32,
}

/// What direct I/O needs.
#[derive(Debug)]
struct Direct {
    /// Bytes that offsets and lengths must be multiples of.
    offset_alignment: u64,
    /// Bytes that addresses of buffers must be multiples of.
    memory_alignment: usize,
    /// The same image through the page cache. A request that is not aligned takes this way: the
    /// kernel reads, modifies and writes whole blocks, and keeps both ways coherent.
    cached: File,
}

impl Image {
    /// Looks at an open image. If it was opened with O_DIRECT, it is used so; `read_only` says
    /// whether the disk never writes.
    ///
    /// # Errors
    /// If the file cannot be a disk.
    pub fn new(mut file: File, read_only: bool) -> Result<Self, ImageError> {
        let metadata = file.metadata().map_err(ImageError::Inspect)?;
        let block_device = metadata.file_type().is_block_device();
        if !block_device && !metadata.is_file() {
            return Err(ImageError::Kind);
        }
        let flags = status_flags(&file).map_err(ImageError::Inspect)?;
        leave_access_time(&file, flags);
        if !read_only && flags & libc::O_ACCMODE != libc::O_RDWR {
            return Err(ImageError::NotWritable);
        }
        // Unlike the metadata, the end is right for block devices too.
        let bytes = file.seek(SeekFrom::End(0)).map_err(ImageError::Inspect)?;
        if bytes < SECTOR {
            return Err(ImageError::Small(bytes));
        }
        let (logical_block, physical_block) = if block_device {
            let size = |request| block_size(&file, request).map_err(ImageError::Inspect);
            (size(libc::BLKSSZGET)?, size(libc::BLKPBSZGET)?)
        } else {
            // Partition tables inside of images count in sectors, whatever the file system has.
            (512, FILE_BLOCK)
        };
        let direct = (flags & libc::O_DIRECT != 0)
            .then(|| Direct::new(&file, logical_block.max(512), read_only))
            .transpose()?;
        let in_memory = is_in_memory(&file).map_err(ImageError::Inspect)?;
        let sectors = AtomicU64::new(bytes / SECTOR);
        Ok(Self { file, direct, block_device, in_memory, sectors, logical_block, physical_block })
    }

    /// Keeps other processes, and other disks of this one, from writing the image; and where this disk
    /// is written, from using it.
    ///
    /// # Errors
    /// If somebody has it.
    pub fn lock(&self, read_only: bool) -> Result<(), ImageError> {
        lock::lock(&self.file, read_only)
    }

    /// Size, in sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Acquire)
    }

    /// Looks at the size again. Returns the one before where it has changed.
    ///
    /// # Errors
    /// If the size cannot be had, or is less than a sector.
    pub(in super::super) fn look_again(&self) -> Result<Option<u64>, ImageError> {
        // Nobody else uses the file's position.
        let bytes = (&self.file).seek(SeekFrom::End(0)).map_err(ImageError::Inspect)?;
        if bytes < SECTOR {
            return Err(ImageError::Small(bytes));
        }
        let sectors = bytes / SECTOR;
        let before = self.sectors.swap(sectors, Ordering::AcqRel);
        Ok((before != sectors).then_some(before))
    }

    /// Smallest block that can be addressed, in bytes.
    #[must_use]
    pub fn logical_block(&self) -> u32 {
        self.logical_block
    }

    /// Smallest block that is written without reading it first, in bytes.
    #[must_use]
    pub fn physical_block(&self) -> u32 {
        self.physical_block.max(self.logical_block)
    }

    pub(super) fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Whether the file system has its files in memory, where no transfer waits for a disk.
    pub(super) fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Whether a transfer of `len` bytes at `offset`, from or to `buffers` in memory, goes past the
    /// page cache.
    pub(super) fn is_direct(&self, offset: u64, len: u64, buffers: &[libc::iovec]) -> bool {
        self.direct.as_ref().is_some_and(|direct| {
            let aligned = |buffer: &libc::iovec| {
                (buffer.iov_base.addr() | buffer.iov_len).is_multiple_of(direct.memory_alignment)
            };
            (offset | len).is_multiple_of(direct.offset_alignment) && buffers.iter().all(aligned)
        })
    }

    /// The file for what is direct, or not.
    pub(super) fn file(&self, direct: bool) -> &File {
        match &self.direct {
            Some(ways) if !direct => &ways.cached,
            _ => &self.file,
        }
    }

    /// Tells a block device that a range is no longer needed.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let range = [offset, len];
        // SAFETY: BLKDISCARD reads two u64 at the address given, which `range` is, and keeps nothing.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), BLKDISCARD, range.as_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Direct {
    fn new(file: &File, logical_block: u32, read_only: bool) -> Result<Self, ImageError> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let cached = OpenOptions::new().read(true).write(!read_only).open(path);
        let (memory, offset) = direct_alignment(file).unwrap_or((logical_block, logical_block));
        Ok(Self {
            offset_alignment: u64::from(offset),
            memory_alignment: memory as usize,
            cached: cached.map_err(ImageError::Reopen)?,
        })
    }
}

fn status_flags(file: &File) -> io::Result<i32> {
    // SAFETY: F_GETFL takes no argument and touches no memory of ours.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 { Err(io::Error::last_os_error()) } else { Ok(flags) }
}

fn is_in_memory(file: &File) -> io::Result<bool> {
    // SAFETY: all fields of statfs are integers, for which zeroes are valid.
    let mut answer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills in one statfs at the address of `answer`, which is one.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut answer) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(answer.f_type == libc::TMPFS_MAGIC)
    }
}

/// Reads need not note their time in the file, which costs as much as a tenth of a short one.
fn leave_access_time(file: &File, flags: i32) {
    // SAFETY: F_SETFL takes an integer and touches no memory of ours. It is refused to whoever does not own
    // the file; then reads cost what they cost.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NOATIME) };
}

/// What BLKSSZGET or BLKPBSZGET says, both of which fill in a 32-bit integer.
fn block_size(device: &File, request: libc::Ioctl) -> io::Result<u32> {
    let mut bytes: u32 = 0;
    // SAFETY: both requests write one 32-bit integer to the address given, which `bytes` is.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), request, &raw mut bytes) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(bytes) }
}

/// What the file system says that direct I/O needs (memory, offset), if it knows (Linux 6.1).
fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    // SAFETY: all fields of statx are integers, for which zeroes are valid.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is an empty C string, and the kernel fills in one statx at the address of
    // `answer`, which is one.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut answer,
        )
    };
    let known = result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0;
    let alignment = (answer.stx_dio_mem_align, answer.stx_dio_offset_align);
    (known && alignment.0 > 0 && alignment.1 > 0).then_some(alignment)
}
