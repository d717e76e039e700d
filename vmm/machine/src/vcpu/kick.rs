//! Kicking: a signal that makes a vCPU's thread leave KVM_RUN, whenever it arrives.
//!
//! A signal alone is lost if it comes just before KVM_RUN. So its handler also tells KVM to return
//! at once (`immediate_exit`), which no timing escapes.

#![allow(unsafe_code, reason = "a signal handler writes to a page that KVM reads")]

use std::cell::Cell;
use std::io;
use std::os::unix::thread::JoinHandleExt as _;
use std::ptr;
use std::thread::JoinHandle;

use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::arch::RunPage;

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// Makes kicks harmless to threads that run no vCPU (yet). Before the first kick: without a handler
/// the signal ends the process.
pub(super) fn allow() -> io::Result<()> {
    Ok(register_signal_handler(SIGRTMIN(), on_kick)?)
}

/// While it lives, kicks reach the vCPU that this thread runs.
pub(super) struct Kickable;

impl Kickable {
    /// The vCPU, and with it the page, must outlive the value.
    pub(super) fn new(page: RunPage) -> Self {
        IMMEDIATE_EXIT.set(page.immediate_exit());
        Self
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}

extern "C" fn on_kick(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let immediate_exit = IMMEDIATE_EXIT.get();
    if !immediate_exit.is_null() {
        // SAFETY: `Kickable` sets the pointer to a byte of a page that outlives it, and clears it.
        // The handler runs on the same thread; KVM reads the byte, other code of ours never.
        unsafe { immediate_exit.write_volatile(1) }
    }
}

/// Makes the vCPU that `thread` runs leave KVM_RUN, now or when it next enters.
pub(super) fn kick<T>(thread: &JoinHandle<T>) {
    // SAFETY: the thread is not joined yet, as we have its handle, so its id is valid.
    unsafe {
        libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN());
    }
}
