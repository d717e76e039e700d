//! Notifications that need not leave the kernel (ioeventfds).

use std::io;

use vmm_sys_util::eventfd::EventFd;

/// Turns guest writes to an address into events. A device works without it, only slower: a write
/// that reaches the device itself has the same effect.
pub trait Doorbells: Send + Sync {
    /// From now on a write to guest-physical address `gpa`, of any length and value, adds one to
    /// `kick` and reaches no device.
    ///
    /// # Errors
    /// If the hypervisor has no (more) such addresses, or this one is taken.
    fn register(&self, gpa: u64, kick: &EventFd) -> io::Result<()>;

    /// Undoes [`Doorbells::register`] with the same arguments.
    ///
    /// # Errors
    /// If there is no such doorbell.
    fn unregister(&self, gpa: u64, kick: &EventFd) -> io::Result<()>;
}

#[cfg(test)]
pub(crate) mod testing;
