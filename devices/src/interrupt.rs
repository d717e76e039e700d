//! Interrupts as devices raise them. All are edges: TDX has no exits at the end of a
//! level-triggered interrupt, and one way for all platforms is simpler.

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// An interrupt line (of the serial port, of ACPI events).
pub trait Line: Send + Sync {
    /// One edge on the line.
    ///
    /// # Errors
    /// If the interrupt could not be handed to the hypervisor.
    fn trigger(&self) -> io::Result<()>;
}

/// A message as written to MSI capability or MSI-X table entries (PCI Local Bus 3.0, section
/// 6.8.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Message address, both halves.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// One message-signalled interrupt of a device.
pub trait MessageInterrupt: Send + Sync {
    /// Where the message goes from now on; `None` while it is masked. The guest rewrites it at will.
    ///
    /// # Errors
    /// If the route could not be set.
    fn route(&self, message: Option<Message>) -> io::Result<()>;

    /// Raises it.
    ///
    /// # Errors
    /// If the interrupt could not be handed to the hypervisor.
    fn trigger(&self) -> io::Result<()>;

    /// An eventfd that raises it from another thread, process or the kernel (vhost), if there is
    /// one. While the interrupt is masked the eventfd keeps what is written, and raises it once it is
    /// routed again.
    fn notifier(&self) -> Option<&EventFd>;
}

/// Where PCI devices get their message interrupts from.
pub trait MessageInterrupts: Send + Sync {
    /// `count` new interrupts, masked.
    ///
    /// # Errors
    /// If the host has no more of them.
    fn allocate(&self, count: u16) -> io::Result<Vec<Arc<dyn MessageInterrupt>>>;
}

#[cfg(test)]
pub(crate) mod testing;
