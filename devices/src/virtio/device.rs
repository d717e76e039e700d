//! The contract between a virtio device and the transport that carries it.

use std::io;
use std::sync::Arc;

use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::fault::QueueFault;
use super::queue::Virtqueue;
use crate::memory::DeviceMemory;

/// The devices there are, with their numbers (VIRTIO 1.2, section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceKind {
    /// Network card.
    Net = 1,
    /// Block device.
    Block = 2,
    /// Console.
    Console = 3,
    /// Entropy source.
    Entropy = 4,
    /// Memory balloon.
    Balloon = 5,
    /// Socket device.
    Vsock = 19,
}

/// A virtio device, whatever carries it (VIRTIO 1.2, section 2).
///
/// The transport owns it and calls it from vCPU threads; what serves the queues runs elsewhere, on
/// an [`IoThread`](crate::io_thread::IoThread).
pub trait VirtioDevice: Send {
    /// What it is.
    fn kind(&self) -> DeviceKind;

    /// The largest size of each of its queues, by index: powers of two up to 32768.
    fn queue_sizes(&self) -> &[u16];

    /// The bits 0 to 23 and 50 to 127 that belong to this kind of device. The transport adds its
    /// own: VERSION_1, RING_INDIRECT_DESC, RING_EVENT_IDX, and ACCESS_PLATFORM where the guest is
    /// confidential.
    fn features(&self) -> u64;

    /// The driver reads the configuration space: any offset, any length. `data` comes zeroed; what
    /// lies past the end stays so.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes the configuration space: any offset, any length. Ignored where there is
    /// nothing to write.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// The driver is ready (DRIVER_OK): the device starts to serve its queues.
    ///
    /// # Errors
    /// If a queue that the device cannot do without was not enabled, or a worker not started. The
    /// transport then sets DEVICE_NEEDS_RESET.
    fn activate(&mut self, activation: Activation) -> io::Result<()>;

    /// The driver resets the device: when this returns, no worker touches guest memory any more and
    /// nothing of the driver's is remembered. It may be activated again.
    fn reset(&mut self);
}

/// Answers a read of a configuration space whose fields are `fields`; what lies past them stays as
/// it is in `data`.
pub fn read_fields(fields: &[u8], offset: u64, data: &mut [u8]) {
    let rest = usize::try_from(offset).ok().and_then(|offset| fields.get(offset..));
    for (byte, field) in data.iter_mut().zip(rest.unwrap_or_default()) {
        *byte = *field;
    }
}

/// What a device gets when its driver is ready.
pub struct Activation {
    /// Guest memory.
    pub memory: Arc<DeviceMemory>,
    /// The features that driver and device agreed on.
    pub features: u64,
    /// The queues by index; `None` where the driver enabled none.
    pub queues: Vec<Option<ActiveQueue>>,
    /// The way back to the driver for all that is not a used buffer.
    pub control: DeviceControl,
}

impl Activation {
    /// Takes queue `index`, ready to be served.
    ///
    /// # Errors
    /// If the driver did not enable it (or it was taken before).
    pub fn take_queue(&mut self, index: u16) -> io::Result<Virtqueue> {
        let queue = self.queues.get_mut(usize::from(index)).and_then(Option::take);
        let queue = queue.ok_or_else(|| {
            io::Error::other(format!("the driver did not enable virtqueue {index}"))
        })?;
        Ok(Virtqueue::new(queue, Arc::clone(&self.memory), self.features))
    }
}

/// One enabled queue, in its parts (as vhost wants them). Devices that serve it themselves make a
/// [`Virtqueue`] of it.
pub struct ActiveQueue {
    /// Its index in the device.
    pub index: u16,
    /// Addresses and size of its rings, which lie in shared guest memory.
    pub queue: Queue,
    /// Counts the driver's notifications.
    pub kick: EventFd,
    /// Tells the driver of used buffers.
    pub interrupt: QueueInterrupt,
}

/// How a transport tells the driver something. Each call may come from any thread.
pub trait Transport: Send + Sync {
    /// Buffers of `queue` were used.
    fn queue_used(&self, queue: u16);

    /// An eventfd to the same effect as [`Transport::queue_used`], for vhost.
    fn queue_notifier(&self, queue: u16) -> Option<EventFd>;

    /// The device's configuration space changed.
    fn config_changed(&self);

    /// Sets DEVICE_NEEDS_RESET and tells the driver.
    fn needs_reset(&self);
}

/// The interrupt of one queue.
#[derive(Clone)]
pub struct QueueInterrupt {
    transport: Arc<dyn Transport>,
    queue: u16,
}

impl QueueInterrupt {
    /// The interrupt that `transport` raises for `queue`.
    pub fn new(transport: Arc<dyn Transport>, queue: u16) -> Self {
        Self { transport, queue }
    }

    /// Raises it, as far as the driver wants it: masked vectors become pending.
    pub fn trigger(&self) {
        self.transport.queue_used(self.queue);
    }

    /// An eventfd that raises it, if the driver gave the queue a vector.
    pub fn notifier(&self) -> Option<EventFd> {
        self.transport.queue_notifier(self.queue)
    }
}

/// What a device says to its driver beside used buffers.
#[derive(Clone)]
pub struct DeviceControl {
    transport: Arc<dyn Transport>,
    kind: DeviceKind,
}

impl DeviceControl {
    /// For a device of `kind`, carried by `transport`.
    pub fn new(transport: Arc<dyn Transport>, kind: DeviceKind) -> Self {
        Self { transport, kind }
    }

    /// The configuration space changed.
    pub fn config_changed(&self) {
        self.transport.config_changed();
    }

    /// The driver broke the rules of a queue: the device stops to serve all of its queues until the
    /// driver resets it.
    pub fn needs_reset(&self, fault: &QueueFault) {
        tracing::warn!(device = ?self.kind, %fault, "the device stops until its driver resets it");
        self.transport.needs_reset();
    }
}
