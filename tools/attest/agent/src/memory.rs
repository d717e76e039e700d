//! A process that holds a secret stays out of swap and of core files.
//!
//! A guest's swap and its dumps may be on a disk of the host's. The whole process is locked rather than
//! single buffers: a secret passes through buffers of the connection, of JSON and of the cipher as well.

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// The memory of the process is not protected.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// `RLIMIT_MEMLOCK` is too low, or the kernel does not lock.
    #[error(
        "could not lock the process in memory, so that a secret could reach swap: run as root, or \
         raise the limit of locked memory (ulimit -l)"
    )]
    Lock(#[source] Errno),
    /// The kernel does not know the attribute.
    #[error("could not keep the process out of core files")]
    Core(#[source] Errno),
}

/// Locks all memory of this process, present and future, and keeps it out of core files. Both end with
/// the process image: a program that takes its place by exec has neither.
///
/// # Errors
/// See [`MemoryError`].
pub fn protect_memory() -> Result<(), MemoryError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(MemoryError::Core)?;
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).map_err(MemoryError::Lock)
}
