//! Signals as messages to one process, not to its children.

#![allow(unsafe_code, reason = "signal masks and signalfd have no safe form")]

use std::fs::File;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::ptr;

use libc::c_int;

/// Signals that neither end nor interrupt this process and its children any more. This process reads
/// them; a child never learns of one that was sent to its whole group or control group.
#[derive(Debug)]
pub struct Signals(File);

/// Bytes of a message (signalfd(2)); its first four are the signal's number.
const MESSAGE: usize = size_of::<libc::signalfd_siginfo>();

impl Signals {
    /// Blocks `signals`. Those that this process ignores, as `nohup` lets it ignore SIGHUP, stay ignored.
    ///
    /// # Errors
    /// If the process has no more file descriptors.
    pub fn block(signals: &[c_int]) -> io::Result<Self> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: the first call fills `set`, and the second changes it; with a signal that does not
        // exist it fails and changes nothing.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
            set.assume_init()
        };
        // SAFETY: reads `set`; no old mask is asked for.
        let result =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: reads `set`, and makes a new descriptor.
        let file =
            unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made it, and nobody else knows it.
        Ok(Self(File::from(unsafe { OwnedFd::from_raw_fd(file) })))
    }

    /// The next signal, if one has arrived.
    pub fn next(&self) -> Option<c_int> {
        let mut message = [0; MESSAGE];
        let length = (&self.0).read(&mut message).ok()?;
        let number = message.first_chunk::<4>().filter(|_| length == MESSAGE)?;
        c_int::try_from(u32::from_ne_bytes(*number)).ok()
    }
}

/// Readable while a signal waits.
impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
