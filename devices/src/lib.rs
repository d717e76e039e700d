//! The devices of a guest: bus, serial port, PCI and virtio devices.
//!
//! This crate knows nothing of KVM or of confidential platforms. Devices see guest memory through
//! [`memory::DeviceMemory`], which refuses pages that the guest keeps private, and interrupts
//! through [`interrupt`]'s traits.

pub mod bus;
pub mod doorbell;
pub mod interrupt;
pub mod io_thread;
pub mod legacy;
pub mod memory;
pub mod outlet;
pub mod pci;
pub mod rate_limit;
pub mod thread;
pub mod virtio;
