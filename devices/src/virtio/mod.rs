//! Virtio devices (VIRTIO 1.2), and what they share: the contract with their transport, and a
//! strict front for the queues that a driver may fill with anything.
//!
//! Each device has its own folder with the same files: `mod.rs` (configuration space, features,
//! activation and reset), `worker.rs` (what serves the queues) and, where requests have a format,
//! its parser.

pub mod balloon;
pub mod blk;
pub mod chain;
pub mod console;
pub mod device;
pub mod fault;
pub mod net;
pub mod pci;
pub mod queue;
pub mod rng;
mod service;
#[cfg(test)]
pub(crate) mod testing;
mod vhost;
pub mod vsock;

pub use chain::{Buffer, Chain};
pub use device::{
    Activation, ActiveQueue, DeviceControl, DeviceKind, QueueInterrupt, Transport, VirtioDevice,
    read_fields,
};
pub use fault::{FaultReason, QueueFault};
pub use queue::Virtqueue;
