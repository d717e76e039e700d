//! One request on its way to the image and back.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{opcode, squeue, types};
use smallvec::SmallVec;

use super::{Finished, Image};
use crate::memory::{DeviceMemory, Loan};
use crate::virtio::blk::request::{Extent, HEADER_LEN, Request};
use crate::virtio::{Chain, QueueFault};

/// Most buffers that one system call takes (UIO_MAXIOV).
const MAX_IOVECS: usize = 1024;

/// Indices of the files that are registered with a ring.
const DIRECT_FILE: u32 = 0;
const CACHED_FILE: u32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Read,
    /// With RWF_DSYNC: it is stable when it is done.
    Write {
        durable: bool,
    },
    Flush,
    /// A range reads as zeroes from now on; `mode` is fallocate's.
    Zero {
        mode: i32,
    },
    /// A range of a file is no longer needed.
    Punch,
    /// BLKDISCARD.
    Discard,
}

/// What a request wanted, for whoever reports its failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Attempt {
    name: &'static str,
    extent: Extent,
}

impl std::fmt::Display for Attempt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Extent { offset, len } = self.extent;
        match len {
            0 => f.write_str(self.name),
            _ => write!(f, "{} of {len} bytes at {offset}", self.name),
        }
    }
}

/// fallocate's modes that leave the size of a file alone.
const PUNCH: i32 = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_PUNCH_HOLE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_KEEP_SIZE | libc::FALLOC_FL_ZERO_RANGE;

/// For file systems that cannot zero a range.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
/// As often they are written in one call: a guest may ask for a GiB at once.
const ZERO_IOVECS: usize = 64;

/// Nearly always one; then there is nothing to allocate.
type Buffers = SmallVec<[libc::iovec; 1]>;

/// A request, what is left of it, and the guest memory that it uses.
#[derive(Debug)]
pub(in super::super) struct Job {
    chain: Chain,
    operation: Operation,
    attempt: Attempt,
    /// What is left, in bytes of the image.
    left: Extent,
    /// What is left, in this process's view of guest memory.
    iovecs: Buffers,
    /// Buffers at the start of `iovecs` that are done.
    done: usize,
    /// Whether it goes past the page cache.
    direct: bool,
    /// Keeps what `iovecs` points to mapped, and in the account of shared memory.
    _loan: Option<Loan<Arc<DeviceMemory>>>,
}

// SAFETY: of the fields only the pointers in `iovecs` are not Send by themselves. They point into
// guest memory, which any thread may access (as the guest itself does all the time), and which
// `_loan` keeps mapped wherever the job goes.
unsafe impl Send for Job {}

impl Job {
    /// The job that carries out `request`, which `chain` asked for; writes are stable when they are
    /// done if `durable`.
    ///
    /// # Errors
    /// If the guest took the pages of its buffers back.
    pub(in super::super) fn new(
        chain: Chain,
        request: Request,
        durable: bool,
        memory: &Arc<DeviceMemory>,
        image: &Image,
    ) -> Result<Self, QueueFault> {
        let nothing = Extent { offset: 0, len: 0 };
        let (name, operation, left) = match request {
            Request::Read(extent) => ("read", Operation::Read, extent),
            Request::Write(extent) => ("write", Operation::Write { durable }, extent),
            Request::Flush | Request::Identify => ("flush", Operation::Flush, nothing),
            Request::Discard(extent) if image.is_block_device() => {
                ("discard", Operation::Discard, extent)
            }
            Request::Discard(extent) => ("discard", Operation::Punch, extent),
            Request::WriteZeroes { extent, unmap } => {
                let mode = if unmap { PUNCH } else { ZERO_RANGE };
                ("zeroing", Operation::Zero { mode }, extent)
            }
        };
        let attempt = Attempt { name, extent: left };
        let iovecs = iovecs(&chain, operation, left, memory)?;
        let direct = image.is_direct(left.offset, left.len, &iovecs);
        let _loan = match operation {
            Operation::Read => Some(chain.lend(Arc::clone(memory), true)?),
            Operation::Write { .. } => Some(chain.lend(Arc::clone(memory), false)?),
            // They use no guest memory.
            _ => None,
        };
        Ok(Self { chain, operation, attempt, left, iovecs, done: 0, direct, _loan })
    }

    /// Whether there is no way to do it but a call that blocks.
    pub(super) fn must_block(&self) -> bool {
        self.operation == Operation::Discard
    }

    /// Carries it out with blocking system calls.
    pub(super) fn run(mut self, image: &Image) -> Finished {
        loop {
            let result = self.attempt(image, 0);
            if let Some(result) = self.advance(result) {
                return self.finish(result);
            }
        }
    }

    /// Carries it out if that takes no longer than a copy: what is in memory, and reads that the page
    /// cache can answer. If it does not (`false`), part of it may have been done.
    pub(super) fn try_at_once(&mut self, image: &Image) -> bool {
        let flags = match self.operation {
            // Past the page cache, even a call that does not wait would wait for the disk.
            _ if self.direct => return false,
            // A file system in memory refuses calls that do not wait, and io_uring gives all of its
            // transfers to threads of their own.
            Operation::Read | Operation::Write { .. } if image.is_in_memory() => 0,
            Operation::Read => libc::RWF_NOWAIT,
            _ => return false,
        };
        let result = self.attempt(image, flags);
        result.is_ok() && matches!(self.advance(result), Some(Ok(())))
    }

    pub(super) fn finish(self, result: io::Result<()>) -> Finished {
        Finished { chain: self.chain, attempt: self.attempt, result }
    }

    /// What is to be done next, as an entry of a ring.
    ///
    /// The entry points into `self` until it is submitted, and into guest memory until the kernel
    /// has answered it.
    pub(super) fn entry(&self) -> squeue::Entry {
        let file = types::Fixed(if self.direct { DIRECT_FILE } else { CACHED_FILE });
        let Extent { offset, len } = self.left;
        let iovecs = self.rest();
        let (iovec, count) = (iovecs.as_ptr(), short(iovecs.len()));
        match (self.operation, iovecs) {
            (Operation::Read, [one]) => {
                opcode::Read::new(file, one.iov_base.cast(), short(one.iov_len))
                    .offset(offset)
                    .build()
            }
            (Operation::Read, _) => opcode::Readv::new(file, iovec, count).offset(offset).build(),
            (Operation::Write { durable }, [one]) => {
                opcode::Write::new(file, one.iov_base.cast(), short(one.iov_len))
                    .offset(offset)
                    .rw_flags(write_flags(durable))
                    .build()
            }
            (Operation::Write { durable }, _) => opcode::Writev::new(file, iovec, count)
                .offset(offset)
                .rw_flags(write_flags(durable))
                .build(),
            (Operation::Zero { mode }, _) => {
                opcode::Fallocate::new(file, len).offset(offset).mode(mode).build()
            }
            (Operation::Punch, _) => {
                opcode::Fallocate::new(file, len).offset(offset).mode(PUNCH).build()
            }
            (Operation::Flush | Operation::Discard, _) => {
                opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build()
            }
        }
    }

    /// Takes the kernel's answer: bytes done, or 0 where there are none to count. `None`: there is
    /// more to do.
    pub(super) fn advance(&mut self, result: io::Result<usize>) -> Option<io::Result<()>> {
        let bytes = match result {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return None,
            Err(error) if is_unknown(&error) => return self.without_support(error),
            Err(error) => return Some(Err(error)),
            Ok(bytes) => bytes,
        };
        if !matches!(self.operation, Operation::Read | Operation::Write { .. }) {
            return Some(Ok(()));
        }
        if bytes == 0 {
            // The image shrank, or its disk is full.
            return Some(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        self.left.offset = self.left.offset.saturating_add(bytes as u64);
        self.left.len = self.left.len.saturating_sub(bytes as u64);
        let mut bytes = bytes;
        while let Some(first) = self.iovecs.get_mut(self.done) {
            let step = bytes.min(first.iov_len);
            first.iov_base = first.iov_base.wrapping_byte_add(step);
            first.iov_len -= step;
            bytes -= step;
            if first.iov_len > 0 {
                break;
            }
            self.done += 1;
        }
        if self.left.len == 0 {
            return Some(Ok(()));
        }
        if self.done == self.iovecs.len() {
            // Of buffers in guest memory there are as many as bytes that are left.
            self.iovecs = zeroes(self.left.len);
            self.done = 0;
        }
        None
    }

    /// Goes on where the image cannot do it: the guest's disk can do the same everywhere.
    fn without_support(&mut self, error: io::Error) -> Option<io::Result<()>> {
        match self.operation {
            // Nothing has to happen.
            Operation::Punch | Operation::Discard => Some(Ok(())),
            Operation::Zero { mode: PUNCH } => {
                self.operation = Operation::Zero { mode: ZERO_RANGE };
                None
            }
            Operation::Zero { .. } => {
                self.operation = Operation::Write { durable: false };
                self.direct = false;
                self.iovecs = zeroes(self.left.len);
                self.done = 0;
                None
            }
            _ => Some(Err(error)),
        }
    }

    /// The buffers for one call.
    fn rest(&self) -> &[libc::iovec] {
        let rest = self.iovecs.get(self.done..).unwrap_or_default();
        &rest[..rest.len().min(MAX_IOVECS)]
    }

    /// One system call's worth, with `flags` of preadv2.
    fn attempt(&self, image: &Image, flags: i32) -> io::Result<usize> {
        let file = image.file(self.direct);
        let descriptor = file.as_raw_fd();
        let (offset, len) = (signed(self.left.offset), signed(self.left.len));
        let iovecs = self.rest();
        let (iovec, count) = (iovecs.as_ptr(), i32::try_from(iovecs.len()).unwrap_or(0));
        let result = match (self.operation, iovecs) {
            // SAFETY: `iovecs` are `count` buffers in guest memory (`iovecs()` made them of slices
            // of it, `advance()` only shortens them), which `_loan` keeps mapped; this is the only
            // one. The kernel writes to it; nothing in this process holds references into guest
            // memory.
            (Operation::Read, [one]) if flags == 0 => unsafe {
                libc::pread(descriptor, one.iov_base, one.iov_len, offset)
            },
            // SAFETY: as above, for all of them.
            (Operation::Read, _) => unsafe {
                libc::preadv2(descriptor, iovec, count, offset, flags)
            },
            // SAFETY: as above, but the kernel only reads; the buffers may also lie in `ZEROES`, which
            // lives for ever.
            (Operation::Write { durable }, _) => unsafe {
                libc::pwritev2(descriptor, iovec, count, offset, flags | write_flags(durable))
            },
            (Operation::Flush, _) => return file.sync_data().map(|()| 0),
            (Operation::Zero { mode }, _) => allocate(descriptor, mode, offset, len),
            (Operation::Punch, _) => allocate(descriptor, PUNCH, offset, len),
            (Operation::Discard, _) => {
                return image.discard(self.left.offset, self.left.len).map(|()| 0);
            }
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

/// This process's view of the guest's buffers; none where no data is moved.
fn iovecs(
    chain: &Chain,
    operation: Operation,
    extent: Extent,
    memory: &DeviceMemory,
) -> Result<Buffers, QueueFault> {
    let mut iovecs = Buffers::new();
    let add = |slice: vm_memory::VolatileSlice<'_>| {
        let iov_base = slice.ptr_guard_mut().as_ptr().cast();
        iovecs.push(libc::iovec { iov_base, iov_len: slice.len() });
        Ok(())
    };
    let len = usize::try_from(extent.len).unwrap_or(usize::MAX);
    match operation {
        Operation::Read => chain.for_each_writable(memory, 0, len, add)?,
        Operation::Write { .. } => chain.for_each_readable(memory, HEADER_LEN, len, add)?,
        _ => {}
    }
    Ok(iovecs)
}

/// Up to `len` bytes of zeroes. The kernel only reads them.
fn zeroes(mut len: u64) -> Buffers {
    let mut iovecs = Buffers::new();
    while len > 0 && iovecs.len() < ZERO_IOVECS {
        let iov_len = usize::try_from(len).unwrap_or(usize::MAX).min(ZEROES.len());
        iovecs.push(libc::iovec { iov_base: ZEROES.as_ptr().cast_mut().cast(), iov_len });
        len -= iov_len as u64;
    }
    iovecs
}

fn allocate(descriptor: i32, mode: i32, offset: i64, len: i64) -> isize {
    // SAFETY: fallocate touches no memory of ours.
    unsafe { libc::fallocate(descriptor, mode, offset, len) as isize }
}

/// Whether a file system or device does not have the operation at all.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY))
}

fn write_flags(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

/// A length or count for one call; a shorter transfer is continued.
fn short(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Offsets and lengths lie within the image, whose size is a signed number.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
