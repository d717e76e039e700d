//! Sockets that the host's kernel serves (/dev/vhost-vsock).

use std::io;
use std::sync::Arc;

use vhost::vhost_kern::vsock::Vsock as Handle;
use vhost::vsock::VhostVsock as _;
use vm_memory::GuestMemory as _;

use super::QUEUE_SIZES;
use crate::io_thread::{IoThread, SubscriberId};
use crate::virtio::service::Service;
use crate::virtio::vhost::{Memory, Vhost, Watch, refused};
use crate::virtio::{Activation, DeviceKind, VirtioDevice, read_fields};

/// The socket device of the host's kernel. Only for guests whose memory is all shared.
pub struct KernelVsock {
    guest_cid: u64,
    vhost: Vhost<Handle<Memory>>,
    thread: IoThread,
    watch: Option<SubscriberId>,
}

impl KernelVsock {
    /// A device for the guest with context identifier `guest_cid`.
    ///
    /// # Errors
    /// This machine has no /dev/vhost-vsock, or another guest has that identifier.
    pub fn new(guest_cid: u32, thread: IoThread) -> io::Result<Self> {
        let guest_cid = u64::from(guest_cid);
        let vhost = Vhost::open(Handle::new, 0).map_err(refused)?;
        vhost.handle.set_guest_cid(guest_cid).map_err(refused)?;
        Ok(Self { guest_cid, vhost, thread, watch: None })
    }
}

impl VirtioDevice for KernelVsock {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_fields(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        if !self.vhost.knows(activation.features) {
            return Err(io::Error::other("vhost-vsock does not know all of the driver's features"));
        }
        // The event queue has no use while a guest stays where it is.
        let [Some(receive), Some(transmit), ..] = activation.queues.as_slice() else {
            return Err(io::Error::other("the driver did not enable both queues"));
        };
        let memory = activation.memory.physical_memory();
        let memory = memory.ok_or_else(|| io::Error::other("the guest's memory is private"))?;
        let service = Arc::new(Service::new(activation.control.clone()));
        let watch = Watch::new(&service, receive.index, Box::new(|| false))?;
        let queues = [receive, transmit];
        self.vhost.set_queues(memory, activation.features, queues, &watch.errors)?;
        self.watch = Some(self.thread.add(Box::new(watch))?);
        self.vhost.handle.start().map_err(refused)
    }

    fn reset(&mut self) {
        // When this returns, the kernel no longer touches guest memory.
        if let Err(error) = self.vhost.handle.stop() {
            tracing::error!(%error, "cannot take the queues back from vhost-vsock");
        }
        if let Some(watch) = self.watch.take() {
            // Fails only if the thread has ended, and what it watched with it.
            let _ = self.thread.remove(watch);
        }
    }
}
