//! Queues that the host's kernel serves (vhost), for guests whose memory is all shared.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{
    Address, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::service::Service;
use super::{ActiveQueue, FaultReason, QueueFault};

/// Features of the rings, which vhost has to know.
const RING_FEATURES: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_ACCESS_PLATFORM;

/// The memory that vhost sees: none, until queues are handed over.
pub(super) type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// One instance of a kernel's device. It is opened while the host still allows it, and outlives resets.
pub(super) struct Vhost<H> {
    pub(super) handle: H,
    memory: Memory,
    /// What this kernel's device knows, of what `concerns` it.
    features: u64,
    concerns: u64,
}

impl<H: VhostBackend> Vhost<H> {
    /// `concerns` are features of the device, beside those of the rings, that change what vhost does.
    pub(super) fn open(
        make: impl FnOnce(Memory) -> Result<H, vhost::Error>,
        concerns: u64,
    ) -> Result<Self, vhost::Error> {
        let memory = Memory::new(GuestMemoryMmap::new());
        let handle = make(memory.clone())?;
        handle.set_owner()?;
        let features = handle.get_features()?;
        Ok(Self { handle, memory, features, concerns: concerns | RING_FEATURES })
    }

    /// Whether it can serve queues with these features.
    pub(super) fn knows(&self, features: u64) -> bool {
        features & self.concerns & !self.features == 0
    }

    /// Tells the kernel of the queues, the first of which is its first. It complains to `errors`.
    pub(super) fn set_queues(
        &self,
        memory: &GuestMemoryMmap,
        features: u64,
        queues: [&ActiveQueue; 2],
        errors: &EventFd,
    ) -> io::Result<()> {
        let regions: Vec<_> = memory.iter().map(region).collect();
        match self.memory.lock() {
            Ok(guard) => guard.replace(memory.clone()),
            Err(poisoned) => poisoned.into_inner().replace(memory.clone()),
        }
        self.handle.set_features(features & self.concerns).map_err(refused)?;
        self.handle.set_mem_table(&regions).map_err(refused)?;
        for (index, active) in queues.into_iter().enumerate() {
            let queue = &active.queue;
            let config = VringConfigData {
                queue_max_size: queue.max_size(),
                queue_size: queue.size(),
                flags: 0,
                desc_table_addr: queue.desc_table(),
                used_ring_addr: queue.used_ring(),
                avail_ring_addr: queue.avail_ring(),
                log_addr: None,
            };
            let call = active.interrupt.notifier();
            let call = call.ok_or_else(|| io::Error::other("a queue without an interrupt"))?;
            self.handle.set_vring_num(index, queue.size()).map_err(refused)?;
            self.handle.set_vring_base(index, queue.next_avail()).map_err(refused)?;
            self.handle.set_vring_addr(index, &config).map_err(refused)?;
            self.handle.set_vring_call(index, &call).map_err(refused)?;
            self.handle.set_vring_err(index, errors).map_err(refused)?;
            self.handle.set_vring_kick(index, &active.kick).map_err(refused)?;
        }
        Ok(())
    }
}

/// What the kernel does not do.
pub(super) fn refused(error: vhost::Error) -> io::Error {
    io::Error::other(error)
}

fn region(region: &vm_memory::GuestRegionMmap) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr().addr() as u64,
        ..VhostUserMemoryRegionInfo::default()
    }
}

/// Waits for the kernel's complaints about the driver.
pub(super) struct Watch {
    service: Arc<Service>,
    queue: u16,
    pub(super) errors: EventFd,
    /// Whether the host took away what the queues are connected to, and that is reported.
    is_lost: Lost,
}

/// Asked when the kernel complains.
pub(super) type Lost = Box<dyn Fn() -> bool + Send>;

impl Watch {
    /// For the queues of which the first is `queue`.
    pub(super) fn new(service: &Arc<Service>, queue: u16, is_lost: Lost) -> io::Result<Self> {
        let errors = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self { service: Arc::clone(service), queue, errors, is_lost })
    }
}

impl MutEventSubscriber for Watch {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.service.listen(ops, self.queue, self.errors.as_raw_fd(), 0);
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if !self.service.is_stopped() && !(self.is_lost)() {
            let reason = FaultReason::Request("vhost cannot make sense of the queue");
            let fault = QueueFault { queue: self.queue, address: 0, reason };
            self.service.check(self.queue, Err(fault.into()));
        }
    }
}
