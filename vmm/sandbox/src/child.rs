//! A child process that shares nothing with its parent but what both had open before.

#![allow(unsafe_code, reason = "fork has no safe form")]

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitpid,
};

/// Exit status of a child whose work panicked, or whose parent ended before it began.
const STATUS_FAILED: i32 = 124;

/// Reason why there is no child.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A fork would copy only one of several threads.
    #[error("could not start the guest's process: this process has {0} threads")]
    Threads(usize),
    /// The kernel refused.
    #[error("could not start the guest's process")]
    Fork(#[source] io::Error),
}

/// A process that this one started. Dropped, it is killed.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    handle: OwnedFd,
    waited: bool,
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this status.
    Status(u8),
    /// This signal killed it.
    Killed(i32),
}

impl Child {
    /// Starts a process that does `work` and exits with the status that it returns. The kernel kills it
    /// when this process ends.
    ///
    /// # Errors
    /// If this process has more than one thread, or the host has no more processes.
    pub fn spawn(work: impl FnOnce() -> u8) -> Result<Self, SpawnError> {
        let threads = fs::read_dir("/proc/self/task").map_err(SpawnError::Fork)?.count();
        if threads != 1 {
            return Err(SpawnError::Threads(threads));
        }
        let parent = getpid();
        // SAFETY: this is the only thread, so that no lock is held and no data half written by another
        // one that the child would lack; the child may therefore do whatever the parent may.
        match unsafe { libc::fork() } {
            0 => live(parent, work),
            // Its id is not free before it was waited for.
            child @ 1.. => {
                let child = Pid::from_raw(child)
                    .ok_or_else(|| SpawnError::Fork(io::ErrorKind::Other.into()))?;
                let handle = pidfd_open(child, PidfdFlags::empty())
                    .map_err(|error| SpawnError::Fork(error.into()))?;
                Ok(Self { pid: child, handle, waited: false })
            }
            _ => Err(SpawnError::Fork(io::Error::last_os_error())),
        }
    }

    /// Kills the process.
    pub fn kill(&self) {
        // Fails only if it has ended.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }

    /// Waits for the process to end.
    ///
    /// # Errors
    /// If somebody else has waited for it.
    pub fn wait(&mut self) -> io::Result<End> {
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) | Ok(None) => {}
                Err(error) => return Err(error.into()),
                Ok(Some((_, status))) => {
                    self.waited = true;
                    if let Some(signal) = status.terminating_signal() {
                        return Ok(End::Killed(signal));
                    }
                    let status = status.exit_status().and_then(|status| u8::try_from(status).ok());
                    return Ok(End::Status(status.unwrap_or(u8::MAX)));
                }
            }
        }
    }
}

/// Readable once the process has ended.
impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.waited {
            self.kill();
            // Nobody is left to tell.
            let _ = self.wait();
        }
    }
}

/// The child's life. The work must not return into what the parent does.
fn live(parent: Pid, work: impl FnOnce() -> u8) -> ! {
    let tied = set_parent_process_death_signal(Some(Signal::KILL));
    // A parent that ended before that call does not kill.
    if tied.is_err() || getppid() != Some(parent) {
        process::exit(STATUS_FAILED);
    }
    // A panic has been reported by its hook.
    process::exit(catch_unwind(AssertUnwindSafe(work)).map_or(STATUS_FAILED, i32::from))
}
