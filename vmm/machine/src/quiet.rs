//! A thread that no signal disturbs.

#![allow(unsafe_code, reason = "signal masks have no safe form")]

use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;

/// While it lives, this thread takes no signals; those of the process wait or go to another thread.
///
/// The kernel reports a signal in the middle of KVM_SEV_SNP_LAUNCH_UPDATE as EIO, which cannot be told
/// from a real failure.
pub(crate) struct Quiet {
    before: libc::sigset_t,
    /// The mask is the thread's.
    _not_send: PhantomData<*const ()>,
}

impl Quiet {
    pub(crate) fn new() -> Self {
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: the first call fills `all`, the second reads it and fills `before`; neither can
        // fail with these arguments (sigfillset(3), pthread_sigmask(3)).
        let before = unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            before.assume_init()
        };
        Self { before, _not_send: PhantomData }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // SAFETY: the mask is one that the kernel gave, and no old one is asked for.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocked(signal: libc::c_int) -> bool {
        let mut mask = MaybeUninit::uninit();
        // SAFETY: asks for the mask, which is then initialised, and changes nothing.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr());
            libc::sigismember(mask.as_ptr(), signal) == 1
        }
    }

    #[test]
    fn signals_wait_until_it_is_over() {
        assert!(!blocked(libc::SIGTERM));
        let quiet = Quiet::new();
        assert!(blocked(libc::SIGTERM) && blocked(libc::SIGALRM));
        drop(quiet);
        assert!(!blocked(libc::SIGTERM));
    }
}
