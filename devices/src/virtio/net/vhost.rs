//! A pair of queues that the host's kernel serves (/dev/vhost-net), for guests whose memory is all
//! shared.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vhost::net::VhostNet;
use vhost::vhost_kern::net::Net as Handle;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{
    Address, GuestMemoryAtomic, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::service::Service;
use super::super::{ActiveQueue, FaultReason, QueueFault};
use super::link::Link;

/// Features that change what vhost itself does; offloads are the tap's.
const CONCERNS: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_ACCESS_PLATFORM;

/// One instance of vhost-net. It is opened while the host still allows it, and outlives resets.
pub(super) struct Vhost {
    handle: Handle<GuestMemoryAtomic<GuestMemoryMmap>>,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    /// What this kernel's vhost-net knows.
    features: u64,
    started: bool,
}

impl Vhost {
    pub(super) fn open() -> Result<Self, vhost::Error> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let handle = Handle::new(memory.clone())?;
        handle.set_owner()?;
        let features = handle.get_features()?;
        Ok(Self { handle, memory, features, started: false })
    }

    /// Whether it can serve queues with these features.
    pub(super) fn knows(&self, features: u64) -> bool {
        features & CONCERNS & !self.features == 0
    }

    /// Hands both queues of a pair to the kernel, which moves packets to and from `link`, and
    /// complains to `errors`.
    pub(super) fn start(
        &mut self,
        memory: &GuestMemoryMmap,
        features: u64,
        pair: [&ActiveQueue; 2],
        errors: &EventFd,
        link: &dyn Link,
    ) -> io::Result<()> {
        let regions: Vec<_> = memory.iter().map(region).collect();
        let refused = |error: vhost::Error| io::Error::other(error);
        match self.memory.lock() {
            Ok(guard) => guard.replace(memory.clone()),
            Err(poisoned) => poisoned.into_inner().replace(memory.clone()),
        }
        self.handle.set_features(features & CONCERNS).map_err(refused)?;
        self.handle.set_mem_table(&regions).map_err(refused)?;
        for (index, active) in pair.into_iter().enumerate() {
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
        let tap = File::from(link.as_fd().try_clone_to_owned()?);
        self.started = true;
        for index in 0..2 {
            self.handle.set_backend(index, Some(&tap)).map_err(refused)?;
        }
        Ok(())
    }

    /// Takes the queues back. When this returns, the kernel no longer touches guest memory.
    pub(super) fn stop(&mut self) {
        if !std::mem::take(&mut self.started) {
            return;
        }
        for index in 0..2 {
            if let Err(error) = self.handle.set_backend(index, None) {
                tracing::error!(%error, "cannot take a queue back from vhost-net");
            }
        }
    }
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
}

impl Watch {
    /// For the pair whose first queue is `queue`.
    pub(super) fn new(service: &Arc<Service>, queue: u16) -> io::Result<Self> {
        let errors = EventFd::new(EFD_NONBLOCK)?;
        Ok(Self { service: Arc::clone(service), queue, errors })
    }
}

impl MutEventSubscriber for Watch {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        self.service.listen(ops, self.queue, self.errors.as_raw_fd(), 0);
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        if !self.service.is_stopped() {
            let reason = FaultReason::Request("vhost-net cannot make sense of the queue");
            let fault = QueueFault { queue: self.queue, address: 0, reason };
            self.service.check(self.queue, Err(fault.into()));
        }
    }
}
