//! Where the guest's words go, without ever waiting: a terminal that is stopped or a pipe that
//! nobody reads must not stop the thread.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Bytes that go in one write: what a pipe takes whole once it says that it takes something
/// (POSIX, PIPE_BUF). The descriptor may be shared with other processes, so that making it
/// non-blocking would surprise them.
pub(super) const MOST_BYTES: usize = 4096;

/// A file descriptor to write to.
pub(super) struct Output {
    pub(super) file: File,
    /// Says when it can be written; `None` where that is always (a file).
    ready: Option<Epoll>,
}

impl Output {
    pub(super) fn new(file: File) -> io::Result<Self> {
        let ready = Epoll::new()?;
        let fd = file.as_raw_fd();
        match ready.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::OUT, 0)) {
            Ok(()) => Ok(Self { file, ready: Some(ready) }),
            // The kernel's answer to what needs no waiting.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                Ok(Self { file, ready: None })
            }
            Err(error) => Err(error),
        }
    }

    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Self::new(self.file.try_clone()?)
    }

    /// Whether a write of [`MOST_BYTES`] would not wait (or fail at once).
    pub(super) fn is_ready(&self) -> bool {
        let mut events = [EpollEvent::default()];
        self.ready.as_ref().is_none_or(|ready| ready.wait(0, &mut events).is_ok_and(|n| n > 0))
    }

    /// Readable when [`Output::is_ready`]; `None` where that is always.
    pub(super) fn ready(&self) -> Option<&Epoll> {
        self.ready.as_ref()
    }
}
