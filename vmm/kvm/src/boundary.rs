//! The one way from this crate into the kernel.
//!
//! Each command goes through [`call`], which hands it to the kernel, or first to the
//! [`trace::Interposer`](crate::trace::Interposer) of the thread, where a test or a recording
//! installed one. None of these calls is on a guest's hot path: KVM_RUN is not among them.

#![allow(unsafe_code, reason = "ioctl(2) has no safe form")]

use std::fmt;
use std::os::fd::AsRawFd;
use std::time::Duration;

use libc::{c_int, c_ulong};
use serde::{Deserialize, Serialize};

use crate::KernelError;
use crate::error::Status;
use crate::trace;

/// What a command gives to the kernel and gets back. Its `Display` is what errors and traces show:
/// every value but addresses of this process and secrets.
pub(crate) trait Argument: fmt::Display {
    /// Offsets of the u64 that are addresses of this process; traces leave them out.
    const HOST_ADDRESSES: &'static [usize] = &[];
    /// Offset of the u64 that counts what is left to do, where the kernel updates it.
    const REMAINING: Option<usize> = None;
    /// Whether it says after the command what it said before. Then it is put into words only where
    /// somebody reads them: a table of CPUID costs more instructions than the launch of a small guest.
    const STAYS: bool = false;

    /// The bytes the kernel reads and writes.
    fn bytes(&mut self) -> &mut [u8];

    /// What the command returns when it has done all that is asked.
    fn whole(&self) -> i32 {
        0
    }
}

/// Implements [`Argument`] for a zerocopy structure.
macro_rules! argument {
    ($type:ty $(, $constant:ident = $value:expr)*) => {
        impl $crate::boundary::Argument for $type {
            $(const $constant: $crate::boundary::argument!(@type $constant) = $value;)*

            fn bytes(&mut self) -> &mut [u8] {
                zerocopy::IntoBytes::as_mut_bytes(self)
            }
        }
    };
    (@type HOST_ADDRESSES) => { &'static [usize] };
    (@type REMAINING) => { Option<usize> };
}
pub(crate) use argument;

/// For commands that have no argument.
pub(crate) struct Nothing;

impl fmt::Display for Nothing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no arguments")
    }
}

impl Argument for Nothing {
    fn bytes(&mut self) -> &mut [u8] {
        &mut []
    }
}

/// For commands that kvm-ioctls makes: what it hands to the kernel, in words. The kernel writes
/// nothing.
pub(crate) struct Told<Words> {
    words: Words,
    whole: i32,
}

impl<Words: fmt::Display> Told<Words> {
    pub(crate) const fn new(words: Words) -> Self {
        Self { words, whole: 0 }
    }

    /// Of a command that returns `whole` when it has done all that is asked.
    pub(crate) const fn returning(words: Words, whole: i32) -> Self {
        Self { words, whole }
    }
}

impl<Words: fmt::Display> fmt::Display for Told<Words> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.words.fmt(f)
    }
}

impl<Words: fmt::Display> Argument for Told<Words> {
    const STAYS: bool = true;

    fn bytes(&mut self) -> &mut [u8] {
        &mut []
    }

    fn whole(&self) -> i32 {
        self.whole
    }
}

/// The kernel's answer to a command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// 0, or why the command failed.
    #[serde(default)]
    pub errno: i32,
    /// What a successful command returned, where that is not 0. Never a file descriptor.
    #[serde(default)]
    pub value: i32,
    /// `kvm_sev_cmd.error` or `kvm_tdx_cmd.hw_error`, where the command has one.
    #[serde(default)]
    pub status: u64,
}

impl Reply {
    /// A failure without a firmware status.
    #[must_use]
    pub const fn errno(errno: i32) -> Self {
        Self { errno, value: 0, status: 0 }
    }

    /// The reply of a system call that returned `value`.
    pub(crate) fn of(value: c_int) -> Self {
        if value < 0 {
            Self::errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
        } else {
            Self { errno: 0, value, status: 0 }
        }
    }

    /// The reply to a command that kvm-ioctls made.
    pub(crate) fn by(made: Result<(), kvm_ioctls::Error>) -> Self {
        made.map_or_else(|error| Self::errno(error.errno()), |()| Self::default())
    }
}

/// Who gives the [`Reply::status`] of a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Firmware {
    None,
    Sev,
    Tdx,
}

/// Runs the command `name`: `kernel` makes the system call, unless the thread's interposer answers.
pub(crate) fn call<A: Argument>(
    name: &'static str,
    firmware: Firmware,
    argument: &mut A,
    kernel: impl FnOnce(&mut A) -> Reply,
) -> Result<i32, KernelError> {
    let read = trace::is_active() || tracing::enabled!(tracing::Level::DEBUG) || !A::STAYS;
    let arguments = read.then(|| argument.to_string());
    let reply = trace::through(name, arguments.as_deref().unwrap_or_default(), argument, kernel);
    let shown = arguments.as_deref().map(tracing::field::display);
    tracing::debug!(command = name, arguments = shown, errno = reply.errno, status = reply.status);
    if reply.errno == 0 {
        return Ok(reply.value);
    }
    let arguments = arguments.unwrap_or_else(|| argument.to_string());
    let status = match firmware {
        Firmware::None => Status::None,
        Firmware::Sev => Status::sev(reply.status),
        Firmware::Tdx => Status::seamcall(reply.status),
    };
    Err(KernelError::new(name, arguments, reply.errno, status))
}

/// `ioctl(fd, request, argument)`.
///
/// # Safety
/// `argument` is a value or an address that `request` takes on the kind of file that `fd` is. What
/// the kernel reads and writes through it, directly and through addresses in it, is valid for that
/// until the call returns, and nothing else refers to what it writes.
pub(crate) unsafe fn ioctl(fd: &impl AsRawFd, request: c_ulong, argument: c_ulong) -> Reply {
    // SAFETY: the caller's contract is that of this call.
    Reply::of(unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) })
}

/// The address of `value` as an ioctl argument.
pub(crate) fn address_of<T: ?Sized>(value: &mut T) -> c_ulong {
    std::ptr::from_mut(value).cast::<u8>().expose_provenance() as c_ulong
}

/// How often a command is tried again that the kernel or the firmware says to try again.
pub(crate) const ATTEMPTS: u32 = 1_000;

/// The pause between two attempts: what a busy platform needs is short (entropy, a lock of the TDX
/// module); all attempts together last about a second.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

/// Runs `command` until it succeeds, fails for good, or has failed [`ATTEMPTS`] times with one of
/// `passing` (or a busy TDX module).
pub(crate) fn retry<T>(
    passing: &[i32],
    mut command: impl FnMut() -> Result<T, KernelError>,
) -> Result<T, KernelError> {
    for _ in 1..ATTEMPTS {
        match command() {
            Err(error) if error.is_busy_module() || passing.contains(&error.errno()) => {
                std::thread::sleep(PAUSE);
            }
            outcome => return outcome,
        }
    }
    command()
}

/// Runs `command`, which does a part of its work and returns how much is left, until nothing is.
/// An attempt that gets nothing done counts against [`ATTEMPTS`]; progress starts the count again.
pub(crate) fn until_done(
    name: &'static str,
    total: u64,
    mut command: impl FnMut(u64) -> (u64, Result<(), KernelError>),
) -> Result<(), KernelError> {
    let mut left = total;
    let mut idle = 0;
    while left > 0 {
        let (remaining, outcome) = command(left);
        match outcome {
            Err(error) if !error.is_transient() || idle + 1 >= ATTEMPTS => return Err(error),
            _ => {}
        }
        if remaining < left {
            left = remaining;
            idle = 0;
        } else if remaining > left || idle + 1 >= ATTEMPTS {
            let said = format!("{left:#x} of {total:#x} were left, the kernel says {remaining:#x}");
            return Err(KernelError::new(name, said, libc::EPROTO, Status::None));
        } else {
            idle += 1;
            std::thread::sleep(PAUSE);
        }
    }
    Ok(())
}
